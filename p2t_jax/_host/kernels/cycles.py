r"""The host kernel of SGPerm: partition, permissibility and cycle search (Algorithm 1, Section 2).

Section 2.4 stores every permissibility subgraph and searches it in cubic time. Neither is needed:

- In a subset sorted by weight the permissible targets of a vertex x are the lighter (r_x > 0), the
  heavier (r_x < 0) or all vertices (r_x = 0) at a distance between l and u: at most two intervals.
- A vertex that the search has exhausted lies on no cycle for good, for all that it can reach is
  exhausted too. It is deleted, just as the vertices of a cycle are.

So adj_x is never stored. Its foremost vertex is the nearest one *still there*: a neighbour of x in
a linked list of the sorted subset.

The order of the roots does not matter either. The search follows x -> f(x), the foremost target of
x still there, and deletes a vertex without f or a cycle of f. Either leaves every other cycle of f
as it is, so all of them are found in any order: these are the Top Trading Cycles of Shapley and
Scarf (1974). Hence abs(r), by which Section 2.2 orders the roots, has no influence on the
permutation, only the sign of r has. The kernel takes the roots by weight, as they lie.

What the paper leaves open is decided as follows (`tests/reference_sgperm.py` spells it out):

- All arithmetic is float64. u is l + (alpha * A), rounded after each operation.
- A foremost target that is on the path from the root closes a cycle there and then.
- Among targets equally far from x the lighter side comes first; on one side, nearest first goes
  away from x and farthest first towards x, in the order by (weight, index).
- Random: adj_x, in ascending order by (weight, index), is a ring entered at a uniformly drawn
  target. One number is drawn for every weight and call.
- A weight whose r is NaN is memorized from the start: it stays where it is, yet counts for l and
  A. A vector whose range is not finite (a weight is NaN or infinite) stays as it is.

Kernels are serial, release the GIL and are cached on disk; callers split rows over threads.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from p2t_jax._host.kernels.cache import jit

_Array = npt.NDArray[Any]
_Int = int | np.integer[Any]

NEAREST: Final = 0
FARTHEST: Final = 1
RANDOM: Final = 2

# A permissibility subgraph. Its vertices are the slots 1 to m, in ascending order by weight; the
# slots 0 and m + 1 are ends, infinitely far away. A vertex is one record, hence one cache line.
_VERTEX = np.dtype(
    [
        ("w", np.float64),
        ("r", np.float64),
        ("member", np.uint32),  # Its place among the members of the subset.
        ("lighter", np.uint32),  # The next vertex still there; if deleted itself, a step to it.
        ("heavier", np.uint32),
        ("depth", np.int32),  # Its place on the path from the root, from 1; 0 if none.
    ],
    align=True,
)
_DELETED = -1
_NONE = np.uint32(0)

_FEW = 256  # Keys up to which counting the smaller ones is faster than a radix sort.

# All uint64, for Numba adds uint64 and int64 as float64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_HALF, _LAST, _SIGN, _BYTE = np.uint64(32), np.uint64(63), np.uint64(1 << 63), np.uint64(255)


def subset_count(partition_ratio: float) -> int:
    r"""Number of subsets of a weight vector, :math:`\lfloor 1/\lambda \rfloor` (Section 2.1.4).

    A quotient within 2^-22 of an integer, relatively, is taken for that integer: the float32
    nearest to 0.1 lies above 0.1 and still means ten subsets.

    Args:
      partition_ratio: Lambda. Above one, as from a schedule without a maximum, it counts as one.

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


@jit
def search_rows(
    weights: _Array,
    recommendations: _Array,
    alpha: float,
    subsets: int,
    seed: _Array,
    row_ids: _Array,
    priority: int,
    source: _Array,
) -> None:
    r"""Find the permutation of every row: partition, graph, cycles (Sections 2.1 and 2.2).

    A movement (x, y), the weight of y to x, is permissible within a subset if
    :math:`r_x (w_x - w_y) \ge 0` and :math:`\ell < |w_x - w_y| < u = \ell + \alpha A`. The weights
    move along disjoint cycles of such movements: row i becomes ``weights[i, source[i]]``.

    Args:
      weights: One weight vector w a row, float32 or float64.
      recommendations: r, one a weight, which should change against its sign. Its size is ignored.
      alpha: Aggressiveness.
      subsets: Number of random subsets, see `subset_count`; may exceed that of the weights.
      seed: uint32 words, such as key data, step and parameter number. They and the row's id, and
        nothing else, determine the random numbers of a row.
      row_ids: The id of each row, integers.
      priority: Which targets go first, `NEAREST`, `FARTHEST` or `RANDOM` (Section 2.2.1).
      source: Written, int32: where each weight comes from, a permutation of 0, ..., n - 1 a row.
    """
    rows, n = weights.shape
    subsets = max(1, min(subsets, n))
    largest = (n + subsets - 1) // subsets
    label, member, end = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(subsets, np.int32)
    width = (largest + 15) // 16 * 16  # Whole SIMD registers.
    key, rank = np.empty(width, weights.dtype), np.empty(width, np.int32)
    graph, path = np.empty(largest + 2, _VERTEX), np.empty(largest, np.uint32)
    target = np.empty(width, np.int32)
    for row in range(rows):
        w, r, row_source = weights[row], recommendations[row], source[row]
        for x in range(n):
            row_source[x] = x
        if subsets >= n:
            continue
        step = alpha * _value_range(w)
        if not 0 < step < np.inf:
            continue
        partition(seed, row_ids[row], subsets, label)
        _group(label, member, end)
        state = _row_state(seed, row_ids[row])
        for p in range(subsets):
            start = end[p - 1] if p > 0 else 0
            members = member[start : end[p]]
            m = members.size
            if m < 2:
                break  # The others are no larger.
            for k in range(m):
                key[k] = w[members[k]]
            key[m:] = np.inf
            _rank(key, m, rank, target)
            lower = _lay_out(graph, rank, key, r, members)
            for k in range(m):
                target[k] = k
            fresh = state + np.uint64(n + 1 + start) * _GOLDEN
            _find_cycles(graph, m, path, lower, lower + step, priority, fresh, target)
            for k in range(m):
                row_source[members[k]] = members[target[k]]


@jit
def take_rows(rows: _Array, source: _Array, out: _Array) -> None:
    """Permute rows as `search_rows` has found: ``out[i, x] = rows[i, source[i, x]]``.

    Args:
      rows: Of a type that Numba knows; view others, such as bfloat16, as integers.
      source: From `search_rows`.
      out: Written. Must not share memory with `rows`.
    """
    for i in range(rows.shape[0]):
        for x in range(rows.shape[1]):
            out[i, x] = rows[i, source[i, x]]


@jit
def _mix(z: np.uint64) -> np.uint64:
    """The mixer of splitmix64."""
    z = (z ^ (z >> _SHIFT[0])) * _MULTIPLY[0]
    z = (z ^ (z >> _SHIFT[1])) * _MULTIPLY[1]
    return z ^ (z >> _SHIFT[2])


@jit
def _row_state(seed: _Array, row_id: _Int) -> np.uint64:
    """State of a row's own splitmix64 stream: a hash of the seed's words and the row's id."""
    h = np.uint64(0)
    for word in seed:
        h = _mix((h + _GOLDEN) ^ np.uint64(word))
    return _mix((h + _GOLDEN) ^ np.uint64(row_id))


@jit
def _draw(state: np.uint64, k: _Int, n: _Int) -> _Int:
    """Number k of a stream, reduced below n by Lemire's product: biased by at most n / 2^32."""
    z = _mix(state + np.uint64(k) * _GOLDEN)
    return np.int64(((z >> _HALF) * np.uint64(n)) >> _HALF)


@jit
def partition(seed: _Array, row_id: _Int, subsets: _Int, label: _Array) -> None:
    """Deal the weights of a vector into subsets at random (Section 2.1.4).

    Fisher-Yates, inside out, on 0, ..., subsets - 1, 0, ..., subsets - 1, 0, ..., so that sizes
    differ by at most one. It uses up the numbers 1 to n of the stream.

    Args:
      seed: As for `search_rows`.
      row_id: The row's.
      subsets: Their number.
      label: Written: the subset of each weight.
    """
    state = _row_state(seed, row_id)
    dealt = 0
    for x in range(label.size):
        y = _draw(state, x + 1, x + 1)
        label[x] = label[y]
        label[y] = dealt
        dealt = dealt + 1 if dealt + 1 < subsets else 0


@jit
def _group(label: _Array, member: _Array, end: _Array) -> None:
    """List the members of subset 0, of subset 1, ..., each by index, and where each list ends."""
    size, larger = label.size // end.size, label.size % end.size
    for p in range(end.size):
        end[p] = p * size + min(p, larger)
    for x in range(label.size):
        p = label[x]
        member[end[p]] = x
        end[p] += 1


@jit
def _value_range(w: _Array) -> float:
    """A, the largest weight less the smallest (Section 2.1.3); NaN if a weight is not finite."""
    low = high = w[0]
    for x in w:
        if not abs(x) < np.inf:
            return np.nan
        low, high = min(low, x), max(high, x)
    return np.float64(high) - np.float64(low)


@jit
def _rank(key: _Array, m: _Int, rank: _Array, tied: _Array) -> None:
    """Stable ranks of the first m keys, beyond which there are infinities."""
    if key.size > _FEW:
        _radix_rank(key, m, rank)
        return
    # Count the smaller keys of each: quadratic, but free of branches, and SIMD likes it.
    rank[:] = 0
    for k in range(m):
        x = key[k]
        for i in range(key.size):
            rank[i] += np.int32(x < key[i])
    tied[:m] = 0
    for k in range(m):
        first = rank[k]
        rank[k] += tied[first]
        tied[first] += 1


@jit
def _radix_rank(key: _Array, m: _Int, rank: _Array) -> None:
    """Sort by the bits of the keys as float64, the least significant byte first."""
    values, count = np.empty((2, m), np.float64), np.empty(256, np.int64)
    bits, order = values.view(np.uint64), np.empty((2, m), np.int32)
    for k in range(m):
        values[0, k] = key[k] + 0.0  # No -0.0, whose bits are not those of 0.0.
        z = bits[0, k]
        bits[0, k] = z ^ _SIGN if z >> _LAST == 0 else ~z
        order[0, k] = k
    old, new = 0, 1
    for shift in np.arange(0, 64, 8).astype(np.uint64):
        count[:] = 0
        for k in range(m):
            count[(bits[old, k] >> shift) & _BYTE] += 1
        if count[(bits[old, 0] >> shift) & _BYTE] == m:
            continue
        start = 0
        for byte in range(256):
            start, count[byte] = start + count[byte], start
        for k in range(m):
            byte = (bits[old, k] >> shift) & _BYTE
            bits[new, count[byte]] = bits[old, k]
            order[new, count[byte]] = order[old, k]
            count[byte] += 1
        old, new = new, old
    for k in range(m):
        rank[order[old, k]] = k


@jit
def _lay_out(g: _Array, rank: _Array, w: _Array, r: _Array, members: _Array) -> float:
    """Put the members of a subset in their slots; return l (Section 2.1.4)."""
    m = members.size
    g[0].w, g[m + 1].w = -np.inf, np.inf
    g[0].depth = g[m + 1].depth = 0
    held = False
    for k in range(m):
        x = rank[k] + 1
        g[x].w, g[x].r, g[x].member = w[k], r[members[k]], k
        g[x].lighter, g[x].heavier, g[x].depth = x - 1, x + 1, 0
        held |= np.isnan(r[members[k]])
    if held:
        for x in range(1, m + 1):
            if np.isnan(g[x].r):
                _delete(g, x)
    lower = np.inf
    for x in range(1, m):
        lower = min(lower, g[x + 1].w - g[x].w)
    return lower


@jit
def _delete(g: _Array, x: _Int) -> None:
    g[g[x].lighter].heavier = g[x].heavier
    g[g[x].heavier].lighter = g[x].lighter
    g[x].depth = _DELETED


@jit
def _left(g: _Array, x: _Int) -> np.uint32:
    """The heaviest vertex still there up to slot x: union-find with path halving."""
    while g[x].depth == _DELETED:
        if g[g[x].lighter].depth == _DELETED:
            g[x].lighter = g[g[x].lighter].lighter
        x = np.int64(g[x].lighter)
    return np.uint32(x)


@jit
def _right(g: _Array, x: _Int) -> np.uint32:
    """The lightest vertex still there from slot x on."""
    while g[x].depth == _DELETED:
        if g[g[x].heavier].depth == _DELETED:
            g[x].heavier = g[g[x].heavier].heavier
        x = np.int64(g[x].heavier)
    return np.uint32(x)


@jit
def _reach(g: _Array, x: _Int, end: _Int, bound: float, closed: bool) -> _Int:
    """The last slot from x towards an end at a distance below the bound; or at it, if closed."""
    inside, outside = np.int64(x), np.int64(end)
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        distance = abs(g[middle].w - g[x].w)
        if distance < bound or (closed and distance == bound):
            inside = middle
        else:
            outside = middle
    return inside


@jit
def _gap(g: _Array, m: _Int, x: _Int, lower: float) -> tuple[Any, Any]:
    """The last slot before and the first slot behind those no farther from x than l."""
    before: Any = np.int64(x) - 1
    behind: Any = np.int64(x) + 1
    # Not `distance < nextafter(l)`: if l = 0 that is denormal, and XLA's threads take it for zero.
    if g[x].w - g[before].w <= lower:
        before = _reach(g, x, 0, lower, True) - 1
    if g[behind].w - g[x].w <= lower:
        behind = _reach(g, x, m + 1, lower, True) + 1
    return before, behind


@jit
def _nearest(g: _Array, m: _Int, x: _Int, lower: float, upper: float, tied: bool) -> np.uint32:
    w, y, distance = g[x].w, _NONE, upper
    if g[x].r >= 0:
        z = g[x].lighter
        if w - g[z].w <= lower:  # Only one vertex a side is so near, unless l = 0 and many equal.
            z = _left(g, _gap(g, m, x, lower)[0]) if tied else g[z].lighter
        if w - g[z].w < distance:
            y, distance = z, w - g[z].w
    if g[x].r <= 0:
        z = g[x].heavier
        if g[z].w - w <= lower:
            z = _right(g, _gap(g, m, x, lower)[1]) if tied else g[z].heavier
        if g[z].w - w < distance:
            y = z
    return y


@jit
def _farthest(g: _Array, m: _Int, x: _Int, lower: float, upper: float) -> np.uint32:
    w, y, distance = g[x].w, _NONE, lower
    if g[x].r >= 0:
        z = _right(g, _reach(g, x, 0, upper, False))
        if w - g[z].w > distance:
            y, distance = z, w - g[z].w
    if g[x].r <= 0:
        z = _left(g, _reach(g, x, m + 1, upper, False))
        if g[z].w - w > distance:
            y = z
    return y


@jit
def _random(g: _Array, m: _Int, x: _Int, lower: float, upper: float, state: np.uint64) -> np.uint32:
    last, first = gap = _gap(g, m, x, lower)
    lighter = heavier = 0
    if g[x].r >= 0:
        first = _reach(g, x, 0, upper, False)
        lighter = max(0, gap[0] + 1 - first)
    if g[x].r <= 0:
        last = _reach(g, x, m + 1, upper, False)
        heavier = max(0, last + 1 - gap[1])
    k = _draw(state, g[x].member, lighter + heavier)
    z = first + k if k < lighter else gap[1] + k - lighter
    for _ in range(2):  # From the entrance on, then from the beginning.
        y = _right(g, z)
        if gap[0] < y < gap[1]:
            y = _right(g, gap[1])
        if y <= last:
            return y
        z = first
    return _NONE


@jit
def _find_cycles(
    g: _Array,
    m: _Int,
    path: _Array,
    lower: float,
    upper: float,
    priority: int,
    state: np.uint64,
    target: _Array,
) -> None:
    """Depth-first search for disjoint cycles (Section 2.2).

    After a cycle the paper starts again from a root. The path would be the same up to where the
    cycle began, and the order of the roots does not matter, so the search goes on from there.
    """
    for root in range(1, m + 1):
        if g[root].depth == _DELETED:
            continue
        path[0] = root
        g[root].depth = depth = 1
        while depth > 0:
            x = path[depth - 1]
            if priority == FARTHEST:
                y = _farthest(g, m, x, lower, upper)
            elif priority == RANDOM:
                y = _random(g, m, x, lower, upper, state)
            elif lower > 0:
                y = _nearest(g, m, x, lower, upper, False)
            else:
                y = _nearest(g, m, x, lower, upper, True)
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
                    target[g[x].member] = g[y].member
                    _delete(g, x)
                    y = x
