"""Sparse networks: what `prune` keeps, and what `keep_zeros` stops."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import normalized_params
from scipy import stats

import p2t_jax as p2t

KEY = jax.random.key(0)


@pytest.mark.parametrize("keep", [1 / 3, 1.0, 1e-9])
def test_pruning_keeps_exactly_that_many_weights_of_each_layer(keep):
    params = normalized_params()
    pruned = p2t.prune(KEY, params, keep)
    for name in ("Conv_0", "Dense_0"):
        before, after = (np.asarray(tree[name]["kernel"]) for tree in (params, pruned))
        assert (after != 0).sum() == round(keep * before.size)
        np.testing.assert_array_equal(after[after != 0], before[after != 0])
        chex.assert_trees_all_equal(pruned[name]["bias"], params[name]["bias"])
    chex.assert_trees_all_equal(pruned["LayerNorm_0"], params["LayerNorm_0"])


def test_pruning_overall_takes_all_layers_together():
    params = normalized_params()
    kept = [
        [int((tree[name]["kernel"] != 0).sum()) for name in ("Conv_0", "Dense_0")]
        for tree in (p2t.prune(jax.random.key(i), params, 0.1, overall=True) for i in range(4))
    ]
    assert {sum(counts) for counts in kept} == {round(0.1 * (3600 + 1200))}
    assert len({counts[0] for counts in kept}) > 1
    for counts in kept:
        assert 0.6 < counts[0] / 360 < 1.4


def test_pruning_each_layer_by_a_fraction_of_its_own():
    params = normalized_params()
    keep = {"Conv_0": 1 / 15, "Dense_0": 1 / 3, "LayerNorm_0": None}
    pruned = p2t.prune(KEY, params, keep)
    assert (pruned["Conv_0"]["kernel"] != 0).sum() == 240
    assert (pruned["Dense_0"]["kernel"] != 0).sum() == 400


def test_pruning_is_random_within_a_layer():
    """Every weight is as likely to be kept as any other; neurons do not keep equally many."""
    params = {"Dense_0": {"kernel": jnp.ones((20, 10))}, "Dense_1": {"kernel": jnp.ones((20, 10))}}
    pruned = [p2t.prune(jax.random.key(i), params, 0.3) for i in range(200)]
    masks, others = (np.stack([tree[name]["kernel"] for tree in pruned]) for name in params)
    assert 0.25 < others[masks == 1].mean() < 0.35
    assert masks.sum() == 200 * 60
    deviation = math.sqrt(0.3 * 0.7 / 200)
    assert abs(masks.mean(axis=0) - 0.3).max() < 5 * deviation
    per_neuron = masks.sum(axis=1)
    # Hypergeometric: 20 of 200 weights are a neuron's, 60 are kept.
    np.testing.assert_allclose(per_neuron.var(), stats.hypergeom(200, 60, 20).var(), rtol=0.15)


def test_a_traced_fraction():
    pruned = jax.jit(lambda keep: p2t.prune(KEY, normalized_params(), keep))(0.25)
    chex.assert_trees_all_equal(pruned, p2t.prune(KEY, normalized_params(), 0.25))


def test_section_523_rewires_in_phase_1_and_keeps_zeros_in_phase_2():
    inner = optax.adam(0.01)
    start = p2t.prune(KEY, normalized_params(jnp.bfloat16), keep=0.1)
    grads = jax.tree.map(lambda p: jnp.sin(100 * p + jnp.arange(p.size).reshape(p.shape)), start)

    tx = p2t.laperm(inner, sync_period=3)
    params, state = start, tx.init(start)
    update = jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    rewired = p2t.permuted_params(state, params)
    assert p2t.is_permutation(rewired, start)

    tx = optax.chain(inner, p2t.keep_zeros())
    params, phase_2 = rewired, (state[0], p2t.keep_zeros().init(rewired))
    assert jax.tree.structure(phase_2) == jax.tree.structure(tx.init(rewired))
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, phase_2 = update(grads, phase_2, params)
        params = optax.apply_updates(params, updates)
    assert optax.tree.get(phase_2, "count") == 7
    for name in ("Conv_0", "Dense_0"):
        kernel = np.asarray(params[name]["kernel"])
        np.testing.assert_array_equal(kernel == 0, rewired[name]["kernel"] == 0)
        assert (np.asarray(start[name]["kernel"] == 0) != (kernel == 0)).any()
        assert (kernel[kernel != 0] != rewired[name]["kernel"][kernel != 0]).mean() > 0.9
        assert (params[name]["bias"] != rewired[name]["bias"]).all()


def test_no_update_of_a_zero_gets_through():
    params = {"kernel": jnp.array([[0.0, 1.0], [-0.0, 2.0]]), "bias": jnp.zeros(2)}
    tx = p2t.keep_zeros()
    state = tx.init(params)
    for value in (1.0, math.nan, math.inf):
        updates, state = tx.update(jax.tree.map(lambda p: jnp.full_like(p, value), params), state)
        np.testing.assert_array_equal(updates["kernel"], [[0, value], [0, value]])
        np.testing.assert_array_equal(updates["bias"], [value, value])
    updates, _ = tx.update({"kernel": jnp.ones((2, 2), jnp.bfloat16), "bias": None}, state)
    assert updates["kernel"].dtype == jnp.bfloat16
    assert updates["bias"] is None


def test_zeros_are_kept_in_optaxs_wrappers():
    params = {"kernel": jnp.array([[0.0, 1.0], [3.0, 0.0]])}
    for tx in (
        optax.chain(optax.adamw(0.1), optax.masked(p2t.keep_zeros(), {"kernel": True})),
        optax.MultiSteps(optax.chain(optax.sgd(0.1), p2t.keep_zeros()), 2),
        optax.inject_hyperparams(lambda rate: optax.chain(optax.sgd(rate), p2t.keep_zeros()))(0.1),
    ):
        state, new = tx.init(params), params
        for _ in range(2):
            updates, state = tx.update({"kernel": jnp.ones((2, 2))}, state, new)
            new = optax.apply_updates(new, updates)
        np.testing.assert_array_equal(new["kernel"] == params["kernel"], params["kernel"] == 0)
    tx = p2t.keep_zeros()
    counts = optax.tree.map_params(tx, lambda pruned: pruned.sum(), tx.init(params))
    assert counts.pruned["kernel"] == 2


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: p2t.prune(KEY, normalized_params(), 0), ValueError, r"keep: .*Conv_0/kernel"),
        (lambda: p2t.prune(KEY, normalized_params(), 1.1, overall=True), ValueError, "keep: "),
        (lambda: p2t.prune(KEY, normalized_params(), "1/3"), TypeError, "keep: "),
        (
            lambda: p2t.prune(KEY, normalized_params(), {"Conv_0": 0.5}),
            ValueError,
            "^keep: does not match params at the root of the tree: expected .*Dense_0",
        ),
        (
            lambda: p2t.prune(KEY, normalized_params(), {"Conv_0": 0.5}, overall=True),
            TypeError,
            "keep: ",
        ),
        (lambda: p2t.keep_zeros().init({}), ValueError, "params: "),
        (
            lambda: p2t.keep_zeros().update(
                {"kernel": jnp.ones((2, 3))}, p2t.keep_zeros().init({"kernel": jnp.ones((2, 2))})
            ),
            ValueError,
            "updates: .*kernel",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
