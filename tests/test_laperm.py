"""LAPerm against Algorithm 2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import laperm as reference
from strategies import weights_and_axes

import p2t_jax as p2t

# Hypothesis likes vectors of one weight.
pytestmark = pytest.mark.filterwarnings("ignore:vectors. the weight vectors of:UserWarning")

SHAPES_AND_AXES = [
    ((7, 5), 0),
    ((5, 7), 1),
    ((3, 3, 2, 4), (0, 1, 2)),
    ((3, 4, 2), (0, 2)),
    ((6,), 0),
]


def dyadic(rng, shape, scale=8):
    """Numbers that float32 adds and subtracts exactly, many of them equal."""
    return (rng.integers(-2 * scale, 2 * scale, shape) / scale).astype(np.float32)


def as_tuple(axes):
    return axes if isinstance(axes, tuple) else (axes,)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(("shape", "axes"), SHAPES_AND_AXES)
def test_every_step_equals_algorithm_2(shape, axes, k):
    rng = np.random.default_rng(0)
    theta_0 = dyadic(rng, shape)
    gradients = [dyadic(rng, shape) for _ in range(11)]
    expected = reference.laperm(theta_0, as_tuple(axes), lambda g: -0.5 * g, gradients, k)

    tx = p2t.laperm(optax.sgd(0.5), k, vectors=axes)
    params = jnp.asarray(theta_0)
    state = tx.init(params)
    for gradient, phi in zip(gradients, expected, strict=True):
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params, phi)


@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.lion(0.05)])
def test_every_step_follows_the_inner_optimizer(inner):
    """One step at a time, from where LAPerm stands: rounding has no time to add up."""
    rng = np.random.default_rng(1)
    k, axes = 3, (0,)
    theta_0 = rng.normal(size=(9, 4)).astype(np.float32)
    theta_sorted = reference.sort_weight_vectors(theta_0, axes)
    tx = p2t.laperm(inner, k, vectors=0)
    params = jnp.asarray(theta_0)
    state, inner_state = tx.init(params), inner.init(params)
    for step in range(1, 13):
        gradient = jnp.asarray(rng.normal(size=theta_0.shape).astype(np.float32))
        updates, inner_state = inner.update(gradient, inner_state, params)
        phi = np.asarray(optax.apply_updates(params, updates))
        expected = reference.synchronize(theta_sorted, phi, axes) if step % k == 0 else phi

        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=0, atol=1e-6)
        exact = p2t.permuted_params(state, params)
        np.testing.assert_array_equal(
            exact, reference.synchronize(theta_sorted, np.asarray(params), axes)
        )


@given(data=st.data(), case=weights_and_axes())
@settings(max_examples=25, deadline=None)
def test_synchronization_keeps_every_multiset_and_agrees_with_the_reference(data, case):
    theta_0, axes = case
    phi = data.draw(weights_and_axes.like(theta_0))
    tx = p2t.synchronize(1, vectors=axes)
    state = tx.init(jnp.asarray(theta_0))
    theta = p2t.permuted_params(state, jnp.asarray(phi))

    assert p2t.is_permutation(theta, theta_0, vectors=axes)
    theta_sorted = reference.sort_weight_vectors(theta_0, as_tuple(axes))
    expected = reference.synchronize(theta_sorted, phi, as_tuple(axes))
    assert np.asarray(theta).tobytes() == expected.tobytes()

    # Zeros of two signs are a tie, and may change places: nothing else may.
    twice = p2t.permuted_params(state, theta)
    np.testing.assert_array_equal(twice.astype(np.float32), theta.astype(np.float32))


@given(case=weights_and_axes())
@settings(max_examples=15, deadline=None)
def test_before_the_first_step_the_weights_are_the_initial_ones(case):
    theta_0, axes = case
    state = p2t.synchronize(5, vectors=axes).init(jnp.asarray(theta_0))
    assert np.asarray(p2t.permuted_params(state, jnp.asarray(theta_0))).tobytes() == (
        theta_0.tobytes()
    )


def test_between_synchronizations_updates_pass_through():
    params = {"kernel": jnp.arange(6.0).reshape(3, 2)}
    tx = p2t.synchronize(3)
    state = tx.init(params)
    updates = {"kernel": jnp.full((3, 2), 0.3)}
    for _ in range(2):
        out, state = tx.update(updates, state, params)
        np.testing.assert_array_equal(out["kernel"], updates["kernel"])


def test_other_parameters_are_left_to_the_inner_optimizer():
    rng = np.random.default_rng(2)
    params = {
        "Dense_0": {"kernel": jnp.asarray(rng.normal(size=(5, 3))), "bias": jnp.ones(3)},
        "BatchNorm_0": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "Embed_0": {"embedding": jnp.asarray(rng.normal(size=(7, 4)))},
    }
    free = {"Dense_0/bias", "BatchNorm_0/scale", "BatchNorm_0/bias", "Embed_0/embedding"}
    tx, alone = p2t.laperm(optax.adam(0.1), 1), optax.adam(0.1)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = alone.update(grads, alone.init(params), params)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(expected), strict=True
    ):
        name = "/".join(str(key.key) for key in path)
        assert np.array_equal(ours, theirs) == (name in free), name


def test_a_schedule_of_k_counts_mini_batches():
    """k = 2 for the first five mini-batches, then 4: a period that has begun is prolonged."""
    schedule = optax.piecewise_constant_schedule(2, {4: 2.0})
    tx = p2t.laperm(optax.sgd(1.0), schedule, vectors=0)
    params = jnp.zeros((4, 1))
    state = tx.init(params)
    synchronized = []
    for _ in range(14):
        _, state = tx.update(jnp.ones_like(params), state, params)
        synchronized.append(int(state[1].lookahead_step) == 0)
    assert [i + 1 for i, s in enumerate(synchronized) if s] == [2, 4, 8, 12]


def test_the_rounding_of_apply_updates_does_not_add_up():
    """After many synchronizations params are still within an ulp or two of the exact weights."""
    key = jax.random.key(0)
    params = jax.random.normal(key, (200, 20))
    tx = p2t.laperm(optax.sgd(1.0), 1, vectors=0)
    state = tx.init(params)

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(jax.random.normal(key, params.shape), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), jax.random.split(key, 200))
    exact = p2t.permuted_params(state, params)
    assert not np.array_equal(params, exact)  # or else there was nothing to show
    np.testing.assert_allclose(params, exact, rtol=0, atol=1e-6)
