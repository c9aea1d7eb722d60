"""JAX transformations: the same parameters from eager code, jit, scan, vmap, and any mix of them.

And the two ways of ranking, on the host and on a device, give the same bits.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import distributed_worker as run
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from test_devices import CALLBACK, assert_identical, host_rows  # noqa: F401

import p2t_jax as p2t
from p2t_jax import _ranking as ranking
from p2t_jax._host import per_row as host

MEMBERS = 4
PERIODS = np.array([1, 2, 3, 5])


def train_eager(tx: Any, params: Any, grads: Any) -> Any:
    return run.train(partial(run.step, tx=tx), params, tx.init(params), grads)


@cache
def jitted_step(tx: Any) -> Any:
    return jax.jit(partial(run.step, tx=tx))


def train_jit(tx: Any, params: Any, grads: Any) -> Any:
    return run.train(jitted_step(tx), params, tx.init(params), grads)


def train_scan(tx: Any, params: Any, grads: Any) -> Any:
    def body(carry: Any, grads: Any) -> Any:
        return run.step(*carry, grads, tx), None

    return jax.lax.scan(body, (params, tx.init(params)), grads)[0]


def train_in_jit(tx: Any, params: Any, grads: Any) -> Any:
    return jax.jit(partial(train_scan, tx))(params, grads)


@pytest.fixture(scope="module")
def expected() -> Callable[[str], Any]:
    """The parameters and state of the run, by inner optimizer, from the plainest of loops."""
    return {
        name: train_jit(tx, run.PARAMS, run.GRADS) for name, tx in OPTIMIZERS.items()
    }.__getitem__


OPTIMIZERS = {
    # Exact arithmetic: the parameters themselves are the same.
    "sgd": run.TX,
    # XLA rounds Adam's updates otherwise in every programme; what it ranks is the same.
    "adam": p2t.laperm(optax.adam(1e-2), sync_period=3),
}


def assert_same_run(result: Any, expected: Any, exact: bool = True) -> None:
    (params, state), (expected_params, expected_state) = result, expected
    permuted = p2t.permuted_params(state, params)
    assert_identical(
        jax.tree.map(np.asarray, without_biases(permuted)),
        without_biases(p2t.permuted_params(expected_state, expected_params)),
    )
    assert p2t.is_permutation(permuted, run.PARAMS)
    assert_identical(state[1], expected_state[1])
    if exact:
        assert_identical(params, expected_params)
    else:
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), params, expected_params)


def without_biases(params: Any) -> Any:
    return {layer: params[layer]["kernel"] for layer in params}


@pytest.mark.parametrize("inner", OPTIMIZERS)
@pytest.mark.parametrize("train", [train_eager, train_scan, train_in_jit])
def test_same_run(train: Any, inner: str, expected: Any) -> None:
    result = train(OPTIMIZERS[inner], run.PARAMS, run.GRADS)
    assert_same_run(result, expected(inner), exact=inner == "sgd")


def test_network_has_been_synchronized_and_moved_on(expected: Any) -> None:
    # Otherwise the tests of this file would compare networks that nothing happened to.
    params, state = expected("sgd")
    assert int(state[1].sync_step), int(state[1].lookahead_step) == (7, 1)
    permuted = p2t.permuted_params(state, params)
    for before, after, now in zip(
        *map(jax.tree.leaves, map(without_biases, (run.PARAMS, permuted, params))), strict=True
    ):
        assert (np.asarray(before) != after).mean() > 0.5
        assert (np.asarray(now) != after).mean() > 0.5


# Ensembles

ENSEMBLE = jax.tree.map(lambda w: np.stack([np.roll(w, i, -1) for i in range(MEMBERS)]), run.PARAMS)
ENSEMBLE_GRADS = jax.tree.map(
    lambda g: np.stack([np.roll(g, i, -1) for i in range(MEMBERS)], 1), run.GRADS
)


def member_step(period: Any, params: Any, state: Any, grads: Any) -> Any:
    return run.step(params, state, grads, p2t.laperm(optax.sgd(0.5), period))


def member_init(period: Any, params: Any) -> Any:
    return p2t.laperm(optax.sgd(0.5), period).init(params)


def member_train(period: Any, params: Any, grads: Any) -> Any:
    return train_scan(p2t.laperm(optax.sgd(0.5), period), params, grads)


def vmap_of_steps(periods: Any, wrap: Any = lambda fn: fn) -> Any:
    step = wrap(jax.vmap(member_step))
    state = jax.vmap(member_init)(periods, ENSEMBLE)
    return run.train(partial(step, periods), ENSEMBLE, state, ENSEMBLE_GRADS)


def scan_of_vmap(periods: Any) -> Any:
    def body(carry: Any, grads: Any) -> Any:
        return jax.vmap(member_step)(periods, *carry, grads), None

    return jax.lax.scan(body, (ENSEMBLE, jax.vmap(member_init)(periods, ENSEMBLE)), ENSEMBLE_GRADS)[
        0
    ]


def vmap_of_vmap(periods: Any) -> Any:
    def pairs(tree: Any, axis: int = 0) -> Any:
        return jax.tree.map(
            lambda x: jnp.reshape(x, (*x.shape[:axis], 2, MEMBERS // 2, *x.shape[axis + 1 :])), tree
        )

    train = jax.vmap(jax.vmap(member_train, (0, 0, 1)), (0, 0, 1))
    out = jax.jit(train)(pairs(periods), pairs(ENSEMBLE), pairs(ENSEMBLE_GRADS, 1))
    return jax.tree.map(lambda x: x.reshape(MEMBERS, *x.shape[2:]), out)


MAPPED = {
    "vmap": vmap_of_steps,
    "jit(vmap)": partial(vmap_of_steps, wrap=jax.jit),
    "vmap(scan)": lambda k: jax.vmap(member_train, (0, 0, 1))(k, ENSEMBLE, ENSEMBLE_GRADS),
    "jit(vmap(scan))": lambda k: jax.jit(jax.vmap(member_train, (0, 0, 1)))(
        k, ENSEMBLE, ENSEMBLE_GRADS
    ),
    "jit(scan(vmap))": lambda k: jax.jit(scan_of_vmap)(k),
    "jit(vmap(vmap(scan)))": vmap_of_vmap,
}


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    """Each member of the ensemble, trained alone with a period that is no array."""
    return [
        train_jit(
            p2t.laperm(optax.sgd(0.5), int(period)),
            run.member(ENSEMBLE, i),
            run.member(ENSEMBLE_GRADS, i, axis=1),
        )
        for i, period in enumerate(PERIODS)
    ]


@pytest.mark.parametrize("how", MAPPED)
def test_members_of_an_ensemble_train_as_if_alone(how: str, alone: Any) -> None:
    # Each with its own period, so that in most steps some synchronize and some do not.
    params, state = MAPPED[how](PERIODS)
    permuted = jax.vmap(p2t.permuted_params)(state, params)
    for i, (params_alone, state_alone) in enumerate(alone):
        assert_identical(run.member(params, i), params_alone)
        assert_identical(run.member(state[1].theta_sorted, i), state_alone[1].theta_sorted)
        assert_identical(run.member(permuted, i), p2t.permuted_params(state_alone, params_alone))
    assert jax.vmap(p2t.is_permutation)(permuted, ENSEMBLE).all()


def test_one_period_for_all_members() -> None:
    step = jax.jit(jax.vmap(run.step))
    params, _ = run.train(step, ENSEMBLE, jax.vmap(run.TX.init)(ENSEMBLE), ENSEMBLE_GRADS)
    for i in range(MEMBERS):
        one, _ = train_jit(run.TX, run.member(ENSEMBLE, i), run.member(ENSEMBLE_GRADS, i, axis=1))
        assert_identical(run.member(params, i), one)


def test_members_at_different_steps() -> None:
    # Member i has i steps behind it when the ensemble is put together.
    def train(steps: int) -> Any:
        return train_jit(run.TX, run.PARAMS, jax.tree.map(lambda g: g[:steps], run.GRADS))

    ensemble = jax.tree.map(lambda *x: np.stack(x), *[train(i) for i in range(MEMBERS)])
    grads = [jax.tree.map(lambda g: g[i : i + 4], run.GRADS) for i in range(MEMBERS)]
    params, _ = run.train(
        jax.jit(jax.vmap(run.step)), *ensemble, jax.tree.map(lambda *x: np.stack(x, 1), *grads)
    )
    for i in range(MEMBERS):
        assert_identical(run.member(params, i), train(i + 4)[0])


def test_members_may_share_the_state() -> None:
    # Sorted weights without the ensemble's axis, parameters whose axis is the last.
    state = run.TX.init(run.PARAMS)
    last = jax.tree.map(lambda w: np.moveaxis(w, 0, -1), ENSEMBLE)
    permuted = jax.vmap(p2t.permuted_params, in_axes=(None, -1), out_axes=1)(state, last)
    for i in range(MEMBERS):
        assert_identical(
            run.member(permuted, i, axis=1), p2t.permuted_params(state, run.member(ENSEMBLE, i))
        )


# What is computed, and when


def test_ensemble_ranks_only_when_a_member_synchronizes(host_rows: Any) -> None:  # noqa: F811
    periods = np.array([2, 3])
    params, all_grads = jax.tree.map(lambda w: w[:2], ENSEMBLE), run.GRADS
    state, step = jax.vmap(member_init)(periods, params), jax.jit(jax.vmap(member_step))
    ranked = []
    for i in range(run.STEPS):
        grads = jax.tree.map(lambda g: np.stack([g[i]] * 2), all_grads)
        params, state = jax.block_until_ready(step(periods, params, state, grads))
        ranked.append(bool(host_rows))
        host_rows.clear()
    assert ranked == [False, True, True, True, False, True, False]


@pytest.mark.parametrize("mapped", [False, True])
def test_synchronization_stays_conditional(mapped: bool) -> None:
    step, init = (jax.vmap(run.step), jax.vmap(run.TX.init)) if mapped else (run.step, run.TX.init)
    params = ENSEMBLE if mapped else run.PARAMS
    lowered = jax.jit(step).lower(params, init(params), params)
    text = lowered.compile().as_text()
    assert text.count(" conditional(") == 1
    assert text.count(f'custom_call_target="{CALLBACK}"') == 1  # one for all kernels together


def test_no_recompilation() -> None:
    traces = []

    @jax.jit
    def step(*args: Any) -> Any:
        traces.append(None)
        return run.step(*args)

    params, state = jax.tree.map(jnp.asarray, run.PARAMS), run.TX.init(run.PARAMS)
    for i in range(4):
        params, state = step(params, state, run.member(run.GRADS, i))
    assert len(traces) == step._cache_size() == 1
    for _ in range(2):  # a transformation and a state made anew
        step(params, p2t.laperm(optax.sgd(0.5), sync_period=3).init(params), run.PARAMS)
    assert len(traces) == step._cache_size() == 1


def test_no_recompilation_without_jit(caplog: pytest.LogCaptureFixture) -> None:
    # A programme a step would cost a hundred times the step, and stay in memory.
    params, state = train_eager(run.TX, run.PARAMS, run.GRADS)
    with jax.log_compiles():
        run.train(run.step, params, state, run.GRADS)
    assert not [record.message for record in caplog.records if "Compiling" in record.message]


# init


def test_init_under_jit() -> None:
    state = OPTIMIZERS["adam"].init(run.PARAMS)
    jitted = jax.jit(OPTIMIZERS["adam"].init)(run.PARAMS)
    assert_identical(jitted, state)
    assert jax.tree.map(jax.typeof, jitted) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("how", ["eval_shape", "structs", "jit of structs"])
def test_init_of_shapes(how: str) -> None:
    init = OPTIMIZERS["adam"].init
    structs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, run.PARAMS))
    shapes = {
        "eval_shape": lambda: jax.eval_shape(init, run.PARAMS),
        "structs": lambda: init(structs),
        "jit of structs": lambda: jax.eval_shape(jax.jit(init), structs),
    }[how]()
    state = init(run.PARAMS)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for a, b in zip(*map(jax.tree.leaves, (shapes, state)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("init", [run.TX.init, jax.jit(run.TX.init)], ids=["eager", "jit"])
def test_donation(init: Any, expected: Any) -> None:
    first = jax.tree.map(jnp.array, run.PARAMS)
    params, state = first, init(first)
    step = jax.jit(run.step, donate_argnums=(0, 1))
    for i in range(run.STEPS):
        before = jax.tree.leaves((params, state))
        params, state = step(params, state, run.member(run.GRADS, i))
        assert all(x.is_deleted() for x in before)
    assert_same_run((params, state), expected("sgd"))


def test_initial_params_are_copied(expected: Any) -> None:
    # NumPy arrays that change afterwards, device arrays that are deleted afterwards.
    params = jax.tree.map(np.array, run.PARAMS)
    state = run.TX.init(params)
    for w in jax.tree.leaves(params):
        w[:] = 0
    assert_identical(state, run.TX.init(run.PARAMS))
    params = jax.tree.map(jnp.array, run.PARAMS)
    state = run.TX.init(params)
    for w in jax.tree.leaves(params):
        w.delete()
    assert_identical(state, run.TX.init(run.PARAMS))


# Choices between states


@pytest.mark.parametrize("how", ["cond", "where"])
@pytest.mark.parametrize("accepts", [False, True])
def test_a_step_may_be_refused(how: str, accepts: bool) -> None:
    @jax.jit
    def maybe(accepts: Any, *args: Any) -> Any:
        old = args[:2]
        if how == "cond":
            return jax.lax.cond(accepts, run.step, lambda *args: args[:2], *args)
        return jax.tree.map(partial(jnp.where, accepts), run.step(*args), old)

    params = jax.tree.map(jnp.asarray, run.PARAMS)
    args = params, run.TX.init(params), run.member(run.GRADS, 0)
    assert_identical(maybe(accepts, *args), jax.jit(run.step)(*args) if accepts else args[:2])


def test_multi_steps() -> None:
    # Every second mini-step updates, with the mean of the gradients: exact on their grid.
    tx = optax.MultiSteps(run.TX, every_k_schedule=2).gradient_transformation()
    twice = jax.tree.map(lambda g: np.stack([g - 1, g + 1], 1).reshape(-1, *g.shape[1:]), run.GRADS)
    params, state = train_in_jit(tx, run.PARAMS, twice)
    expected, expected_state = train_in_jit(run.TX, run.PARAMS, run.GRADS)
    assert_identical(params, expected)
    assert_identical(
        p2t.permuted_params(state, params), p2t.permuted_params(expected_state, expected)
    )


# The host and the device

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((40, 7), (0,)),
    ((3, 3, 4, 5), (0, 1, 2)),
    ((6, 5, 4, 3), (0, 2)),
    ((1, 5), (0,)),
    ((0, 5), (0,)),
    ((5, 0), (0,)),
]
AXES = [axes for _, axes in SHAPES]


def bits(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def special(rng: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Ties, both zeros, infinities, and NaNs of either sign, among normal numbers."""
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 1.5, -1.5, 1e-3, 65504.0]
    mixed = np.where(rng.random(shape) < 0.5, rng.choice(values, shape), rng.normal(size=shape))
    return mixed.astype(dtype)


def with_dtype(dtype: Any) -> Any:
    return jax.enable_x64(np.dtype(dtype).itemsize == 8)


def on_device(function: Any, axes: Any, *operands: Any) -> Any:
    """What runs on accelerators, and wherever the partitioner splits a programme."""
    flat = [leaf for group in operands for leaf in group]
    return jax.jit(partial(host._on_device, function=function, axes=axes))(*flat)


def oracle(phi: np.ndarray, theta_sorted: np.ndarray, axes: Any) -> np.ndarray:
    """Section 3.1 in NumPy, whose sort is stable, ranks NaN last and -0.0 as 0.0."""
    last = tuple(range(-len(axes), 0))
    moved = np.moveaxis(phi, axes, last)
    split = moved.ndim - len(axes)
    shape = math.prod(moved.shape[:split]), math.prod(moved.shape[split:])
    order = np.argsort(moved.reshape(shape).astype(np.float64), axis=1, kind="stable")
    out = np.empty(shape, phi.dtype)
    np.put_along_axis(out, order, np.moveaxis(theta_sorted, axes, last).reshape(shape), 1)
    return np.moveaxis(out.reshape(moved.shape), last, axes)


@pytest.mark.parametrize("dtype", FLOATS)
def test_host_and_device_rank_alike(dtype: Any, host_rows: Any) -> None:  # noqa: F811
    rng = np.random.default_rng(0)
    phi, initial = ([special(rng, shape, dtype) for shape, _ in SHAPES] for _ in range(2))
    with with_dtype(dtype):
        phi, initial = jax.tree.map(jnp.asarray, (phi, initial))
        theta = jax.jit(partial(ranking.sort, AXES))(initial)
        permuted = jax.jit(partial(ranking.synchronize, AXES))(phi, theta)
        assert host_rows
        host_rows.clear()
        device_theta = on_device(ranking._sort, AXES, initial)
        device_permuted = on_device(ranking._synchronize, AXES, phi, theta)
        assert not host_rows
    for i, axes in enumerate(AXES):
        assert theta[i].dtype == permuted[i].dtype == dtype
        np.testing.assert_array_equal(bits(theta[i]), bits(device_theta[i]))
        np.testing.assert_array_equal(bits(permuted[i]), bits(device_permuted[i]))
        want = oracle(np.asarray(phi[i]), np.asarray(theta[i]), axes)
        np.testing.assert_array_equal(bits(permuted[i]), bits(want))


@pytest.mark.parametrize("dtype", FLOATS)
def test_host_and_device_rank_every_bit_pattern_alike(dtype: Any) -> None:
    # Subnormal numbers are among these.
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    rng, sign = np.random.default_rng(0), 1 << 8 * unsigned.itemsize - 1
    any_bits = rng.integers(0, 2 * sign - 1, (15, 4096), dtype=np.uint64, endpoint=True)
    subnormal = rng.integers(0, 64, (1, 4096), dtype=np.uint64)
    subnormal |= rng.integers(0, 2, subnormal.shape, dtype=np.uint64) * np.uint64(sign)
    patterns = np.vstack([any_bits, subnormal]).astype(unsigned)
    # The payload of a NaN is lost where XLA computes with bfloat16, its sign is not.
    infinity, nan = (bits(np.asarray(x, dtype)) for x in (np.inf, np.nan))
    is_nan = patterns & ~unsigned.type(sign) > infinity
    patterns[is_nan] = patterns[is_nan] & unsigned.type(sign) | nan
    with with_dtype(dtype):
        phi = jax.lax.bitcast_convert_type(jnp.asarray(patterns), dtype)
        (theta,) = jax.jit(partial(ranking.sort, [(1,)]))([phi])
        (permuted,) = jax.jit(partial(ranking.synchronize, [(1,)]))([phi], [theta])
        (device_theta,) = on_device(ranking._sort, [(1,)], [phi])
        (device_permuted,) = on_device(ranking._synchronize, [(1,)], [phi], [theta])
    np.testing.assert_array_equal(bits(theta), bits(device_theta))
    np.testing.assert_array_equal(bits(permuted), bits(device_permuted))
