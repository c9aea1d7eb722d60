r"""The host kernel of SGPerm: partition, permissibility and cycle search (Algorithm 1, Section 2).

Section 2.4 stores every permissibility subgraph and searches it in cubic time. Neither is needed:

- In a subset sorted by weight the permissible targets of a vertex x are the lighter (r_x > 0), the
  heavier (r_x < 0) or all vertices (r_x = 0) at a distance between l and u: at most two intervals.
- A vertex that the search has exhausted lies on no cycle for good, for all that it can reach is
  exhausted too. It is deleted, just as the vertices of a cycle are.

So adj_x is never stored. Its foremost vertex is the nearest one *still there*: the neighbour of x
in a linked list of the sorted subset.

What the paper leaves open is decided as follows (`tests/reference_sgperm.py` spells it out):

- All arithmetic is float64. u is l + (alpha * A), rounded after each operation.
- Roots go by descending abs(r), the lower index first among equals.
- A foremost target that is on the path from the root closes a cycle there and then.
- Among targets equally far from x the lighter side comes first; on one side, nearest first goes
  away from x and farthest first towards x, in the order by (weight, index).
- Random: adj_x, in ascending order by (weight, index), is a ring entered at a uniformly drawn
  target; one number is drawn for every weight and call.
- A weight whose r is NaN stays where it is, yet still counts for l and A. A vector whose range is
  not finite (some weight is NaN or infinite) stays as it is.

Kernels are serial, release the GIL and are cached on disk; callers split rows over threads.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Floats = npt.NDArray[np.floating[Any]]
_Ints = npt.NDArray[np.int32]
_Records = npt.NDArray[np.void]

NEAREST: Final = 0
FARTHEST: Final = 1
RANDOM: Final = 2

# A permissibility subgraph. Its vertices are the slots 1 to m, in ascending order by weight; the
# slots 0 and m + 1 are ends, infinitely far from all. One record, so one cache line, a vertex.
_VERTEX = np.dtype(
    [
        ("weight", np.float64),
        ("side", np.int32),  # Where its targets lie: 1 lighter, -1 heavier, 0 both; the sign of r.
        ("index", np.uint32),  # Its place in the row.
        (
            "lighter",
            np.uint32,
        ),  # The next vertex still there; if itself deleted, a step towards it.
        ("heavier", np.uint32),
        ("depth", np.int32),  # Its place on the path from the root, from 1; 0 if none.
    ],
    align=True,
)
_DELETED = -1
_NONE = np.uint32(0)
_INTERVALS = np.dtype(
    [(name, np.uint32) for name in ("far_lighter", "near_lighter", "near_heavier", "far_heavier")]
)

_FEW = 192  # Up to here counting the smaller keys is faster than a radix sort.

# splitmix64. All uint64: Numba takes uint64 and int64 to float64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_HALF, _LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)
_SIGN_SHIFT, _SIGN_BIT, _BYTE = np.uint64(63), np.uint64(1 << 63), np.uint64(255)


def _jit(function: _Function) -> _Function:
    return cast(_Function, numba.njit(nogil=True, cache=True)(function))


def subset_count(partition_ratio: float) -> int:
    r"""Number of subsets of a weight vector, :math:`\lfloor 1/\lambda \rfloor` (Section 2.1.4).

    A quotient within 2^-22 of an integer, relatively, is taken for that integer: the float32
    nearest to 0.1 lies above 0.1 and still means ten subsets.

    Args:
      partition_ratio: Lambda. Above one, as from a schedule without a maximum, it is one.

    Returns:
      The number of subsets, 1 to 2^31 - 1.

    Raises:
      ValueError: If lambda is not positive.
    """
    if not partition_ratio > 0:
        raise ValueError(f"the partition ratio must be positive, not {partition_ratio}")
    quotient = min(max(1.0 / float(partition_ratio), 1.0), 2.0**31 - 1)
    nearest = round(quotient)
    return nearest if abs(quotient - nearest) <= 2.0**-22 * quotient else int(quotient)


@_jit
def search_rows(
    weights: _Floats,
    recommendations: _Floats,
    alpha: float,
    subsets: int,
    seed: npt.NDArray[np.uint32],
    row_ids: npt.NDArray[np.int64],
    priority: int,
    source: _Ints,
) -> None:
    r"""Find the permutation of every row: partition, graph, cycles (Sections 2.1 and 2.2).

    A movement (x, y), the weight of y to x, is permissible within a subset if
    :math:`r_x (w_x - w_y) \ge 0` and :math:`\ell < |w_x - w_y| < u = \ell + \alpha A`. The weights
    move along disjoint cycles of such movements: new row x is ``weights[row, source[row, x]]``.

    Args:
      weights: One weight vector w a row, float32 or float64.
      recommendations: r, one for each weight; weights should change against its sign.
      alpha: Aggressiveness.
      subsets: Number of random subsets, see `subset_count`; more than weights are fine.
      seed: Any words, such as key data, step and parameter number. With the row's id, and nothing
        else, they decide the row's random numbers.
      row_ids: The id of each row.
      priority: Which targets go first, `NEAREST`, `FARTHEST` or `RANDOM` (Section 2.2.1).
      source: Written: where each weight comes from. A permutation of 0, ..., n - 1 in every row.
    """
    n = weights.shape[1]
    subsets = max(1, min(subsets, n))
    largest = (n + subsets - 1) // subsets
    label, member, end = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(subsets, np.int32)
    graph, intervals = np.empty(largest + 2, _VERTEX), np.empty(largest + 2, _INTERVALS)
    roots, path = np.empty(largest, np.uint32), np.empty(largest, np.uint32)
    width = (largest + 15) // 16 * 16  # Whole SIMD registers; what is beyond the keys is infinite.
    key_w, key_r = np.empty(width, weights.dtype), np.empty(width, recommendations.dtype)
    slot, place = np.empty(width, np.int32), np.empty(width, np.int32)
    count = np.empty(max(width, 256), np.int32)
    many = largest if width > _FEW else 0
    keys, order = np.empty((2, many), np.float64), np.empty((2, many), np.int32)
    for row in range(weights.shape[0]):
        w, r, row_source = weights[row], recommendations[row], source[row]
        for x in range(n):
            row_source[x] = x
        step = alpha * _value_range(w)
        if not 0 < step < np.inf:
            continue
        state = row_state(seed, row_ids[row])
        partition(state, subsets, label)
        _group(label, member, end)
        start = 0
        for p in range(subsets):
            members = member[start : end[p]]
            start = end[p]
            m = members.size
            if m < 2:
                continue
            for k in range(m):
                key_w[k] = w[members[k]]
                key_r[k] = -abs(r[members[k]])
                if np.isnan(key_r[k]):
                    key_r[k] = 1  # Behind all others.
            key_w[m:] = np.inf
            key_r[m:] = np.inf
            _rank(key_w, m, slot, count, keys, order)
            _rank(key_r, m, place, count, keys, order)
            _place_vertices(graph, roots, w, r, members, slot, place)
            l, u = _bounds(graph, m, step)
            if l == 0 or priority != NEAREST:
                _find_intervals(graph, intervals, m, l, u)
            _find_cycles(graph, intervals, roots, path, m, l, u, priority, state, row_source)


@_jit
def take_rows(rows: npt.NDArray[Any], source: _Ints, out: npt.NDArray[Any]) -> None:
    """Permute rows as found by `search_rows`: ``out[i, x] = rows[i, source[i, x]]``.

    Args:
      rows: Of any type Numba knows; pass others, such as bfloat16, as a view of integers.
      source: From `search_rows`.
      out: Written; must not share memory with `rows`.
    """
    for i in range(rows.shape[0]):
        for x in range(rows.shape[1]):
            out[i, x] = rows[i, source[i, x]]


@_jit
def row_state(seed: npt.NDArray[np.uint32], row_id: int) -> np.uint64:
    """State of a row's own stream of random numbers: a hash of the words and the row's id."""
    h = np.uint64(0)
    for word in seed:
        h = _mix((h + _GOLDEN) ^ np.uint64(word))
    return _mix((h + _GOLDEN) ^ np.uint64(row_id))


@_jit
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> _SHIFT[0])) * _MULTIPLY[0]
    z = (z ^ (z >> _SHIFT[1])) * _MULTIPLY[1]
    return z ^ (z >> _SHIFT[2])


@_jit
def _draw(state: np.uint64, k: int, n: int) -> int:
    """The k-th number z of the stream as an integer below n, floor(n z / 2^64)."""
    z = _mix(state + np.uint64(k) * _GOLDEN)
    low = ((z & _LOW_HALF) * np.uint64(n)) >> _HALF
    return np.int64(((z >> _HALF) * np.uint64(n) + low) >> _HALF)


@_jit
def partition(state: np.uint64, subsets: int, label: _Ints) -> None:
    """Deal the weights of a vector into subsets at random (Section 2.1.4).

    Fisher-Yates, inside out, on 0, ..., subsets - 1, 0, ..., subsets - 1, 0, ...: sizes differ by
    at most one. It uses up the first `label.size` numbers of the stream.

    Args:
      state: From `row_state`.
      subsets: Their number.
      label: Written: the subset of each weight.
    """
    card = 0
    for x in range(label.size):
        y = _draw(state, x + 1, x + 1)
        label[x] = label[y]
        label[y] = card
        card = card + 1 if card + 1 < subsets else 0


@_jit
def _group(label: _Ints, member: _Ints, end: _Ints) -> None:
    """List the members of subset 0, of subset 1, ..., each by index, and where each list ends."""
    size, larger = label.size // end.size, label.size % end.size
    for p in range(end.size):
        end[p] = p * size + min(p, larger)
    for x in range(label.size):
        p = label[x]
        member[end[p]] = x
        end[p] += 1


@_jit
def _value_range(w: _Floats) -> float:
    """A, the largest weight less the smallest (Section 2.1.3); NaN if a weight is not finite."""
    low = high = w[0]
    for x in w:
        if not abs(x) < np.inf:
            return np.nan
        low, high = min(low, x), max(high, x)
    return np.float64(high) - np.float64(low)


@_jit
def _rank(
    key: _Floats, m: int, rank: _Ints, count: _Ints, keys: npt.NDArray[np.float64], order: _Ints
) -> None:
    """Stable ranks of the first m keys."""
    if key.size <= _FEW:
        _rank_few(key, m, rank, count)
    else:
        _rank_many(key, m, rank, count, keys, order)


@_jit
def _rank_few(key: _Floats, m: int, rank: _Ints, tied: _Ints) -> None:
    """Count the smaller keys of each. Quadratic, but without branches and many at once."""
    for i in range(key.size):
        rank[i] = tied[i] = 0
    for j in range(m):
        smaller = key[j]
        for i in range(key.size):
            rank[i] += np.int32(smaller < key[i])
    for i in range(m):
        first = rank[i]
        rank[i] += tied[first]
        tied[first] += 1


@_jit
def _rank_many(
    key: _Floats, m: int, rank: _Ints, count: _Ints, keys: npt.NDArray[np.float64], order: _Ints
) -> None:
    """Radix sort of the keys' bits, the least significant byte first."""
    bits = keys.view(np.uint64)
    for k in range(m):
        keys[0, k] = key[k] + 0.0  # No -0.0, which has other bits than 0.0.
        b = bits[0, k]
        bits[0, k] = b ^ _SIGN_BIT if b >> _SIGN_SHIFT == 0 else ~b
        order[0, k] = k
    old, new = 0, 1
    for byte in range(8):
        shift = np.uint64(8 * byte)
        count[:256] = 0
        for k in range(m):
            count[(bits[old, k] >> shift) & _BYTE] += 1
        if count[(bits[old, 0] >> shift) & _BYTE] == m:
            continue
        start = 0
        for digit in range(256):
            start, count[digit] = start + count[digit], start
        for k in range(m):
            digit = (bits[old, k] >> shift) & _BYTE
            bits[new, count[digit]] = bits[old, k]
            order[new, count[digit]] = order[old, k]
            count[digit] += 1
        old, new = new, old
    for k in range(m):
        rank[order[old, k]] = k


@_jit
def _place_vertices(
    g: _Records,
    roots: npt.NDArray[np.uint32],
    w: _Floats,
    r: _Floats,
    members: _Ints,
    slot: _Ints,
    place: _Ints,
) -> None:
    """Lay out a subset by weight, its roots by abs(r), and delete the weights whose r is NaN."""
    m = members.size
    for x in range(m + 2):
        g[x].lighter = max(x, 1) - 1
        g[x].heavier = x + 1
        g[x].depth = 0
    g[0].weight, g[m + 1].weight = -np.inf, np.inf
    held = False
    for k in range(m):
        x, y = slot[k] + 1, members[k]
        g[x].weight = w[y]
        g[x].side = (r[y] > 0) - (r[y] < 0)
        g[x].index = y
        roots[place[k]] = x
        held |= np.isnan(r[y])
    if held:
        for k in range(m):
            if np.isnan(r[members[k]]):
                _delete(g, slot[k] + 1)


@_jit
def _bounds(g: _Records, m: int, step: float) -> tuple[float, float]:
    """l, the least distance of two weights of the subset, and u (Sections 2.1.3 and 2.1.4)."""
    l = np.inf
    for x in range(1, m):
        l = min(l, g[x + 1].weight - g[x].weight)
    return l, l + step


@_jit
def _find_intervals(g: _Records, intervals: _Records, m: int, l: float, u: float) -> None:
    """Outermost and innermost permissible targets of each vertex on both sides (Section 2.1.3)."""
    near, far = 0, 1
    for x in range(1, m + 1):
        while g[x].weight - g[near + 1].weight > l:
            near += 1
        while not g[x].weight - g[far].weight < u:
            far += 1
        intervals[x].near_lighter, intervals[x].far_lighter = near, far
    near, far = m + 1, m
    for x in range(m, 0, -1):
        while g[near - 1].weight - g[x].weight > l:
            near -= 1
        while not g[far].weight - g[x].weight < u:
            far -= 1
        intervals[x].near_heavier, intervals[x].far_heavier = near, far


@_jit
def _delete(g: _Records, x: int) -> None:
    g[g[x].lighter].heavier = g[x].heavier
    g[g[x].heavier].lighter = g[x].lighter
    g[x].depth = _DELETED


@_jit
def _left(g: _Records, x: int) -> int:
    """The heaviest vertex still there up to slot x: union-find with path halving."""
    while g[x].depth == _DELETED:
        if g[g[x].lighter].depth == _DELETED:
            g[x].lighter = g[g[x].lighter].lighter
        x = g[x].lighter
    return x


@_jit
def _right(g: _Records, x: int) -> int:
    """The lightest vertex still there from slot x on."""
    while g[x].depth == _DELETED:
        if g[g[x].heavier].depth == _DELETED:
            g[x].heavier = g[g[x].heavier].heavier
        x = g[x].heavier
    return x


@_jit
def _nearest(g: _Records, intervals: _Records, x: int, l: float, u: float) -> int:
    w, y, distance = g[x].weight, _NONE, u
    if g[x].side >= 0:
        z = g[x].lighter
        if w - g[z].weight <= l:
            # No more than one can be that near to x unless l = 0, when all equals are passed over.
            z = g[z].lighter if l > 0 else _left(g, intervals[x].near_lighter)
        if w - g[z].weight < distance:
            y, distance = z, w - g[z].weight
    if g[x].side <= 0:
        z = g[x].heavier
        if g[z].weight - w <= l:
            z = g[z].heavier if l > 0 else _right(g, intervals[x].near_heavier)
        if g[z].weight - w < distance:
            y = z
    return y


@_jit
def _farthest(g: _Records, intervals: _Records, x: int, l: float) -> int:
    w, y, distance = g[x].weight, _NONE, l
    if g[x].side >= 0:
        z = _right(g, intervals[x].far_lighter)
        if w - g[z].weight > distance:
            y, distance = z, w - g[z].weight
    if g[x].side <= 0:
        z = _left(g, intervals[x].far_heavier)
        if g[z].weight - w > distance:
            y = z
    return y


@_jit
def _random(g: _Records, intervals: _Records, x: int, state: np.uint64, n: int) -> int:
    gap = np.int64(intervals[x].near_lighter), np.int64(intervals[x].near_heavier)
    lighter, heavier = 0, 0
    last, first = gap
    if g[x].side >= 0:
        first = np.int64(intervals[x].far_lighter)
        lighter = max(0, gap[0] + 1 - first)
    if g[x].side <= 0:
        last = np.int64(intervals[x].far_heavier)
        heavier = max(0, last + 1 - gap[1])
    k = _draw(state, n + 1 + np.int64(g[x].index), lighter + heavier)
    y = first + k if k < lighter else gap[1] + k - lighter
    for _ in range(2):
        y = np.int64(_right(g, y))
        if gap[0] < y < gap[1]:
            y = np.int64(_right(g, gap[1]))
        if y <= last:
            return y
        y = first
    return np.int64(_NONE)


@_jit
def _find_cycles(
    g: _Records,
    intervals: _Records,
    roots: npt.NDArray[np.uint32],
    path: npt.NDArray[np.uint32],
    m: int,
    l: float,
    u: float,
    priority: int,
    state: np.uint64,
    source: _Ints,
) -> None:
    """Depth-first search for disjoint cycles (Section 2.2).

    After a cycle the paper starts again from the largest r left. If the root was not on the cycle,
    that is the root again and the same path up to where the cycle began: go on from there.
    """
    for k in range(m):
        if g[roots[k]].depth == _DELETED:
            continue
        path[0] = roots[k]
        g[path[0]].depth = depth = 1
        while depth > 0:
            x = path[depth - 1]
            if priority == NEAREST:
                y = _nearest(g, intervals, x, l, u)
            elif priority == FARTHEST:
                y = _farthest(g, intervals, x, l)
            else:
                y = _random(g, intervals, x, state, source.size)
            if y == _NONE:
                _delete(g, x)
                depth -= 1
            elif g[y].depth == 0:
                path[depth] = y
                depth += 1
                g[y].depth = depth
            else:
                start = g[y].depth - 1
                while depth > start:
                    depth -= 1
                    x = path[depth]
                    source[g[x].index] = g[y].index
                    _delete(g, x)
                    y = x
