"""Specs and trees: rules and trees of axes against the structures of parameters, and errors."""

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from vector_helpers import KEY, Nnx, permuted, struct

import p2t_jax as p2t
from p2t_jax._vectors import (
    equinox_vectors,
    flax_vectors,
    named_leaves,
    named_vectors,
    vector_axes,
)

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
    paths = [{path for path, x in named_leaves(t) if np.ndim(x) > 0} for t in trees]
    assert paths[0] == paths[1] == paths[2]
    assert paths[0] <= paths[3]  # the module has the state of its generators besides
    assert ("attn", "value", "kernel") in paths[0]
    assert ("value", "value", "kernel") in paths[0]
    assert ("layers", "0", "kernel") in paths[0]
    assert ("bare",) in paths[0]


def test_paths_of_other_trees():
    class Named(NamedTuple):
        w: Any

    def paths(tree):
        return [path for path, _ in named_leaves(tree)]

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
    with pytest.raises(ValueError, match=r"root of the tree: expected \['w', 'v'\]"):
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
        (2, (4, 3), ValueError, "axes 2 .*: expected axes from -2 to 1"),
        (-3, (4, 3), ValueError, "axes -3 .*: expected axes from -2 to 1"),
        ((0, 5), (4, 3), ValueError, r"axes \(0, 5\) .*: expected axes from -2 to 1"),
        (0, (), ValueError, "a scalar has none, give it None"),
        ((0, 0), (4, 3), ValueError, r"names an axis twice; expected \(0,\)"),
        ((0, -2), (4, 3), ValueError, r"names an axis twice; expected \(0,\)"),
        ((), (4, 3), ValueError, "at least one axis, or None"),
        (True, (4, 3), TypeError, "axes True .*: expected an int"),
        (0.0, (4, 3), TypeError, r"axes 0\.0 .*: expected an int"),
        ((0, 1.0), (4, 3), TypeError, "expected an int"),
        ((0, None), (4, 3), TypeError, "expected an int"),
        ({"kernel": 0}, (4, 3), TypeError, "expected an int"),
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


@pytest.mark.parametrize("rule", ["flax", "equinox", "haiku"])
def test_what_is_no_weight_needs_no_answer_of_a_rule(rule):
    name = {"flax": "kernel", "equinox": "weight", "haiku": "w"}[rule]
    tree = {
        "ids": jnp.ones((4, 3), int),
        "key": jax.random.split(KEY, (3, 2)),
        "mask": jnp.ones((4, 3), bool),
        "step": jnp.zeros((), int),
        name: jnp.ones((4, 3)),
    }
    found = permuted(rule, tree)
    assert list(found) == [name]


@pytest.mark.parametrize(
    ("name", "dtype"), [("kernel", "int8"), ("kernel", "complex64"), ("mine", "complex64")]
)
def test_a_rule_says_weights_of_a_dtype_that_cannot_be_permuted(name, dtype):
    tree = {"dense": {name: struct((4, 3), dtype), "bias": jnp.ones(3)}}
    error = (TypeError, "Give it None, or leave it") if name == "kernel" else (ValueError, "None")
    with pytest.raises(error[0], match=rf"(?s)dense/{name}.*{error[1]}"):
        vector_axes("flax", tree)
    answered = {"dense": {name: None, "bias": "flax"}}
    assert vector_axes(answered, tree) == (None, None)
    assert vector_axes(named_vectors({name: None}), tree) == (None, None)


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ({"a": {"kernel": 0}, "b": None}, r"at a: expected \['bias', 'kernel'\], got \['kernel'\]"),
        ({"a": 0}, r"at the root of the tree: expected \['a', 'b'\], got \['a'\]"),
        ({"a": 0, "b": 0, "c": 0}, r"got \['a', 'b', 'c'\]"),
        ({"a": 0, "b": (0, 1, 0)}, r"at b: expected \['0', '1'\], got \['0', '1', '2'\]"),
    ],
)
def test_prefix_trees_that_do_not_match(vectors, says):
    w = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=f"^vectors: does not match params.*{says}"):
        vector_axes(vectors, {"a": {"kernel": w, "bias": w[0]}, "b": (w, w)})


def test_a_parameter_called_value_keeps_its_name():
    w = jnp.ones((4, 3))

    class Attention(eqx.Module):
        query: Any
        key: Any
        value: Any

    class OnlyValue(eqx.Module):
        value: Any

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
            return x @ self.param("value", init, (4, 3)) @ self.param("w", init, (3, 2))

    module = Nnx(query=nnx.Param(w), value=nnx.Param(w), inner=nnx.Dict(value=nnx.Param(w)))
    variables = Linen().init(KEY, w.T)["params"]
    trees = {
        "equinox": Attention(w, w, w),
        "equinox, one": OnlyValue(w),
        "nnx": nnx.state(module, nnx.Param),
        "nnx, pure": nnx.as_pure(nnx.state(module, nnx.Param)),
        "nnx, module": module,
        "linen": variables,
        "linen, pure": nn.unbox(variables),
    }
    paths = {name: [path for path, _ in named_leaves(tree)] for name, tree in trees.items()}
    three = [("inner", "value"), ("query",), ("value",)]
    assert paths == {
        "equinox": [("query",), ("key",), ("value",)],
        "equinox, one": [("value",)],
        **dict.fromkeys(("nnx", "nnx, pure", "nnx, module"), three),
        **{name: [("value",), ("w",)] for name in ("linen", "linen, pure")},
    }
    for tree in trees.values():
        assert [leaf.shape for _, leaf in named_leaves(tree)] == [
            leaf.shape for leaf in jax.tree.leaves(tree)
        ]
    assert permuted({"value": 0, "key": None, "query": 1}, trees["equinox"]) == {
        "query": (1,),
        "value": (0,),
    }
    assert permuted({"value": 0}, trees["equinox, one"]) == {"value": (0,)}
    for name in ("nnx", "nnx, pure"):
        axes = {"value": 0, "query": 1, "inner": {"value": (0, 1)}}
        assert permuted(axes, trees[name])["inner/value"] == (0, 1)


def test_a_box_may_hold_a_tree():
    w = jnp.ones((4, 3))
    module = Nnx(both=nnx.Param({"a": w, "b": w[0]}))
    state = nnx.state(module, nnx.Param)
    assert [path for path, _ in named_leaves(state)] == [("both", "a"), ("both", "b")]
    assert permuted({"both": {"a": 1, "b": None}}, state) == {"both/a": (1,)}


def test_the_axes_of_an_nnx_model_fit_its_parameters():
    """A model has more than parameters, it is callable, and its lists have a field of their own."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(6, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(6, 4, rngs=rngs)])

        def __call__(self, x):
            return self.layers[0](self.dropout(self.norm(x)))

    model = Model(nnx.Rngs(0))
    axes = p2t.infer_vectors(lambda m, x: m(x), nnx.clone(model), jnp.ones((2, 6)))
    optimizer = nnx.Optimizer(model, p2t.laperm(optax.adam(0.1), 2, vectors=axes), wrt=nnx.Param)
    final = p2t.permuted_params(optimizer, model)
    assert isinstance(final, Model)
    states = (nnx.state(m, nnx.Param) for m in (final, model))
    p2t.check_permutation(*states, vectors=axes)
    moved = p2t.metrics.movement(
        *(nnx.state(m, nnx.Param) for m in (final, nnx.clone(model))), vectors=axes
    )
    assert set(moved) - {"moved", "change", "correlation", "rank_distance"} == {
        f"layers/0/kernel/{what}" for what in ("moved", "change", "correlation", "rank_distance")
    }
