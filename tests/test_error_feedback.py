"""LAPerm with error feedback: what a synchronization cuts off is added when it ranks next.

Beside the simulation in NumPy of local_laperm.py, on one device; with numbers whose sums are exact.
"""

import contextlib
import functools
import pickle

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from helpers import FEEDBACK, GRADS, PARAMS, assert_identical, member
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import AUTO, EXPLICIT, LAYOUTS, make_mesh, put, state_specs
from local_devices import PERIOD, simulated
from oracles import laperm as oracle

import p2t_jax as p2t

MS = (0.25, 0.5, 1.0)
TX = FEEDBACK()


def error_of(state):
    return optax.tree.get(state, "feedback_error")


@functools.cache
def expected(m=1.0):
    """Parameters after each step of the run, and the last exact permutation."""
    run = simulated(1, m)
    params = [jax.tree.map(lambda w: w[0], params) for params, _ in run]
    return params, [agreed for _, agreed in run if agreed][-1]


# The oracle


@functools.cache
def any_step(dtype):
    """One compilation for all examples: k and m are arguments."""

    @jax.jit
    def step(params, state, grads, k, m):
        tx = p2t.laperm(optax.sgd(1.0), k, error_feedback=m, vectors=0)
        params, state = helpers.step(params, state, grads, tx)
        return params, state, p2t.permuted_params(state, params)

    return step


quarters = st.integers(-8, 8).map(lambda i: i / 4)
shape = (5, 3)


def arrays(elements):
    return st.lists(elements, min_size=15, max_size=15).map(lambda x: np.reshape(x, shape))


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    theta=arrays(quarters),
    steps=st.lists(
        arrays(quarters | st.sampled_from([np.nan, np.inf, -np.inf])), min_size=1, max_size=5
    ),
    k=st.integers(1, 3),
    m=st.sampled_from([0.0, *MS]),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:vectors. the weight vectors of")
def test_every_step_is_that_of_the_oracle(dtype, theta, steps, k, m):
    theta_sorted = oracle.sort_weight_vectors(theta, (0,))
    params, e = theta, np.zeros(shape)
    tx = p2t.laperm(optax.sgd(1.0), 1, error_feedback=1.0, vectors=0)
    ours = jnp.asarray(theta, dtype)
    state = tx.init(ours)
    for i, update in enumerate(steps, start=1):
        with np.errstate(invalid="ignore"):  # infinities
            phi = params + update
            if i % k == 0:
                params, e = oracle.synchronize_with_feedback(theta_sorted, phi, e, m, (0,))
            else:
                params = phi
            final = oracle.synchronize(theta_sorted, params + (e if i % k else 0), (0,))
        ours, state, exact = any_step(dtype)(ours, state, -jnp.asarray(update, dtype), k, m)
        np.testing.assert_array_equal(error_of(state), e)
        assert error_of(state).dtype == jnp.float32
        # Optax's sum with a look-ahead of inf is not theta; shorter numbers need e to tell theta.
        finite = ours if dtype == "float32" else np.array([ours, update])
        if np.isfinite(params).all() == np.isfinite(finite).all():
            np.testing.assert_array_equal(exact.astype("float32"), final)
        assert exact.dtype == ours.dtype == dtype
        assert bool(p2t.is_permutation(exact, jnp.asarray(theta, dtype), vectors=0))
        ours = jnp.asarray(params, dtype)


@pytest.mark.parametrize("k", [1, 3])
def test_nothing_is_remembered_at_0(k):
    """The same bits, and no array more in the state."""
    plain, zero = (p2t.laperm(helpers.SGD, k, **o) for o in ({}, {"error_feedback": 0}))
    assert_identical(helpers.train_jit(zero), helpers.train_jit(plain))
    assert plain.init(PARAMS)[1].feedback_error is None
    params, state = helpers.train_jit(plain)
    traced, remembering = helpers.train_jit(
        p2t.laperm(helpers.SGD, k, error_feedback=jnp.float32(0))
    )
    assert_identical(traced, params)
    assert_identical(remembering[1].theta_sorted, state[1].theta_sorted)
    assert not any(map(np.any, jax.tree.leaves(error_of(remembering))))


# Ways to run it


def eager(tx):
    return helpers.train(functools.partial(helpers.step, tx=tx), PARAMS, tx.init(PARAMS))


def donated(tx):
    step = jax.jit(functools.partial(helpers.step, tx=tx), donate_argnums=(0, 1))
    return helpers.train(step, jax.tree.map(jnp.array, PARAMS), tx.init(PARAMS))


def pmapped(tx):
    """Each device has a member of its own; all of them do the same."""
    params, state, grads = (
        jax.tree.map(lambda x: np.stack([x] * 2, axis), tree)
        for tree, axis in ((PARAMS, 0), (tx.init(PARAMS), 0), (GRADS, 1))
    )
    step = jax.pmap(functools.partial(helpers.step, tx=tx), devices=jax.devices()[:2])
    return member(helpers.train(step, params, state, grads), 1)


WAYS = {
    "eager": eager,
    "jit": helpers.train_jit,
    "scan": helpers.train_scan,
    "donated": donated,
    "pmap": pmapped,
}


@pytest.mark.parametrize("host", [True, False], ids=["host", "plain JAX"])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_in_every_way(way, host):
    params, state = WAYS[way](FEEDBACK(host_callback=host))
    assert_identical(params, expected()[0][-1])
    assert min(helpers.moved(expected()[1], [a for _, a in simulated(1) if a][-1])) > 0.01
    assert np.count_nonzero(error_of(state)["Dense_0"]["kernel"])


def test_members_with_different_m():
    def train(m):
        return helpers.train_scan(FEEDBACK(error_feedback=m))[0]

    trained = jax.jit(jax.vmap(train))(jnp.array(MS))
    for i, m in enumerate(MS):
        assert_identical(member(trained, i), expected(m)[0][-1])


def test_a_schedule_of_m_counts_mini_batches():
    tx = FEEDBACK(error_feedback=lambda step: jnp.where(step < PERIOD, 0.25, jnp.nan))
    params, state = PARAMS, tx.init(PARAMS)
    for i in range(2 * PERIOD):
        if i == PERIOD:
            assert_identical(params, expected(0.25)[0][i - 1])
        params, state = helpers.jitted_step(tx)(params, state, member(GRADS, i))
    assert not any(map(np.any, jax.tree.leaves(error_of(state))))  # NaN counts as 0


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("whole on x", EXPLICIT),
        ("split and shared", AUTO),
        helpers.slow("whole on x", AUTO),
        helpers.slow("split and shared", EXPLICIT),
    ],
)
def test_over_a_mesh(layout, kind):
    axes, spec = LAYOUTS[layout]
    mesh, specs = make_mesh(axes, kind), jax.tree.map(spec, PARAMS)
    with jax.set_mesh(mesh) if kind == EXPLICIT else contextlib.nullcontext():
        params, grads = put(PARAMS, mesh, specs), put(member(GRADS, 0), mesh, specs)
        state = TX.init(params)
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda x: str(x.sharding), x) for x in (error_of(state), params))
        )
        state = put(state, mesh, state_specs(specs, TX))
        step = jax.jit(functools.partial(helpers.step, tx=TX))
        for i in range(helpers.STEPS):
            grads = put(member(GRADS, i), mesh, specs)
            params, state = step(params, state, grads)
        final = jax.jit(p2t.permuted_params)(state, params)
    assert_identical(params, expected()[0][-1])
    params, state = helpers.train_jit(TX)
    assert_identical(final, p2t.permuted_params(state, params))


def test_shard_map_over_all_devices():
    """Every device has some of the vectors; what varies between devices is remembered so."""
    mesh = make_mesh({"x": 2})
    spec = jax.P(None, "x")
    tx = p2t.laperm(helpers.SGD, PERIOD, error_feedback=1.0, vectors=0)
    kernel, grads = PARAMS["Dense_0"]["kernel"], GRADS["Dense_0"]["kernel"]

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec, jax.P(None, None, "x")),
                       out_specs=spec)  # fmt: skip
    def train(kernel, grads):
        return helpers.train_scan(tx, kernel, grads)[0]

    assert_identical(train(kernel, grads), expected()[0][-1]["Dense_0"]["kernel"])


# What else Optax and JAX do


def test_right_after_a_synchronization_it_is_exactly_theta():
    params, state = PARAMS, TX.init(PARAMS)
    assert_identical(p2t.permuted_params(state, params), PARAMS)
    for i in range(2 * PERIOD):
        params, state = helpers.jitted_step(TX)(params, state, member(GRADS, i))
    assert_identical(helpers.weight_vectors_of(p2t.permuted_params(state, params)),
                     helpers.weight_vectors_of(expected()[1]))  # fmt: skip
    params, state = helpers.jitted_step(TX)(params, state, member(GRADS, i + 1))
    phi = jax.tree.map(np.add, params, error_of(state))
    final = p2t.permuted_params(state, params)
    wanted = helpers.reordered(PARAMS, phi)
    chex.assert_trees_all_equal(*map(helpers.weight_vectors_of, (final, wanted)))
    assert_identical(final["Dense_0"]["bias"], params["Dense_0"]["bias"])
    wrong = helpers.reordered(PARAMS, params)
    assert max(helpers.moved(final, wrong)) > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_loses_nothing(dtype):
    """Updates too small for the parameters add up, and what rounds away is not lost."""
    rng = np.random.default_rng(0)
    theta = jnp.asarray(rng.normal(size=(64, 4)), dtype)
    tx = p2t.laperm(optax.sgd(1.0), 1, error_feedback=1.0, vectors=0)
    params, state = theta, tx.init(theta)
    want = theta[::-1]
    step = jax.jit(functools.partial(helpers.step, tx=tx))
    wide = np.asarray(theta, np.float64)
    for _ in range(40):
        grads = ((theta - want) / 4096).astype(dtype)
        wide -= np.asarray(grads, np.float64)
        params, state = step(params, state, grads)
        total = np.asarray(params, np.float64) + np.asarray(error_of(state), np.float64)
        np.testing.assert_allclose(total, wide, rtol=0, atol=1e-5)
    final = p2t.permuted_params(state, params)
    assert bool(p2t.is_permutation(final, theta, vectors=0))
    assert helpers.moved(final, theta)[0] > 0.1


NESTINGS = {
    "MultiSteps": lambda: optax.MultiSteps(TX, 2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(p2t.laperm)(
        helpers.SGD, sync_period=3, error_feedback=1.0
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(TX, 2),
    "line search": lambda: FEEDBACK(
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(2))
    ),
    "partition": lambda: optax.partition(
        {"kernel": TX, "bias": helpers.SGD},
        lambda params: jax.tree.map_with_path(lambda path, _: path[-1].key, params),
    ),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_nested_in_and_around_other_transformations(nesting):
    tx = NESTINGS[nesting]()
    loss = lambda params: optax.tree.norm(params, squared=True) / 64  # noqa: E731

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optax.with_extra_args_support(tx).update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(7):
        params, state = step(params, state)
    final = p2t.permuted_params(state, params)
    assert bool(p2t.is_permutation(final, PARAMS))
    # Norms pull all weights to zero, and order stays: what was cut off is the way to zero.
    assert np.count_nonzero(error_of(state)["Dense_0"]["kernel"]) > 100
    if nesting in ("inject_hyperparams", "apply_if_finite"):
        assert_identical(params, simple_run(loss))


def simple_run(loss):
    params, state = PARAMS, TX.init(PARAMS)
    for _ in range(7):
        params, state = helpers.jitted_step(TX)(params, state, jax.jit(jax.grad(loss))(params))
    return params


SAVED = {
    "pickle": lambda state, target: pickle.loads(pickle.dumps(state)),
    "flax": lambda state, target: serialization.from_bytes(target, serialization.to_bytes(state)),
}


@pytest.mark.parametrize("way", SAVED)
def test_a_saved_state_goes_on(way):
    params, state = PARAMS, TX.init(PARAMS)
    for i in range(helpers.STEPS):
        if i == PERIOD + 1:
            restored = SAVED[way](state, TX.init(PARAMS))
            chex.assert_trees_all_equal(restored, state)
            state = restored
        params, state = helpers.jitted_step(TX)(params, state, member(GRADS, i))
    assert_identical(params, expected()[0][-1])


def test_states_of_shapes_and_of_exported_programs():
    shapes = jax.eval_shape(TX.init, PARAMS)
    as_shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), PARAMS)
    assert error_of(TX.init(as_shapes)) == error_of(shapes)
    link = p2t.synchronize(1, error_feedback=1.0, host_callback=False)
    state = link.init(PARAMS)
    exported = jax.export.export(jax.jit(link.update))(member(GRADS, 0), state, PARAMS)
    again = jax.export.deserialize(exported.serialize())
    args = member(GRADS, 0), state, PARAMS
    assert_identical(again.call(*args), jax.jit(link.update)(*args))


def test_derivatives_with_respect_to_m_and_the_weights():
    """The permutation is constant almost everywhere; e is linear in m."""
    grads = member(GRADS, 0)

    def remembered(m, kernel):
        params = PARAMS | {"Dense_1": {"kernel": kernel}}
        tx = p2t.laperm(helpers.SGD, 1, error_feedback=m)
        _, state = tx.update(grads, tx.init(params), params)
        return error_of(state)["Dense_1"]["kernel"].sum()

    kernel = PARAMS["Dense_1"]["kernel"]
    at_one = remembered(jnp.float32(1), kernel)
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(remembered)(0.5, kernel), at_one, rtol=1e-5)
        # z and theta move with the same weights: their sums do not.
        slope = jax.jit(derivative(remembered, argnums=1))(0.5, kernel)
        np.testing.assert_allclose(slope.sum(), 0, atol=1e-4)


def test_64_bits_and_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params, grads = (jax.tree.map(np.float64, tree) for tree in (PARAMS, GRADS))
        _, state = helpers.train_jit(FEEDBACK(), params, grads)
        assert {x.dtype for x in jax.tree.leaves(error_of(state))} == {np.dtype("float64")}
        half = jax.tree.map(lambda w: jnp.asarray(w, "bfloat16"), PARAMS)
        grads = jax.tree.map(lambda w: jnp.asarray(w, "bfloat16"), GRADS)
        params, state = helpers.train_jit(FEEDBACK(), half, grads)
        assert {x.dtype for x in jax.tree.leaves(error_of(state))} == {np.dtype("float32")}
        assert bool(p2t.is_permutation(p2t.permuted_params(state, params), half))


@pytest.mark.parametrize(
    ("m", "error", "message"),
    [
        (1.5, ValueError, r"error_feedback: must be in \[0, 1\], got 1.5"),
        (-0.1, ValueError, "error_feedback: must be in"),
        (float("nan"), ValueError, "error_feedback: must be in"),
        ("1", TypeError, "error_feedback: expected a real number or a schedule"),
        (True, TypeError, "error_feedback: expected a real number"),
        (np.ones(2), ValueError, "error_feedback: expected a single number"),
        (lambda step: "1", TypeError, "error_feedback: expected a real number"),
    ],
)
def test_other_numbers_are_refused(m, error, message):
    for make in (functools.partial(p2t.laperm, helpers.SGD), p2t.synchronize):
        with pytest.raises(error, match=message):
            make(3, error_feedback=m)


def test_a_state_without_memory_is_refused():
    plain = helpers.TX["laperm"]
    with pytest.raises(ValueError, match="state: has no feedback_error, which error_feedback"):
        TX.update(member(GRADS, 0), plain.init(PARAMS), PARAMS)
