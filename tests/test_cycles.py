"""SGPerm's kernel against the paper transcribed literally, and the promises of its docstrings."""

from itertools import pairwise

import numpy as np
import pytest
from helpers import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import sgperm as oracle

from p2t_jax._host.kernels import cycles, subsets
from p2t_jax._host.permutation import position_dtype

PRIORITIES = {"nearest": cycles.NEAREST, "farthest": cycles.FARTHEST, "random": cycles.RANDOM}
LOWERS = {"mean": cycles.MEAN, "smallest": cycles.SMALLEST}


def search(w, r, alpha=0.1, partition_ratio=1.0, seed=7, lower="mean", priority="nearest"):
    """The kernel on the columns of (n, m) weights, or on one vector."""
    columns = w[:, None] if w.ndim == 1 else w
    block = np.ascontiguousarray(columns)[None]
    shape = (1, 1, columns.shape[1])
    numbers = [
        np.broadcast_to(np.asarray(x, dtype), shape).copy()
        for x, dtype in ((alpha, np.float32), (partition_ratio, np.float32), (seed, np.uint32))
    ]
    source = np.full(block.shape, 7777, position_dtype(len(columns)))
    wanted = np.ascontiguousarray(r.reshape(columns.shape))[None]
    cycles.search(
        block, wanted, *numbers, source, 0, columns.shape[1],
        lower=LOWERS[lower], priority=PRIORITIES[priority],
    )  # fmt: skip
    return np.take_along_axis(columns, source[0], axis=0).reshape(w.shape)


def random_vector(rng, n, dtype, r_dtype):
    """Weights and recommendations of many kinds: ties, both zeros, sparse, NaN, infinite."""
    w, r = rng.standard_normal((2, n))
    kind = rng.integers(5)
    if kind == 0:
        w = w.round(1)
    elif kind == 1:
        w = w.round(0)
    elif kind == 2:
        w = np.where(rng.random(n) < 0.7, rng.choice([0.0, -0.0], n), w)
    kind = rng.integers(6)
    if kind == 0:
        r = r.round(0)
    elif kind == 1:
        r[rng.random(n) < 0.2] = np.nan
    elif kind == 2:
        r = np.sign(r)
    elif kind == 3:
        r = np.where(rng.random(n) < 0.1, np.inf * np.sign(r), r)
    r[rng.random(n) < rng.choice([0, 0.15, 0.9])] = 0
    return w.astype(dtype), r.astype(r_dtype)


def random_columns(n, m, seed=0, zeros=0.15):
    w, r = np.random.default_rng(seed).standard_normal((2, n, m)).astype(np.float32)
    r[np.random.default_rng(seed + 1).random(r.shape) < zeros] = 0
    return w, r


@pytest.mark.parametrize("lower", LOWERS)
@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("dtype", [np.float32, slow(np.float64)])
def test_agrees_with_the_literal_transcription(priority, lower, dtype):
    rng = np.random.default_rng(0)
    moved = 0
    for seed in range(400):
        w, r = random_vector(rng, int(rng.integers(80)), dtype, rng.choice([np.float32, float]))
        alpha = float(np.float32(10 ** rng.uniform(-3, 0)))
        ratio = float(np.float32(rng.choice([1, 1, 0.5, 0.25, 0.05])))
        source = oracle.search(w, r, alpha, ratio, seed, lower, priority)
        permuted = search(w, r, alpha, ratio, seed, lower, priority)
        assert permuted.tobytes() == w[source].tobytes(), (seed, w, r, alpha, ratio)
        moved += np.count_nonzero(permuted != w)
    assert moved > 1500


@pytest.mark.parametrize("digits", [0, 1, 9])
@pytest.mark.parametrize("n", [63, 64, 65, 129, 300])
def test_agrees_where_a_subset_takes_more_than_a_word_of_bits(n, digits):
    rng = np.random.default_rng(n)
    w, r = rng.standard_normal((2, n)).round(digits).astype(np.float32)
    r[rng.random(n) < 0.1] = rng.choice([0, np.nan, np.inf])
    for alpha in (0.02, 0.3, 1.0):
        alpha = float(np.float32(alpha))
        source = oracle.search(w, r, alpha, 1.0, 7)
        assert search(w, r, alpha).tobytes() == w[source].tobytes()


@pytest.mark.parametrize("n", [4097, 9000])
@pytest.mark.parametrize("digits", [1, 9])
def test_sets_of_several_levels_agree_with_a_walk_along_the_weights(n, digits):
    """The closed form, again, with a list of those that remain; the oracle is too slow here."""
    rng = np.random.default_rng(n)
    w, r = rng.standard_normal((2, n)).round(digits)
    expected, there = w.copy(), {}
    order = [x for x in sorted(range(n), key=lambda x: (w[x], r[x] < 0, x)) if r[x] != 0]
    alpha = 0.0625 if digits == 1 else 0.01  # the grid of weights is wider than the latter
    reach = np.ptp(w) / len(order) + float(np.float32(alpha)) * np.ptp(w)
    slot = {x: k for k, x in enumerate(order)}
    there = set(order)
    for root in sorted(order, key=lambda x: (-abs(r[x]), x)):
        if root not in there:
            continue
        way, path = (1 if r[root] < 0 else -1), [root]
        for k in range(slot[root] + way, len(order) if way > 0 else -1, way):
            y = order[k]
            if abs(w[y] - w[root]) >= reach or y not in there or w[y] == w[root]:
                if abs(w[y] - w[root]) >= reach:
                    break
                continue
            if (r[y] < 0) != (r[root] < 0):
                for x, z in zip([*path, y], [*path[1:], y, root], strict=True):
                    expected[x] = w[z]
                there -= {*path, y}
                break
            if w[y] == w[path[-1]]:  # the foremost of equal weights is met last
                path[-1] = y
            else:
                path.append(y)
        there.discard(root)
    assert (expected != w).mean() > 0.2
    np.testing.assert_array_equal(search(w, r, alpha), expected)


numbers = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0])
wishes = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@st.composite
def problems(draw):
    n = draw(st.integers(1, 60))
    return {
        "w": np.array(draw(st.lists(numbers, min_size=n, max_size=n)), np.float32),
        "r": np.array(draw(st.lists(wishes, min_size=n, max_size=n)), np.float32),
        "alpha": draw(st.floats(2**-10, 1, width=32)),
        "partition_ratio": draw(st.sampled_from([1.0, 0.5, 0.2])),
        "lower": draw(st.sampled_from(list(LOWERS))),
        "priority": draw(st.sampled_from(list(PRIORITIES))),
    }


@settings(deadline=None, max_examples=300)
@given(problems(), st.integers(0, 2**32 - 1))
def test_every_movement_is_permissible(problem, seed):
    w, r = problem["w"], problem["r"]
    permuted = search(**problem, seed=seed)
    assert sorted(permuted.view(np.uint32)) == sorted(w.view(np.uint32))
    moved = permuted != w
    assert not moved[np.isnan(r) | (r == 0)].any()
    # Against the recommendation, and strictly; by less than u, which no subset makes larger than
    # the least of a subset of two.
    change = permuted.astype(np.float64) - w
    assert (np.sign(change[moved]) == -np.sign(r[moved])).all()
    count = subsets.subset_count(w.size, problem["partition_ratio"])
    members = np.count_nonzero(np.abs(r) > 0) if count == 1 else 2
    if moved.any():
        least = 1 / members if problem["lower"] == "mean" else 1
        assert np.abs(change).max() < (least + problem["alpha"]) * np.ptp(w.astype(np.float64))


@settings(deadline=None, max_examples=100)
@given(problems(), st.randoms(use_true_random=False))
def test_the_place_of_weights_decides_only_between_equals(problem, random):
    """Permuted places give the same movements, if no two |r| are equal."""
    n = problem["w"].size
    wishes = [sign * (k + 1) for k, sign in enumerate(random.choices([-1, 0, 1], k=n))]
    random.shuffle(wishes)
    problem |= {"r": np.array(wishes, np.float32), "partition_ratio": 1.0, "priority": "nearest"}
    order = np.array(random.sample(range(n), n))
    distinct = np.unique(problem["w"]).size == n
    permuted = search(**problem)
    problem["w"], problem["r"] = problem["w"][order], problem["r"][order]
    again = search(**problem)
    assert sorted(again) == sorted(permuted)
    if distinct:
        np.testing.assert_array_equal(again, permuted[order])


@pytest.mark.parametrize("priority", PRIORITIES)
def test_known_permutations(priority):
    # l = 1, A = 4: u = 2.25. Weight 0 wants up, and the nearest that wants down is 2; 1 goes along,
    # since it wants up and is between them.
    w, r = np.array([0, 1, 2, 4], np.float32), np.array([-4, -3, 2, 1], np.float32)
    expected = {"nearest": [1, 2, 0, 4], "farthest": [2, 1, 0, 4], "random": None}[priority]
    if expected:
        assert search(w, r, 5 / 16, lower="smallest", priority=priority).tolist() == expected
    # u = 2 is out of reach itself: only 1 finds a partner.
    permuted = search(w, r, 1 / 4, lower="smallest", priority=priority)
    assert permuted.tolist() == [0, 2, 1, 4]


def test_a_cycle_goes_through_its_root():
    # 3 starts; 2 wants up as well and is nearer than 1, which closes the cycle through the root.
    w, r = np.array([0.0, 1.0, 2.0]), np.array([1.0, -2.0, 3.0])
    assert search(w, r, 0.9).tolist() == [0, 2, 1]
    # Without the reach to come back to it, the root only leaves.
    w, r = np.array([0.0, 1.0, 2.0, 10.0]), np.array([-1.0, 2.0, 3.0, 0.0])
    assert search(w, r, 0.05, lower="smallest").tolist() == [1, 0, 2, 10]


def test_roots_come_by_the_size_of_the_recommendation():
    w = np.array([0.0, 1.0, 2.0])
    assert search(w, np.array([-1.0, 2.0, -3.0]), 1.0).tolist() == [1, 0, 2]
    assert search(np.array([0.0, 1.0, 1.5]), np.array([-3.0, 1.0, 2.0]), 1.0).tolist() == [
        1,
        0,
        1.5,
    ]
    w, r = random_columns(200, 20)
    other = np.sign(r) * np.random.default_rng(3).random(r.shape).astype(np.float32)
    assert not np.array_equal(search(w, r, 0.2, 0.1), search(w, other, 0.2, 0.1))


def test_the_lower_bounds_differ():
    w, r = random_columns(400, 20)
    mean, smallest = (search(w, r, 0.01, 0.1, lower=lower) != w for lower in LOWERS)
    assert mean.mean() > 2 * smallest.mean()


def test_priorities_differ():
    w, r = random_columns(200, 20, zeros=0)
    nearest, farthest, random = (search(w, r, 0.3, 0.5, priority=p) for p in PRIORITIES)
    distances = [np.abs(x - w)[x != w].mean() for x in (nearest, random, farthest)]
    assert all(a < b for a, b in pairwise(distances))
    assert not np.array_equal(random, search(w, r, 0.3, 0.5, seed=8, priority="random"))


def test_random_priority_chooses_uniformly():
    # Weight 0 may take any of 1, ..., 9, and each of those may take it back.
    w = np.array([0.0, *np.arange(10.0, 19.0), 100.0], np.float32)
    r = np.array([-9.0, *[1.0] * 9, np.nan], np.float32)
    w, r = (np.tile(x[:, None], (1, 9000)) for x in (w, r))
    permuted = search(w, r, 0.1, seed=np.arange(9000), priority="random")
    counts = np.array([np.count_nonzero(permuted[0] == value) for value in range(10, 19)])
    assert counts.sum() == 9000
    assert np.sum((counts - 1000) ** 2 / 1000) < 26.1  # 8 degrees of freedom, 0.1 %.


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_with_a_weight_that_is_not_finite_stays(bad, priority):
    w, r = random_columns(50, 3)
    whole = search(w, r, 0.2, 0.5, priority=priority)
    for place in (0, 20, 49):
        spoilt = w.copy()
        spoilt[place, 1] = bad
        permuted = search(spoilt, r, 0.2, 0.5, priority=priority)
        assert permuted[:, 1].tobytes() == spoilt[:, 1].tobytes()
        np.testing.assert_array_equal(permuted[:, [0, 2]], whole[:, [0, 2]])


def test_what_cannot_move_stays():
    w, r = random_columns(50, 2)
    np.testing.assert_array_equal(search(w, r, 0.0), w)
    np.testing.assert_array_equal(search(w, np.full_like(r, np.nan), 1.0), w)
    np.testing.assert_array_equal(search(w, np.abs(r), 1.0), w)  # all want the same
    equal = np.ones_like(w)
    np.testing.assert_array_equal(search(equal, r, 1.0), equal)
    beyond = np.array([-1.7e308, 0, 1.7e308])  # a range that float64 does not have
    np.testing.assert_array_equal(search(beyond, np.array([-1.0, 0, 1]), 1.0), beyond)


def test_equal_weights_do_not_take_long():
    w, r = random_columns(200_000, 1)
    w[::20], w[1::2] = 1.0, 0.0
    permuted = search(w, r, 1.0)
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(w, axis=0))
    assert np.count_nonzero(permuted != w) > 10_000


@pytest.mark.parametrize("shape", [(0, 5), (1, 3), (2, 1), (30, 40), (784, 17)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_range_of_vectors_of_any_block(shape, dtype):
    """Vectors do not depend on which others they are done with, nor on where they are."""
    n, m = shape
    w, r = random_columns(n, 2 * m)
    w = w.astype(dtype)
    blocks = [np.stack([x[:, :m], x[:, m:]]) for x in (w, r)]  # (2, n, m)
    shape = (2, 1, m)
    numbers = [np.full(shape, x, np.float32) for x in (0.2, 0.25)]
    seeds = np.arange(2 * m, dtype=np.uint32).reshape(shape)
    whole, parts = np.full((2, *blocks[0].shape), 7777, np.uint16)
    cycles.search(*blocks, *numbers, seeds, whole, 0, 2 * m)
    for start, stop in pairwise([0, *sorted({m // 2, m, 2 * m - 1, 2 * m})]):
        cycles.search(*blocks, *numbers, seeds, parts, start, stop)
    assert parts.tobytes() == whole.tobytes()
    flat = [np.concatenate(list(x), axis=1) for x in (*blocks, seeds)]
    one_by_one = [
        search(flat[0][:, v], flat[1][:, v], 0.2, 0.25, seed=flat[2][0, v]) for v in range(2 * m)
    ]
    permuted = np.take_along_axis(blocks[0], whole.astype(int), axis=1)
    np.testing.assert_array_equal(np.concatenate(list(permuted), axis=1), np.stack(one_by_one, 1))


@pytest.mark.parametrize(
    ("ratio", "count"),
    [
        *((ratio, round(1 / ratio)) for ratio in (1.0, 0.5, 1 / 3, 0.25, 0.2, 0.1, 0.05, 0.01)),
        *((np.float32(ratio), round(1 / ratio)) for ratio in (1 / 3, 0.2, 0.1, 0.05, 0.01, 0.001)),
        *((1 / k, k) for k in (7, 49, 98, 103, 107, 161, 187, 10**6)),
        *((0.3, 3), (0.35, 2), (0.51, 1), (0.0999, 10), (0.1001, 9), (0.34, 2), (0.7, 1)),
        *((1.5, 1), (np.inf, 1), (1e-300, 10**7), (5e-324, 10**7)),
    ],
)
def test_the_number_of_subsets(ratio, count):
    assert subsets.subset_count(10**8, float(ratio)) == count


@pytest.mark.parametrize(("n", "count"), [(1, 1), (9, 1), (19, 1), (20, 2), (199, 19), (200, 20)])
def test_subsets_have_ten_weights(n, count):
    assert subsets.subset_count(n, 0.05) == count


def labels(n, count, state):
    label = np.full(n, -1, np.int32)
    subsets.partition(np.uint64(state), label, count)
    return label


@pytest.mark.parametrize(("n", "count"), [(784, 20), (31, 3), (7, 7), (5, 1), (1000, 99)])
def test_subsets_differ_by_at_most_one_weight(n, count):
    sizes = np.bincount(labels(n, count, 3), minlength=count)
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


def test_partitions_are_uniform():
    # Six ways to deal four weights into two subsets; 5 degrees of freedom, 0.1 %.
    states = [oracle.random_bits(seed, 1) for seed in range(12_000)]
    dealt = np.array([labels(4, 2, state) for state in states])
    counts = np.unique(dealt @ (8, 4, 2, 1), return_counts=True)[1]
    assert counts.size == 6
    assert np.sum((counts - 2000) ** 2 / 2000) < 20.5
    # Any two of twelve weights are together in one of three subsets with probability 3 / 11.
    dealt = np.array([labels(12, 3, state) for state in states])
    for x in range(12):
        together = np.delete((dealt == dealt[:, x : x + 1]).mean(axis=0), x)
        assert np.abs(together - 3 / 11).max() < 4.5 * np.sqrt(3 / 11 * 8 / 11 / 12_000)
