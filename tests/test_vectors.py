"""Where weight vectors lie: rules against the real layers of each framework, specs, errors."""

import doctest
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

import p2t_jax as p2t
from p2t_jax._vectors import (
    Path,
    equinox_vectors,
    flax_vectors,
    haiku_vectors,
    path_names,
    stacked,
    vector_axes,
)
from p2t_jax._vectors import match as vectors_module

KEY = jax.random.key(0)
struct = jax.ShapeDtypeStruct


def named_axes(vectors: Any, tree: Any) -> dict[str, Any]:
    paths = ["/".join(path_names(p)) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return dict(zip(paths, vector_axes(vectors, tree), strict=True))


def permuted(vectors: Any, tree: Any) -> dict[str, Any]:
    return {path: axes for path, axes in named_axes(vectors, tree).items() if axes is not None}


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(KEY, shape)


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


class Nnx(nnx.Module):
    def __init__(self, **layers: Any) -> None:
        for name, layer in layers.items():
            setattr(self, name, layer)


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
            "conv1": nnx.Conv(2, 3, (2, 2), rngs=rngs),
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
    paths = [path_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
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


# Rules on what is not a layer of the table


class Cells(nn.Module):
    @nn.compact
    def __call__(self, x):
        for cell in (nn.LSTMCell(4), nn.OptimizedLSTMCell(4), nn.GRUCell(4), nn.SimpleCell(4)):
            x = nn.RNN(cell)(x)
        return nn.GroupNorm(2)(nn.LayerNorm()(nn.WeightNorm(nn.Dense(4))(x)))


def test_flax_recurrent_kernels_are_dense_and_norms_are_left_alone():
    params = jax.eval_shape(Cells().init, KEY, normal(1, 3, 2))["params"]
    axes = named_axes(flax_vectors, params)
    assert {a for n, a in axes.items() if n.endswith("kernel")} == {(0,)}
    assert {a for n, a in axes.items() if not n.endswith("kernel")} == {None}

    rngs = nnx.Rngs(0)
    cells = Nnx(lstm=nnx.LSTMCell(2, 3, rngs=rngs), gru=nnx.GRUCell(2, 3, rngs=rngs))
    assert set(permuted(flax_vectors, nnx.state(cells, nnx.Param)).values()) == {(0,)}


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (("step",), ()),
        (("kernel",), (3,)),
        (("Embed_0", "embedding"), (5, 4)),
        (("pos_embedding",), (1, 16, 4)),
        (("query", "bias"), (2, 3)),
        (("ConvLocal_0", "bias"), (4, 4, 3)),
        (("LayerNorm_0", "scale"), (4, 4)),
        (("ScanBlock_0", "Dense_0", "bias"), (12, 3)),
    ],
)
def test_flax_leaves_alone(path, shape):
    assert flax_vectors(path, struct(shape, jnp.float32)) is None


@pytest.mark.parametrize("path", [(), ("0",), ("layers", "1"), ("w",), ("mlp", "W1"), ("weights",)])
def test_flax_takes_bare_matrices_for_in_by_out(path):
    assert flax_vectors(path, struct((4, 3), jnp.float32)) == 0


@pytest.mark.parametrize(
    ("path", "shape", "says"),
    [
        (("Dense_0", "kernel"), (2, 4, 3), r"p2t_jax\.stacked"),
        (("DenseGeneral_0", "kernel"), (4, 2, 3), r"return \(0, 1\)"),
        (("layers", "0", "kernel"), (3, 3, 2, 4), r"return \(0, 1, 2\)"),
        (("decoder", "out", "kernel"), (4, 2, 3), r"return \(0, 1\)"),
        (("attn", "query", "kernel"), (2, 4, 2, 3), r"p2t_jax\.stacked"),
        (("ConvTranspose_0", "kernel"), (3, 3, 2, 4), r"\(0, 1, 3\) if .*, \(0, 1, 2\) if not"),
        (("deconv1", "kernel"), (3, 2, 4), r"\(0, 2\) if .*, \(0, 1\) if not"),
        (("ScanBlock_0", "Conv_0", "kernel"), (5, 3, 2, 4), r"return p2t_jax\.stacked\(p2t_jax\."),
        (("lora", "lora_a"), (4, 2), r"return \(0,\)"),
        (("linear", "weight"), (3, 4), "equinox_vectors"),
        (("conv2_d", "w"), (3, 3, 2, 4), "haiku_vectors"),
        ((), (2, 3, 4), "root of the tree"),
        (("cls_token",), (1, 4), r"path\[-2:\] == \('cls_token',\)"),
    ],
)
def test_flax_asks_for_what_it_does_not_know(path, shape, says):
    with pytest.raises(ValueError, match=says) as error:
        flax_vectors(path, struct(shape, jnp.float32))
    assert f"{'/'.join(path)}" in str(error.value)
    assert str(shape) in str(error.value)
    assert str(error.value).startswith("vectors: flax_vectors does not know")


def test_the_rule_that_an_error_proposes_works():
    leaf = np.zeros((4, 2, 3))
    with pytest.raises(ValueError, match="def vectors") as error:
        vector_axes(flax_vectors, {"a": {"kernel": leaf}})
    lines = str(error.value).split("\n\n")[1].splitlines()
    scope: dict[str, Any] = {"p2t_jax": vectors_module}
    exec("\n".join(line[4:] for line in lines), scope)  # the pasted snippet
    params = {"a": {"kernel": leaf}, "b": {"kernel": leaf[0]}}
    assert vector_axes(scope["vectors"], params) == ((0, 1), (0,))


def test_equinox_leaves_alone_and_recurrent():
    model = {
        "token_embed": eqx.nn.Embedding(5, 4, key=KEY),
        "norm": eqx.nn.LayerNorm((3, 4)),
        "lstm": eqx.nn.LSTMCell(2, 3, key=KEY),
        "mlp": eqx.nn.MLP(2, 2, 3, 1, key=KEY),
        "conv": eqx.nn.Conv2d(2, 3, 2, key=KEY),
    }
    assert permuted(equinox_vectors, eqx.filter(model, eqx.is_array)) == {
        "conv/weight": (1, 2, 3),
        "lstm/weight_ih": (1,),
        "lstm/weight_hh": (1,),
        "mlp/layers/0/weight": (1,),
        "mlp/layers/1/weight": (1,),
    }


@pytest.mark.parametrize(
    ("path", "shape", "right"),
    [
        (("layers", "0", "weight"), (3, 4, 2), r"\(1, 2\)"),  # an MLP with scan, a Conv1d
        (("linear", "weight"), (3, 4, 2, 2), r"\(1, 2, 3\)"),
        (("weight",), (3, 4, 2, 2), r"\(1, 2, 3\)"),
        (("linear", "kernel"), (3, 4), r"\(1,\)"),
        (("cell", "weight_ih"), (5, 8, 2), r"\(1, 2\)"),
    ],
)
def test_equinox_asks_for_what_it_does_not_know(path, shape, right):
    with pytest.raises(ValueError, match=f"equinox_vectors does not know.*{'/'.join(path)}") as e:
        equinox_vectors(path, np.zeros(shape))
    assert str(shape) in str(e.value)
    with pytest.raises(ValueError, match=f"return {right}"):
        equinox_vectors(path, np.zeros(shape))


def test_haiku_leaves_alone_and_recurrent():
    def net(x):
        hk.Embed(5, 4)(jnp.arange(3))
        hk.LayerNorm((-2, -1), True, True, param_axis=(-2, -1))(x)
        hk.Bias(bias_dims=[-2, -1])(x[None])
        gru, lstm = hk.GRU(3), hk.LSTM(3)
        gru(x, gru.initial_state(2)), lstm(x, lstm.initial_state(2))

    params = jax.eval_shape(hk.transform(net).init, KEY, normal(2, 4))
    assert permuted(haiku_vectors, params) == {
        "gru/w_h": (0,),
        "gru/w_i": (0,),
        "lstm/linear/w": (0,),
    }
    assert len(jax.tree.leaves(params)) == 9


@pytest.mark.parametrize(
    ("path", "shape", "right"),
    [
        (("up", "w"), (3, 3, 2, 4), r"\(0, 1, 2\)"),
        (("deconv", "w"), (3, 3, 2, 4), r"\(0, 1, 2\)"),
        (("linear", "w"), (5, 2, 4), r"\(0, 1\)"),
        (("net", "queries"), (2, 4), r"\(0,\)"),
    ],
)
def test_haiku_asks_for_what_it_does_not_know(path, shape, right):
    with pytest.raises(ValueError, match=f"haiku_vectors does not know.*{'/'.join(path)}") as e:
        haiku_vectors(path, np.zeros(shape))
    assert str(shape) in str(e.value)
    assert f"return {right}".replace("\\", "") in str(e.value)


# Stacks


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Conv(x.shape[-1], (3,))(nn.LayerNorm()(nn.Dense(x.shape[-1])(x)))
        return nn.MultiHeadDotProductAttention(1)(x), None


class Scanned(nn.Module):
    name_of_stack: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 4}
        return nn.scan(Block, **lift)(name=self.name_of_stack)(x, None)[0]


@pytest.mark.parametrize("name", ["blocks", None])
def test_stacked_by_linen_scan(name):
    params = jax.eval_shape(Scanned(name).init, KEY, normal(1, 5, 3))["params"]
    stack = name or "ScanBlock_0"

    def vectors(path, leaf):
        return (stacked(flax_vectors) if path[0] == stack else flax_vectors)(path, leaf)

    with pytest.raises(ValueError, match=f"{stack}/.*kernel.*shape \\(4, "):
        vector_axes(flax_vectors, params)
    assert permuted(vectors, params) == {
        "Dense_0/kernel": (0,),
        f"{stack}/Conv_0/kernel": (1, 2),
        f"{stack}/Dense_0/kernel": (1,),
        f"{stack}/MultiHeadDotProductAttention_0/key/kernel": (1,),
        f"{stack}/MultiHeadDotProductAttention_0/out/kernel": (1, 2),
        f"{stack}/MultiHeadDotProductAttention_0/query/kernel": (1,),
        f"{stack}/MultiHeadDotProductAttention_0/value/kernel": (1,),
    }


def test_stacked_by_nnx_vmap_jax_vmap_filter_vmap_and_layer_stack():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Nnx(linear=nnx.Linear(4, 3, rngs=rngs), conv=nnx.Conv(2, 3, (2,), rngs=rngs))

    params = nnx.state(make(nnx.Rngs(0).split(5)), nnx.Param)
    assert permuted(stacked(flax_vectors), params) == {
        "conv/kernel": (1, 2),
        "linear/kernel": (1,),
    }

    ensemble = jax.vmap(lambda key: nn.Dense(3).init(key, normal(4)))(jax.random.split(KEY, 5))
    assert permuted(stacked(flax_vectors), ensemble) == {"params/kernel": (1,)}

    mlps = eqx.filter_vmap(lambda key: eqx.nn.MLP(2, 2, 3, 1, key=key))(jax.random.split(KEY, 5))
    mlps = eqx.filter(mlps, eqx.is_array)
    with pytest.raises(ValueError, match=r"layers/0/weight.*\(5, 3, 2\)"):
        vector_axes(equinox_vectors, mlps)
    assert set(permuted(stacked(equinox_vectors), mlps).values()) == {(2,)}

    net = hk.transform(lambda x: hk.layer_stack(3)(lambda x: hk.Conv1D(2, 2)(x))(x))
    params = jax.eval_shape(net.init, KEY, normal(1, 5, 2))
    with pytest.raises(ValueError, match="may be a stack"):
        vector_axes(haiku_vectors, params)
    assert list(permuted(stacked(haiku_vectors), params).values()) == [(1, 2)]


def test_stacked_shifts_axes_wherever_the_stack_is():
    leaf = struct((3, 3, 2, 4), jnp.float32)
    seen = []

    def rule(path, leaf):
        seen.append((path, leaf.shape, leaf.dtype))
        return -1, 0

    assert [stacked(rule, a)(("w",), leaf) for a in (0, 1, -1)] == [(1, 3), (0, 3), (0, 2)]
    assert seen[1] == (("w",), (3, 2, 4), jnp.float32)
    assert stacked(stacked(rule))(("w",), leaf) == (2, 3)
    assert stacked(lambda path, leaf: None)(("w",), struct((3,), jnp.int32)) is None


def test_stacked_errors():
    with pytest.raises(TypeError, match=r"axis: .*True"):
        stacked(flax_vectors, True)
    with pytest.raises(ValueError, match=r"stack's axis 2 for a/w of shape \(3, 4\): its axes are"):
        stacked(flax_vectors, 2)(("a", "w"), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"stack's axis 0 for a/w of shape \(\): a scalar"):
        stacked(flax_vectors)(("a", "w"), np.zeros(()))
    with pytest.raises(ValueError, match=r"axes 1 for a/w of shape \(4,\): its axes are -1 to 0"):
        stacked(lambda path, leaf: 1)(("a", "w"), np.zeros((3, 4)))


# Paths


def nnx_model() -> nnx.Module:
    rngs = nnx.Rngs(0)
    return Nnx(
        attn=nnx.MultiHeadAttention(2, 4, rngs=rngs),
        layers=nnx.List([nnx.Linear(2, 3, rngs=rngs)]),
        value=nnx.Dict(value=nnx.Linear(2, 2, rngs=rngs)),
        bare=nnx.Param(jnp.ones((2, 2))),
    )


def test_nnx_variables_and_their_pure_arrays_have_the_same_paths():
    variables = nnx.state(nnx_model(), nnx.Param)
    trees = [variables, nnx.as_pure(variables), nnx.to_pure_dict(variables), nnx_model()]
    paths = [
        {path_names(p) for p, x in jax.tree_util.tree_leaves_with_path(t) if np.ndim(x) > 0}
        for t in trees
    ]
    assert paths[0] == paths[1] == paths[2]
    assert paths[0] <= paths[3]  # the module has the state of its generators besides
    assert ("attn", "value", "kernel") in paths[0]
    assert ("value", "value", "kernel") in paths[0]
    assert ("layers", "0", "kernel") in paths[0]
    assert ("bare",) in paths[0]


def test_path_names_of_other_trees():
    class Named(NamedTuple):
        w: Any

    def paths(tree):
        return [path_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]

    boxed = nn.Partitioned(jnp.ones((2, 2)), ("a", "b"))
    assert paths({"value": 1.0}) == [("value",)]
    assert paths({"a": [Named(1.0)]}) == [("a", "0", "w")]
    assert paths({"kernel": boxed}) == [("kernel",)]
    assert paths(jnp.ones(2)) == [()]


# Specs


def test_rules_take_arrays_tracers_and_structs():
    params = {"Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    seen = []

    def trace(params):
        seen.append(vector_axes(flax_vectors, params))

    jax.eval_shape(trace, params)
    shapes = jax.eval_shape(lambda x: x, params)
    numpy = jax.tree.map(np.asarray, params)
    assert [*seen, *(vector_axes(flax_vectors, t) for t in (params, shapes, numpy))] == [
        (None, (0,))
    ] * 4


@pytest.mark.parametrize(
    ("vectors", "shapes", "expected"),
    [
        (0, (4, 3), [(0,)]),
        ((-1, 0), (4, 3, 2), [(0, 2)]),
        ([np.int64(1), 0], (4, 3, 2), [(0, 1)]),
        (None, {"a": (4, 3), "b": ()}, [None, None]),
        (0, {"a": (4, 3), "b": (2,)}, [(0,), (0,)]),
        ((0, 1), {"a": (4, 3, 2), "b": (2, 2)}, [(0, 1), (0, 1)]),
        ({"a": None, "b": 0}, {"a": {"x": (2, 2), "y": (3,)}, "b": (2, 2)}, [None, None, (0,)]),
        ((0, None), [(4, 3), (3,)], [(0,), None]),
        ([0, None], [(4, 3), (3,)], [(0,), None]),
        ((0, 1), [(4, 3), (4, 3)], [(0,), (1,)]),
        ({"a": ((0, 1), None)}, {"a": [(3, 4, 5), (5,)]}, [(0, 1), None]),
        (flax_vectors, {}, []),
        ({}, {}, []),
        (0, {"a": {}}, []),
    ],
)
def test_specs(vectors, shapes, expected):
    is_shape = lambda s: isinstance(s, tuple)  # noqa: E731
    tree = jax.tree.map(lambda s: struct(s, jnp.float32), shapes, is_leaf=is_shape)
    assert vector_axes(vectors, tree) == tuple(expected)
    if isinstance(tree, list):
        assert vector_axes(vectors, tuple(tree)) == tuple(expected)
    if isinstance(tree, dict):
        assert vector_axes(vectors, freeze(tree)) == tuple(expected)


def test_a_tuple_is_structure_only_where_the_parameters_have_a_sequence():
    w = jnp.ones((4, 3))

    class Named(NamedTuple):
        w: Any
        v: Any

    assert vector_axes(Named(0, (1,)), Named(w, w)) == ((0,), (1,))
    assert vector_axes({"w": 0, "v": None}, Named(w, w)) == ((0,), None)
    with pytest.raises(ValueError, match=r"root of the tree: they have \['w', 'v'\]"):
        vector_axes((0, 1), Named(w, w))
    state = nnx.state(Nnx(layers=nnx.List([nnx.Param(w), nnx.Param(w)])), nnx.Param)
    assert vector_axes({"layers": (0, 1)}, state) == ((0,), (1,))


def test_a_rule_may_stand_in_a_prefix_tree():
    params = {"a": {"kernel": jnp.ones((4, 3))}, "b": {"weight": jnp.ones((4, 3))}}
    assert vector_axes({"a": flax_vectors, "b": equinox_vectors}, params) == ((0,), (1,))


def test_one_prefix_tree_fits_nnx_with_and_without_variables():
    state = nnx.state(nnx_model(), nnx.Param)
    axes = {
        "attn": None,
        "bare": 0,
        "layers": [{"bias": 0, "kernel": (0, 1)}],
        "value": {"value": {"bias": None, "kernel": 1}},
    }
    expected = {
        "bare": (0,),
        "layers/0/bias": (0,),
        "layers/0/kernel": (0, 1),
        "value/value/kernel": (1,),
    }
    for tree in (state, nnx.as_pure(state), nnx.to_pure_dict(state)):
        assert permuted(axes, tree) == expected

    mapped = jax.tree.map(lambda x: tuple(range(x.ndim)) if x.ndim < 3 else None, state)
    for spec in (mapped, nnx.as_pure(mapped)):
        assert permuted(spec, state) == permuted(spec, nnx.as_pure(state))
        assert permuted(spec, state)["layers/0/kernel"] == (0, 1)
        assert "attn/query/kernel" not in permuted(spec, state)


def test_an_equinox_module_of_axes_is_a_tree_although_it_is_callable():
    params = eqx.filter(eqx.nn.MLP(2, 2, 3, 1, key=KEY), eqx.is_array)
    axes = jax.tree.map(lambda x: 1 if x.ndim == 2 else None, params)
    assert set(permuted(axes, params).values()) == {(1,)}
    assert permuted(axes, params) == permuted(equinox_vectors, params)


def test_nodes_without_leaves_yield_nothing():
    @jax.tree_util.register_static
    class Static:
        pass

    params = {
        "a": optax.MaskedNode(),
        "b": jnp.ones((4, 3)),
        "c": None,
        "d": {"kernel": optax.MaskedNode()},
        "e": Static(),
    }
    full = {"a": {"kernel": 0}, "b": 0, "c": (0, 1), "d": {"kernel": 0, "bias": None}, "e": None}
    assert vector_axes(full, params) == ((0,),)
    assert vector_axes(lambda path, leaf: 1, params) == ((1,),)
    assert vector_axes(full, {"a": None, "b": optax.MaskedNode()}) == ()
    assert vector_axes(flax_vectors, Static()) == ()
    model = nnx.state(nnx_model(), nnx.Param)
    masked = jax.tree.map(lambda x: optax.MaskedNode() if x.ndim > 2 else x, model)
    assert len(vector_axes(0, masked)) == len(jax.tree.leaves(masked))


@pytest.mark.parametrize(
    ("axes", "shape", "error", "says"),
    [
        (2, (4, 3), ValueError, "axes 2 .*: its axes are -2 to 1"),
        (-3, (4, 3), ValueError, "axes -3 .*: its axes are -2 to 1"),
        ((0, 5), (4, 3), ValueError, r"axes \(0, 5\) .*: its axes are -2 to 1"),
        (0, (), ValueError, "a scalar has none, give it None"),
        ((0, 0), (4, 3), ValueError, r"named twice, write \(0,\)"),
        ((0, -2), (4, 3), ValueError, r"named twice, write \(0,\)"),
        ((), (4, 3), ValueError, "at least one axis, or None"),
        (True, (4, 3), TypeError, "axes True .*: give an int"),
        (0.0, (4, 3), TypeError, r"axes 0\.0 .*: give an int"),
        ((0, 1.0), (4, 3), TypeError, "give an int"),
        ((0, None), (4, 3), TypeError, "give an int"),
        ("0", (4, 3), ValueError, "flax"),
        ({"kernel": 0}, (4, 3), TypeError, "give an int"),
    ],
)
def test_axes_that_a_leaf_cannot_have(axes, shape, error, says):
    tree = {"net": {"w": np.ones(shape, np.float32)}}
    where = rf"^vectors: .*net/w of shape \({', '.join(map(str, shape))}\)"
    for spec in ({"net": {"w": axes}}, lambda path, leaf: axes):
        with pytest.raises(error, match=says):
            vector_axes(spec, tree)
        with pytest.raises(error, match=where):
            vector_axes(spec, tree)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_of_weights(dtype):
    assert vector_axes(0, {"w": struct((4, 3), dtype)}) == ((0,),)


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "uint8", "float8_e4m3fn"])
def test_dtypes_that_are_not_weights(dtype):
    tree = {"w": struct((4, 3), dtype)}
    assert vector_axes(None, tree) == (None,)
    with pytest.raises(TypeError, match=rf"vectors: axes 0 for w of shape \(4, 3\).*{dtype}.*None"):
        vector_axes(0, tree)


def test_random_keys_are_not_weights():
    tree = {"key": jax.random.split(KEY, 3), "w": jnp.ones((4, 3))}
    assert vector_axes(flax_vectors, tree) == (None, (0,))


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ({"a": {"kernel": 0}, "b": None}, r"at a: they have \['bias', 'kernel'\].*\['kernel'\]"),
        ({"a": 0}, r"at the root of the tree: they have \['a', 'b'\], vectors has \['a'\]"),
        ({"a": 0, "b": 0, "c": 0}, r"vectors has \['a', 'b', 'c'\]"),
        ({"a": 0, "b": (0, 1, 0)}, r"at b: .*\['0', '1'\], vectors has \['0', '1', '2'\]"),
    ],
)
def test_prefix_trees_that_do_not_match(vectors, says):
    w = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=f"^vectors: the tree of axes does not match.*{says}"):
        vector_axes(vectors, {"a": {"kernel": w, "bias": w[0]}, "b": (w, w)})


def test_the_examples_of_the_docstrings_run():
    results = doctest.testmod(vectors_module)
    assert results.attempted >= 6
    assert results.failed == 0


def test_stacked_rules_of_the_same_rule_are_equal_and_can_be_pickled():
    rule = p2t.stacked(p2t.flax_vectors, axis=1)
    assert rule == p2t.stacked(p2t.flax_vectors, axis=1)
    assert rule != p2t.stacked(p2t.flax_vectors)
    assert rule != p2t.stacked(p2t.haiku_vectors, axis=1)
    assert pickle.loads(pickle.dumps(rule)) == rule
    params = {"kernel": jnp.ones((4, 2, 3))}
    states = [
        p2t.laperm(optax.sgd(1.0), 2, vectors=p2t.stacked(p2t.flax_vectors)).init(params)
        for _ in range(2)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
