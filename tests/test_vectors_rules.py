"""The rules by name: what they know, what they ask, and how the question is answered."""

import json
import pickle
from pathlib import Path as File
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from vector_helpers import KEY, Nnx, named_axes, normal, permuted, struct

import p2t_jax as p2t
from p2t_jax._vectors import (
    Path,
    equinox_vectors,
    flax_vectors,
    haiku_vectors,
    named_vectors,
    stacked,
    vector_axes,
)

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


@pytest.mark.parametrize("path", [("w",), ("mlp", "W1"), ("weights",), ("gru", "recurrent_kernel")])
def test_flax_takes_bare_matrices_for_in_by_out(path):
    assert flax_vectors(path, struct((4, 3), jnp.float32)) == 0


def asks(rule: Any, path: Path, shape: tuple[int, ...]) -> None:
    name = "/".join(path) or "the root of the tree"
    with pytest.raises(ValueError, match=f"^vectors: {rule.__name__} does not know") as error:
        rule(path, struct(shape, jnp.float32))
    assert name in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (("Dense_0", "kernel"), (2, 4, 3)),  # a stack
        (("DenseGeneral_0", "kernel"), (4, 2, 3)),
        (("layers", "0", "kernel"), (3, 3, 2, 4)),
        (("decoder", "out", "kernel"), (4, 2, 3)),
        (("attn", "query", "kernel"), (2, 4, 2, 3)),
        (("attn", "query", "kernel"), (12, 4, 4)),  # twelve layers
        (("conv", "kernel"), (12, 3, 3, 4)),  # twelve layers, of one dimension
        (("conv_proj", "kernel"), (8, 8, 4, 8)),  # a ConvLocal under a name of its own
        (("local_conv", "kernel"), (3, 3, 1, 4)),
        (("depthwise_conv2d", "kernel"), (3, 3, 8, 1)),
        (("ConvTranspose_0", "kernel"), (3, 3, 2, 4)),
        (("deconv1", "kernel"), (3, 2, 4)),
        (("ScanBlock_0", "Conv_0", "kernel"), (5, 3, 2, 4)),
        (("lora", "lora_a"), (4, 2)),
        (("c_attn", "kernel"), (4, 12)),
        (("Einsum_0", "kernel"), (4, 3)),  # "bi,oi->bo"
        (("VmapEinsum_0", "kernel"), (1, 1, 4, 3)),
        (("einsum_dense", "kernel"), (4, 3)),  # Keras
        (("layer_0", "q_einsum", "w"), (4, 3)),
        (("DenseGeneral_0", "kernel"), (1, 1, 4, 3)),  # of one pixel, or of features (4, 3)
        (("patch_embed",), (4, 2)),
        (("linear", "weight"), (3, 4)),
        (("conv2_d", "w"), (3, 3, 2, 4)),
        (("0",), (4, 3)),
        ((), (4, 3)),
        ((), (2, 3, 4)),
    ],
)
def test_flax_asks_for_what_it_does_not_know(path, shape):
    asks(flax_vectors, path, shape)


class Outputs(nn.Module):
    """A layer that has its outputs first, as its equation says."""

    name_of_layer: str | None = None

    @nn.compact
    def __call__(self, x):
        return nn.Einsum((3, 4), "bi,oi->bo", name=self.name_of_layer)(nn.Dense(4)(x))


def test_an_einsum_is_asked_for_and_the_network_tells():
    x = normal(2, 4)
    params = Outputs().init(KEY, x)
    with pytest.raises(ValueError, match=r"Einsum_\*/kernel: the axes .* its equation") as error:
        vector_axes("flax", params)
    assert "Dense_0" not in str(error.value)
    for name in (None, "readout"):  # Under such a name, only the network tells.
        net = Outputs(name)
        axes = p2t.infer_vectors(net.apply, net.init(KEY, x), x)["params"]
        assert axes[name or "Einsum_0"]["kernel"] == (1,)
        assert axes["Dense_0"]["kernel"] == (0,)


def test_equinox_decides_by_the_class_of_a_module():
    class Mine(eqx.nn.Linear):
        """A subclass."""

    class Model(eqx.Module):
        embedding: eqx.nn.Linear
        unembedding: Mine
        layers: list[Any]
        norm: eqx.nn.Conv1d

    model = Model(
        eqx.nn.Linear(2, 3, key=KEY),
        Mine(3, 4, key=KEY),
        [
            eqx.nn.Embedding(5, 4, key=KEY),
            eqx.nn.LayerNorm((3, 4)),
            eqx.nn.Conv1d(2, 3, 2, key=KEY),
        ],
        eqx.nn.Conv1d(2, 3, 4, key=KEY),
    )
    expected = {
        "embedding/weight": (1,),
        "unembedding/weight": (1,),
        "layers/2/weight": (1, 2),
        "norm/weight": (1, 2),
    }
    assert permuted("equinox", eqx.filter(model, eqx.is_array)) == expected
    assert permuted("equinox", {"a": [model]}.copy()["a"][0]) == expected
    wrapped = lambda path, leaf: equinox_vectors(path, leaf)  # noqa: E731
    assert permuted({"model": wrapped}, {"model": model}) == {
        f"model/{name}": axes for name, axes in expected.items()
    }


def test_an_equinox_layer_within_a_layer_decides():
    model = eqx.nn.WeightNorm(eqx.nn.Linear(2, 3, key=KEY))
    assert permuted("equinox", eqx.filter(model, eqx.is_array)) == {"layer/weight": (1,)}


def test_a_stack_of_equinox_layers_is_asked_for():
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(2, 3, key=key))(jax.random.split(KEY, 4))
    with pytest.raises(ValueError, match=r"a Linear's weight has rank 2: it may be a stack"):
        vector_axes("equinox", {"layers": layers})
    assert permuted(stacked("equinox"), {"layers": layers}) == {"layers/weight": (2,)}


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
    ("path", "shape"),
    [
        (("layers", "0", "weight"), (3, 4, 2)),  # an MLP with scan, a Conv1d
        (("linear", "weight"), (3, 4, 2, 3)),
        (("conv", "weight"), (5, 3, 4, 2)),  # five layers, of one dimension
        (("linear", "kernel"), (3, 4)),
        (("cell", "weight_ih"), (5, 8, 2)),
        (("tok_emb", "weight"), (5, 4)),
        (("unembedding", "weight"), (5, 4)),
        (("einsum", "weight"), (5, 4)),
        (("ln", "weight"), (5, 4)),
    ],
)
def test_equinox_asks_for_what_it_does_not_know(path, shape):
    asks(equinox_vectors, path, shape)


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
    ("path", "shape"),
    [
        (("up", "w"), (3, 3, 2, 4)),
        (("deconv", "w"), (3, 3, 2, 4)),
        (("conv2_d", "w"), (5, 3, 2, 4)),
        (("linear", "w"), (5, 2, 4)),
        (("net", "queries"), (2, 4)),
        (("net/~/einsum", "w"), (2, 4)),
    ],
)
def test_haiku_asks_for_what_it_does_not_know(path, shape):
    asks(haiku_vectors, path, shape)


def models() -> list[Any]:
    """Parameters of 97 public models, with the axes that their computation has."""
    return json.loads((File(__file__).parent / "oracles" / "models.json").read_text())


def test_rules_are_never_wrong_on_public_models_and_seldom_ask():
    asked = total = 0
    for model in models():
        rule = model["rule"]
        for path, shape, axes in model["leaves"]:
            total += 1
            try:
                (found,) = vector_axes(
                    lambda _, leaf, rule=rule, path=path: p2t_rule(rule)(tuple(path), leaf),
                    struct(tuple(shape), jnp.float32),
                )
            except ValueError:
                asked += 1
                continue
            assert found == (axes and tuple(axes)), (model["model"], path, shape)
    assert total > 1000
    assert asked <= 0.15 * total


def p2t_rule(name: str) -> Any:
    return {"flax": flax_vectors, "equinox": equinox_vectors, "haiku": haiku_vectors}[name]


# One question


def test_one_error_asks_for_all_parameters_by_name_and_rank():
    leaves = {
        f"layer_{i}": {
            "q_einsum": {"w": struct((4, 16, 6), jnp.float32)},
            "kv_einsum": {"w": struct((2, 2, 16, 6), jnp.float32)},
            "mlp": {"kernel": struct((16, 6), jnp.float32)},
        }
        for i in range(12)
    }
    with pytest.raises(ValueError, match="24 parameters") as error:
        vector_axes("flax", leaves)
    message = str(error.value)
    assert message.count("q_einsum/w") == 3  # the reason, the table, an example
    assert "p2t_jax.infer_vectors(fn, params, *inputs)" in message
    assert 'otherwise="flax")' in message
    assert "return" not in message  # no guess to paste

    table = message[message.index("vectors = ") :]
    scope = {"p2t_jax": p2t}
    exec(table, scope)
    with pytest.raises(TypeError, match="axes Ellipsis for layer_0/kv_einsum/w"):
        vector_axes(scope["vectors"], leaves)
    exec(table.replace('"q_einsum/w": ...', '"q_einsum/w": 1').replace("...", "None"), scope)
    found = permuted(scope["vectors"], leaves)
    assert found.pop("layer_3/q_einsum/w") == (1,)
    assert found.pop("layer_3/mlp/kernel") == (0,)
    assert len(found) == 22


def test_a_single_array_needs_no_table():
    with pytest.raises(ValueError, match=r"vectors = \.\.\.  # \(4, 3\)$"):
        vector_axes("flax", struct((4, 3), jnp.float32))


def test_parameters_of_one_name_and_several_ranks_are_told_apart():
    tree = {
        "a": {"up": {"kernel": struct((4, 2, 3), jnp.float32)}},
        "b": {"up": {"kernel": struct((4, 4, 2, 3), jnp.float32)}},
        "c": [struct((4, 3), jnp.float32)] * 3,
    }
    with pytest.raises(ValueError, match="5 parameters") as error:
        vector_axes("flax", tree)
    message = str(error.value)
    for line in ('"a/up/kernel": ...,', '"b/up/kernel": ...,', '"c/*": ...,  # 3 parameters'):
        assert line in message


# A table of names


def test_a_table_decides_by_the_end_of_the_path():
    rule = named_vectors(
        {
            "w": 0,
            "q_einsum/w": 1,
            "layers_*/*/kernel": None,
            "stack/kernel": stacked("flax"),
            "x": [0, 1],
        },
        otherwise="haiku",
    )
    leaf = np.zeros((4, 3, 2), np.float32)
    assert rule(("w",), leaf) == 0
    assert rule(("a", "q_einsum", "w"), leaf) == 1
    assert rule(("a/q_einsum", "w"), leaf) == 1
    assert rule(("xq_einsum", "w"), leaf) == 0
    assert rule(("layers_3", "a", "kernel"), leaf) is None
    assert rule(("stack", "kernel"), leaf) == (1,)
    assert rule(("x",), leaf) == (0, 1)
    assert rule(("linear", "b"), leaf) is None
    with pytest.raises(ValueError, match="haiku_vectors does not know"):
        rule(("linear", "weight"), leaf)


def test_a_name_that_fits_nothing_is_an_error():
    params = {
        "a": {"kernel": np.zeros((4, 3), np.float32)},
        "b": {"kernel": np.zeros((3, 2), np.float32)},
    }
    typo = named_vectors({"a/kernal": None, "b/kernel": 1})
    with pytest.raises(ValueError, match=r"ends with a/kernal. The paths are a/kernel, b/kernel\."):
        vector_axes(typo, params)
    # In one group of an optax.partition, the others are missing.
    masked = {"a": optax.MaskedNode(), "b": params["b"]}
    assert vector_axes(named_vectors({"a/kernel": None, "b/kernel": 1}), masked) == ((1,),)


def test_tables_are_compared_and_pickled():
    rule = named_vectors({"a": [0, 1]}, otherwise="flax")
    assert pickle.loads(pickle.dumps(rule)) == rule == named_vectors({"a": (0, 1)})
    assert rule != named_vectors({"a": 0})
    with pytest.raises(TypeError, match="table: expected a mapping"):
        named_vectors({("a", "b"): 1})
