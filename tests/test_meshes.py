"""Meshes whose axes are explicit, and arrays that are older than the mesh."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import OPTIMIZERS
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layouts import AUTO, EXPLICIT, make_mesh, put
from test_study_tools import TOOLS

import p2t_jax as p2t

KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(24, 8)), jnp.float32)
GRADS = np.sin(100 * KERNEL)


@functools.cache
def make_tx(name, host_callback):
    return OPTIMIZERS[name](vectors=0, host_callback=host_callback)


@pytest.fixture(params=[True, False], ids=["host", "no host"])
def tx(request, name):
    return make_tx(name, request.param)


def train(tx, params, state, grads):
    for _ in range(3):
        params, state = helpers.jitted_step(tx)(params, state, grads)
    return params, jax.jit(p2t.permuted_params)(state, params)


# How parameters, the weights in the state and gradients are split.
SPLITS = [
    (P(), P("x", "y"), P(None, "y")),
    (P("x", "y"), P("x", "y"), P("x", "y")),
]
MORE_SPLITS = [
    (P(None, "y"), P("x", None), P()),
    (P(), P(None, "y"), P()),
    (P(None, "y"), P(), P()),
    (P(None, "x"), P(None, "y"), P(None, "x")),
]


@pytest.mark.parametrize("splits", [*SPLITS, *map(helpers.slow, MORE_SPLITS)], ids=str)
def test_a_state_may_be_split_otherwise_than_its_parameters(splits, tx, name):
    state = tx.init(KERNEL)
    expected = train(tx, KERNEL, state, GRADS)
    mesh = make_mesh({"x": 4, "y": 2}, EXPLICIT)
    with jax.set_mesh(mesh):
        params, weights, grads = (
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(
                (KERNEL, optax.tree.get(state, OPTIMIZERS[name].weights_name), GRADS),
                splits,
                strict=True,
            )
        )
        state = optax.tree.set(state, **{OPTIMIZERS[name].weights_name: weights})
        result = train(tx, params, state, grads)
    chex.assert_trees_all_close(result, expected, atol=1e-6)
    assert bool(p2t.is_permutation(np.asarray(result[1]), np.asarray(KERNEL), vectors=0))
    assert result[0].sharding.is_equivalent_to(params.sharding, 2)


def everything(tx, params, state):
    updates, after = tx.update(params, state, params)
    grad = jax.grad(lambda g: tx.update(g, state, params)[0].sum())(params)
    both = jax.vmap(tx.update, (0, None, None))(jnp.stack([params, -params]), state, params)
    return updates, after, grad, both, p2t.permuted_params(after, params)


def study(params):
    return [
        p2t.is_permutation(params[::-1], params, vectors=0),
        p2t.permutations.permutation_of(params[::-1], params, vectors=0),
        p2t.prune(0, params, 0.5, vectors=0),
        p2t.reinitialize(0, params, p2t.initializers.kaiming(0.5), vectors=0),
        p2t.keep_zeros(vectors=0).update(params, p2t.keep_zeros(vectors=0).init(params)),
        p2t.profiles.weight_profiles(params, vectors=0),
    ]


@pytest.mark.parametrize("kind", [helpers.slow(AUTO), EXPLICIT])
def test_arrays_may_be_older_than_the_mesh(kind, tx):
    state = tx.init(KERNEL)
    expected = jax.jit(everything, static_argnums=0)(tx, KERNEL, state)
    with jax.set_mesh(make_mesh({"x": 8}, kind)):
        result = jax.jit(everything, static_argnums=0)(tx, KERNEL, state)
        chex.assert_trees_all_close(jax.device_get(result), jax.device_get(expected), atol=1e-6)
    with jax.set_mesh(make_mesh({"x": 1}, kind)):  # eagerly
        updates, after = tx.update(KERNEL, state, KERNEL)
        exact = p2t.permuted_params(after, KERNEL)
    now = jax.device_get((updates, exact))
    chex.assert_trees_all_close(now, jax.device_get((expected[0], expected[4])), atol=1e-6)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_study_tools_take_arrays_that_are_older_than_the_mesh(kind):
    expected = jax.jit(study)(KERNEL)
    with jax.set_mesh(make_mesh({"x": 8}, kind)):
        result = jax.jit(study)(KERNEL)
        chex.assert_trees_all_close(jax.device_get(result), jax.device_get(expected), atol=1e-6)


def test_gradients_may_be_younger_than_the_parameters(tx):
    """As a mesh is set for the loss alone, or for the optimizer alone."""
    state = tx.init(KERNEL)
    expected, _ = tx.update(GRADS, state, KERNEL)
    mesh = make_mesh({"x": 8}, EXPLICIT)
    with jax.set_mesh(mesh):
        split = jax.device_put(GRADS, NamedSharding(mesh, P(None, "x")))
        updates, _ = jax.jit(tx.update)(split, state, KERNEL)
        chex.assert_trees_all_close(np.asarray(updates), np.asarray(expected), atol=1e-6)


def statistics(params):
    source = p2t.permutations.permutation_of(params, params)["Dense_0"]["kernel"]
    twice = p2t.permutations.compose(source, p2t.permutations.invert(source))
    return p2t.permutations.statistics(source), p2t.permutations.cycle_lengths(twice)


PARAMS = {"Dense_0": {"kernel": KERNEL, "bias": jnp.arange(8.0)}, "Dense_1": {"kernel": GRADS}}
SPLIT_TOOLS = TOOLS | {"statistics": statistics}


@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")], ids=str)
@pytest.mark.parametrize("tool", SPLIT_TOOLS)
def test_study_tools_take_arrays_that_are_split_along_explicit_axes(tool, spec):
    expected = SPLIT_TOOLS[tool](PARAMS)
    mesh = make_mesh({"x": 8}, EXPLICIT)
    specs = jax.tree.map(lambda w: spec if w.ndim == 2 else P("x"), PARAMS)
    with jax.set_mesh(mesh):
        params = put(PARAMS, mesh, specs)
        result = (SPLIT_TOOLS[tool] if tool == "unpack" else jax.jit(SPLIT_TOOLS[tool]))(params)
        chex.assert_trees_all_close(
            jax.device_get(result), jax.device_get(expected), rtol=1e-4, atol=1e-6
        )
