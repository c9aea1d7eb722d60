"""The rules by name on real layers: a weight vector is what one output of the layer reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx
from vector_helpers import KEY, Nnx, normal, permuted

from p2t_jax._vectors import (
    Path,
    equinox_vectors,
    flax_vectors,
    haiku_vectors,
    named_leaves,
    stacked,
    vector_axes,
)

# The oracle: whatever a rule says, what does the layer compute?


class Case(NamedTuple):
    """A real layer: its parameters, and what the layer at a path computes from parameters."""

    params: Any
    output: Callable[[Any, Path], jax.Array]
    vectors: Any
    expected: dict[str, Any]  # of the weight vectors; every other leaf is None


class Linen(nn.Module):
    """Names its layer as a user's compact module does, `Dense_0`."""

    layer: Any

    @nn.compact
    def __call__(self, x):
        return self.layer()(x)


def linen(layer: Any, x: jax.Array, expected: dict[str, Any], vectors: Any = flax_vectors) -> Case:
    net = Linen(layer)

    def output(params, path):
        _, state = net.apply({"params": params}, x, capture_intermediates=True)
        at = state["intermediates"]
        for name in path[:-1]:
            at = at[name]
        return at["__call__"][0]

    return Case(net.init(KEY, x)["params"], output, vectors, expected)


def nnx_(layers: Any, expected: dict[str, Any], inputs: Any, vectors: Any = flax_vectors) -> Case:
    graph, params, rest = nnx.split(Nnx(**layers(nnx.Rngs(0))), nnx.Param, ...)

    def output(params, path):
        layer = nnx.merge(graph, params, rest)
        for name in path[:-1]:
            layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
        return layer(inputs["/".join(path[:-1])])

    return Case(params, output, vectors, expected)


def equinox(model: Any, expected: dict[str, Any], inputs: Any) -> Case:
    params, rest = eqx.partition(model, eqx.is_array)

    def output(params, path):
        layer = eqx.combine(params, rest)
        for name in path[:-1]:
            layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
        return layer(inputs["/".join(path[:-1])])

    return Case(params, output, equinox_vectors, expected)


def haiku(layer: Any, x: jax.Array, expected: dict[str, Any]) -> Case:
    net = hk.without_apply_rng(hk.transform(lambda x: layer()(x)))
    return Case(net.init(KEY, x), lambda params, _: net.apply(params, x), haiku_vectors, expected)


def nnx_attention(rngs: nnx.Rngs) -> dict[str, Any]:
    return {"self_attn": nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)}


def vmapped_dense() -> nn.Module:
    lift = {"variable_axes": {"params": 0, "intermediates": 0}, "split_rngs": {"params": True}}
    return nn.vmap(nn.Dense, **lift)(3)


def vmapped_conv() -> nn.Module:
    lift = {"variable_axes": {"params": 1, "intermediates": 0}, "split_rngs": {"params": True}}
    return nn.vmap(nn.Conv, **lift)(3, (2,))


CASES: dict[str, Callable[[], Case]] = {
    "linen-dense": lambda: linen(lambda: nn.Dense(3), normal(2, 4), {"Dense_0/kernel": (0,)}),
    "linen-conv1d": lambda: linen(
        lambda: nn.Conv(3, (2,)), normal(1, 5, 2), {"Conv_0/kernel": (0, 1)}
    ),
    "linen-conv2d": lambda: linen(
        lambda: nn.Conv(3, (2, 2)), normal(1, 4, 4, 2), {"Conv_0/kernel": (0, 1, 2)}
    ),
    "linen-conv3d": lambda: linen(
        lambda: nn.Conv(2, (2, 2, 2), padding="VALID"),
        normal(1, 2, 2, 3, 2),
        {"Conv_0/kernel": (0, 1, 2, 3)},
    ),
    "linen-conv-grouped": lambda: linen(
        lambda: nn.Conv(6, (2, 2), feature_group_count=2),
        normal(1, 4, 4, 4),
        {"Conv_0/kernel": (0, 1, 2)},
    ),
    "linen-conv-depthwise": lambda: linen(
        lambda: nn.Conv(4, (3,), feature_group_count=4), normal(1, 5, 4), {"Conv_0/kernel": (0, 1)}
    ),
    "linen-conv-local": lambda: linen(
        lambda: nn.ConvLocal(3, (2,), padding="VALID"),
        normal(1, 5, 2),
        {"ConvLocal_0/kernel": (1,)},
    ),
    "linen-conv-local2d": lambda: linen(
        lambda: nn.ConvLocal(2, (2, 2), padding="VALID"),
        normal(1, 3, 3, 2),
        {"ConvLocal_0/kernel": (2,)},
    ),
    "linen-conv-transpose": lambda: linen(
        lambda: nn.ConvTranspose(3, (2, 2)),
        normal(1, 3, 3, 2),
        {"ConvTranspose_0/kernel": (0, 1, 2)},
        {"ConvTranspose_0": {"kernel": (0, 1, 2), "bias": None}},
    ),
    "linen-conv-transpose-kernel": lambda: linen(
        lambda: nn.ConvTranspose(3, (2, 2), transpose_kernel=True),
        normal(1, 3, 3, 2),
        {"ConvTranspose_0/kernel": (0, 1, 3)},
        {"ConvTranspose_0": {"kernel": (0, 1, 3), "bias": None}},
    ),
    "linen-attention": lambda: linen(
        lambda: nn.MultiHeadDotProductAttention(2, qkv_features=4),
        normal(1, 3, 5),
        {
            "MultiHeadDotProductAttention_0/key/kernel": (0,),
            "MultiHeadDotProductAttention_0/out/kernel": (0, 1),
            "MultiHeadDotProductAttention_0/query/kernel": (0,),
            "MultiHeadDotProductAttention_0/value/kernel": (0,),
        },
    ),
    "linen-vmapped-dense": lambda: linen(
        vmapped_dense, normal(3, 2, 4), {"VmapDense_0/kernel": (1,)}, stacked(flax_vectors)
    ),
    "linen-vmapped-conv": lambda: linen(
        vmapped_conv, normal(3, 4, 2), {"VmapConv_0/kernel": (0, 2)}, stacked(flax_vectors, 1)
    ),
    "nnx-linear-conv": lambda: nnx_(
        lambda rngs: {
            "linear1": nnx.Linear(4, 3, rngs=rngs),
            "conv1": nnx.Conv(2, 3, (3, 3), rngs=rngs),
        },
        {"conv1/kernel": (0, 1, 2), "linear1/kernel": (0,)},
        {"linear1": normal(2, 4), "conv1": normal(1, 4, 4, 2)},
    ),
    "nnx-list": lambda: nnx_(
        lambda rngs: {"layers": nnx.List([nnx.Linear(4, 3, rngs=rngs) for _ in range(2)])},
        {"layers/0/kernel": (0,), "layers/1/kernel": (0,)},
        {"layers/0": normal(2, 4), "layers/1": normal(2, 4)},
    ),
    "nnx-attention": lambda: nnx_(
        nnx_attention,
        {
            "self_attn/key/kernel": (0,),
            "self_attn/out/kernel": (0, 1),
            "self_attn/query/kernel": (0,),
            "self_attn/value/kernel": (0,),
        },
        {
            "self_attn/key": normal(2, 6),
            "self_attn/query": normal(2, 6),
            "self_attn/value": normal(2, 6),
            "self_attn/out": normal(2, 2, 3),
        },
    ),
    "equinox-linear-conv": lambda: equinox(
        eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Conv2d(2, 3, 2, key=KEY)]),
        {"layers/0/weight": (1,), "layers/1/weight": (1, 2, 3)},
        {"layers/0": normal(4), "layers/1": normal(2, 4, 4)},
    ),
    "equinox-named": lambda: equinox(
        EquinoxNet(
            eqx.nn.Conv1d(4, 6, 2, groups=2, key=KEY),
            eqx.nn.ConvTranspose2d(2, 3, 2, key=KEY),
            eqx.nn.MultiheadAttention(2, 4, key=KEY),
        ),
        {
            "conv/weight": (1, 2),
            "deconv/weight": (1, 2, 3),
            "attention/query_proj/weight": (1,),
            "attention/key_proj/weight": (1,),
            "attention/value_proj/weight": (1,),
            "attention/output_proj/weight": (1,),
        },
        {
            "conv": normal(4, 5),
            "deconv": normal(2, 3, 3),
            **{f"attention/{n}_proj": normal(4) for n in ("query", "key", "value", "output")},
        },
    ),
    "haiku-linear": lambda: haiku(lambda: hk.Linear(3), normal(2, 4), {"linear/w": (0,)}),
    "haiku-conv1d": lambda: haiku(lambda: hk.Conv1D(3, 2), normal(1, 5, 2), {"conv1_d/w": (0, 1)}),
    "haiku-conv2d-channels-first": lambda: haiku(
        lambda: hk.Conv2D(3, 2, data_format="NCHW"), normal(1, 2, 4, 4), {"conv2_d/w": (0, 1, 2)}
    ),
    "haiku-conv2d-grouped": lambda: haiku(
        lambda: hk.Conv2D(4, 2, feature_group_count=2), normal(1, 4, 4, 4), {"conv2_d/w": (0, 1, 2)}
    ),
    "haiku-conv-transpose": lambda: haiku(
        lambda: hk.Conv2DTranspose(3, 2), normal(1, 3, 3, 2), {"conv2_d_transpose/w": (0, 1, 3)}
    ),
    "haiku-depthwise": lambda: haiku(
        lambda: hk.DepthwiseConv2D(2, 2), normal(1, 3, 3, 2), {"depthwise_conv2_d/w": (0, 1, 2)}
    ),
}


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv1d
    deconv: eqx.nn.ConvTranspose2d
    attention: eqx.nn.MultiheadAttention


@pytest.mark.parametrize("name", CASES)
def test_a_vector_is_all_that_one_output_of_the_layer_reads_of_a_parameter(name):
    params, output, vectors, expected = CASES[name]()
    assert permuted(vectors, params) == expected
    leaves, tree = jax.tree.flatten(params)
    paths = [path for path, _ in named_leaves(params)]
    for i, axes in enumerate(vector_axes(vectors, params)):
        if axes is None:
            continue

        def layer(kernel, i=i):
            return output(tree.unflatten([*leaves[:i], kernel, *leaves[i + 1 :]]), paths[i])

        reads = np.asarray(jax.jit(jax.jacobian(layer))(leaves[i])) != 0
        reads = reads.reshape(-1, *leaves[i].shape)
        last = range(reads.ndim - len(axes), reads.ndim)
        reads = np.moveaxis(reads, [a + 1 for a in axes], last)
        size = int(np.prod([leaves[i].shape[a] for a in axes]))
        reads = reads.reshape(len(reads), -1, size)  # output element, vector, weight
        assert (reads.any(axis=2).sum(axis=1) == 1).all(), "an output reads a single vector"
        assert reads.all(axis=2).any(axis=0).all(), "and some output reads all of the vector"
