"""What an optimizer state remembers of the vectors: plain data that anything stores."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import cloudpickle
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from helpers import OPTIMIZERS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t
from p2t_jax._leaves import note_single_weights, walk
from p2t_jax._vectors import (
    VectorAxes,
    named_leaves,
    vector_axes,
)


class State(NamedTuple):
    step: Any
    weights: Any
    vectors: VectorAxes


def remembering(vectors: Any) -> Callable[[Any], State]:
    """An optimizer's init."""

    def init(params: Any) -> State:
        return State(
            jnp.zeros((), jnp.int32), params, VectorAxes.of(dict(axes_of(vectors, params)))
        )

    return init


def axes_of(vectors: Any, params: Any) -> Any:
    return zip(
        [path for path, _ in named_leaves(params)], vector_axes(vectors, params), strict=True
    )


PARAMS = {
    "layers": [{"w": jnp.ones((4, 3)), "b": jnp.ones(3)} for _ in range(12)],
    "conv": {"w": jnp.ones((2, 2, 4, 3))},
}
AXES = {"layers": [{"w": 0, "b": None}] * 12, "conv": {"w": (0, 1, 2)}}
SPECS = [AXES, None, 0, lambda _, leaf: tuple(range(leaf.ndim - 1)) or None]


@pytest.fixture(params=SPECS, ids=["tree", "none", "axis", "lambda"])
def init(request):
    return remembering(request.param)


def test_it_is_a_rule_that_gives_the_axes_back():
    state = remembering(AXES)(PARAMS)
    assert vector_axes(state.vectors, state.weights) == vector_axes(AXES, PARAMS)
    assert state.vectors(("layers", "11", "w")) == (0,)
    assert state.vectors(("layers", "11", "b"), PARAMS["layers"][0]["b"]) is None
    with pytest.raises(ValueError, match="layers/12/w is not among"):
        state.vectors(("layers", "12", "w"))


def test_it_is_not_a_leaf_and_passes_through_transformations(init):
    state = init(PARAMS)
    assert len(jax.tree.leaves(state)) == 1 + len(jax.tree.leaves(PARAMS))
    for same in (jax.jit(lambda s: s)(state), jax.tree.map(jnp.zeros_like, state)):
        assert jax.tree.structure(same) == jax.tree.structure(state)
    out = jax.lax.scan(lambda s, _: (s._replace(step=s.step + 1), None), state, length=3)[0]
    assert out.vectors == state.vectors


def test_two_of_the_same_axes_are_equal_from_any_spec():
    by_tree, by_rule = (remembering(SPECS[i])(PARAMS).vectors for i in (0, 3))
    assert by_tree == by_rule
    assert hash(by_tree) == hash(by_rule)
    other = remembering(None)(PARAMS).vectors
    assert by_tree != other
    assert (by_tree == other) is False
    assert by_tree != by_tree.axes_by_path
    assert by_tree != tuple(by_tree)


def test_map_params(init):
    state = init(PARAMS)
    shapes = jax.tree.map(lambda leaf: str(leaf.shape), PARAMS)
    mapped = optax.tree.map_params(
        init, lambda _, shape: shape, state, shapes, transform_non_params=lambda _: "step"
    )
    assert mapped == State("step", shapes, state.vectors)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)


def flax_bytes(state: Any, target: Any) -> Any:
    return serialization.from_bytes(target, serialization.to_bytes(state))


def flax_state_dict(state: Any, target: Any) -> Any:
    return serialization.from_state_dict(target, serialization.to_state_dict(state))


WAYS = {
    "pickle": lambda state, _: pickle.loads(pickle.dumps(state)),
    "cloudpickle": lambda state, _: cloudpickle.loads(cloudpickle.dumps(state)),
    "copy": lambda state, _: copy.deepcopy(state),
    "flax bytes": flax_bytes,
    "flax state dict": flax_state_dict,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_stored_and_restored(init, way):
    state = init(PARAMS)
    target = init(jax.tree.map(jnp.zeros_like, PARAMS))
    restored = WAYS[way](state, target)
    assert type(restored.vectors) is VectorAxes
    assert restored.vectors.axes_by_path == state.vectors.axes_by_path
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_flax_restores_the_stored_axes():
    state = remembering(AXES)(PARAMS)
    restored = flax_bytes(state, remembering(None)(PARAMS))
    assert restored.vectors == state.vectors


def test_flax_may_be_imported_late(tmp_path):
    code = """
import pickle, sys
import jax.numpy as jnp
import p2t_jax
from p2t_jax._vectors import VectorAxes
axes = VectorAxes.of({("w",): (0,)})
assert not any(name.startswith("flax") for name in sys.modules)
from flax import serialization
stored = serialization.to_bytes((axes, jnp.ones(3)))
restored, _ = serialization.from_bytes((VectorAxes.of({("w",): None}), jnp.ones(3)), stored)
assert restored.axes_by_path == axes.axes_by_path, restored
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("has_target", [True, False])
def test_orbax(tmp_path, init, has_target):
    state = init(PARAMS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", *([state] if has_target else []))
    if has_target:
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        assert restored.vectors.axes_by_path == state.vectors.axes_by_path
    else:
        np.testing.assert_array_equal(restored["weights"]["conv"]["w"], PARAMS["conv"]["w"])


def test_single_weights_are_said_once():
    params = {"a": {"w": jnp.ones((1, 3))}, "b": {"w": jnp.ones((2, 3))}}
    with pytest.warns(UserWarning, match=r"of a/w \(1, 3\) have one weight.*Give them None"):
        note_single_weights(walk(params, 0))
    varied = {"a": params["a"], "b": {"w": jnp.arange(6.0).reshape(2, 3)}}
    note_single_weights(walk(varied, {"a": None, "b": 0}))


LORA = {"a": jnp.arange(16.0).reshape(4, 4), "lora_b": jnp.zeros((4, 8))}
CONSTANT = {
    "zeros": (LORA, 0, r"of lora_b \(4, 8\) have equal weights"),
    "biases": (
        {"Dense_0": {"kernel": LORA["a"], "bias": np.zeros(4)}},
        p2t.with_biases("flax"),
        r"of Dense_0/bias \(4,\) have equal weights",
    ),
    "a constant for each": (jnp.ones((3, 2)) * jnp.arange(2.0), 0, "of the root of the tree"),
    "over two axes": (jnp.ones((3, 3, 2)) * jnp.arange(2.0), (0, 1), "have equal weights"),
    "bfloat16": (np.full((3, 2), np.nan, jnp.bfloat16), 0, "have equal weights"),
    "both kinds": (
        LORA | {"one": jnp.ones((1, 2))},
        0,
        r"lora_b \(4, 8\) have equal weights and those of one \(1, 2\) have one weight",
    ),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_equal_weights_are_said_once(case, name):
    params, vectors, message = CONSTANT[case]
    tx = OPTIMIZERS[name](vectors=vectors)
    with pytest.warns(UserWarning, match=f"{message}.*Give them None") as warned:
        state = tx.init(params)
    assert len(warned) == 1
    tx.update(jax.tree.map(jnp.ones_like, params), state, params)


def test_nothing_is_said_of_vectors_that_train_or_are_not_known(name):
    dead = jnp.arange(12.0).reshape(4, 3).at[:, 1].set(0)  # one neuron's weights are equal
    pruned = jnp.zeros((4, 3)).at[0].set(1)
    tx = OPTIMIZERS[name](vectors=0)
    for params in (dead, pruned, jnp.zeros((4, 0)), np.asarray([[0.0], [-0.0]])):
        tx.init(params)
    shapes = jax.eval_shape(tx.init, LORA)
    chex.assert_trees_all_equal_shapes(jax.jit(tx.init)(LORA), shapes)
    tx.init({name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in LORA.items()})
    jax.vmap(tx.init)(jnp.zeros((2, 4, 3)))
    optax.tree.map_params(tx, lambda p: p, tx.init(dead))


def test_sharded_weights_are_looked_at(name):
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
        for spec in (P(), P("x", None), P(None, "x")):
            params = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, spec))
            with jax.set_mesh(mesh), pytest.warns(UserWarning, match="have equal weights"):
                OPTIMIZERS[name](vectors=0).init(params)


PATHS = [("a/b", "w"), ("a", "b", "w"), ("a", "b/w"), ("a~1b", "w"), ("a~", "b", "w"), ("a/b/w",)]


def test_different_paths_stay_apart():
    axes = {path: (i,) for i, path in enumerate(PATHS)}
    state = VectorAxes.of(axes)
    assert {path: state(path) for path in PATHS} == axes
    assert pickle.loads(pickle.dumps(state)) == state
    with pytest.raises(ValueError, match="a/b~/w is not among"):
        state(("a", "b~", "w"))


def test_an_exported_programme_remembers_the_axes():
    state = {"vectors": remembering(AXES)(PARAMS).vectors, "none": VectorAxes.of({}), "step": 1}
    exported = jax.export.export(jax.jit(lambda state: state))(state)
    again = jax.export.deserialize(exported.serialize())
    assert again.call(state)["vectors"].axes_by_path == state["vectors"].axes_by_path
