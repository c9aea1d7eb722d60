"""Tools for trees find the same in a state, whether they walk it by its leaves or by its fields."""

import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from helpers import OPTIMIZERS

import p2t_jax as p2t

PARAMS = {
    "body": {"kernel": jnp.arange(24.0).reshape(12, 2), "bias": jnp.ones(2)},
    "head": {"kernel": -jnp.arange(24.0).reshape(12, 2), "bias": jnp.ones(2)},
}
adam = optax.inject_hyperparams(optax.adam)(0.1)
NESTINGS = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx),
    "inject_hyperparams": lambda tx: optax.chain(
        tx, optax.inject_hyperparams(optax.scale)(step_size=1.0)
    ),
    "partition": lambda tx: optax.partition(
        {"body": tx, "head": optax.sgd(0.1)}, {"body": "body", "head": "head"}
    ),
    "masked": lambda tx: optax.masked(tx, {"body": True, "head": False}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
}
# For each, from a state to a state of the same structure.
OF_ONE_STATE = {
    "set": lambda tx, state: optax.tree.set(state, learning_rate=0.01),
    "map_params": lambda tx, state: optax.tree.map_params(tx, lambda p: 2 * p, state),
    "map_params to specs": lambda tx, state: optax.tree.map_params(
        tx, lambda p: "spec", state, transform_non_params=lambda _: "other"
    ),
    "add": lambda tx, state: optax.tree.add(state, state),
    "add_scale": lambda tx, state: optax.tree.add_scale(state, 2, state),
    "cast": lambda tx, state: optax.tree.cast(state, jnp.bfloat16),
    "cast_like": lambda tx, state: optax.tree.cast_like(state, state),
    "clip": lambda tx, state: optax.tree.clip(state, 0, 1),
    "full_like": lambda tx, state: optax.tree.full_like(state, 1),
    "mul": lambda tx, state: optax.tree.mul(state, state),
    "scale": lambda tx, state: optax.tree.scale(2, state),
    "sub": lambda tx, state: optax.tree.sub(state, state),
    "update_moment": lambda tx, state: optax.tree.update_moment(state, state, 0.9, 1),
    "where": lambda tx, state: optax.tree.where(jnp.array(True), state, state),
    "zeros_like": lambda tx, state: optax.tree.zeros_like(state),
    "jax.tree.map": lambda tx, state: jax.tree.map(jnp.zeros_like, state),
    "jax.tree.map of two": lambda tx, state: jax.tree.map(jnp.add, state, state),
    "map_with_path": lambda tx, state: jax.tree.map_with_path(lambda _, x: x, state),
    "jit": lambda tx, state: jax.jit(lambda x: x)(state),
    "scan": lambda tx, state: jax.lax.scan(lambda s, _: (s, None), state, length=2)[0],
    "eval_shape": lambda tx, state: jax.eval_shape(lambda x: x, state),
    "pickle": lambda tx, state: pickle.loads(pickle.dumps(state)),
    "flax": lambda tx, state: serialization.from_bytes(state, serialization.to_bytes(state)),
}


@functools.cache
def trained(name, nesting):
    tx = NESTINGS[nesting](OPTIMIZERS[name](adam))
    params, state = PARAMS, tx.init(PARAMS)
    return tx, params, jax.jit(tx.update)(jax.tree.map(jnp.sin, params), state, params)[1]


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("tool", OF_ONE_STATE)
def test_a_tool_returns_a_state(tool, nesting, name):
    tx, _, state = trained(name, nesting)
    after = OF_ONE_STATE[tool](tx, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert found(after, "vectors") == found(state, "vectors")


def found(state, key):
    return [(str(path), repr(value)) for path, value in optax.tree.get_all_with_path(state, key)]


@pytest.mark.parametrize("nesting", NESTINGS)
def test_fields_and_leaves_are_the_same(nesting, name):
    _, _, state = trained(name, nesting)
    every = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in every)
    by_fields = []

    def walk(node):
        if hasattr(node, "_fields"):
            for field in node._fields:
                walk(getattr(node, field))
        elif type(node) is dict:
            for key in sorted(node):
                walk(node[key])
        elif type(node) in (tuple, list):
            for child in node:
                walk(child)
        else:
            by_fields.extend(jax.tree.leaves(node))

    walk(state)
    chex.assert_trees_all_equal(by_fields, every)
    for measure in (optax.tree.norm, optax.tree.sum, optax.tree.max, optax.tree.min):
        assert np.isfinite(measure(jax.tree.map(jnp.float32, state)))
    assert optax.tree.allclose(state, state)
    assert optax.tree.size(state) == sum(leaf.size for leaf in every)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_values_are_found_and_replaced_by_name(nesting, name):
    _, _, state = trained(name, nesting)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(0.1)
    changed = optax.tree.set(state, learning_rate=0.01, **{OPTIMIZERS[name].step_name: 5})
    assert optax.tree.get(changed, "learning_rate") == 0.01
    assert optax.tree.get(changed, OPTIMIZERS[name].step_name) == 5
    assert len(optax.tree.get_all_with_path(state, "VectorAxes")) == 1
    weights = optax.tree.get(state, OPTIMIZERS[name].weights_name)
    chex.assert_trees_all_equal_shapes(jax.tree.leaves(weights)[:2], jax.tree.leaves(PARAMS)[:2])


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_mapped_state_trains_on(nesting, name):
    tx, params, state = trained(name, nesting)
    mapped = optax.tree.map_params(tx, lambda p: p + 0, state)
    chex.assert_trees_all_equal(
        p2t.permuted_params(mapped, params), p2t.permuted_params(state, params)
    )
    grads = jax.tree.map(jnp.cos, params)
    updates = [jax.jit(tx.update)(grads, s, params) for s in (mapped, state)]
    chex.assert_trees_all_equal(*updates)


def test_mapping_one_state_says_nothing_about_another(name):
    tx = OPTIMIZERS[name](vectors=lambda path, leaf: leaf.ndim - 1)
    trees = {"a": jnp.ones((3, 2)) * jnp.arange(2.0)}, {"b": jnp.arange(3.0)}
    states = [tx.init(params) for params in trees]
    mapped = [optax.tree.map_params(tx, lambda p: p, state) for state in (*states, *states)]
    chex.assert_trees_all_equal_structs(mapped[0], mapped[2], states[0])
    chex.assert_trees_all_equal_structs(mapped[1], mapped[3], states[1])
    assert found(mapped[0], "vectors") != found(mapped[1], "vectors")
