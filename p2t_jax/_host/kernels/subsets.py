"""The subsets of a weight vector: drawn at random, ranked by weight and by |r| (Section 2.1).

What is called for every small subset takes arrays, not tuples of arrays: Numba counts references to
each array that is taken out of a tuple, which costs as much as several weights.
"""

from typing import Any, NamedTuple

import numpy as np

from p2t_jax._host.kernels import LANES
from p2t_jax._host.kernels.bits import ones
from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.lanes import as_float, less
from p2t_jax._host.kernels.radix import HALF, HIGH, LOW, SIGN, sort_positions

LEAST_SUBSET = 10  # weights, as in the authors' code
_COUNTED = 256  # Members up to which counting is faster than radix sort.


class Columns(NamedTuple):
    """Some vectors, copied to contiguous rows.

    Attributes:
        values: (count, n) floats.
        bits: the same memory as signed integers.
        magnitude: all bits but the sign.
    """

    values: Any
    bits: Any
    magnitude: Any


class Dealing(NamedTuple):
    """A vector's weights, subset by subset, and by place within a subset.

    Attributes:
        label: (n,) the subset of each weight; those without a recommendation have one of their own.
        end: (2, subsets + 2): subset p has the weights `end[0, p]` to `end[0, p + 1]`.
        place: (n,) where a weight is in the vector.
        weight_key: (n + LANES,) integers that are ordered as the weights are.
        size_key: (n + LANES,) integers that are ordered as |r| is, but reversed.
    """

    label: Any
    end: Any
    place: Any
    weight_key: Any
    size_key: Any


class Members(NamedTuple):
    """The weights that take part, subset by subset, each subset in order; (n + LANES,) arrays.

    Attributes:
        weight: float64, ascending. Of equal weights those that want a lighter one come first, then
            the first by place.
        place: where they are in the vector.
        heavier: whether they want to be heavier, 1 or 0.
        root: the roots, as numbers in their subset: largest |r| first, equal ones by place.
        turn: when each is a root: `root[turn[i]]` is i.
    """

    weight: Any
    place: Any
    heavier: Any
    root: Any
    turn: Any


class Ranking(NamedTuple):
    """Room for ranking the weights of a subset.

    Attributes:
        rank: (3, n): ranks by weight, by |r|, and how many of each rank have been met.
        words: (3, n + 1) uint64, for `radix.sort_positions`.
        counts: (4, 256) uint32, for the same.
    """

    rank: Any
    words: Any
    counts: Any


# All uint64, because Numba adds uint64 and int64 as float64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)


@jit
def subset_count(n: int, partition_ratio: float) -> int:
    r"""The number of subsets of a weight vector, :math:`\lfloor 1/\lambda \rfloor` (Section 2.1.4).

    There are fewer if a subset would otherwise have fewer than `LEAST_SUBSET` weights. A quotient
    within 2^-22 of an integer, relatively, is taken for that integer: the float32 nearest to 0.1 is
    above 0.1 and still means ten subsets.

    Args:
        n: the weights of the vector.
        partition_ratio: lambda, positive.

    Returns:
        The number, at least 1.
    """
    most = max(1, n // LEAST_SUBSET)
    quotient = 1.0 / partition_ratio
    if not quotient < most:
        return most
    nearest = np.rint(quotient)
    if abs(quotient - nearest) <= 2.0**-22 * quotient:
        return max(1, int(nearest))
    return max(1, int(quotient))


@jit
def random_bits(state: np.uint64, k: Any) -> np.uint64:
    """Number k of a stream of 64 random bits each: splitmix64."""
    z = state + np.uint64(k) * _GOLDEN
    z = (z ^ (z >> _SHIFT[0])) * _MULTIPLY[0]
    z = (z ^ (z >> _SHIFT[1])) * _MULTIPLY[1]
    return z ^ (z >> _SHIFT[2])


@jit
def below(random: np.uint64, n: Any) -> Any:
    """The lower 32 random bits as a number below n (Lemire): biased by at most n / 2^32."""
    return np.int64(((random & LOW) * np.uint64(n)) >> HALF)


@jit
def partition(state: np.uint64, label: Any, subsets: Any) -> None:
    """Deal the weights of a vector into subsets at random (Section 2.1.4).

    Fisher-Yates, inside out, on 0, ..., subsets - 1, 0, ..., subsets - 1, 0, ..., so that sizes
    differ by at most one.

    Args:
        state: of a stream of random bits. Each weight takes half a number, from number 1 on.
        label: (n,) integers; written: the subset of each weight.
        subsets: their number.
    """
    dealt = 0
    random = np.uint64(0)
    for x in range(label.size):
        if x & 1:
            random >>= HALF
        else:
            random = random_bits(state, x // 2 + 1)
        y = below(random, x + 1)
        label[x] = label[y]
        label[y] = dealt
        dealt = dealt + 1 if dealt + 1 < subsets else 0


@jit
def value_range(weight_key: Any) -> float:
    """A, the largest weight minus the smallest (Section 2.1.3); infinite or NaN if one is.

    Args:
        weight_key: (n,) see `Dealing`.
    """
    least = most = weight_key[0]
    for key in weight_key:
        least, most = min(least, key), max(most, key)
    return _weight(most, weight_key) - _weight(least, weight_key)


@jit
def _weight(key: Any, weight_key: Any) -> float:
    """The weight with a certain `Dealing.weight_key`."""
    size = np.float64(as_float(abs(key), weight_key))
    return size if key >= 0 else -size


@jit
def deal(
    c: Any, weights: Columns, recommendations: Columns, subsets: Any, dealing: Dealing
) -> None:
    """Deal the weights of row c to the subsets that `label` says.

    Those without a recommendation get a subset of their own, because a branch to leave them out
    would be mispredicted.
    """
    bits, r, r_bits = weights.bits[c], recommendations.values[c], recommendations.bits[c]
    label, end, place, weight_key, size_key = dealing
    end[:, : subsets + 2] = 0
    for x in range(r.size):
        label[x] = label[x] if abs(r[x]) > 0 else subsets
        end[1, label[x]] += 1
    for p in range(subsets + 1):
        end[0, p + 1] = end[0, p] + end[1, p]
        end[1, p] = end[0, p]
    for x in range(r.size):
        at = np.uint64(end[1, label[x]])
        end[1, label[x]] += 1
        place[at] = x
        magnitude = bits[x] & weights.magnitude  # 0 for -0.0, too
        weight_key[at] = magnitude if bits[x] >= 0 else -magnitude
        size_key[at] = ~(r_bits[x] & recommendations.magnitude)


@jit
def rank(w: Any, r: Any, subsets: Any, dealing: Dealing, room: Ranking, members: Members) -> None:
    """Fill in the members of a vector with weights w and recommendations r."""
    _, ends, dealt, weight_key, size_key = dealing
    ranks, words, counts = room
    weight, place, heavier, root, turn = members
    for p in range(subsets):
        begin, end = ends[0, p], ends[0, p + 1]
        if end - begin > _COUNTED:
            _rank_by_sorting(begin, end, weight_key, dealt, r, True, (words, counts), ranks[0])
            _rank_by_sorting(begin, end, size_key, dealt, r, False, (words, counts), ranks[1])
        elif _rank_by_counting(begin, end, weight_key, size_key, ranks):
            _separate(begin, end, dealt, r, ranks)
        first = np.uint64(begin)
        for k in range(first, np.uint64(end)):
            x, at = dealt[k], first + ranks[0, k]
            weight[at], place[at], heavier[at] = w[x], x, r[x] < 0
            root[first + ranks[1, k]] = ranks[0, k]
            turn[at] = ranks[1, k]


@jit
def _rank_by_counting(begin: Any, end: Any, weight_key: Any, size_key: Any, rank: Any) -> Any:
    """Rank a subset: a rank is the number of smaller keys, which are counted `LANES` at a time.

    Returns whether there are equal keys, which get the same rank.
    """
    last = begin + (end - begin - 1) // LANES * LANES
    rest = ~np.uint64(0) >> np.uint64(64 - (end - last))
    total: Any = 0
    for k in range(np.uint64(begin), np.uint64(end)):
        own_weight, own_size = weight_key[k], size_key[k]
        by_weight = ones(less(weight_key, last, own_weight) & rest)
        by_size = ones(less(size_key, last, own_size) & rest)
        for at in range(begin, last, LANES):
            by_weight += ones(less(weight_key, at, own_weight))
            by_size += ones(less(size_key, at, own_size))
        rank[0, k], rank[1, k] = by_weight, by_size
        total += np.int64(by_weight + by_size)
    return total < (end - begin) * (end - begin - 1)


@jit
def _separate(begin: Any, end: Any, place: Any, r: Any, rank: Any) -> None:
    """Give equal keys successive ranks, in the order that `Members` says."""
    rank[2, begin:end] = 0
    for heavier in (False, True):
        for k in range(begin, end):
            if (r[place[k]] < 0) == heavier:
                first = begin + rank[0, k]
                rank[0, k] += rank[2, first]
                rank[2, first] += 1
    rank[2, begin:end] = 0
    for k in range(begin, end):
        first = begin + rank[1, k]
        rank[1, k] += rank[2, first]
        rank[2, first] += 1


@jit
def _rank_by_sorting(
    begin: Any, end: Any, keys: Any, place: Any, r: Any, lighter_first: Any, room: Any, rank: Any
) -> None:
    """Rank a subset by one kind of keys, by radix sort, equal ones by place.

    With `lighter_first`, of equal ones those that want a lighter weight come first.
    """
    words, counts = room
    sorted_, key = words[0, : end - begin], words[1]
    shift = np.uint64(64 - 8 * keys.itemsize)
    for k in range(begin, end):
        key[k - begin] = (np.uint64(keys[k]) << shift) ^ SIGN
    m = 0
    for k in range(begin, end):  # without a branch, as in `deal`
        words[0, m] = (key[k - begin] & HIGH) | np.uint64(k - begin)
        m += not lighter_first or r[place[k]] > 0
    if lighter_first:
        for k in range(begin, end):
            words[0, m] = (key[k - begin] & HIGH) | np.uint64(k - begin)
            m += r[place[k]] < 0
    sort_positions(sorted_, key, shift < HALF, words[2], counts)
    for at in range(end - begin):
        rank[begin + np.int64(sorted_[at] & LOW)] = at


@jit
def smallest_distance(weight: Any, begin: Any, size: Any) -> float:
    """The smallest distance between two of the ascending weights of a subset (Section 2.1.4)."""
    distance = np.inf
    for k in range(begin + 1, begin + size):
        distance = min(distance, weight[k] - weight[k - 1])
    return distance
