"""What moved where: sources, cycles and distances, against definitions followed step by step."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import laperm as reference
from strategies import weights_and_axes

import p2t_jax as p2t
from p2t_jax.initializers import to_grid
from p2t_jax.permutations import (
    compose,
    cycle_labels,
    cycle_lengths,
    invert,
    permutation_of,
    statistics,
    update_statistics,
)

KEY = jax.random.key(0)


def bits(array):
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def shuffled(w, axes, rng):
    """Each weight vector of `w` in random order."""
    out = np.array(w)
    for j in reference.weight_vectors(w, axes):
        out[j] = rng.permutation(w[j].ravel()).reshape(w[j].shape)
    return out


def make_params(rng, *, ties=False):
    def draw(*shape):
        w = rng.integers(0, 4, shape) if ties else rng.normal(size=shape)
        return jnp.asarray(w, jnp.float32)

    return {
        "Conv_0": {"bias": draw(6), "kernel": draw(3, 3, 2, 6)},
        "Dense_0": {"kernel": draw(20, 4)},
    }


def shuffle(params, rng):
    axes = {"Conv_0": {"bias": None, "kernel": (0, 1, 2)}, "Dense_0": {"kernel": (0,)}}
    flat_axes = jax.tree.leaves(axes, is_leaf=lambda x: not isinstance(x, dict))
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        w if a is None else jnp.asarray(shuffled(np.asarray(w), a, rng))
        for w, a in zip(leaves, flat_axes, strict=True)
    )


def cycles_of(source):
    """Follows every cycle from its first place."""
    seen, cycles = set(), []
    for start in range(len(source)):
        cycle, place = [], start
        while place not in seen:
            seen.add(place)
            cycle.append(place)
            place = source[place]
        if cycle:
            cycles.append(cycle)
    return cycles


sources_of_vectors = st.lists(st.permutations(range(30)), min_size=3, max_size=3)


def near_identity(rng, m, n, swaps):
    source = np.tile(np.arange(n), (m, 1))
    for row in source:
        for _ in range(swaps):
            i, j = rng.integers(n, size=2)
            row[[i, j]] = row[[j, i]]
    return source


# Sources


@given(weights_and_axes(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_each_place_has_the_weight_that_was_at_its_source(case, seed):
    before, axes = case
    after = shuffled(before, axes, np.random.default_rng(seed))
    sources = permutation_of({"w": after}, {"w": before}, vectors={"w": axes})["w"]
    assert sources.dtype == jnp.int32
    n = int(np.prod([before.shape[axis] for axis in axes]))
    assert sources.shape == (*np.delete(before.shape, axes), n)
    vectors = list(reference.weight_vectors(before, axes))
    for j, source in zip(vectors, np.asarray(sources).reshape(len(vectors), n), strict=True):
        then, now = bits(before)[j].ravel(), bits(after)[j].ravel()
        np.testing.assert_array_equal(now, then[source])
        assert sorted(source) == list(range(n))
        for value in set(now.tolist()):  # equal weights never pass each other
            assert np.all(np.diff(source[now == value]) > 0)


@pytest.mark.parametrize("ties", [False, True])
def test_the_permutations_of_single_steps_compose_to_that_of_all(ties):
    rng = np.random.default_rng(0)
    steps = [make_params(rng, ties=ties)]
    for _ in range(4):
        steps.append(shuffle(steps[-1], rng))
    total = permutation_of(steps[0], steps[0])
    for before, after in itertools.pairwise(steps):
        step = permutation_of(after, before)
        total = jax.tree.map(compose, step, total)
    expected = permutation_of(steps[-1], steps[0])
    assert jax.tree.structure(total) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, total, expected)
    back = jax.tree.map(invert, total)
    for source in jax.tree.leaves(jax.tree.map(compose, total, back)):
        np.testing.assert_array_equal(
            source, np.broadcast_to(np.arange(source.shape[-1]), source.shape)
        )


def test_training_can_be_traced_from_its_states():
    params = make_params(np.random.default_rng(0))
    tx = p2t.laperm(optax.adam(0.3), sync_period=1)
    state, now = tx.init(params), params
    trace = jax.jit(lambda now: permutation_of(now, params))
    update = jax.jit(tx.update)
    for step in range(3):
        grads = jax.tree.map(lambda p: jnp.sin(50 * p + step), params)
        updates, state = update(grads, state, now)
        now = optax.apply_updates(now, updates)
        exact = p2t.permuted_params(state, now)
        sources = trace(exact)
        jax.tree.map(np.testing.assert_array_equal, sources, permutation_of(exact, params))
        kernel = np.asarray(params["Dense_0"]["kernel"])
        np.testing.assert_array_equal(
            exact["Dense_0"]["kernel"].T,
            np.take_along_axis(kernel.T, np.asarray(sources["Dense_0"]["kernel"]), axis=1),
        )
    assert sources["Conv_0"]["bias"] is None


def test_what_is_no_permutation_is_an_error_or_minus_one():
    before = make_params(np.random.default_rng(0))
    after = {**before, "Dense_0": {"kernel": before["Dense_0"]["kernel"].at[3, 1].add(1e-6)}}
    with pytest.raises(ValueError, match=r"params: Dense_0/kernel .*permuted_params"):
        permutation_of(after, before)
    sources = jax.jit(permutation_of)(after, before)["Dense_0"]["kernel"]
    np.testing.assert_array_equal((sources == -1).all(axis=1), [False, True, False, False])
    np.testing.assert_array_equal((sources == -1).any(axis=1), [False, True, False, False])
    zeros = {"kernel": jnp.zeros((3, 2))}
    with pytest.raises(ValueError, match="params: kernel"):
        permutation_of({"kernel": -zeros["kernel"]}, zeros)  # other bits
    for other in ({"kernel": jnp.zeros((2, 3))}, {"kernel": jnp.zeros((3, 2), jnp.bfloat16)}, {}):
        with pytest.raises(ValueError, match="initial_params: "):
            permutation_of(zeros, other)


def test_trees_of_other_frameworks():
    state = nnx.state(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), nnx.Param)
    back = jax.tree.map(lambda w: w[::-1] if w.ndim > 1 else w, state)
    assert len(jax.tree.leaves(permutation_of(back, state))) == 1
    linear = eqx.nn.Linear(5, 3, key=KEY)
    flipped = eqx.tree_at(lambda layer: layer.weight, linear, linear.weight[:, ::-1])
    sources = permutation_of(flipped, linear, vectors=p2t.equinox_vectors)
    np.testing.assert_array_equal(sources.weight, np.tile(np.arange(5)[::-1], (3, 1)))


def test_an_ensemble():
    before = {"kernel": jax.random.normal(KEY, (4, 10, 3))}
    after = {"kernel": before["kernel"][:, ::-1]}
    sources = jax.vmap(permutation_of)(after, before)["kernel"]
    np.testing.assert_array_equal(sources, np.broadcast_to(np.arange(10)[::-1], (4, 3, 10)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P(None, "x"), P("x", None)])
def test_sharded_parameters(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    before = {"kernel": jax.random.normal(KEY, (16, 8))}
    after = {"kernel": before["kernel"][::-1]}

    def all_of_it(after, before):
        source = permutation_of(after, before)["kernel"]
        source = compose(source, invert(source))
        source = compose(source, permutation_of(after, before)["kernel"])
        difference = jax.tree.map(jnp.subtract, after, before)
        return source, statistics(source), update_statistics(difference)

    expected = all_of_it(after, before)
    with jax.set_mesh(mesh):
        sharded = jax.device_put((after, before), NamedSharding(mesh, spec))
        results = all_of_it(*sharded), jax.jit(all_of_it)(*sharded)
    for result in results:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, expected)


# Cycles


@given(sources_of_vectors)
@settings(max_examples=50, deadline=None)
def test_cycles_are_those_found_by_following_them(sources):
    labels, lengths = (
        cycle_labels(jnp.array(sources)),
        cycle_lengths(jnp.array(sources)),
    )
    moved = statistics(jnp.array(sources))
    for j, source in enumerate(sources):
        cycles = cycles_of(source)
        for cycle in cycles:
            assert {int(labels[j, place]) for place in cycle} == {min(cycle)}
            assert {int(lengths[j, place]) for place in cycle} == {len(cycle)}
        assert moved.fixed_points[j] == sum(len(cycle) == 1 for cycle in cycles)
        assert moved.cycles[j] == sum(len(cycle) > 1 for cycle in cycles)
        assert moved.longest_cycle[j] == max(map(len, cycles))
        distances = [abs(i - place) for i, place in enumerate(source)]
        assert moved.mean_distance[j] == pytest.approx(np.mean(distances))


@pytest.mark.parametrize("n", [1, 2, 3, 9, 1000])
def test_one_cycle_through_all_places_is_found_whatever_its_length(n):
    source = np.roll(np.arange(n), 1)
    np.testing.assert_array_equal(cycle_labels(source), np.zeros(n))
    np.testing.assert_array_equal(cycle_lengths(source), np.full(n, n))


def test_permutations_of_many_vectors_keep_their_axes():
    source = near_identity(np.random.default_rng(0), 6, 30, 5).reshape(2, 3, 30)
    for function in (cycle_labels, cycle_lengths, invert):
        result = jax.jit(function)(source)
        assert result.shape == (2, 3, 30)
        np.testing.assert_array_equal(result[1, 2], function(source[1, 2]))
    assert jax.tree.map(jnp.shape, statistics(source)) == ((2, 3),) * 4
    one_for_all = compose(source[0, 0], source)
    np.testing.assert_array_equal(one_for_all[1, 2], source[1, 2][source[0, 0]])


def test_a_random_permutation_has_one_fixed_point_and_goes_a_third_of_the_way():
    """What the documentation says of chance."""
    rows = jnp.tile(jnp.arange(200), (500, 1))
    moved = statistics(jax.random.permutation(KEY, rows, axis=1, independent=True))
    assert moved.fixed_points.mean() == pytest.approx(1, abs=0.2)
    assert moved.mean_distance.mean() == pytest.approx(200 / 3, rel=0.02)


# Updates


def test_update_statistics_by_definition():
    rng = np.random.default_rng(0)
    updates = make_params(rng)
    updates["Dense_0"]["kernel"] *= rng.random((20, 4)) < 0.3
    u = np.concatenate([np.ravel(updates[name]["kernel"]) for name in updates])
    for found in (
        update_statistics(updates),
        jax.jit(update_statistics)(updates),
    ):
        assert found.sparsity == pytest.approx((u == 0).mean(), abs=1e-6)
        assert found.size == pytest.approx(abs(u[u != 0]).mean(), rel=1e-5)
    assert update_statistics(jax.tree.map(jnp.zeros_like, updates)) == (1, 0)


def test_sgperm_updates_are_sparser_and_larger_than_adams():
    """Section 5.1.1's finding, of random gradients."""
    params = to_grid({"kernel": jax.random.uniform(KEY, (200, 10), minval=-0.1, maxval=0.1)})
    grads = {"kernel": jax.random.normal(KEY, (200, 10))}
    permuted, adam = (
        update_statistics(tx.update(grads, tx.init(params), params)[0])
        for tx in (p2t.sgperm(0), optax.adam(1e-3))
    )
    assert permuted.sparsity > adam.sparsity == 0
    assert permuted.size > 2 * adam.size


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cycle_labels(jnp.ones(3)), TypeError, "source: .*float32"),
        (lambda: cycle_lengths(jnp.array(0)), ValueError, "source: .*scalar"),
        (lambda: invert(jnp.ones(3)), TypeError, "source: "),
        (lambda: statistics(jnp.ones((2, 0), int)), ValueError, "source: "),
        (
            lambda: compose(jnp.arange(3), jnp.arange(4)),
            ValueError,
            "earlier: .*3 .*later.*got 4",
        ),
        (lambda: compose(jnp.ones(3), jnp.arange(3)), TypeError, "later: "),
        (lambda: update_statistics({"bias": jnp.ones(3)}), ValueError, "updates: "),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
