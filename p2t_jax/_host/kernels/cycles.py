r"""SGPerm's search on the host: partition, permissible movements, cycles (Algorithm 1, Section 2).

A movement (x, y), the weight of y to the place of x, is permissible within a subset of a weight
vector if it follows the recommendation r of x and is no larger than the reach u,

.. math:: r_x (w_x - w_y) > 0, \qquad |w_x - w_y| < u = \ell + \alpha A,

with A the range of the vector. Weights without a recommendation (r is 0 or NaN) take no part.
:math:`\ell` is A / m for the m weights of the subset that take part (`MEAN`, the authors' code), or
the smallest distance between two of them (`SMALLEST`, Section 2.1.4).

Section 2.2 searches cycles in the graph of these movements: depth first, from the weight with the
largest \|r\| (the *root*), nearest targets first, until a target is the root itself. The weights of
such a cycle leave; if there is none, the root alone leaves.

Neither a graph nor a depth-first search is needed. Let the root want a lighter weight, and let the
remaining weights that are lighter than the root be y1 > y2 > ... As long as these want lighter
weights, too, the search steps from each to the next. Let z be the first that wants a heavier one.

- If z is within reach of the root, so is every step on the way there. What z wants is on the path
  already, except for the root: the cycle is root, y1, y2, ..., z.
- If not, there is no cycle through the root. Its last member would want a heavier weight, hence be
  z or lighter, and out of reach of the root.

So: *a root looks in its direction for the nearest remaining weight that wants the opposite one. If
that is within reach, both and all between them move along by one place.* `_find_cycles` does this
with two sets of bits, one for each direction, that are empty in the end: every weight leaves once.

Equal weights. A movement to an equal weight changes nothing and is not permissible. Of several
equal targets only one counts: one that wants the opposite direction if there is any; of those that
want a lighter weight the first by place, of those that want a heavier one the last, but the root
before all equal to it. Roots with equal \|r\| come by place.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2t_jax._host.kernels.bits import (
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
from p2t_jax._host.kernels.radix import COLUMNS, key_format, read_columns, together, write_columns
from p2t_jax._host.kernels.subsets import (
    LEAST_SUBSET,
    deal,
    order,
    partition,
    random_bits,
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
        r: alike, float32 or float64: the recommendations.
        alpha: (outer, 1, inner): the aggressiveness. A vector with 0 stays as it is.
        partition_ratio: (outer, 1, inner): lambda.
        seed: (outer, 1, inner): what the random numbers of a vector are drawn from.
        out: like `theta`; written.
        start: the number of the first vector.
        stop: that behind the last one.
        lower: `MEAN` or `SMALLEST`.
        priority: `NEAREST`, `FARTHEST` or `RANDOM` (Section 2.2.1).
    """
    if theta.dtype.itemsize < 4:  # Numba computes with neither float16 nor bfloat16.
        wide = theta.astype(np.float32)
        wide_out = np.empty_like(wide)
        search(
            wide,
            r,
            alpha,
            partition_ratio,
            seed,
            wide_out,
            start,
            stop,
            lower=lower,
            priority=priority,
        )
        o, i = np.divmod(np.arange(start, stop), theta.shape[2])
        out[o, :, i] = wide_out[o, :, i].astype(theta.dtype)
        return
    w = np.empty((COLUMNS, theta.shape[1]), theta.dtype)
    wanted = np.empty(w.shape, r.dtype)
    unsigned, r_unsigned = f"u{theta.dtype.itemsize}", f"u{r.dtype.itemsize}"
    _search(
        theta.view(unsigned),
        r.view(r_unsigned),
        alpha,
        partition_ratio,
        seed,
        out.view(unsigned),
        start,
        stop,
        lower,
        priority,
        (w, w.view(unsigned), *key_format(theta.dtype), theta),
        (wanted, wanted.view(r_unsigned), np.uint64(64 - 8 * r.dtype.itemsize)),
    )


@jit
def _search(
    theta: Any,
    r: Any,
    alpha: Any,
    partition_ratio: Any,
    seed: Any,
    out: Any,
    start: Any,
    stop: Any,
    lower: Any,
    priority: Any,
    weights: Any,
    recommendations: Any,
) -> None:
    columns_bits, wanted_bits = weights[1], recommendations[1]
    moved = np.empty_like(columns_bits)
    ranges = np.empty((3, COLUMNS), np.float64)
    scratch = _scratch(theta.shape[1])
    first = start
    while first < stop:
        count = together(out, first, stop)
        value_ranges(weights[4], first, count, ranges)
        read_columns(theta, first, count, columns_bits)
        read_columns(r, first, count, wanted_bits)
        for c in range(count):
            o, i = (first + c) // out.shape[2], (first + c) % out.shape[2]
            hyperparameters = (
                ranges[0, c],
                np.float64(alpha[o, 0, i]),
                np.float64(partition_ratio[o, 0, i]),
                np.uint64(seed[o, 0, i]),
                lower,
                priority,
            )
            _permute_vector(c, weights, recommendations, hyperparameters, scratch, moved[c])
        write_columns(moved, first, count, out)
        first += count


@jit
def _scratch(n: Any) -> Any:
    """Room for what is computed of a vector: sort keys, its partition, its subsets."""
    words = np.empty((4, n + 1), np.uint64)
    places = np.empty((5, n), np.int32)
    end = np.empty((2, max(1, n // LEAST_SUBSET) + 1), np.int64)
    return (
        (words[0], words[1], words[2], words[3], np.empty((4, 256), np.uint32)),
        (places[0], places[1], end),
        (np.empty(n, np.float64), places[2], places[3], places[4]),
        (np.empty(64, np.uint64), *empty_sets(2, n)),
        np.empty((8, n), np.int32),
    )


@jit
def _permute_vector(
    c: Any, weights: Any, recommendations: Any, hyperparameters: Any, scratch: Any, moved: Any
) -> None:
    """Write row c of the weights, permuted, to `moved`."""
    w, bits, r = weights[0][c], weights[1][c], recommendations[0][c]
    value_range, alpha, partition_ratio, seed, lower, priority = hyperparameters
    sort_scratch, (label, slot, end), members, sets, search_scratch = scratch
    moved[:] = bits
    if not (alpha > 0 and 0 < value_range < np.inf):
        return
    subsets = subset_count(w.size, partition_ratio)
    state = random_bits(seed, 1)
    partition(state, label, subsets)
    m = order(c, weights, recommendations, sort_scratch)
    deal(w, r, sort_scratch, m, label, slot, end, subsets, members)
    for p in range(subsets):
        begin, size = end[0, p], end[0, p + 1] - end[0, p]
        if size < 2:
            continue
        least = value_range / size if lower == MEAN else smallest_distance(members[0], begin, size)
        reach = least + alpha * value_range
        if priority != NEAREST:
            fresh = random_bits(state, w.size + begin)
            search_depth_first(
                begin, size, members, reach, priority == RANDOM, fresh, search_scratch, bits, moved
            )
        elif size <= 64:
            _find_cycles_in_words(np.uint64(begin), size, members, reach, sets[0], bits, moved)
        else:
            _find_cycles(begin, size, members, reach, sets[1], sets[2], bits, moved)


@jit
def _find_cycles(
    begin: Any,
    size: Any,
    members: Any,
    reach: float,
    words: Any,
    levels: Any,
    bits: Any,
    moved: Any,
) -> None:
    """Find the cycles of a subset and move weights along them (Section 2.2, "nearest").

    There are two sets of members: 0, of those that want to be lighter, and 1, of those that want to
    be heavier, counted from the other end. So whichever way a root looks, it looks for the next.

    Args:
        begin: the first member of the subset.
        size: how many there are.
        members: see `subsets.deal`.
        reach: u.
        words: room for two sets.
        levels: where the levels of the sets begin, written.
        bits: the weights of the vector, as bits.
        moved: written where weights move.
    """
    weight, place, heavier, root = members
    height = clear(words, levels, size)
    for member in range(size):
        own = heavier[begin + member]
        insert(words, own, levels, height, size - 1 - member if own else member)
    for k in range(size):
        s = np.int64(root[begin + k])
        own = heavier[begin + s]
        flip = 0 if own else size - 1  # from a number to that in the opposite set: abs(flip - s)
        flop = size - 1 - flip  # from a number to that in the root's own set
        if not contains(words, own, abs(flop - s)):
            continue
        z = following(words, 1 - own, levels, height, abs(flip - s))
        last = abs(flip - z)
        if z < 0 or not abs(weight[begin + last] - weight[begin + s]) < reach:
            remove(words, own, levels, height, abs(flop - s))
            continue
        remove(words, 1 - own, levels, height, z)
        y = last
        while y != s:  # from z back to the root; of equal weights only the first met moves
            t = following(words, own, levels, height, abs(flop - _last_equal(members, begin, y, s)))
            x = abs(flop - t)
            if weight[begin + x] == weight[begin + s]:
                x = s
            moved[place[begin + x]] = bits[place[begin + y]]
            remove(words, own, levels, height, abs(flop - x))
            y = x
        moved[place[begin + last]] = bits[place[begin + s]]


@jit
def _last_equal(members: Any, begin: Any, y: Any, root: Any) -> Any:
    """The last member with the weight of y on the way to the root, found by doubling steps."""
    weight = members[0]
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
    begin: Any, size: Any, members: Any, reach: float, turn: Any, bits: Any, moved: Any
) -> None:
    """The same as `_find_cycles`, for up to 64 members: each set is a word, kept in a register.

    Numbers are counted from the other end by exclusive or with 63. A third set, of turns, has the
    roots still there in their order. All is uint64, which needs no check for negative indices.
    """
    weight, place, heavier, root = members
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
