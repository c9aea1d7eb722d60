"""SGPerm against Algorithm 1: what is particular to it. What it shares is in the common suite."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import sgperm as oracle

import p2t_jax as p2t
from p2t_jax import _sgperm_in_jax
from p2t_jax._host.kernels import cycles

VECTORS = {"Dense_0": {"kernel": 0, "bias": 0}, "Conv_0": {"kernel": (0, 1, 2)}, "scale": None}


def make_params(dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "Dense_0": {
            "kernel": jax.random.uniform(keys[0], (60, 12), dtype, -1),
            "bias": jax.random.uniform(keys[1], (12,), dtype, -1),
        },
        "Conv_0": {"kernel": jax.random.uniform(keys[2], (3, 3, 4, 6), dtype, -1)},
        "scale": jax.random.uniform(keys[3], (5,), dtype),
    }


def make_grads(params, step):
    key = jax.random.fold_in(jax.random.key(1), step)
    return jax.tree.map(lambda p: jax.random.normal(key, p.shape, p.dtype), params)


def train(tx, params, steps=5, update=None):
    state = tx.init(params)
    update = update or jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(make_grads(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return p2t.permuted_params(state, params), params, state


@pytest.mark.parametrize("host_callback", [True, False], ids=["host", "jax"])
@pytest.mark.parametrize("lower", ["mean", "smallest"])
@pytest.mark.parametrize("ties", [False, True])
def test_every_step_permutes_as_the_paper_says(lower, ties, host_callback):
    """One subset (lambda = 1) leaves nothing to chance."""
    rng = np.random.default_rng(0)
    alpha, momentum = float(np.float32(0.3)), 0.9
    theta = rng.uniform(-1, 1, (60, 4)).astype(np.float32)
    theta = np.round(8 * theta) / 8 if ties else theta
    tx = p2t.sgperm(0, alpha, 1.0, lower=lower, host_callback=host_callback)
    params = {"kernel": jnp.asarray(theta)}
    state, update = tx.init(params), jax.jit(tx.update)
    r = np.zeros_like(theta)
    for _ in range(5):
        gradient = rng.normal(size=theta.shape).astype(np.float32)
        gradient[rng.random(theta.shape) < 0.2] = 0
        gradient[0] = np.where(rng.random(4) < 0.5, np.nan, 0)
        r = gradient + np.float32(momentum) * r
        updates, state = update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        for j in range(theta.shape[1]):
            theta[:, j] = theta[oracle.search(theta[:, j], r[:, j], alpha, 1.0, 0, lower), j]
        np.testing.assert_array_equal(p2t.permuted_params(state, params)["kernel"], theta)
        np.testing.assert_allclose(params["kernel"], theta, rtol=0, atol=1e-6)


def test_plain_jax_draws_subsets_like_the_host():
    """Subsets of the same sizes, uniformly drawn: about as many weights move, about as far."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.uniform(-1, 1, (230, 200)).astype(np.float32))}
    grads = {"kernel": jnp.asarray(rng.normal(size=(230, 200)).astype(np.float32))}
    moved = {}
    for host_callback in (True, False):
        tx = p2t.sgperm(0, 0.1, 0.07, host_callback=host_callback)
        updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
        assert p2t.is_permutation(p2t.permuted_params(state, params), params)
        change = np.abs(updates["kernel"])
        moved[host_callback] = (change > 0).mean(), change[change > 0].mean()
    np.testing.assert_allclose(moved[True], moved[False], rtol=0.02)


@pytest.mark.parametrize(("n", "ratio"), [(784, 0.05), (784, 0.07), (100, 0.05), (15, 0.01)])
def test_plain_jax_counts_subsets_like_the_host(n, ratio):
    count = _sgperm_in_jax.subset_count(n, jnp.float32(ratio))
    assert int(count) == oracle.number_of_subsets(n, float(np.float32(ratio)))


@pytest.mark.parametrize("priority", ["nearest", "farthest", "random"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_weights_only_move_and_other_parameters_stay(priority, dtype):
    initial = make_params(dtype)
    tx = p2t.sgperm(0, 0.6, 0.5, priority=priority, vectors=VECTORS)
    exact, params, _ = train(tx, initial)
    assert p2t.is_permutation(exact, initial, vectors=VECTORS)
    for name in ("Dense_0", "Conv_0"):
        moved = np.asarray(exact[name]["kernel"] != initial[name]["kernel"])
        assert moved.mean() > 0.3
    assert np.asarray(exact["Dense_0"]["bias"] != initial["Dense_0"]["bias"]).any()
    np.testing.assert_array_equal(params["scale"], initial["scale"])
    assert params["scale"].dtype == dtype


def test_biases_are_permuted_on_demand():
    initial = make_params()
    del initial["scale"]
    held, moved = (
        train(p2t.sgperm(0, 0.5, vectors=vectors), initial)[0]
        for vectors in ("flax", p2t.with_biases("flax"))
    )
    np.testing.assert_array_equal(held["Dense_0"]["bias"], initial["Dense_0"]["bias"])
    assert not np.array_equal(moved["Dense_0"]["bias"], initial["Dense_0"]["bias"])
    assert p2t.is_permutation(moved, initial, vectors=p2t.with_biases())


def test_default_schedules_are_algorithm_1_with_the_values_of_section_5_1_2():
    """A schedule of our own, transcribed, changes nothing."""
    alphas, lambdas = [0.07], [0.05]
    for _ in range(5):
        alphas.append(max(0.985 * alphas[-1], 0.005))
        lambdas.append(min(lambdas[-1] / 0.995, 0.1))
    transcribed = [lambda step, x=x: jnp.array(x[1:])[step] for x in (alphas, lambdas)]
    initial = make_params()
    expected, *_ = train(p2t.sgperm(0, *transcribed, vectors=VECTORS), initial)
    chex.assert_trees_all_equal(train(p2t.sgperm(0, vectors=VECTORS), initial)[0], expected)


@pytest.mark.parametrize(("x", "rate", "limit"), [(0.07, 0.985, 0.005), (0.05, 1 / 0.995, 0.1)])
def test_geometric_schedules_multiply_before_the_first_use(x, rate, limit):
    schedule = p2t.geometric_schedule(x, rate, limit)
    for step in range(800):
        x = max(rate * x, limit) if rate < 1 else min(rate * x, limit)
        assert schedule(step) == pytest.approx(x, rel=1e-5)


def test_schedules_are_followed():
    """No aggressiveness in the first two steps, then much."""
    initial = make_params()

    def alpha(step):
        return jnp.where(step < 2, 0.0, 0.5)

    tx = p2t.sgperm(0, alpha, 0.5, vectors=VECTORS)
    chex.assert_trees_all_equal(train(tx, initial, 2)[0], initial)
    moved = train(tx, initial, 3)[0]
    assert not np.array_equal(moved["Dense_0"]["kernel"], initial["Dense_0"]["kernel"])


@pytest.mark.parametrize("host_callback", [True, False], ids=["host", "jax"])
def test_traced_hyperparameters_out_of_range_let_nothing_move(host_callback):
    initial = make_params()

    @jax.jit
    def run(alpha, lambda_):
        tx = p2t.sgperm(0, alpha, lambda_, vectors=VECTORS, host_callback=host_callback)
        return train(tx, initial, 1, tx.update)[0]

    for value in (math.nan, 0.0, -1.0):
        chex.assert_trees_all_equal(run(value, 0.5), initial)
        chex.assert_trees_all_equal(run(0.5, value), initial)
    chex.assert_trees_all_equal(run(7.0, 0.5), run(1.0, 0.5))
    chex.assert_trees_all_equal(run(0.5, math.inf), run(0.5, 1.0))
    assert not np.array_equal(run(0.5, 0.5)["Dense_0"]["kernel"], initial["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"aggressiveness": 1.1}, ValueError, r"aggressiveness: must be in \(0, 1\], got 1.1"),
        ({"aggressiveness": "much"}, TypeError, "aggressiveness.*a real number or a schedule"),
        ({"priority": "best"}, ValueError, "priority.*nearest, farthest, random"),
        ({"lower": "least"}, ValueError, "lower.*mean, smallest"),
        ({"host_callback": 1}, TypeError, "host_callback"),
        ({"host_callback": False, "priority": "random"}, ValueError, "priority.*nearest"),
    ],
)
def test_errors_say_what_is_expected(arguments, error, message):
    with pytest.raises(error, match=message):
        p2t.sgperm(**{"key": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0, 0.5, 0.1), ValueError, "init_value: must be positive, got 0.0"),
        ((0.1, 1, 0.1), ValueError, "rate"),
        ((0.1, 0.5, "0"), TypeError, "limit"),
    ],
)
def test_bad_schedules_are_refused_at_the_call(arguments, error, message):
    with pytest.raises(error, match=message):
        p2t.geometric_schedule(*arguments)


def test_an_error_in_the_host_kernel_reaches_the_user(monkeypatch):
    params = {"kernel": make_params(seed=4)["Dense_0"]["kernel"][:, :7]}
    tx = p2t.sgperm(0, 0.1, 0.1)
    state = tx.init(params)
    before = np.array(params["kernel"])
    update = jax.jit(tx.update).lower(params, state, params).compile()

    def fail(*args, **kwargs):
        raise RuntimeError("the host is on fire")

    monkeypatch.setattr(cycles, "search", fail)
    with pytest.raises(Exception, match="the host is on fire"):
        jax.block_until_ready(update(params, state, params))
    np.testing.assert_array_equal(params["kernel"], before)
    monkeypatch.undo()
    updates, _ = update(params, state, params)
    assert np.any(updates["kernel"])


@pytest.mark.parametrize("spec", ["flax", {"Dense_0": 0, "LayerNorm_0": None}])
def test_another_optimizer_trains_what_is_not_permuted(spec):
    rng = np.random.default_rng(0)
    params = {
        "Dense_0": {"kernel": jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)},
        "LayerNorm_0": {"scale": jnp.ones(3)},
    }
    grads = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)

    def run(tx):
        updates, state = tx.update(grads, tx.init(params), params)
        return p2t.permuted_params(state, optax.apply_updates(params, updates))

    both = run(p2t.sgperm(0, 0.3, 0.5, others=optax.sgd(0.5), vectors=spec))
    alone = run(p2t.sgperm(0, 0.3, 0.5, vectors=spec))
    chex.assert_trees_all_equal(both["Dense_0"], alone["Dense_0"])
    assert not np.array_equal(both["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    expected = 1 - 0.5 * grads["LayerNorm_0"]["scale"]
    np.testing.assert_allclose(both["LayerNorm_0"]["scale"], expected, rtol=1e-6)
    chex.assert_trees_all_equal(alone["LayerNorm_0"], params["LayerNorm_0"])
