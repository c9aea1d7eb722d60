"""Networks of Flax, Equinox and Haiku, and where their weight vectors are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from vector_helpers import shape

KEY = jax.random.key(0)


class Case(NamedTuple):
    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    rule: Any
    expected: dict[str, Any]  # of the weight vectors; every other leaf is None


def linen(layer: nn.Module, expected: dict[str, Any], *inputs: Any, **kwargs: Any) -> Case:
    variables = jax.eval_shape(lambda *x: layer.init(KEY, *x, **kwargs), *inputs)
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def fn(params, *inputs):
        others = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), rest)
        mutable = ["batch_stats", "intermediates"]
        return layer.apply({"params": params, **others}, *inputs, mutable=mutable, **kwargs)[0]

    return Case(fn, variables["params"], inputs, "flax", expected)


def nnx_(make: Callable[[nnx.Rngs], nnx.Module], expected: Any, *inputs: Any) -> Case:
    graph, params, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)

    def fn(params, *inputs):
        return nnx.merge(graph, params, rest, copy=True)(*inputs)

    return Case(fn, params, inputs, "flax", expected)


def equinox(model: Any, expected: dict[str, Any], *inputs: Any) -> Case:
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def fn(params, *inputs):
        return eqx.combine(params, rest)(*inputs)

    return Case(fn, params, inputs, "equinox", expected)


def haiku(net: Callable[..., Any], expected: dict[str, Any], *inputs: Any) -> Case:
    transformed = hk.transform(net)
    params = jax.eval_shape(transformed.init, KEY, *inputs)
    fn = lambda params, *inputs: transformed.apply(params, KEY, *inputs)  # noqa: E731
    return Case(fn, params, inputs, "haiku", expected)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x)) + x
        return nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(h)))) + h, None


BLOCK = {
    "MultiHeadDotProductAttention_0/query/kernel": (0,),
    "MultiHeadDotProductAttention_0/key/kernel": (0,),
    "MultiHeadDotProductAttention_0/value/kernel": (0,),
    "MultiHeadDotProductAttention_0/out/kernel": (0, 1),
    "Dense_0/kernel": (0,),
    "Dense_1/kernel": (0,),
}


def stacked(axes: dict[str, tuple[int, ...]], axis: int) -> dict[str, tuple[int, ...]]:
    return {f"blocks/{n}": tuple(a + (a >= axis) for a in those) for n, those in axes.items()}


class Scanned(nn.Module):
    axis: int
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        lift = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        block = nn.remat(Block) if self.remat else Block
        return nn.scan(block, length=3, **lift)(name="blocks")(x, None)[0]


class Vmapped(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x):
        lift = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        vmapped = nn.vmap(Block, in_axes=(None, None), axis_size=3, **lift)
        return vmapped(name="blocks")(x, None)[0]


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 4)
        return embed.attend(nn.Dense(4)(embed(tokens)))


class Named(nn.Module):
    """Layers with a name, to compare with the rules, which look at it."""

    layer: Any

    @nn.compact
    def __call__(self, *args):
        return self.layer()(*args)


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = make(rngs.split(3))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return jnp.tanh(layer(x))

        return run(x, self.layers)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.lora = nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs)
        self.value = nnx.Param(jnp.ones((5, 6)))  # a parameter that is called value

    def __call__(self, x):
        return jnp.tanh(self.lora(self.norm(self.conv(x)))) @ self.value[...]


class NnxEinsum(nnx.Module):
    def __init__(self, rngs):
        self.einsum = nnx.Einsum("nta,hab->nthb", (2, 4, 3), (2, 3), rngs=rngs)

    def __call__(self, x):
        return self.einsum(x)


class EqxAttention(eqx.Module):
    """Attributes query, key and value are parameters."""

    query: jax.Array
    key: jax.Array
    value: jax.Array

    def __call__(self, x):
        q, k, v = x @ self.query, x @ self.key, x @ self.value
        return jax.nn.softmax(q @ k.T) @ v


class EqxRnn(eqx.Module):
    cell: eqx.nn.GRUCell
    lstm: eqx.nn.LSTMCell

    def __call__(self, x):
        _, h = jax.lax.scan(lambda h, x: (self.cell(x, h),) * 2, jnp.zeros(3), x)
        start = jnp.zeros(2), jnp.zeros(2)
        return jax.lax.scan(lambda state, h: (self.lstm(h, state), None), start, h)[0]


def eqx_rnn() -> Case:
    model = EqxRnn(eqx.nn.GRUCell(4, 3, key=KEY), eqx.nn.LSTMCell(3, 2, key=KEY))
    expected = {f"{c}/weight_{n}": (1,) for c in ("cell", "lstm") for n in ("ih", "hh")}
    return equinox(model, expected, shape(5, 4))


def eqx_stack() -> Case:
    params = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(jax.random.split(KEY, 3))

    class Stack(eqx.Module):
        layers: eqx.nn.Linear

        def __call__(self, x):
            return jax.lax.scan(lambda x, layer: (jnp.tanh(layer(x)), None), x, self.layers)[0]

    return equinox(Stack(params), {"layers/weight": (2,)}, shape(4))


def hk_rnn(x):
    core = hk.LSTM(3)
    x, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
    gru = hk.GRU(2)
    return hk.dynamic_unroll(gru, x, gru.initial_state(None))[0]
