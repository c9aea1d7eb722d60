"""Initial weights: profiles and scales in trees of any framework; exact arithmetic."""

import math
from typing import Any

import chex
import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import normalized_params
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import p2t_jax as p2t
from p2t_jax.initializers import from_profile, kaiming, to_grid
from p2t_jax.profiles import weight_profiles

KEY = jax.random.key(0)
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
IMAGES = jnp.zeros((1, 8, 8, 3))


def bits(array: Any) -> np.ndarray:
    return np.asarray(array).reshape(-1).view(np.uint8)


# The dial


@pytest.mark.parametrize("confidence", [0, 1e-5, 0.25, 0.5, 0.8, 1])
def test_weights_have_the_profile_and_the_deviation_asked_for(confidence):
    n, gain = 500, 1.3
    w = np.asarray(kaiming(confidence, gain=gain)(KEY, (n, 400)), np.float64).ravel()
    # SciPy's generalized normal distribution has the density exp(-|x|^beta).
    unit = stats.uniform(-1, 2) if confidence < 1e-3 else stats.gennorm(1 / confidence)
    scale = gain / math.sqrt(n) / unit.std()
    assert stats.kstest(w / scale, unit.cdf).pvalue > 1e-3
    np.testing.assert_allclose(w.std(), gain / math.sqrt(n), rtol=0.01)


def test_the_ends_and_the_middle_are_those_of_jax():
    shape = (500, 400)
    he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # not truncated
    for confidence, expected in ((0, jax.nn.initializers.he_uniform()), (0.5, he_normal)):
        ours, theirs = kaiming(confidence)(KEY, shape), expected(KEY, shape)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_dial_can_be_traced():
    draw = jax.jit(lambda confidence: kaiming(confidence)(KEY, (50, 40)))
    np.testing.assert_allclose(draw(0.25), kaiming(0.25)(KEY, (50, 40)), rtol=1e-5)
    assert abs(draw(0.0)).max() == pytest.approx(math.sqrt(6 / 50), rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_initializer_makes_weights_of_the_dtype_asked_for(dtype):
    for init in (
        *map(kaiming, (0, 0.25, 0.5, 1)),
        from_profile([1, 2, 3], gain=1.0),
        kaiming(values=16),
    ):
        w = init(KEY, (50, 40), dtype)
        assert w.dtype == dtype
        assert np.isfinite(w).all()
        assert len(np.unique(w)) > 2


# Few values


@pytest.mark.parametrize(
    ("confidence", "values", "n"),
    [(0, 4, 18), (0, 16, 17), (0.25, 7, 20), (0.5, 2, 5), (0.5, 16, 100), (0.8, 5, 5), (1, 3, 100)],
)
def test_few_values_are_the_middles_of_equally_probable_parts(confidence, values, n):
    w = np.asarray(kaiming(confidence, gain=1.3, values=values)(KEY, (n, 3)), np.float64)
    unit = stats.gennorm(1 / confidence) if confidence else stats.uniform(-1, 2)
    middles = unit.ppf((np.arange(values) + 0.5) / values)
    for column in w.T:
        found, counts = np.unique(column, return_counts=True)
        assert len(found) == values
        assert np.ptp(counts) <= 1
        np.testing.assert_allclose((column**2).mean(), 1.3**2 / n, rtol=1e-5)
        scale = found[-1] / middles[-1]
        np.testing.assert_allclose(found, scale * middles, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(found, -found[::-1])
        if values % 2:
            assert found[values // 2] == 0
            assert not np.signbit(found[values // 2])


def test_few_values_nearly_uniform_are_those_of_the_uniform_distribution():
    uniform, nearly = (kaiming(c, values=4)(KEY, (8, 3)) for c in (0, 1e-4))
    np.testing.assert_allclose(nearly, uniform, rtol=1e-3)


def test_few_values_are_in_random_order_in_every_neuron():
    w = np.asarray(kaiming(values=2)(KEY, (2, 3, 50, 40)), np.float64).reshape(300, 40) > 0
    assert len(np.unique(w, axis=1).T) == 40
    np.testing.assert_allclose(w.mean(axis=1), 0.5, atol=0.4)


def test_the_dial_of_few_values_can_be_traced():
    draw = jax.jit(lambda confidence, gain: kaiming(confidence, gain=gain, values=4)(KEY, (8, 2)))
    np.testing.assert_allclose(draw(0.25, 1.0), kaiming(0.25, gain=1.0, values=4)(KEY, (8, 2)))


def test_a_bias_takes_the_few_values_of_its_layer():
    params = {"kernel": jnp.zeros((12, 9)), "bias": jnp.zeros(9)}
    new = p2t.reinitialize(0, params, kaiming(values=3), vectors=p2t.with_biases("flax"))
    assert set(np.unique(new["bias"])) <= set(np.unique(new["kernel"]))


def test_flax_takes_it_as_kernel_init():
    init = kaiming(confidence=0)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(40, (3, 3), kernel_init=init, name="conv")(x).reshape(1, -1, 40)
            x = nn.MultiHeadDotProductAttention(4, kernel_init=init, name="attention")(x)
            return nn.Dense(30, kernel_init=init, name="dense")(x)

    params = jax.jit(Net().init)(KEY, IMAGES)["params"]
    linear = nnx.Linear(60, 50, kernel_init=init, rngs=nnx.Rngs(0))
    for kernel, n in (
        (params["conv"]["kernel"], 27),
        (params["attention"]["query"]["kernel"], 40),
        (params["attention"]["out"]["kernel"], 40),
        (params["dense"]["kernel"], 40),
        (linear.kernel[...], 60),
    ):
        assert helpers.uniform_limit(kernel) == pytest.approx(math.sqrt(6 / n), rel=0.02)
        assert helpers.uniform_limit(kernel) <= math.sqrt(6 / n) * (1 + 1e-6)


# Given profiles


def test_every_vector_is_a_random_permutation_of_a_given_profile():
    profile = np.random.default_rng(0).standard_t(3, 300).astype(np.float32)
    w = np.asarray(from_profile(profile)(KEY, (3, 100, 50)).reshape(300, 50))
    np.testing.assert_array_equal(np.sort(w, axis=0), np.sort(profile)[:, None].repeat(50, 1))
    assert abs(np.corrcoef(w.T) - np.eye(50)).max() < 0.3  # each its own permutation


def test_a_profile_of_another_length_is_interpolated():
    small = np.asarray(from_profile(jnp.linspace(-1, 1, 1001))(KEY, (4, 1))).ravel()
    np.testing.assert_allclose(np.sort(small), [-0.75, -0.25, 0.25, 0.75], atol=1e-3)
    normal = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    large = np.sort(np.asarray(from_profile(normal)(KEY, (1000, 1))).ravel())
    expected = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(large[50:-50], expected[50:-50], atol=0.01)


@pytest.mark.parametrize("n", [300, 50])
def test_a_gain_sets_the_root_mean_square_of_every_neuron(n):
    profiles = np.random.default_rng(0).normal(size=(8, 300)) * np.arange(1, 9)[:, None]
    w = np.asarray(from_profile(profiles, gain=2.0)(KEY, (n, 8)))
    np.testing.assert_allclose(np.sqrt((w**2).mean(axis=0)), 2 / math.sqrt(n), rtol=1e-5)


def test_one_shared_weight():
    w = from_profile([1.0], gain=math.sqrt(2))(KEY, (8, 3))
    np.testing.assert_array_equal(w, jnp.full((8, 3), 0.5))


def test_the_profiles_of_a_trained_network():
    """Each neuron gets its own trained weights, bit for bit, in random order."""
    trained = normalized_params(jnp.bfloat16)
    own = jax.tree.map(from_profile, weight_profiles(trained))
    new = p2t.reinitialize(KEY, trained, own)
    assert p2t.is_permutation(new, trained)
    assert (new["Dense_0"]["kernel"] != trained["Dense_0"]["kernel"]).mean() > 0.9
    chex.assert_trees_all_equal(new["LayerNorm_0"], trained["LayerNorm_0"])


# Exact arithmetic


@st.composite
def columns_and_permutation(draw):
    dtype = draw(st.sampled_from(DTYPES))
    n = draw(st.sampled_from([1, 50]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.normal(size=n) * 2.0 ** rng.integers(-draw(st.integers(0, 20)), 1, n)
    w = (w * 2.0 ** draw(st.integers(-6, 6))).astype(np.float32)
    w[rng.random(n) < 0.2] = draw(st.sampled_from([0.0, -0.0, 0.25]))
    return jnp.asarray(w, dtype).reshape(n, 1), rng.permutation(n)


@given(columns_and_permutation(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_on_the_grid_adding_an_update_is_moving_the_weight(case, in_float32):
    w, permutation = case
    p = to_grid(w, vectors=0)
    assert p.dtype == w.dtype
    theta = p[permutation]
    wide = jnp.float32 if in_float32 else w.dtype
    updates = theta.astype(wide) - p.astype(wide)
    np.testing.assert_array_equal(bits(optax.apply_updates(p, updates)), bits(theta))
    largest = float(abs(w.astype(jnp.float32)).max())
    precision = {2: 11, 4: 24}[w.dtype.itemsize] if w.dtype != jnp.bfloat16 else 8
    g = 2.0 ** (math.ceil(math.log2(largest or 1)) + 1 - precision)
    g = max(g, float(jnp.finfo(w.dtype).smallest_normal))
    distance = abs(np.asarray(p, np.float64) - np.asarray(w, np.float64))
    assert distance.max() <= g / 2
    np.testing.assert_array_equal(bits(to_grid(p, vectors=0)), bits(p))


def test_differences_on_the_grid_are_not_flushed_to_zero():
    w = jnp.array([[1.1], [1.7]]) * jnp.finfo(jnp.float32).smallest_normal
    w = to_grid(w, vectors=0)
    theta = w[::-1]
    assert 0 < w[0] < w[1] < 1
    np.testing.assert_array_equal(optax.apply_updates(w, theta - w), theta)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_grid_the_parameters_of_sgperm_are_the_permutation(dtype):
    params = {"kernel": kaiming(confidence=0)(KEY, (100, 10), dtype)}
    params, exact = to_grid(params), None
    tx = p2t.sgperm(0, 0.6, 0.5)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(10):
        grads = {"kernel": jax.random.normal(jax.random.key(step), (100, 10), dtype)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        previous, exact = exact, p2t.permuted_params(state, params)
        np.testing.assert_array_equal(bits(params["kernel"]), bits(exact["kernel"]))
        assert previous is None or (previous["kernel"] != exact["kernel"]).any()


def test_float32_weights_stay_distinct_on_the_grid():
    w = kaiming(confidence=0)(KEY, (784, 50))
    before, after = np.asarray(w), np.asarray(to_grid(w, vectors=0))
    distinct = [sum(len(np.unique(column)) for column in a.T) for a in (before, after)]
    assert distinct[1] > distinct[0] - 10


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kaiming(-0.1), ValueError, "confidence: .*-0.1"),
        (lambda: kaiming(1.5), ValueError, "confidence: "),
        (lambda: kaiming("normal"), TypeError, "confidence: "),
        (lambda: kaiming(gain=0), ValueError, "gain: "),
        (lambda: kaiming(gain=float("nan")), ValueError, "gain: "),
        (lambda: kaiming()(KEY, (5,)), ValueError, "shape: "),
        (lambda: kaiming(values=1), ValueError, "values: .*at least 2, got 1"),
        (lambda: kaiming(values=2.0), TypeError, "values: .*integer.*2.0"),
        (lambda: kaiming(values=True), TypeError, "values: .*integer"),
        (
            lambda: kaiming(values=4)(KEY, (3, 5)),
            ValueError,
            r"^values: expected at least 4 .*\(3, 5\) has 3",
        ),
        (
            lambda: p2t.reinitialize(KEY, {"a": {"kernel": jnp.ones((3, 5))}}, kaiming(values=4)),
            ValueError,
            "^values: expected at least 4 .* has 3.*a/kernel",
        ),
        (lambda: from_profile([]), ValueError, "profile: "),
        (lambda: from_profile(1.0), ValueError, "profile: "),
        (lambda: from_profile([True, False]), TypeError, "profile: "),
        (lambda: from_profile([0.0, 0.0], gain=1.0), ValueError, "profile: .*zeros"),
        (
            lambda: from_profile(np.ones((3, 4)))(KEY, (4, 5)),
            ValueError,
            "profile: .*3 neur",
        ),
        (lambda: p2t.reinitialize(KEY, {}, kaiming()), ValueError, "params: "),
        (
            lambda: p2t.reinitialize(KEY, normalized_params(), 0.5),
            TypeError,
            "initializer: .*Conv_0/ker",
        ),
        (
            lambda: p2t.reinitialize(KEY, normalized_params(), {"Dense_0": kaiming()}),
            ValueError,
            "^initializer: does not match params at the root of the tree: expected .*Conv_0",
        ),
        (
            lambda: p2t.reinitialize(
                KEY,
                {"rnn": {"w_i": jnp.ones((3, 4)), "w_h": jnp.ones((4, 4)), "b": jnp.ones(4)}},
                kaiming(),
                vectors=lambda path, leaf: 0,
            ),
            ValueError,
            r"vectors: rnn/b .*\[3, 4\]",
        ),
        (lambda: to_grid({}), ValueError, "params: "),
        (
            lambda: to_grid({"kernel": jnp.ones((2, 2), int)}),
            TypeError,
            "vectors: .*kernel",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
