"""Gradients that are not finite lose no weight, and keep out of the way of the others."""

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import OPTIMIZERS
from two_layers import AXES, PARAMS, SGD

import p2t_jax as p2t


def train_with(bad, tx, steps=6):
    """Yields parameters and exact permutation of each step; `bad` are steps with bad gradients."""
    params, state = PARAMS, tx.init(PARAMS)
    for i in range(1, steps + 1):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(100 * p + i), params)
        if i in bad:
            kernel = grads["body"]["kernel"].at[1:3, 0].set(bad[i])
            grads["body"]["kernel"] = kernel.at[0, 1].set(-bad[i])
        params, state = helpers.jitted_step(tx)(params, state, grads)
        yield params, p2t.permuted_params(state, params)


NAN, INF = float("nan"), float("inf")
BAD = [{2: NAN}, {3: NAN}, {3: INF}, {1: NAN, 3: -INF, 4: NAN}, dict.fromkeys(range(1, 7), NAN)]
INNERS = {"sgd": SGD, "adam": optax.adam(0.1)}
TX = {(name, inner): OPTIMIZERS[name](INNERS[inner]) for name in OPTIMIZERS for inner in INNERS}


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("inner", INNERS)
def test_gradients_that_are_not_finite_lose_no_weight(bad, inner, name):
    for params, final in train_with(bad, TX[name, inner]):
        helpers.assert_permuted(name, final, PARAMS, params, AXES)
        assert bool(p2t.is_permutation(final, PARAMS))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_recover_from_gradients_that_were_not_finite_when_they_synchronized(value):
    for i, (params, final) in enumerate(train_with({3: value}, TX["laperm", "sgd"]), start=1):
        chex.assert_tree_all_finite(params)
        if i % 3 == 0:
            chex.assert_trees_all_close(params, final, rtol=0, atol=1e-6)


def test_a_nan_ranks_last():
    *_, (_, final) = train_with({3: NAN}, TX["laperm", "sgd"], steps=3)
    kernel, start = final["body"]["kernel"], np.sort(PARAMS["body"]["kernel"], axis=0)
    np.testing.assert_array_equal(kernel[1:3, 0], start[-2:, 0])  # two, tied: in their order
    np.testing.assert_array_equal(kernel[0, 1], start[-1, 1])


def test_a_weight_with_a_nan_recommendation_stays():
    *_, (_, final) = train_with({1: NAN}, TX["sgperm", "sgd"], steps=1)
    kernel, start = final["body"]["kernel"], PARAMS["body"]["kernel"]
    np.testing.assert_array_equal(kernel[1:3, 0], start[1:3, 0])
    np.testing.assert_array_equal(kernel[0, 1], start[0, 1])
    assert helpers.moved(kernel, start)[0] > 0.2


def test_apply_if_finite_keeps_nan_out(name):
    tx = optax.apply_if_finite(OPTIMIZERS[name](SGD), 5)
    for params, final in train_with({2: NAN, 4: INF}, tx, steps=8):
        chex.assert_tree_all_finite(params)
        helpers.assert_permuted(name, final, PARAMS, params, AXES)
