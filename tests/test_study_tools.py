"""What all tools of study promise: under JAX's switches, of leaves of all kinds, under donation."""

import functools

import chex
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

pytestmark = pytest.mark.usefixtures("compile_fast")

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


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("tool", TOOLS)
def test_no_switch_of_jax_changes_a_result(tool, switch):
    if switch == "disable_jit" and tool in ("kaiming", "from_profile"):
        pytest.skip("random numbers, one operation after the other, take half a minute")
    eager = tool == "unpack" or switch == "disable_jit"
    with SWITCHES[switch]():
        changed = (TOOLS[tool] if eager else jax.jit(TOOLS[tool]))(PARAMS)
    chex.assert_trees_all_equal_structs(changed, result(tool))
    chex.assert_trees_all_close(changed, result(tool), rtol=1e-2)  # bfloat16 rounds differently
    if tool in NEW_PARAMS:
        chex.assert_trees_all_equal_dtypes(changed, PARAMS)


@pytest.mark.parametrize("tool", TOOLS)
def test_numpy_arrays_are_taken_like_jax_arrays(tool):
    chex.assert_trees_all_equal(TOOLS[tool](jax.tree.map(np.asarray, PARAMS)), result(tool))
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), PARAMS)
    TOOLS[tool](wide)  # which JAX makes float32


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
