"""What has moved, as numbers: against plain NumPy, on trees, under jit."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import p2t_jax as p2t

WHAT = ("moved", "change", "correlation", "rank_distance")


def shared_ranks(vector, weights):
    """The rank of each weight in a vector: how many are smaller, and half of the others equal."""
    return [np.sum(vector < w) + (np.sum(vector == w) - 1) / 2 for w in weights]


def numbers(now, before):
    """By their definitions: arrays of shape (vectors, n)."""
    now, before = now.astype(np.float64), before.astype(np.float64)
    pairs = [*zip(now, before, strict=True)]
    deviations = np.concatenate([v - v.mean() for v in before])
    of_now = np.concatenate([w - w.mean() for w in now])
    ranks = [(shared_ranks(v, w), shared_ranks(v, v)) for w, v in pairs]
    return {
        "moved": np.mean(now != before),
        "change": np.mean(np.abs(now - before)) / np.sqrt(np.mean(deviations**2)),
        "correlation": np.corrcoef(of_now, deviations)[0, 1],
        "rank_distance": np.mean([np.abs(np.subtract(*pair)) for pair in ranks]) / now.shape[1],
    }


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_the_numbers_are_those_of_their_definitions(seed, ties):
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(4, 9)).astype(np.float32)
    before = np.round(before) + 0.0 if ties else before
    before[0, :2] = 0, 1  # no vector of equal weights alone
    now = rng.permuted(before, axis=1)
    result = p2t.metrics.movement(now, before, vectors=1)
    expected = numbers(now, before)
    for what in WHAT:
        np.testing.assert_allclose(result[what], expected[what], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def trees():
    rng = np.random.default_rng(0)
    before = {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": np.ones(4)},
        "dense": {"kernel": jnp.asarray(rng.normal(size=(12, 5)), jnp.bfloat16)},
    }
    axes = {"conv": {"kernel": (0, 1, 2), "bias": None}, "dense": {"kernel": (0,)}}
    now = jax.tree.map(lambda w: w[::-1], before)
    return now, before, axes


def test_every_parameter_has_four_floats_and_all_weights_their_mean(trees):
    now, before, axes = trees
    result = p2t.metrics.movement(now, before, vectors=axes)
    assert {key.rpartition("/")[0] for key in result} == {"", "conv/kernel", "dense/kernel"}
    assert len(result) == 12
    assert json.loads(json.dumps(result)) == result
    for what in WHAT:
        mean = (72 * result[f"conv/kernel/{what}"] + 60 * result[f"dense/kernel/{what}"]) / 132
        assert result[what] == pytest.approx(mean, rel=1e-5)
    rows = [np.moveaxis(t["conv"]["kernel"], -1, 0).reshape(4, 18) for t in (now, before)]
    for what, value in numbers(*rows).items():
        assert result[f"conv/kernel/{what}"] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_under_jit_and_without_callbacks_the_numbers_are_the_same(trees):
    now, before, axes = trees
    result = p2t.metrics.movement(now, before, vectors=axes)
    compiled = jax.jit(lambda a, b: p2t.metrics.movement(a, b, vectors=axes))(now, before)
    chex.assert_trees_all_close(jax.device_get(compiled), result, rtol=1e-5)
    p2t.set_host_callback(False)
    try:
        in_jax = p2t.metrics.movement(now, before, vectors=axes)
    finally:
        p2t.set_host_callback(True)
    chex.assert_trees_all_close(in_jax, result, rtol=1e-5)


@pytest.mark.parametrize("before", [np.zeros((3, 2), np.float32), np.ones((1, 2), np.float32)])
def test_weights_that_cannot_move_give_finite_numbers(before):
    """Equal weights, or one in each vector."""
    result = p2t.metrics.movement(before, before, vectors=0)
    assert [result[what] for what in WHAT] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("now", "before", "message"),
    [
        ({"bias": np.ones(3)}, {"bias": np.ones(3)}, "no weight vectors"),
        ({"kernel": np.ones((3, 1))}, {"kernel": np.ones((2, 1))}, "reference: does not match"),
    ],
)
def test_errors_say_what_is_wrong(now, before, message):
    with pytest.raises(ValueError, match=message):
        p2t.metrics.movement(now, before)
