"""SGPerm as an Optax transformation: Algorithm 1 around the kernel that test_cycles.py checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_sgperm as reference

import p2t_jax as p2t
from p2t_jax._host.kernels import cycles
from p2t_jax._sgperm import _AGGRESSIVENESS, _PARTITION_RATIO

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


def assert_same(tree, other):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("priority", ["nearest", "farthest"])
def test_every_step_permutes_as_the_paper_says(priority, ties):
    """One subset (lambda = 1) leaves nothing to chance.

    With ties l is zero, and XLA's threads, in which the search runs, take denormals for zeros.
    """
    rng = np.random.default_rng(0)
    alpha, momentum = 0.3, 0.9
    theta = rng.uniform(-1, 1, (20, 4)).astype(np.float32)
    theta = np.round(8 * theta) / 8 if ties else theta
    tx = p2t.sgperm(0, alpha, 1.0, priority=priority)
    params = {"kernel": jnp.asarray(theta)}
    state = tx.init(params)
    r = np.zeros_like(theta)
    for _ in range(8):
        gradient = rng.normal(size=theta.shape).astype(np.float32)
        r = gradient + np.float32(momentum) * r
        updates, state = tx.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        for j in range(theta.shape[1]):
            w = theta[:, j].copy()
            source = reference.search(w, r[:, j], float(np.float32(alpha)), 1, [], j, priority)
            theta[:, j] = w[source]
        np.testing.assert_array_equal(p2t.permuted_params(state, params)["kernel"], theta)
        np.testing.assert_allclose(params["kernel"], theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("priority", ["nearest", "farthest", "random"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_weights_are_only_ever_moved_and_others_held(priority, dtype):
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


def test_without_a_rule_biases_are_held():
    initial = make_params()
    del initial["scale"]
    _, params, _ = train(p2t.sgperm(0), initial)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], initial["Dense_0"]["bias"])


def test_eager_jit_and_scan_give_the_same():
    initial = make_params()
    tx = p2t.sgperm(jax.random.key(3), vectors=VECTORS)
    expected, *_ = train(tx, initial)
    assert_same(train(tx, initial, update=tx.update)[0], expected)

    def step(carry, i):
        params, state = carry
        updates, state = tx.update(make_grads(params, i), state, params)
        return (optax.apply_updates(params, updates), state), None

    params, state = jax.jit(
        lambda params: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(5))[0]
    )(initial)
    assert_same(p2t.permuted_params(state, params), expected)


def test_members_of_a_vmapped_ensemble_are_what_they_are_alone():
    alphas, seeds = jnp.array([0.05, 0.3, 0.3]), jnp.array([1, 1, 2])

    def member(seed, alpha):
        tx = p2t.sgperm(seed, alpha, 0.25, vectors=VECTORS)
        return train(tx, make_params(), update=tx.update)[0]

    members = jax.jit(jax.vmap(member))(seeds, alphas)
    for i in range(3):
        assert_same(jax.tree.map(lambda x, i=i: x[i], members), member(seeds[i], alphas[i]))


def test_the_key_decides_the_partitions():
    def run(key):
        return train(p2t.sgperm(key, 0.1, 0.1, vectors=VECTORS), make_params())[0]

    typed = run(jax.random.key(5))
    assert_same(run(5), typed)
    assert_same(run(jax.random.key_data(jax.random.key(5))), typed)
    assert not np.array_equal(run(6)["Dense_0"]["kernel"], typed["Dense_0"]["kernel"])


def test_default_schedules_are_algorithm_1_with_the_values_of_section_5_1_2():
    alpha, lambda_ = 0.07, 0.05
    for t in range(800):
        alpha = max(0.985 * alpha, 0.005)
        lambda_ = min(lambda_ / 0.995, 0.1)
        assert _AGGRESSIVENESS(t) == pytest.approx(alpha, rel=1e-5)
        assert _PARTITION_RATIO(t) == pytest.approx(lambda_, rel=1e-5)


def test_schedules_are_followed():
    """No aggressiveness in the first two steps, then much."""
    schedule = optax.piecewise_constant_schedule(1e-9, {2: 0.5e9})
    initial = make_params()
    assert_same(train(p2t.sgperm(0, schedule, 0.5, vectors=VECTORS), initial, 2)[0], initial)
    moved = train(p2t.sgperm(0, schedule, 0.5, vectors=VECTORS), initial, 3)[0]
    assert not np.array_equal(moved["Dense_0"]["kernel"], initial["Dense_0"]["kernel"])


@pytest.mark.parametrize(
    "inner", [optax.sgd(1.0), optax.adam(1e-3), optax.chain(optax.clip(0.1), optax.sgd(1.0))]
)
def test_recommendations_can_come_from_any_optimizer(inner):
    initial = make_params()
    exact, *_ = train(p2t.sgperm(0, 0.2, 0.25, inner=inner, vectors=VECTORS), initial)
    assert p2t.is_permutation(exact, initial, vectors=VECTORS)
    assert not np.array_equal(exact["Dense_0"]["kernel"], initial["Dense_0"]["kernel"])


def test_what_is_held_can_be_trained_otherwise():
    initial = make_params()
    labels = {"Dense_0": "p", "Conv_0": "p", "scale": "adam"}
    tx = optax.partition(
        {"p": p2t.sgperm(0, vectors=p2t.flax_vectors), "adam": optax.adam(0.1)}, labels
    )
    exact, _, _ = train(tx, initial)
    assert p2t.is_permutation(exact, initial, vectors={**VECTORS, "Dense_0": p2t.flax_vectors})
    assert not np.array_equal(exact["scale"], initial["scale"])


def test_a_weight_with_a_nan_recommendation_stays():
    initial = {"kernel": make_params()["Dense_0"]["kernel"]}
    bad = jax.random.bernoulli(jax.random.key(2), 0.3, (60, 12))
    gradient = jnp.where(bad, jnp.nan, make_grads(initial, 0)["kernel"])
    tx = p2t.sgperm(0, 0.5, 0.5)
    updates, state = tx.update({"kernel": gradient}, tx.init(initial), initial)
    moved = np.asarray(updates["kernel"] != 0)
    assert moved.any()
    assert not moved[np.asarray(bad)].any()
    assert p2t.is_permutation(p2t.permuted_params(state, initial), initial)


@pytest.mark.parametrize("value", [jnp.nan, 0.0, -1.0])
def test_traced_hyperparameters_out_of_range_let_nothing_move(value):
    initial = make_params()

    def run(alpha, lambda_):
        tx = p2t.sgperm(0, alpha, lambda_, vectors=VECTORS)
        return train(tx, initial, 1, tx.update)[0]

    assert_same(jax.jit(run)(value, 0.5), initial)
    assert_same(jax.jit(run)(0.5, value), initial)
    assert_same(jax.jit(run)(7.0, 0.5), run(1.0, 0.5))
    assert_same(jax.jit(run)(0.5, jnp.inf), run(0.5, 1.0))


def test_optax_conventions():
    initial = make_params()
    tx = p2t.sgperm(0, 0.1, 0.25, vectors=VECTORS)
    state = tx.init(initial)
    assert jax.tree.structure(optax.tree.map_params(tx, lambda x, _: x, state, initial)) == (
        jax.tree.structure(state)
    )
    assert_same(optax.tree.get(state, "theta"), initial)
    assert jax.tree.structure(jax.eval_shape(tx.init, initial)) == jax.tree.structure(state)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, an_argument_for_others=1))
    updates, new_state = step(initial, state, initial)
    step(updates, new_state, initial)
    assert step._cache_size() == 1
    jax.tree.map(lambda u, p: np.testing.assert_equal(u.dtype, p.dtype), updates, initial)
    with pytest.raises(ValueError, match="params"):
        tx.update(initial, state)

    injected = optax.inject_hyperparams(
        p2t.sgperm, static_args=("key", "inner", "vectors", "priority", "axis_name")
    )(0, 0.1, 0.25, vectors=VECTORS)
    assert_same(train(injected, initial)[0], train(tx, initial)[0])

    accumulated = optax.MultiSteps(tx, 2).gradient_transformation()
    grads = make_grads(initial, 0)
    state = accumulated.init(initial)
    first, state = accumulated.update(grads, state, initial)
    second, _ = accumulated.update(grads, state, initial)
    expected, _ = tx.update(grads, tx.init(initial), initial)
    assert not any(np.any(u) for u in jax.tree.leaves(first))
    assert_same(second, expected)


def test_params_and_state_can_be_donated():
    tx = p2t.sgperm(0, vectors=VECTORS)
    expected, *_ = train(tx, make_params())
    exact, *_ = train(tx, make_params(), update=jax.jit(tx.update, donate_argnums=(0, 1)))
    assert_same(exact, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "seed"}, TypeError, "key"),
        ({"key": 1.5}, TypeError, "key"),
        ({"key": None}, TypeError, "key"),
        ({"key": True}, TypeError, "key"),
        ({"key": jnp.zeros(3, jnp.uint32)}, TypeError, "key"),
        ({"aggressiveness": 0.0}, ValueError, r"aggressiveness.*\(0, 1\]"),
        ({"aggressiveness": 1.1}, ValueError, r"aggressiveness.*\(0, 1\]"),
        ({"aggressiveness": float("nan")}, ValueError, "aggressiveness"),
        ({"aggressiveness": "much"}, TypeError, "aggressiveness"),
        ({"aggressiveness": jnp.ones(2)}, ValueError, "aggressiveness.*shape"),
        ({"aggressiveness": lambda step: 2.0}, ValueError, "aggressiveness"),
        ({"partition_ratio": -0.1}, ValueError, r"partition_ratio.*\(0, 1\]"),
        ({"partition_ratio": float("inf")}, ValueError, "partition_ratio"),
        ({"partition_ratio": None}, TypeError, "partition_ratio"),
        ({"priority": "best"}, ValueError, "priority.*nearest, farthest, random"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments, error, message):
    with pytest.raises(error, match=message):
        p2t.sgperm(**{"key": 0, **arguments})


def test_an_axis_that_is_not_bound_is_refused():
    params = make_params()
    tx = p2t.sgperm(0, vectors=VECTORS, axis_name="batch")
    with pytest.raises(ValueError, match=r"axis_name.*'batch'"):
        tx.update(params, tx.init(params), params)


def test_a_state_of_other_parameters_is_refused():
    params = {"kernel": jnp.ones((3, 2))}
    tx = p2t.sgperm(0)
    state = tx.init({"kernel": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match="kernel"):
        p2t.permuted_params(state, params)
    link = p2t.cycle_permutation(0)
    with pytest.raises(ValueError, match=r"state.*kernel.*\[3, 2\]"):
        link.update(params, link.init({"kernel": jnp.ones((4, 2))}), params)


def test_an_error_in_the_host_kernel_reaches_the_user(monkeypatch):
    params = {"kernel": make_params(seed=4)["Dense_0"]["kernel"][:, :7]}
    tx = p2t.sgperm(0, 0.1, 0.1)
    state = tx.init(params)
    before = np.array(params["kernel"])
    update = jax.jit(tx.update).lower(params, state, params).compile()

    def fail(*args):
        raise RuntimeError("the host is on fire")

    monkeypatch.setattr(cycles, "search_rows", fail)
    with pytest.raises(Exception, match="the host is on fire"):
        jax.block_until_ready(update(params, state, params))
    np.testing.assert_array_equal(params["kernel"], before)
    monkeypatch.undo()
    updates, _ = update(params, state, params)
    assert np.any(updates["kernel"])
