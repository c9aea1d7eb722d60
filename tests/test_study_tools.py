"""What all tools of study promise: under JAX's switches, of leaves of all kinds, under donation."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import p2t_jax as p2t
from p2t_jax import permutations
from p2t_jax.initializers import from_profile, kaiming, to_grid
from p2t_jax.profiles import profile_similarity, weight_profiles

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {
    "Dense_0": {
        "kernel": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32),
        "bias": jnp.arange(4.0),
    },
    "Dense_1": {"kernel": jnp.asarray(RNG.normal(size=(4, 2)), jnp.bfloat16)},
}


def moved(params):
    """Every weight vector backwards."""
    return jax.tree.map(lambda w: w[::-1] if np.ndim(w) > 1 else w, params)


def statistics(params):
    source = permutations.permutation_of(moved(params), params)["Dense_0"]["kernel"]
    twice = permutations.compose(source[0], permutations.invert(source))
    return permutations.statistics(source), permutations.cycle_labels(twice)


def kept_zeros(params):
    tx = p2t.keep_zeros()
    return tx.update(params, tx.init(p2t.prune(1, params, 0.5)))


# Each takes parameters and returns a tree of arrays.
NEW_PARAMS = {
    "kaiming": lambda params: p2t.reinitialize(0, params, kaiming(0.25)),
    "few_values": lambda params: p2t.reinitialize(0, params, kaiming(0.25, values=3)),
    "from_profile": lambda params: p2t.reinitialize(0, params, from_profile([1, 2, 4], gain=1)),
    "to_grid": to_grid,
    "prune": lambda params: p2t.prune(0, params, 0.3),
    "prune_overall": lambda params: p2t.prune(0, params, 0.3, overall=True),
    "unpack": lambda params: p2t.unpack(p2t.pack(moved(params), params), params),
}
TOOLS = NEW_PARAMS | {
    "permutation_of": lambda params: permutations.permutation_of(moved(params), params),
    "statistics": statistics,
    "update_statistics": permutations.update_statistics,
    "movement": lambda params: p2t.metrics.movement(moved(params), params),
    "keep_zeros": kept_zeros,
    "weight_profiles": weight_profiles,
    "profile_similarity": lambda params: profile_similarity(params["Dense_1"]["kernel"]),
}
SWITCHES = {
    "disable_jit": jax.disable_jit,
    "strict_dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no_rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": jax.debug_nans,
    "enable_x64": lambda: jax.enable_x64(True),
    "checking_leaks": jax.checking_leaks,
    "debug_key_reuse": lambda: jax.debug_key_reuse(True),
}


@functools.cache
def result(tool):
    return TOOLS[tool](PARAMS)


FIRST = ("disable_jit", "strict_dtype_promotion", "enable_x64")


@pytest.mark.parametrize("switch", [s if s in FIRST else helpers.slow(s) for s in SWITCHES])
@pytest.mark.parametrize("tool", TOOLS)
def test_no_switch_of_jax_changes_a_result(tool, switch):
    if switch == "disable_jit" and tool in ("kaiming", "few_values", "from_profile"):
        pytest.skip("random numbers, one operation after the other, take half a minute")
    eager = tool == "unpack" or switch == "disable_jit"
    with SWITCHES[switch]():
        changed = (TOOLS[tool] if eager else jax.jit(TOOLS[tool]))(PARAMS)
    chex.assert_trees_all_equal_structs(changed, result(tool))
    chex.assert_trees_all_close(changed, result(tool), rtol=1e-2)  # bfloat16 rounds differently
    if tool in NEW_PARAMS:
        chex.assert_trees_all_equal_dtypes(changed, PARAMS)


def read_only(w):
    w = np.array(w)
    w.flags.writeable = False
    return w


# The same numbers in NumPy arrays of other kinds.
NUMPY = {
    "as JAX has them": np.asarray,
    "another byte order": lambda w: (
        np.asarray(w).astype(w.dtype.newbyteorder()) if w.dtype == np.float32 else np.asarray(w)
    ),
    "not contiguous": lambda w: np.repeat(np.asarray(w), 2, axis=-1)[..., ::2],
    "in Fortran's order": lambda w: np.asfortranarray(w),
    "read-only": read_only,
}


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("tool", TOOLS)
def test_numpy_arrays_are_taken_like_jax_arrays(tool, kind):
    params = jax.tree.map(NUMPY[kind], PARAMS)
    chex.assert_trees_all_equal(TOOLS[tool](params), result(tool))


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("link", [p2t.synchronize(3), p2t.cycle_permutation(0)])
def test_exact_weights_come_out_of_numpy_arrays(kind, link):
    params = jax.tree.map(NUMPY[kind], PARAMS)
    exact = p2t.permuted_params(link.init(params), params)
    chex.assert_trees_all_equal(exact, PARAMS)
    assert bool(p2t.is_permutation(moved(params), exact))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_weights_are_compared_in_their_own_dtype(dtype):
    """Numbers that differ in the last bit, which is lost in all smaller dtypes."""
    bits = f"u{np.dtype(dtype).itemsize}"
    steps = np.arange(16, dtype=bits)[:, None]
    ascending = (np.ones((16, 2), dtype).view(bits) + steps).view(dtype)
    before, after = {"kernel": ascending}, {"kernel": ascending[::-1]}
    other = {"kernel": ascending.copy()}
    other["kernel"][0] = ascending[1]
    for jitted in (False, dtype != np.float64):
        is_permutation = jax.jit(p2t.is_permutation) if jitted else p2t.is_permutation
        assert bool(is_permutation(after, before))
        assert not bool(is_permutation(other, before))
    source = permutations.permutation_of(after, before)["kernel"]
    np.testing.assert_array_equal(source, [np.arange(16)[::-1]] * 2)
    with pytest.raises(ValueError, match="kernel is not a permutation"):
        permutations.permutation_of(other, before)
    with pytest.raises(ValueError, match="is not a permutation"):
        p2t.pack(other, before)
    profiles = weight_profiles(after)["kernel"]
    assert profiles.dtype == dtype
    np.testing.assert_array_equal(profiles, ascending.T)
    if dtype == np.float64:  # that of the others is computed in float32
        assert float(profile_similarity(profiles)) == 1
        assert float(profile_similarity(np.array([[1, 1 + 1e-12], [1 + 1e-12, 1]]))) == 0


def test_a_float64_array_may_have_become_float32():
    """That is what training makes of it."""
    before = {"kernel": np.random.default_rng(0).normal(size=(50, 2))}
    after = {"kernel": jnp.asarray(before["kernel"][::-1])}
    assert after["kernel"].dtype == jnp.float32
    assert bool(p2t.is_permutation(after, before))
    assert bool(p2t.is_permutation(before, after))
    source = permutations.permutation_of(after, before)["kernel"]
    np.testing.assert_array_equal(source, [np.arange(50)[::-1]] * 2)
    state = helpers.TX["laperm"].init(before)
    assert bool(p2t.is_permutation(p2t.permuted_params(state, before), before))
    with jax.enable_x64(True):  # then it stays what it is
        assert not bool(p2t.is_permutation(after, before))


def test_small_float64_numbers_are_not_zero():
    small = {"kernel": np.array([[1e-60], [0.0]])}
    sparsity, _ = permutations.update_statistics(small)
    assert float(sparsity) == 0.5
    np.testing.assert_array_equal(p2t.keep_zeros().init(small).pruned["kernel"], [[False], [True]])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16", "uint32", "int64", "uint64"])
def test_integers_are_computed_in_a_dtype_with_room(dtype):
    n = min(300, np.iinfo(dtype).max + 1)
    source = np.stack([np.roll(np.arange(n), 1), np.arange(n)[::-1]])
    expected = permutations.statistics(jnp.asarray(source, jnp.int32))
    mean = np.abs(source - np.arange(n)).mean(axis=1)
    np.testing.assert_allclose(expected.mean_distance, mean, rtol=1e-6)
    narrow = source.astype(dtype)
    for function in (permutations.statistics, jax.jit(permutations.statistics)):
        chex.assert_trees_all_equal(function(narrow), expected)
    for function in (permutations.invert, permutations.cycle_labels, permutations.cycle_lengths):
        chex.assert_trees_all_equal(function(narrow), function(jnp.asarray(source, jnp.int32)))
    twice = permutations.compose(narrow, narrow)
    np.testing.assert_array_equal(twice, np.take_along_axis(source, source, axis=1))
    assert twice.dtype == jnp.int32


def test_small_dtypes_of_numbers_do_not_overflow():
    schedule = p2t.geometric_schedule(np.uint8(200), np.uint8(2), np.uint16(1000))
    assert float(schedule(0)) == 400
    weights = from_profile(np.array([2**40, -(2**40)]))(KEY, (2, 1))
    np.testing.assert_array_equal(jnp.sort(weights.ravel()), [-(2.0**40), 2.0**40])
    params = {"kernel": jnp.ones((1000, 100))}
    pruned = jax.jit(lambda keep: p2t.prune(0, params, keep))(jnp.asarray(0.75, jnp.float16))
    assert int(pruned["kernel"].sum()) == 75_000


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "unpack"])
def test_scalars_and_weak_types_may_stand_beside_a_kernel(tool):
    with_scalars = PARAMS | {"scale": 2.0, "steps": 3, "weak": jnp.asarray(1.0)}
    if tool == "keep_zeros":
        updates, state = TOOLS[tool](with_scalars)
        assert (updates["scale"], updates["steps"]) == (2.0, 3)
        assert not state.pruned["scale"]
        return
    tree = TOOLS[tool](with_scalars)
    if tool in NEW_PARAMS:
        assert (tree["scale"], tree["steps"], tree["weak"]) == (2.0, 3, 1.0)
    if isinstance(tree, dict):
        tree = {name: tree[name] for name in result(tool)}
    chex.assert_trees_all_equal(tree, result(tool))


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_compiled_a_second_time(tool, caplog):
    TOOLS[tool](PARAMS)
    with jax.log_compiles():
        TOOLS[tool](PARAMS)
    assert not [record.message for record in caplog.records if "Compiling" in record.message]


@pytest.mark.parametrize("tool", NEW_PARAMS)
@pytest.mark.parametrize("donated", ["what went in", "what came out"])
def test_new_parameters_are_the_callers_own(tool, donated):
    before = jax.tree.map(lambda w: jnp.array(w, copy=True), PARAMS)
    after = NEW_PARAMS[tool](before)
    expected = jax.tree.map(np.array, before if donated == "what came out" else after)
    gone, kept = (before, after) if donated == "what went in" else (after, before)
    jax.tree.map(lambda w: w.delete(), gone)
    chex.assert_trees_all_equal(jax.tree.map(np.array, kept), expected)


@pytest.mark.parametrize("tool", NEW_PARAMS)
def test_new_parameters_share_no_memory_with_numpy_arrays(tool):
    before = jax.tree.map(np.array, PARAMS)
    after = NEW_PARAMS[tool](before)
    expected = jax.tree.map(np.array, after)
    for leaf in jax.tree.leaves(before):
        leaf[...] = 0
    chex.assert_trees_all_equal(after, expected)


def test_parts_that_are_told_to_stay_are_copies_too():
    before = jax.tree.map(lambda w: jnp.array(w, copy=True), PARAMS)
    new = [
        p2t.prune(0, before, None),
        p2t.prune(0, before, 1.0),
        p2t.reinitialize(0, before, None),
    ]
    jax.tree.map(lambda w: w.delete(), before)
    for tree in new:
        chex.assert_trees_all_equal(tree, PARAMS)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("one", "other"), [(P(), P("x", None)), (P("x", None), P()), (P("x", None), P(None, "x"))]
)
def test_two_trees_may_be_sharded_differently(kind, one, other):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    before = {"kernel": p2t.prune(0, {"kernel": jax.random.normal(KEY, (16, 8))}, 0.5)["kernel"]}
    after = moved(before)

    def tools(before, after):
        tx = p2t.keep_zeros()
        return tx.update(after, tx.init(before))[0], permutations.permutation_of(after, before)

    expected = tools(before, after)
    with jax.set_mesh(mesh):
        before = jax.device_put(before, NamedSharding(mesh, one))
        after = jax.device_put(after, NamedSharding(mesh, other))
        chex.assert_trees_all_equal(tools(before, after), expected)
        chex.assert_trees_all_equal(jax.jit(tools)(before, after), expected)
