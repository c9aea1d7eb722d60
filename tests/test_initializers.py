"""Initial weights: profiles and scales in trees of any framework; exact arithmetic."""

import math
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import normalized_params
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import laperm as reference
from scipy import stats
from strategies import weights_and_axes

import p2t_jax as p2t
from p2t_jax._vectors import named_leaves
from p2t_jax.initializers import from_profile, kaiming, to_grid
from p2t_jax.profiles import weight_profiles

pytestmark = pytest.mark.usefixtures("compile_fast")
KEY = jax.random.key(0)
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
IMAGES = jnp.zeros((1, 8, 8, 3))


def every_weight_and_bias(path: Any, leaf: Any) -> Any:
    return 0 if path[-1] in ("bias", "b") else p2t.flax_vectors(path, leaf)


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


def uniform_limit(w: Any) -> float:
    return float(abs(w).max())


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
        assert uniform_limit(kernel) == pytest.approx(math.sqrt(6 / n), rel=0.02)
        assert uniform_limit(kernel) <= math.sqrt(6 / n) * (1 + 1e-6)


# A whole tree


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(40)(nn.LayerNorm()(nn.Conv(30, (3, 3))(x)))


def linen() -> Any:
    params = jax.eval_shape(Linen().init, KEY, IMAGES)["params"]
    params = jax.tree.map(jnp.ones_like, params)
    return params, p2t.flax_vectors, {"Conv_0/kernel": 27, "Dense_0/kernel": 30}


def nnx_state() -> Any:
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 30, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(30, 40, rngs=rngs)

    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    return params, p2t.flax_vectors, {"conv/kernel": 27, "dense/kernel": 30}


def equinox() -> Any:
    keys = jax.random.split(KEY)
    net = {"conv": eqx.nn.Conv2d(3, 30, 3, key=keys[0]), "dense": eqx.nn.Linear(30, 40, key=KEY)}
    params = eqx.filter(net, eqx.is_array)
    return params, p2t.equinox_vectors, {"conv/weight": 27, "dense/weight": 30}


def haiku() -> Any:
    net = hk.transform(lambda x: hk.Linear(40)(hk.Conv2D(30, 3)(x)))
    params = jax.tree.map(jnp.ones_like, jax.eval_shape(net.init, KEY, IMAGES))
    return params, p2t.haiku_vectors, {"conv2_d/w": 27, "linear/w": 30}


def stacks() -> Any:
    params = {"blocks": {"kernel": jnp.zeros((20, 27, 30)), "bias": jnp.zeros((20, 30))}}
    return params, {"blocks": {"kernel": 1, "bias": None}}, {"blocks/kernel": 27}


@pytest.mark.parametrize("make", [linen, nnx_state, equinox, haiku, stacks])
def test_every_weight_vector_of_a_tree_is_drawn_by_its_own_fan_in(make):
    params, vectors, fan_ins = make()
    new = p2t.reinitialize(KEY, params, kaiming(confidence=0), vectors=vectors)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    seen = []
    for (path, w), old in zip(named_leaves(new), jax.tree.leaves(params), strict=True):
        name = "/".join(path)
        assert (w.shape, w.dtype) == (old.shape, old.dtype)
        n = fan_ins.pop(name, None)
        if n is None:
            np.testing.assert_array_equal(w, old)
            continue
        assert uniform_limit(w) == pytest.approx(math.sqrt(6 / n), rel=0.02)
        assert uniform_limit(w) <= math.sqrt(6 / n) * (1 + 1e-6)
        seen.append(np.ravel(w)[:100] * math.sqrt(n))
    assert not fan_ins
    assert len(np.unique(np.round(seen, 4))) > 0.95 * np.size(seen)  # each its own random numbers


@given(case=weights_and_axes())
@settings(max_examples=20, deadline=None)
def test_the_initializer_sees_weight_vectors_as_columns(case):
    old, axes = case

    def init(key, shape, dtype):
        n, m = shape
        return (np.arange(n)[:, None] + 100 * np.arange(m)).astype(np.float32)

    new = np.asarray(p2t.reinitialize(KEY, {"w": old}, init, vectors={"w": axes})["w"])
    assert new.shape == old.shape
    for j, index in enumerate(reference.weight_vectors(old, axes)):
        w = new[index].ravel()
        np.testing.assert_array_equal(w, 100 * j + np.arange(len(w)))


def test_biases_that_are_weight_vectors_are_drawn_at_the_scale_of_their_layer():
    params = normalized_params()
    init = kaiming(confidence=0)
    new = p2t.reinitialize(KEY, params, init, vectors=every_weight_and_bias)
    for name, n in (("Conv_0", 90), ("Dense_0", 200)):
        bias, limit = np.asarray(new[name]["bias"]), math.sqrt(6 / n)
        assert 0.3 * limit < uniform_limit(bias) <= limit
        assert len(np.unique(bias)) == bias.size
    chex.assert_trees_all_equal(new["LayerNorm_0"], params["LayerNorm_0"])  # no weights beside it
    # Kernels do not depend on whether biases are drawn; by default biases are left alone.
    kernels_only = p2t.reinitialize(KEY, params, init)
    chex.assert_trees_all_equal(kernels_only["Dense_0"]["kernel"], new["Dense_0"]["kernel"])
    chex.assert_trees_all_equal(kernels_only["Dense_0"]["bias"], params["Dense_0"]["bias"])


def test_biases_without_names():
    layers = [(jnp.zeros((600, 50)), jnp.zeros(50)), (jnp.zeros((50, 40)), jnp.zeros(40))]
    new = p2t.reinitialize(KEY, layers, kaiming(0), vectors=lambda path, leaf: 0)
    for (_, bias), n in zip(new, (600, 50), strict=True):
        assert uniform_limit(bias) == pytest.approx(math.sqrt(6 / n), rel=0.3)


def test_a_tree_may_have_an_initializer_for_each_part():
    params = normalized_params()
    parts = {"Conv_0": None, "Dense_0": jax.nn.initializers.constant(0.03), "LayerNorm_0": None}
    new = p2t.reinitialize(KEY, params, parts)
    chex.assert_trees_all_equal(new["Conv_0"], params["Conv_0"])
    chex.assert_trees_all_equal(new["Dense_0"]["kernel"], jnp.full((200, 6), 0.03))
    state, _, _ = nnx_state()
    new = p2t.reinitialize(KEY, state, {"conv": kaiming(0), "dense": kaiming(1)})
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_only_the_key_decides():
    params = normalized_params()

    def draw(key, params=params):
        return p2t.reinitialize(key, params, kaiming())

    first = draw(KEY)
    again = draw(KEY, jax.tree.map(jnp.zeros_like, params))
    for name in ("Conv_0", "Dense_0"):
        np.testing.assert_array_equal(first[name]["kernel"], again[name]["kernel"])
    other = draw(jax.random.key(1))
    assert not np.intersect1d(first["Dense_0"]["kernel"], other["Dense_0"]["kernel"]).size
    jitted = jax.jit(draw)(KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jitted, first)
    ensemble = jax.vmap(draw)(jax.random.split(KEY, 3))
    assert ensemble["Dense_0"]["kernel"].shape == (3, 200, 6)
    assert len(np.unique(ensemble["Dense_0"]["kernel"])) > 3500


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (AxisType.Auto, P("x", None)),
        (AxisType.Explicit, P(None, "x")),
        (AxisType.Explicit, P("x", None)),
    ],
)
def test_weights_stay_where_they_are(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    params = {"kernel": jax.random.normal(KEY, (16, 8))}
    sharded = jax.device_put(params, NamedSharding(mesh, spec))
    shuffled = jax.tree.map(from_profile, weight_profiles(params))

    def new_weights(params):
        return (
            p2t.reinitialize(KEY, params, kaiming(0)),
            p2t.reinitialize(KEY, params, shuffled),
            to_grid(params),
            p2t.prune(KEY, params, 0.3),
        )

    expected = new_weights(params)
    with jax.set_mesh(mesh):
        eager = new_weights(sharded)
        jitted = jax.jit(new_weights, out_shardings=NamedSharding(mesh, spec))(sharded)
    for new in (eager, jitted):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected)
        for w in jax.tree.leaves(new):
            assert w.sharding.is_equivalent_to(sharded["kernel"].sharding, 2)


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
