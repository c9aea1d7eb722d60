"""`infer_vectors` as users call it: arguments, results, questions, speed, training."""

import json
import time
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from vector_helpers import shape

import p2t_jax as p2t
from p2t_jax._vectors import vector_axes

KEY = jax.random.key(0)


PARAMS = {"a": {"w": shape(4, 3), "b": shape(3)}, "layers": [shape(2, 3), shape(5, 2)]}
AXES = {"a": {"w": (0,), "b": None}, "layers": [(1,), (1,)]}
X = shape(8, 4)


def forward(params: Any, x: Any) -> Any:
    x = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"])
    for w in params["layers"]:
        x = jnp.tanh(x @ w.T)
    return x


def test_the_result_has_the_structure_of_the_parameters_and_is_plain_data():
    axes = p2t.infer_vectors(forward, PARAMS, X)
    assert axes == AXES
    assert json.loads(json.dumps(axes)) == {"a": {"w": [0], "b": None}, "layers": [[1], [1]]}
    assert vector_axes(axes, PARAMS) == (None, (0,), (1,), (1,))
    assert vector_axes(json.loads(json.dumps(axes)), PARAMS) == (None, (0,), (1,), (1,))


def test_arrays_shapes_and_tracers_give_the_same():
    arrays = jax.tree.map(lambda s: jnp.ones(s.shape), (PARAMS, X))
    numpy = jax.tree.map(np.asarray, arrays)
    for params, x in (arrays, numpy, (PARAMS, arrays[1]), (arrays[0], X)):
        assert p2t.infer_vectors(forward, params, x) == AXES
    seen = []
    jax.eval_shape(lambda p, x: seen.append(p2t.infer_vectors(forward, p, x)), PARAMS, X)
    assert seen == [AXES]


def test_nothing_is_computed():
    huge = {"w": shape(10**6, 10**6)}
    fn = lambda params, x: x @ params["w"]  # noqa: E731
    assert p2t.infer_vectors(fn, huge, shape(10**6, 10**6)) == {"w": (0,)}


def test_inputs_may_be_trees_and_have_static_leaves():
    def loss(params, batch, train, mode, rest):
        assert train is True
        assert mode == "loss"
        assert rest is None
        logits = forward(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    batch = {"x": X, "y": shape(8, dtype="int32")}
    assert p2t.infer_vectors(loss, PARAMS, batch, True, "loss", None) == AXES
    by_name = {"batch": batch, "train": True, "mode": "loss", "rest": None}
    assert p2t.infer_vectors(loss, PARAMS, **by_name) == AXES


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, jax.value_and_grad])
def test_transformed_functions(transform):
    fn = transform(lambda params, x: forward(params, x).sum())
    if transform is jax.value_and_grad:
        with pytest.raises(ValueError, match="does not tell"):
            p2t.infer_vectors(fn, PARAMS, X)  # gradients use weights the other way around, too
    else:
        assert p2t.infer_vectors(fn, PARAMS, X) == AXES


def test_derivatives_of_ones_own():
    @jax.custom_vjp
    def f(x, w):
        return x @ w

    f.defvjp(lambda x, w: (f(x, w), None), lambda *_: (None, None))

    @jax.custom_jvp
    def g(x, w):
        return x @ w

    g.defjvp(lambda primals, tangents: (g(*primals), None))
    for fn in (f, g):
        assert p2t.infer_vectors(lambda w, x, fn=fn: fn(x, w), shape(4, 3), X) == (0,)


def test_sharded_by_shard_map():
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def block(w, v, x):
        h = jnp.tanh(jax.lax.psum(x @ w, "x"))
        whole = jax.lax.all_gather(v, "y", axis=0, tiled=True)
        return h @ whole.reshape(3, 2, 2).reshape(3, 4)

    specs = (P("x", None), P("y"), P(None, "x"))
    fn = jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    params = {"w": shape(4, 3), "v": shape(6, 2)}
    axes = p2t.infer_vectors(
        lambda p, x: fn(p["w"], p["v"].reshape(6, 2), x), params, X, otherwise=lambda path, _: None
    )
    assert axes["w"] == (0,)
    # (6, 2) is reshaped to (3, 4): half of axis 0, and 1.
    assert axes["v"] is None


def test_a_device_that_keeps_its_share_for_itself_has_a_part_of_an_axis():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))

    def infer(block, *specs):
        fn = jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=P("x"), check_vma=False)
        return p2t.infer_vectors(lambda w, x: fn(w, x), shape(8, 4), shape(8, 4))

    with pytest.raises(ValueError, match="only a part of axis 0 is contracted"):
        infer(lambda w, x: x @ w, P("x"), P("x"))
    with pytest.raises(ValueError, match="it is combined across devices"):
        infer(lambda w, x: x @ jax.lax.psum(w, "x"), P("x"), P("x"))
    assert infer(lambda w, x: x @ w.T, P("x"), P("x")) == (1,)


def test_explicit_sharding():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        w = jnp.ones((4, 8), out_sharding=NamedSharding(mesh, P(None, "y")))
        x = jnp.ones((8, 4), out_sharding=NamedSharding(mesh, P("x")))
        assert p2t.infer_vectors(lambda w, x: jax.reshard(x @ w, P("x")), w, x) == (0,)


# Questions


def bad(params: Any, x: Any) -> Any:
    h = jnp.tanh(x @ params["good"])
    tied = jnp.tanh(h @ params["tied"]) @ params["tied"].T
    return tied, jnp.fft.fft(x[0]) * jnp.fft.fft(params["filter"])


BAD = {
    "filter": shape(4),
    "good": shape(4, 4),
    "tied": shape(4, 3),
    "unused": [shape(5, 2), shape(5, 2)],
}


def test_one_error_lists_all_questions_with_their_reasons():
    with pytest.raises(ValueError, match="the network does not tell") as error:
        p2t.infer_vectors(bad, BAD, X)
    message = str(error.value)
    for line in (
        "4 parameters",
        "- tied: it is contracted along axes (0,) and (1,)",
        "- filter: it goes through fft",
        "- unused/*: it meets nothing that depends on the inputs",
        '"unused/*": ...,  # 2 parameters',
        "infer_vectors(..., otherwise=vectors)",
    ):
        assert line in message
    assert "good" not in message

    table = {"tied": 0, "filter": None, "unused/*": "flax"}
    answers = p2t.named_vectors({**table, "unused/*": 1})
    axes = p2t.infer_vectors(bad, BAD, X, otherwise=answers)
    assert axes == {"filter": None, "good": (0,), "tied": (0,), "unused": [(1,), (1,)]}


def test_otherwise_answers_for_nothing_else():
    assert p2t.infer_vectors(forward, PARAMS, X, otherwise=1) == AXES
    answers = {"filter": None, "good": 1, "tied": -1, "unused": None}
    axes = p2t.infer_vectors(bad, BAD, X, otherwise=answers)
    assert axes == {"filter": None, "good": (0,), "tied": (1,), "unused": [None, None]}
    assert p2t.infer_vectors(bad, BAD, X, otherwise=None)["tied"] is None


def test_a_rule_that_asks_too_leaves_the_question():
    params = {"Dense_0": {"kernel": shape(4, 3)}, "mystery": {"mine": shape(5, 2)}}
    with pytest.raises(ValueError, match="mystery/mine") as error:
        p2t.infer_vectors(lambda p, x: x, params, X, otherwise="flax")
    assert "Dense_0" not in str(error.value)


def test_answers_that_a_leaf_cannot_have():
    with pytest.raises(ValueError, match=r"axes 2 for unused/0 of shape \(5, 2\)"):
        p2t.infer_vectors(bad, BAD, X, otherwise={**BAD, "filter": 0, "tied": 0, "unused": 2})
    with pytest.raises(ValueError, match=r"^otherwise: does not match params"):
        p2t.infer_vectors(bad, BAD, X, otherwise={"tied": 0})
    with pytest.raises(ValueError, match=r"expected .flax"):
        p2t.infer_vectors(bad, BAD, X, otherwise="flaks")


def test_what_is_closed_over_is_not_an_input():
    x = jnp.ones((8, 4))
    with pytest.raises(ValueError, match=r"^inputs: expected arrays.*got \(True,\)"):
        p2t.infer_vectors(lambda w, train: x @ w, shape(4, 3), True)
    with pytest.raises(ValueError, match="meets nothing that depends on the inputs"):
        p2t.infer_vectors(lambda w, y: jnp.tanh(x @ w), shape(4, 3), X)
    with pytest.raises(ValueError, match="it first meets a constant"):
        p2t.infer_vectors(lambda w, y: jnp.tanh(x @ w) + y.sum(), shape(4, 3), X)


# Whole models as parameters


def test_an_equinox_model_with_its_functions():
    model = eqx.nn.MLP(4, 3, 5, 1, key=KEY)
    axes = p2t.infer_vectors(lambda model, x: jax.vmap(model)(x), model, X)
    assert [layer.weight for layer in axes.layers] == [(1,), (1,)]
    params = eqx.filter(model, eqx.is_array)
    assert vector_axes(axes, params) == vector_axes("equinox", params)


def test_boxes_are_taken_off():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
            return nn.Dense(3, kernel_init=init)(x)

    variables = Net().init(KEY, jnp.ones((8, 4)))
    axes = p2t.infer_vectors(Net().apply, variables, X)
    assert axes == {"params": {"Dense_0": {"kernel": (0,), "bias": None}}}
    assert vector_axes(axes, variables) == vector_axes(axes, nn.unbox(variables)) == (None, (0,))

    graph, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    axes = p2t.infer_vectors(lambda state, x: nnx.merge(graph, state)(x), state, X)
    assert (axes["kernel"], axes["bias"]) == ((0,), None)
    assert vector_axes(axes, state) == vector_axes(axes, nnx.as_pure(state)) == (None, (0,))


# Speed


def test_a_hundred_layers_take_less_than_five_seconds():
    params = [
        {
            "w": shape(8, 8),
            "scale": shape(8),
            "bias": shape(8),
            "up": shape(8, 16),
            "down": shape(16, 8),
        }
        for _ in range(100)
    ]

    def layer(p, x):
        x = x + jnp.tanh(x @ p["w"])
        x = (x - x.mean(-1, keepdims=True)) / jnp.std(x, -1, keepdims=True) * p["scale"] + p["bias"]
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"]

    def fn(params, x):
        for p in params:
            x = layer(p, x)
        return x

    start = time.perf_counter()
    axes = p2t.infer_vectors(fn, params, shape(2, 8))
    assert time.perf_counter() - start < 5
    assert axes == [{"w": (0,), "scale": None, "bias": None, "up": (0,), "down": (0,)}] * 100


def test_what_repeats_is_walked_through_once():
    @jax.jit
    def layer(w, x):
        for _ in range(200):
            x = jnp.sin(x)
        return x @ w

    def fn(params, x):
        for w in params:
            x = layer(w, x)
        return x

    times = []
    for n in (1, 1000):
        start = time.perf_counter()
        assert p2t.infer_vectors(fn, [shape(4, 4)] * n, X) == [(0,)] * n
        times.append(time.perf_counter() - start)
    assert times[1] < 5


# Training


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.1), (6, 8))
        lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=3, **lift)(name="blocks")(x, None)
        return nn.Dense(11)(nn.LayerNorm()(x))


def test_a_transformer_with_scanned_layers_trains_by_permuting():
    net = Transformer()
    tokens = jax.random.randint(KEY, (64, 6), 0, 11)
    initial = jax.jit(net.init)(KEY, tokens)

    @jax.jit
    def loss(params, tokens):
        logits = net.apply(params, tokens)  # to say each token again, and the first for the last
        targets = tokens.at[:, -1].set(tokens[:, 0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    axes = p2t.infer_vectors(loss, initial, shape(64, 6, dtype="int32"))
    found = axes["params"]
    assert found["blocks"]["Dense_1"] == {"kernel": (1,), "bias": None}
    assert found["blocks"]["MultiHeadDotProductAttention_0"]["out"]["kernel"] == (1, 2)
    assert found["Embed_0"] == {"embedding": None}
    assert found["positions"] is None

    tx = p2t.laperm(optax.adam(0.01), 5, vectors=axes)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, tokens), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=150)[0]

    params, state = train(initial)
    final = p2t.permuted_params(state, params)
    assert bool(p2t.is_permutation(final, initial, vectors=axes))
    # An oracle of its own: sorted along the axes written out here, the weights are the same.
    for name, layer in (("Dense_0", 1), ("Dense_1", 1)):
        now, then = (p["params"]["blocks"][name]["kernel"] for p in (final, initial))
        chex.assert_trees_all_equal(jnp.sort(now, layer), jnp.sort(then, layer))
        assert not np.array_equal(now, then)
    assert loss(final, tokens) < 0.6 * loss(initial, tokens)
