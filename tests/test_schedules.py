"""Sync periods and learning rates that change."""

import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conventions import AXES, assert_close, numbers, reordered
from helpers import INJECT_LAPERM

import p2t_jax as p2t


def reading_of_the_docstring(k, steps):
    """At which steps `laperm` says it synchronizes: slowly, and without JAX."""
    synchronizes, since = [], 0
    for seen_before in range(steps):
        since += 1
        asks_for = float(k(seen_before)) if callable(k) else float(k)
        synchronizes.append(since >= asks_for or not asks_for >= 1)
        if synchronizes[-1]:
            since = 0
    return synchronizes


PERIODS = {
    "1": 1,
    "int": 4,
    "np.int64": np.int64(4),
    "0-d ndarray": np.array(4),
    "0-d array": jnp.array(4),
    "whole float": 4.0,
    "np.float32": np.float32(3),
    "uneven float": jnp.array(2.5),
    "uneven schedule": optax.constant_schedule(3.5),
    "bfloat16": jnp.array(3.0, "bfloat16"),
    "never": math.inf,
    "stairs up": optax.piecewise_constant_schedule(2, {7: 2, 15: 1.5}),
    "stairs down": optax.piecewise_constant_schedule(12.0, {4: 0.5, 10: 0.5, 16: 0.4}),
    "line": optax.linear_schedule(1, 6, 20),
    "doubling": optax.exponential_decay(1, 8, 2),
    "cycle": lambda step: 1 + step % 5,
    "joined": optax.join_schedules([lambda _: 3, lambda step: 1 + step], [8]),
    "falls below what has passed": lambda step: jnp.where(step < 9, 20, 2),
    "too small later": lambda step: jnp.where(step < 6, 3, -1),
    "NaN later": lambda step: jnp.where(step < 6, 3.0, jnp.nan),
}


@pytest.mark.parametrize("period", PERIODS)
def test_sync_period(period):
    steps = 24
    initial = numbers(0, {"kernel": (6, 3)})
    tx = p2t.laperm(optax.sgd(1.0), PERIODS[period])

    def step(carry, seed):
        params, state = carry
        grads = jax.tree.map(lambda p: 0.2 * jnp.sin(seed + 50 * p + 1), params)
        params, state = helpers.step(params, state, grads, tx)
        return (params, state), (params["kernel"], state[1].sync_step, state[1].lookahead_step)

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(float(steps)))[1]

    trace, seen, waited = train(initial)
    expected = reading_of_the_docstring(PERIODS[period], steps)
    permuted = np.isclose(np.sort(trace, axis=1), np.sort(initial["kernel"], axis=0))
    assert permuted.all(axis=(1, 2)).tolist() == expected
    assert seen.tolist() == list(range(1, steps + 1))
    since = [0]
    for synchronizes in expected:
        since.append(0 if synchronizes else since[-1] + 1)
    assert waited.tolist() == since[1:]


def test_a_schedule_may_stand_in_inject_hyperparams():
    schedule = PERIODS["stairs up"]
    tx = INJECT_LAPERM(inner=optax.adam(0.1), sync_period=schedule, vectors=AXES)
    params = numbers(0)

    def step(state, grads):
        _, state = tx.update(grads, state, params)
        return state, optax.tree.get(state, "lookahead_step") == 0

    grads = jax.tree.map(lambda p: jnp.stack([p] * 24), params)
    _, synchronizes = jax.jit(lambda state: jax.lax.scan(step, state, grads))(tx.init(params))
    assert synchronizes.tolist() == reading_of_the_docstring(schedule, 24)


def test_the_inner_learning_rate_has_its_own_schedule():
    schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5, 3: 0.5, 5: 0.0})
    tx = p2t.laperm(optax.sgd(schedule), sync_period=4)
    params = initial = numbers(0)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i, rate in enumerate([1, 1, 0.5, 0.25, 0.25, 0, 0]):
        ahead = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, numbers(i))
        updates, state = step(numbers(i), state, params)
        params = optax.apply_updates(params, updates)
        assert_close(params, reordered(initial, ahead) if i == 3 else ahead)
