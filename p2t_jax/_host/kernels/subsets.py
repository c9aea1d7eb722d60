"""The subsets of a weight vector: drawn at random, sorted by weight and by |r| (Section 2.1)."""

from typing import Any, NamedTuple

import numpy as np

from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.radix import HALF, HIGH, LOW, float_key, sort_positions


class Columns(NamedTuple):
    """Some vectors, copied to contiguous rows: (count, n) numbers and the same memory as bits.

    `shift` and `infinity` are as in `radix.float_key`.
    """

    values: Any
    bits: Any
    shift: Any
    infinity: Any


class Members(NamedTuple):
    """The weights that take part, subset by subset; (m,) arrays.

    Attributes:
        weight: float64, ascending in each subset.
        place: where they are in the vector.
        heavier: whether they want to be heavier.
        root: the roots, largest |r| first, as numbers in their subset.
    """

    weight: Any
    place: Any
    heavier: Any
    root: Any


class Sorting(NamedTuple):
    """Room for sorting n weights: (n + 1,) uint64, and (4, 256) counts.

    `by_weight` and `by_size` have the places of the weights that take part in their lower halves.
    """

    by_weight: Any
    by_size: Any
    key: Any
    spare: Any
    counts: Any


class Dealing(NamedTuple):
    """The partition of a vector: the subset and the member at each place, (n,).

    `end` is (2, subsets + 1): subset p has the members `end[0, p]` to `end[0, p + 1]`.
    """

    label: Any
    slot: Any
    end: Any


LEAST_SUBSET = 10  # weights, as in the authors' code

_ONE = np.uint64(1)

# All uint64, for Numba adds uint64 and int64 as float64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)


@jit
def subset_count(n: int, partition_ratio: float) -> int:
    r"""The number of subsets of a weight vector, :math:`\lfloor 1/\lambda \rfloor` (Section 2.1.4).

    There are fewer where a subset would have less than `LEAST_SUBSET` weights. A quotient within
    2^-22 of an integer, relatively, is taken for that integer: the float32 nearest to 0.1 is above
    0.1 and still means ten subsets.

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
        state: of a stream of random bits. A weight takes half a number, from number 1 on.
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
def value_ranges(block: Any, first: Any, count: Any, ranges: Any) -> None:
    """A of each vector, the largest weight less the smallest (Section 2.1.3).

    Vectors side by side, which is several times faster than one after the other.

    Args:
        block: (outer, n, inner) float32 or float64.
        first: the number of the first vector.
        count: how many.
        ranges: (3, >= count) float64; A is written to the first row, NaN if a weight is not finite.
    """
    inner = block.shape[2]
    o, i = first // inner, first % inner
    ranges[0, :] = -np.inf
    ranges[1, :] = np.inf
    ranges[2, :] = 0
    for x in range(block.shape[1]):
        for c in range(count):
            w = np.float64(block[o, x, i + c])
            ranges[0, c] = max(ranges[0, c], w)
            ranges[1, c] = min(ranges[1, c], w)
            ranges[2, c] += w * 0  # NaN, if w is not finite
    for c in range(count):
        ranges[0, c] += ranges[2, c] - ranges[1, c]


@jit
def order(c: Any, weights: Columns, recommendations: Columns, room: Sorting) -> Any:
    """Sort the places of the weights that take part, by weight and by |r|; return their number.

    Of equal weights those that want a lighter one come first; otherwise places are ascending.
    """
    bits, shift = weights.bits[c], weights.shift
    r, r_bits, r_shift = recommendations.values[c], recommendations.bits[c], recommendations.shift
    by_weight, by_size, key, spare, counts = room
    for x in range(r.size):
        key[x] = float_key(bits[x], shift, weights.infinity)
    m = 0
    for x in range(r.size):
        by_weight[m] = (key[x] & HIGH) | np.uint64(x)
        m += r[x] > 0
    for x in range(r.size):
        by_weight[m] = (key[x] & HIGH) | np.uint64(x)
        m += r[x] < 0
    sort_positions(by_weight[:m], key, shift < HALF, spare, counts)
    m = 0
    for x in range(r.size):
        key[x] = ~(np.uint64(r_bits[x]) << r_shift << _ONE) >> r_shift << r_shift
        by_size[m] = (key[x] & HIGH) | np.uint64(x)
        m += abs(r[x]) > 0
    sort_positions(by_size[:m], key, r_shift < HALF, spare, counts)
    return m


@jit
def deal(
    w: Any, r: Any, room: Sorting, m: Any, dealing: Dealing, subsets: Any, members: Members
) -> None:
    """Deal the m weights that take part, sorted in `room`, to their subsets: fill in `members`."""
    by_weight, by_size = room.by_weight, room.by_size
    label, slot, end = dealing
    weight, place, heavier, root = members
    end[:, : subsets + 1] = 0
    for k in range(m):
        end[0, np.uint64(label[by_weight[k] & LOW]) + _ONE] += 1
    for subset in range(subsets):
        end[0, subset + 1] += end[0, subset]
        end[1, subset] = end[0, subset]
    for k in range(m):
        x = by_weight[k] & LOW
        p = np.uint64(label[x])
        at = np.uint64(end[1, p])
        end[1, p] += 1
        weight[at], place[at], heavier[at] = w[x], x, r[x] < 0
        slot[x] = at
    for subset in range(subsets):
        end[1, subset] = end[0, subset]
    for k in range(m):
        x = by_size[k] & LOW
        p = np.uint64(label[x])
        root[np.uint64(end[1, p])] = np.uint64(slot[x]) - np.uint64(end[0, p])
        end[1, p] += 1


@jit
def smallest_distance(weight: Any, begin: Any, size: Any) -> float:
    """The smallest distance between two of the ascending weights of a subset (Section 2.1.4)."""
    distance = np.inf
    for k in range(begin + 1, begin + size):
        distance = min(distance, weight[k] - weight[k - 1])
    return distance
