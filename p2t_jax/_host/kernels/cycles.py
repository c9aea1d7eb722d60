r"""SGPerm's search on the host: partition, permissible movements, cycles (Algorithm 1, Section 2).

A movement (x, y), of the weight of y to the place of x, is permissible within a subset of a weight
vector if it follows the recommendation r of x and is no larger than the reach u,

.. math:: r_x (w_x - w_y) > 0, \qquad |w_x - w_y| < u = \ell + \alpha A,

with A the range of the vector. Weights without a recommendation (r is 0 or NaN) take no part.
:math:`\ell` is A / m for the m weights of the subset that take part (`MEAN`, the authors' code), or
the smallest distance between two of them (`SMALLEST`, Section 2.1.4).

Section 2.2 searches for cycles in the graph of these movements: depth first, from the weight with
the largest \|r\| (the *root*), nearest targets first, until a target is the root itself. The
weights of such a cycle leave the graph; if there is none, the root alone leaves.

Neither a graph nor a depth-first search is needed. Let the root want a lighter weight, and let the
remaining weights that are lighter than the root be y1 > y2 > ... As long as these want lighter
weights, too, the search steps from each to the next. Let z be the first that wants a heavier one.

- If z is within reach of the root, so is every step on the way there. What z wants is on the path
  already, except for the root: the cycle is root, y1, y2, ..., z.
- If not, there is no cycle through the root. Its last member would want a heavier weight, hence be
  z or lighter, and out of reach of the root.

So: *a root looks in its direction for the nearest remaining weight that wants the opposite one. If
that is within reach, both and all between them move along by one place.* `_find_cycles` does this
with two sets of bits, one for each direction. Both are empty in the end: every weight leaves once.

Equal weights. A movement to an equal weight changes nothing and is not permissible. Of several
equal targets only one counts: one that wants the opposite direction if there is any. Of those that
want a lighter weight it is the first by place, of those that want a heavier one the last. The root
goes before all weights equal to it. Roots with equal \|r\| are taken by place.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2t_jax._host.kernels.bits import (
    LANES,
    NONE,
    clear,
    contains,
    empty_sets,
    following,
    insert,
    remove,
    trailing_zeros,
)
from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.depth_first import search_depth_first
from p2t_jax._host.kernels.radix import COLUMNS, read_columns, together, write_columns
from p2t_jax._host.kernels.subsets import (
    LEAST_SUBSET,
    Columns,
    Dealing,
    Members,
    Ranking,
    deal,
    partition,
    random_bits,
    rank,
    smallest_distance,
    subset_count,
    value_ranges,
)

MEAN, SMALLEST = 0, 1
NEAREST, FARTHEST, RANDOM = 0, 1, 2

_ONE, _TOP = np.uint64(1), np.uint64(63)


def search(
    theta: NDArray[Any],
    r: NDArray[Any],
    alpha: NDArray[np.float32],
    partition_ratio: NDArray[np.float32],
    seed: NDArray[np.uint32],
    out: NDArray[Any],
    start: int,
    stop: int,
    *,
    lower: int = MEAN,
    priority: int = NEAREST,
) -> None:
    """Permute vectors `start` to `stop` of a block: one step of Algorithm 1.

    Args:
        theta: (outer, n, inner) C-contiguous: the weights, float16, bfloat16, float32 or float64.
        r: of the same shape, float32 or float64: the recommendations.
        alpha: (outer, 1, inner): the aggressiveness. A vector with 0 stays as it is.
        partition_ratio: (outer, 1, inner): lambda.
        seed: (outer, 1, inner): what the random numbers of a vector are drawn from.
        out: like `theta`; written.
        start: the number of the first vector.
        stop: the number after the last vector.
        lower: `MEAN` or `SMALLEST`.
        priority: `NEAREST`, `FARTHEST` or `RANDOM` (Section 2.2.1).
    """
    if theta.dtype.itemsize < 4:  # Numba computes with neither float16 nor bfloat16.
        o, i = np.divmod(np.arange(start, stop), theta.shape[2])
        operands = (theta, r, alpha, partition_ratio, seed)
        columns: list[Any] = [x[o, :, i][..., None] for x in operands]
        w = columns[0].astype(np.float32)
        moved, count = np.empty_like(w), stop - start
        again: Any = functools.partial(search, lower=lower, priority=priority)
        again(w, *columns[1:], moved, 0, count)
        out[o, :, i] = moved[..., 0].astype(theta.dtype)
        return
    _search(
        theta,
        r.view(f"i{r.dtype.itemsize}"),
        (alpha, partition_ratio, seed),
        out.view(f"i{out.dtype.itemsize}"),
        start,
        stop,
        (lower, priority),
        _columns(theta),
        _columns(r),
    )


def _columns(block: NDArray[Any]) -> Columns:
    """Room for as many vectors of a block as are copied together."""
    values = np.empty((COLUMNS, block.shape[1]), block.dtype)
    bits = values.view(f"i{block.dtype.itemsize}")
    return Columns(values, bits, np.iinfo(bits.dtype).max)


@jit
def _search(
    theta: Any,
    r: Any,
    numbers: Any,
    out: Any,
    start: Any,
    stop: Any,
    options: Any,
    weights: Columns,
    recommendations: Columns,
) -> None:
    """`search` with r and out as bits; `numbers` has one number of each kind per vector."""
    alpha, partition_ratio, seed = numbers
    moved = np.empty_like(weights.bits)
    ranges = np.empty((3, COLUMNS), np.float64)
    room = _room(weights, recommendations)
    bits = theta.view(out.dtype)
    first = start
    while first < stop:
        count = together(out, first, stop)
        value_ranges(theta, first, count, ranges)
        read_columns(bits, first, count, weights.bits)
        read_columns(r, first, count, recommendations.bits)
        for c in range(count):
            o, i = (first + c) // out.shape[2], (first + c) % out.shape[2]
            hyperparameters = (
                ranges[0, c],
                np.float64(alpha[o, 0, i]),
                np.float64(partition_ratio[o, 0, i]),
                np.uint64(seed[o, 0, i]),
            )
            _permute_vector(c, weights, recommendations, hyperparameters, options, room, moved[c])
        write_columns(moved, first, count, out)
        first += count


class _Room(NamedTuple):
    """Room for what is computed for a vector."""

    dealing: Any
    ranking: Any
    members: Any
    turn: Any
    sets: Any
    graph: Any


@jit
def _room(weights: Columns, recommendations: Columns) -> Any:
    n = weights.bits.shape[1]
    places = np.empty((5, n), np.uint32)  # unsigned: no check for negative indices
    return _Room(
        Dealing(
            places[0],
            np.empty((2, max(1, n // LEAST_SUBSET) + 2), np.int64),
            places[1],
            np.empty(n + LANES, weights.bits.dtype),
            np.empty(n + LANES, recommendations.bits.dtype),
        ),
        Ranking(
            np.empty((3, n), np.uint32),
            np.empty((3, n + 1), np.uint64),
            np.empty((4, 256), np.uint32),
        ),
        Members(np.empty(n, np.float64), places[2], places[3], places[4]),
        np.empty(64, np.uint64),
        empty_sets(n),
        np.empty((8, n), np.int32),
    )


@jit
def _permute_vector(
    c: Any,
    weights: Columns,
    recommendations: Columns,
    hyperparameters: Any,
    options: Any,
    room: _Room,
    moved: Any,
) -> None:
    """Write row c of the weights, permuted, to `moved`."""
    w, bits = weights.values[c], weights.bits[c]
    value_range, alpha, partition_ratio, seed = hyperparameters
    lower, priority = options
    moved[:] = bits
    if not (alpha > 0 and 0 < value_range < np.inf):
        return
    subsets = subset_count(w.size, partition_ratio)
    state = random_bits(seed, 1)
    partition(state, room.dealing.label, subsets)
    deal(c, weights, recommendations, subsets, room.dealing)
    rank(w, recommendations.values[c], subsets, room.dealing, room.ranking, room.members)
    ends, members = room.dealing.end, room.members
    weight, place, heavier, root = members
    words, levels = room.sets
    for p in range(subsets):
        begin, size = ends[0, p], ends[0, p + 1] - ends[0, p]
        if size < 2:
            continue
        if lower == MEAN:
            reach = value_range / size + alpha * value_range
        else:
            reach = smallest_distance(weight, begin, size) + alpha * value_range
        if priority != NEAREST:
            fresh = random_bits(state, w.size + begin)
            search_depth_first(
                begin, size, members, reach, priority == RANDOM, fresh, room.graph, bits, moved
            )
        elif size <= 64:
            _find_cycles_in_words(
                np.uint64(begin), size, weight, place, heavier, root, reach, room.turn, bits, moved
            )
        else:
            _find_cycles(
                begin, size, weight, place, heavier, root, reach, words, levels, bits, moved
            )


@jit
def _find_cycles(
    begin: Any,
    size: Any,
    weight: Any,
    place: Any,
    heavier: Any,
    root: Any,
    reach: float,
    words: Any,
    levels: Any,
    bits: Any,
    moved: Any,
) -> None:
    """Find the cycles of a subset and move weights along them (Section 2.2, "nearest").

    There are two sets of members: 0, of those that want to be lighter, and 1, of those that want to
    be heavier, numbered from the other end. So in either direction, a root looks for the next.

    Args:
        begin: the first member of the subset.
        size: how many there are.
        weight: of all subsets, like the next three; see `subsets.Members`.
        place: see there.
        heavier: see there.
        root: see there.
        reach: u.
        words: room for two sets, see `bits.empty_sets`.
        levels: likewise.
        bits: the weights of the vector, as bits.
        moved: written where weights move.
    """
    height, most = clear(words, levels, size), np.uint64(size) - _ONE
    begin = np.uint64(begin)
    for member in range(most + _ONE):
        own = np.uint64(heavier[begin + member])
        insert(words, own, levels, height, most - member if own else member)
    for k in range(most + _ONE):
        s = np.uint64(root[begin + k])
        own = np.uint64(heavier[begin + s])
        at = most - s if own else s  # the root's number in its own set
        if not contains(words, own, at):
            continue
        z = following(words, _ONE - own, levels, height, most - at)
        last = z if own else most - z
        if z == NONE or not abs(weight[begin + last] - weight[begin + s]) < reach:
            remove(words, own, levels, height, at)
            continue
        remove(words, _ONE - own, levels, height, z)
        y, after = last, most - z  # the number that y has or would have in the root's own set
        while y != s:  # from z back to the root; of equal weights only the first met moves
            beside = y - _ONE if own else y + _ONE
            if beside != s and weight[begin + beside] == weight[begin + y]:
                y_last = _last_equal(weight, np.int64(begin), np.int64(y), np.int64(s))
                after = most - np.uint64(y_last) if own else np.uint64(y_last)
            after = following(words, own, levels, height, after)
            x = most - after if own else after
            if weight[begin + x] == weight[begin + s]:
                x, after = s, at
            moved[place[begin + x]] = bits[place[begin + y]]
            remove(words, own, levels, height, after)
            y = x
        moved[place[begin + last]] = bits[place[begin + s]]


@jit
def _last_equal(weight: Any, begin: Any, y: Any, root: Any) -> Any:
    """The last member with the weight of y on the way to the root, found by doubling steps."""
    way = 1 if root > y else -1
    inside, outside = y, root
    jump = 1
    while abs(outside - inside) > 1:
        if jump:
            middle = y + way * jump
            jump *= 2
            if abs(middle - y) >= abs(root - y):
                middle, jump = (inside + outside) // 2, 0
        else:
            middle = (inside + outside) // 2
        if weight[begin + middle] == weight[begin + y]:
            inside = middle
        else:
            outside, jump = middle, 0
    return inside


@jit
def _find_cycles_in_words(
    begin: Any,
    size: Any,
    weight: Any,
    place: Any,
    heavier: Any,
    root: Any,
    reach: float,
    turn: Any,
    bits: Any,
    moved: Any,
) -> None:
    """The same as `_find_cycles`, for up to 64 members: each set is a word, kept in a register.

    Exclusive or with 63 numbers a member from the other end. A third set, of turns, has the
    remaining roots in their order. All is uint64, which needs no check for negative indices.
    """
    lighter_set = heavier_set = np.uint64(0)
    for k in range(size):
        s = np.uint64(k)
        up = np.uint64(heavier[begin + s])
        lighter_set |= (_ONE - up) << s
        heavier_set |= up << (_TOP - s)
        turn[root[begin + s]] = s
    turns = ~np.uint64(0) >> np.uint64(64 - size)
    while turns:
        s = np.uint64(root[begin + trailing_zeros(turns)])
        turns &= turns - _ONE
        flip = _TOP if (lighter_set >> s) & _ONE else np.uint64(0)
        own = lighter_set if flip else heavier_set
        opposite = heavier_set if flip else lighter_set
        at = s ^ flip  # in the opposite set; at ^ _TOP is in its own
        ahead = opposite >> at >> _ONE
        z = at + _ONE + trailing_zeros(ahead) if ahead else at
        last = z ^ flip
        if ahead and abs(weight[begin + last] - weight[begin + s]) < reach:
            opposite &= ~(_ONE << z)
            turns &= ~(_ONE << turn[last])
            between = own & ((_ONE << (at ^ _TOP) << _ONE) - (_ONE << (z ^ _TOP) << _ONE))
            y = last
            while between:
                t = trailing_zeros(between)
                between &= between - _ONE
                x = t ^ flip ^ _TOP
                w = weight[begin + x]
                if not between or (w != weight[begin + y] and w != weight[begin + s]):
                    moved[place[begin + x]] = bits[place[begin + y]]
                    own &= ~(_ONE << t)
                    turns &= ~(_ONE << turn[x])
                    y = x
            moved[place[begin + last]] = bits[place[begin + s]]
        else:
            own &= ~(_ONE << (at ^ _TOP))
        lighter_set = own if flip else opposite
        heavier_set = opposite if flip else own
