"""SGPerm's kernel against the paper transcribed literally, and the promises of its docstrings."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import reference_sgperm
from hypothesis import given, settings
from hypothesis import strategies as st

from p2t_jax._host.kernels import cycles

PRIORITIES = {"nearest": cycles.NEAREST, "farthest": cycles.FARTHEST, "random": cycles.RANDOM}
SEED = (7, 11)


def search(w, r, alpha=0.1, subsets=1, priority="nearest", seed=SEED, row_ids=None):
    """The kernel on one vector or on rows of them, always with the same argument types."""
    rows, r_rows = np.atleast_2d(w), np.atleast_2d(r)
    if row_ids is None:
        row_ids = np.arange(len(rows))
    source = np.full(rows.shape, -1, np.int32)
    cycles.search_rows(
        np.ascontiguousarray(rows),
        np.ascontiguousarray(r_rows),
        float(alpha),
        int(subsets),
        np.array(seed, np.uint32),
        np.asarray(row_ids, np.int64),
        PRIORITIES[priority],
        source,
    )
    return source[0] if np.ndim(w) == 1 else source


def labels(n, subsets, row_id, seed=SEED):
    label = np.full(n, -1, np.int32)
    cycles.partition(np.array(seed, np.uint32), row_id, subsets, label)
    return label


def random_rows(rows, n, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    w, r = rng.standard_normal((2, rows, n)).astype(dtype)
    r[rng.random(r.shape) < 0.15] = 0
    return w, r


def random_vector(rng, n, dtype):
    """Weights and recommendations of many kinds: ties, both zeros, sparse, NaN, infinite."""
    w, r = rng.standard_normal((2, n))
    kind = rng.integers(5)
    if kind == 0:
        w = w.round(1)
    elif kind == 1:
        w = w.round(0) + 0.5 * rng.integers(-1, 2, n)
    elif kind == 2:
        w = np.where(rng.random(n) < 0.7, rng.choice([0.0, -0.0], n), w)
    kind = rng.integers(5)
    if kind == 0:
        r = r.round(0)
    elif kind == 1:
        r[rng.random(n) < 0.2] = np.nan
    elif kind == 2:
        r = np.where(rng.random(n) < 0.1, np.inf * np.sign(r), r)
    r[rng.random(n) < rng.choice([0, 0.15, 0.9])] = 0
    return w.astype(dtype), r.astype(dtype)


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_the_literal_transcription(priority, dtype):
    rng = np.random.default_rng(0)
    moved = 0
    for k in range(1500):
        w, r = random_vector(rng, int(rng.integers(61)), dtype)
        alpha = float(10 ** rng.uniform(-3, 0))
        subsets = int(rng.choice([1, 1, 1, 2, 5, 70]))
        source = search(w, r, alpha, subsets, priority, row_ids=[k])
        expected = reference_sgperm.search(w, r, alpha, subsets, SEED, k, priority)
        assert source.tolist() == expected, (k, w, r, alpha, subsets)
        moved += np.count_nonzero(source != np.arange(w.size))
    assert moved > 5000


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_on_large_subsets(priority, dtype):
    rng = np.random.default_rng(1)
    for n, alpha, digits in ((256, 0.05, 1), (257, 0.05, 1), (900, 0.01, 2), (900, 0.02, 9)):
        w, r = rng.standard_normal((2, n)).round(digits).astype(dtype)  # 0.0 and -0.0 as well.
        r[rng.random(n) < 0.15] = rng.choice([0, np.nan, np.inf])
        source = search(w, r, alpha, 1, priority)
        assert source.tolist() == reference_sgperm.search(w, r, alpha, 1, SEED, 0, priority)


finite = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0])
anything = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@st.composite
def problems(draw):
    n = draw(st.integers(0, 40))
    return {
        "w": np.array(draw(st.lists(finite, min_size=n, max_size=n)), np.float32),
        "r": np.array(draw(st.lists(anything, min_size=n, max_size=n)), np.float32),
        "alpha": draw(st.floats(1e-3, 1)),
        "subsets": draw(st.integers(1, 6)),
        "priority": draw(st.sampled_from(list(PRIORITIES))),
    }


def permissible_movements(w, r, alpha, label):
    """Whether each movement (x, y) is permissible: 2.1.2, 2.1.3 and 2.1.4, all at once."""
    w = w.astype(np.float64)
    distance = np.abs(w[:, None] - w)
    together = (label[:, None] == label) & ~np.eye(w.size, dtype=bool)
    lower = np.array([min(distance[x, together[x]], default=np.inf) for x in range(w.size)])
    for p in np.unique(label):
        lower[label == p] = lower[label == p].min()
    upper = lower + alpha * np.ptp(w)
    direction = np.sign(r)[:, None] * np.sign(w[:, None] - w)
    within = (lower[:, None] < distance) & (distance < upper[:, None])
    return together & within & (direction >= 0)


def has_cycle(adjacent):
    """Whether vertices are left when those without a target are taken away again and again."""
    left = np.ones(len(adjacent), bool)
    while True:
        going = left & adjacent[:, left].any(axis=1)
        if np.array_equal(going, left):
            return bool(left.any())
        left = going


@settings(deadline=None, max_examples=400)
@given(problems())
def test_moves_are_permissible_and_nothing_is_left(problem):
    w, r = problem["w"], problem["r"]
    source = search(**problem)
    # Disjoint cycles are a permutation, and so the weights are the same.
    assert sorted(source) == list(range(w.size))
    moved = source != np.arange(w.size)
    assert not moved[np.isnan(r)].any()
    if w.size < 2:
        return
    label = labels(w.size, min(problem["subsets"], w.size), 0)
    permissible = permissible_movements(w, r, problem["alpha"], label)
    assert permissible[moved, source[moved]].all()
    # Every vertex was memorized, as one of a cycle or as exhausted. The first of a cycle to be
    # exhausted would have had a target left, the next of that cycle. So among the weights that did
    # not move there is no cycle at all, let alone one of two.
    there = ~moved & ~np.isnan(r)
    assert not has_cycle(permissible[np.ix_(there, there)])


@pytest.mark.parametrize("priority", PRIORITIES)
def test_known_permutations(priority):
    # l = 1, A = 3, u = 2.5: weights 0 and 2 want to change places, and so do 1 and 3.
    assert search(
        np.array([0, 1, 2, 3], np.float32), np.array([-4, -3, 2, 1], np.float32), 0.5, 1, priority
    ).tolist() == [2, 3, 0, 1]
    # Both bounds are strict: at u = 1 + 1/3 * 3 = 2 nothing is permissible.
    assert search(
        np.array([0, 1, 2, 3], np.float64), np.array([-4, -3, 2, 1], np.float64), 1 / 3, 1, priority
    ).tolist() == [0, 1, 2, 3]


def test_priorities_differ():
    w, r = random_rows(1, 200)
    nearest, farthest, random = (search(w, r, 0.3, 2, priority) for priority in PRIORITIES)
    distances = [
        np.abs(w - np.take_along_axis(w, s, 1)).mean() for s in (nearest, random, farthest)
    ]
    assert all(a < b for a, b in pairwise(distances))


def test_random_priority_draws_anew():
    w, r = random_rows(1, 200)
    one, other = (search(w, r, 0.3, 1, "random", seed=(0, step)) for step in range(2))
    assert not np.array_equal(one, other)


def test_random_priority_enters_uniformly():
    # Weight 0 may take any of 1, ..., 9 and each may take it back: the first choice closes a cycle.
    w = np.array([0.0, *np.arange(10.0, 19.0), 100.0], np.float32)
    r = np.array([-9.0, *[1.0] * 9, np.nan], np.float32)
    w, r = np.tile(w, (9000, 1)), np.tile(r, (9000, 1))
    source = search(w, r, 0.5, 1, "random")
    counts = np.bincount(source[:, 0], minlength=11)
    assert counts[0] == counts[10] == 0
    assert np.sum((counts[1:10] - 1000) ** 2 / 1000) < 26.1  # 8 degrees of freedom, 0.1 %.


def test_nan_recommendations_stay():
    w, r = random_rows(3, 100)
    r[:, ::3] = np.nan
    source = search(w, r, 0.2, 2)
    assert (source[:, ::3] == np.arange(0, 100, 3)).all()
    assert (np.sort(source) == np.arange(100)).all()
    assert (source != np.arange(100)).any(axis=1).all()
    assert (search(w, np.full_like(r, np.nan), 0.2, 2) == np.arange(100)).all()


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_stay(bad, priority):
    w, r = random_rows(3, 50)
    whole = search(w, r, 0.2, 2, priority)
    for place in (0, 20, 49):
        spoilt = w.copy()
        spoilt[1, place] = bad
        source = search(spoilt, r, 0.2, 2, priority)
        assert (source[1] == np.arange(50)).all()
        assert (source[[0, 2]] == whole[[0, 2]]).all()
    assert (search(np.full_like(w, bad), r, 0.2, 2, priority) == np.arange(50)).all()


def test_a_range_beyond_float64_stays():
    w, r = np.array([-1.7e308, 0, 1.7e308]), np.array([-1.0, 0, 1])
    assert search(w, r, 1.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("priority", PRIORITIES)
def test_only_the_sign_of_a_recommendation_matters(priority):
    # As in Top Trading Cycles. The oracle, which starts from the largest abs(r), agrees.
    w, r = random_rows(50, 60)
    expected = search(w, np.sign(r), 0.2, 2, priority)
    for size in (1, 1e-30, np.inf, np.random.default_rng(1).random(r.shape)):
        other = np.where(r == 0, -r, np.copysign(size, r)).astype(np.float32)
        assert np.array_equal(search(w, other, 0.2, 2, priority), expected)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan])
def test_no_aggressiveness_no_movement(alpha):
    w, r = random_rows(2, 50)
    assert (search(w, r, alpha, 2) == np.arange(50)).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1), (0, 0)])
def test_empty_and_single(shape):
    w = np.zeros(shape, np.float32)
    assert (search(w, w, 0.5, 1) == np.arange(shape[1])).all()


def test_equal_weights_stay():
    w, r = np.ones((1, 30), np.float32), random_rows(1, 30)[1]
    assert (search(w, r, 1.0, 1) == np.arange(30)).all()


@pytest.mark.parametrize("subsets", [50, 51, 10**6, 2**31 - 1])
def test_more_subsets_than_weights(subsets):
    w, r = random_rows(2, 50)
    assert (search(w, r, 1.0, subsets) == np.arange(50)).all()


def test_ties_in_a_long_vector_are_not_quadratic():
    # A walk over every equal weight, one by one, would take minutes.
    w, r = random_rows(1, 200_000)
    w[:, ::20], w[:, 1::2] = 1.0, 0.0
    for priority in PRIORITIES:
        source = search(w, r, 0.07, 1, priority)
        assert (np.sort(source) == np.arange(w.size)).all()
        assert np.count_nonzero(source != np.arange(w.size)) > 10_000


@pytest.mark.parametrize(
    ("ratio", "count"),
    [
        *((ratio, round(1 / ratio)) for ratio in (1.0, 0.5, 1 / 3, 0.25, 0.2, 0.1, 0.05, 0.01)),
        *((np.float32(ratio), round(1 / ratio)) for ratio in (1 / 3, 0.2, 0.1, 0.05, 0.01, 0.001)),
        *((1 / k, k) for k in (7, 49, 98, 103, 107, 161, 187, 10**6, 10**8)),
        *((0.3, 3), (0.35, 2), (0.51, 1), (0.0999, 10), (0.1001, 9), (0.34, 2), (0.7, 1)),
        *((1.5, 1), (np.inf, 1), (1e-300, 2**31 - 1), (5e-324, 2**31 - 1)),
    ],
)
def test_subset_count(ratio, count):
    assert cycles.subset_count(ratio) == count
    assert type(cycles.subset_count(ratio)) is int


@pytest.mark.parametrize("ratio", [0.0, -0.1, np.nan])
def test_subset_count_refuses(ratio):
    with pytest.raises(ValueError, match="partition ratio"):
        cycles.subset_count(ratio)


@pytest.mark.parametrize(("n", "subsets"), [(784, 20), (10, 3), (7, 7), (5, 1), (1000, 999)])
def test_partition_sizes(n, subsets):
    sizes = np.bincount(labels(n, subsets, 3), minlength=subsets)
    assert sizes.size == subsets
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


def test_partition_is_uniform():
    # Six ways to deal four weights into two subsets; 5 degrees of freedom, 0.1 %.
    dealt = np.array([labels(4, 2, row) for row in range(12_000)])
    counts = np.unique(dealt @ (8, 4, 2, 1), return_counts=True)[1]
    assert counts.size == 6
    assert np.sum((counts - 2000) ** 2 / 2000) < 20.5
    # Any two of twelve weights are together in one of three subsets with probability 3 / 11.
    dealt = np.array([labels(12, 3, row) for row in range(12_000)])
    for x in range(12):
        together = np.delete((dealt == dealt[:, x : x + 1]).mean(axis=0), x)
        assert np.abs(together - 3 / 11).max() < 4.5 * np.sqrt(3 / 11 * 8 / 11 / 12_000)


def test_partition_depends_on_seed_and_row_id_only():
    base = labels(100, 5, 8)
    assert np.array_equal(base, labels(100, 5, np.int64(8)))
    for other in (labels(100, 5, 9), labels(100, 5, 8, (7, 12)), labels(100, 5, 8, (7, 11, 0))):
        assert not np.array_equal(base, other)
    assert np.array_equal(base, reference_labels(100, 5, 8))


def reference_labels(n, subsets, row_id):
    state = reference_sgperm.row_state(SEED, row_id)
    label = np.empty(n, int)
    for p, members in enumerate(reference_sgperm.partition(n, subsets, state)):
        label[members] = p
    return label


@pytest.mark.parametrize("priority", PRIORITIES)
def test_rows_in_any_blocks_order_and_threads(priority):
    w, r = random_rows(40, 150)
    whole = search(w, r, 0.2, 5, priority)
    ids = np.arange(40)
    order = np.random.default_rng(0).permutation(40)
    assert np.array_equal(search(w[order], r[order], 0.2, 5, priority, row_ids=order), whole[order])
    blocks = np.split(ids, [1, 8, 8, 30])
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda b: search(w[b], r[b], 0.2, 5, priority, row_ids=b), blocks)
        assert np.array_equal(np.concatenate(list(parts)), whole)


def test_equal_rows_with_other_ids_differ():
    w, r = random_rows(1, 150)
    sources = search(np.tile(w, (2, 1)), np.tile(r, (2, 1)), 0.2, 5)
    assert not np.array_equal(*sources)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_take_rows(dtype):
    w, r = random_rows(4, 60)
    source = search(w, r, 0.2, 2)
    rows = (w * 100).astype(np.int16).view(np.uint16).astype(dtype)
    out = np.empty_like(rows)
    cycles.take_rows(rows, source, out)
    assert np.array_equal(out, np.take_along_axis(rows, source, 1))
