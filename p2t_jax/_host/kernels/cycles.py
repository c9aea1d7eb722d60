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

With priority "nearest", `closed_form` needs no graph; `depth_first` searches it for the others.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2t_jax._host.kernels import LANES
from p2t_jax._host.kernels.bits import empty_sets
from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.closed_form import (
    find_cycles,
    find_cycles_in_one_word,
    find_cycles_in_two_words,
)
from p2t_jax._host.kernels.columns import read_columns, together, write_columns
from p2t_jax._host.kernels.depth_first import search_depth_first
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
    value_range,
)

MEAN, SMALLEST = 0, 1
NEAREST, FARTHEST, RANDOM = 0, 1, 2


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
        out: of the same shape, uint16 or uint32; written: the positions in a vector that its
            weights come from.
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
        source, count = np.empty(w.shape, out.dtype), stop - start
        again: Any = functools.partial(search, lower=lower, priority=priority)
        again(w, *columns[1:], source, 0, count)
        out[o, :, i] = source[..., 0]
        return
    _search(
        theta.view(f"i{theta.dtype.itemsize}"),
        r.view(f"i{r.dtype.itemsize}"),
        (alpha, partition_ratio, seed),
        out,
        start,
        stop,
        (lower, priority),
        _columns(theta),
        _columns(r),
    )


def _columns(block: NDArray[Any]) -> Columns:
    """Room for as many vectors of a block as are copied together."""
    values = np.empty((LANES, block.shape[1]), block.dtype)
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
    """`search` with floats as bits; `numbers` has one number of each kind for each vector."""
    alpha, partition_ratio, seed = numbers
    source = np.empty(weights.bits.shape, out.dtype)
    room = _room(weights, recommendations)
    first = start
    while first < stop:
        count = together(out, first, stop)
        read_columns(theta, first, count, weights.bits)
        read_columns(r, first, count, recommendations.bits)
        for c in range(count):
            o, i = (first + c) // out.shape[2], (first + c) % out.shape[2]
            hyperparameters = (
                np.float64(alpha[o, 0, i]),
                np.float64(partition_ratio[o, 0, i]),
                np.uint64(seed[o, 0, i]),
            )
            _permute_vector(c, weights, recommendations, hyperparameters, options, room, source[c])
        write_columns(source, first, count, out)
        first += count


class _Room(NamedTuple):
    """Room for what is computed for a vector."""

    dealing: Any
    ranking: Any
    members: Any
    sets: Any
    graph: Any


@jit
def _room(weights: Columns, recommendations: Columns) -> Any:
    n = weights.bits.shape[1]
    places = np.empty((6, n + LANES), np.uint32)  # unsigned: no check for negative indices
    return _Room(
        Dealing(
            places[0, :n],
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
        Members(np.empty(n, np.float64), places[2], places[3], places[4], places[5]),
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
    source: Any,
) -> None:
    """Write the places that the weights of row c come from to `source`, by place."""
    w = weights.values[c]
    alpha, partition_ratio, seed = hyperparameters
    lower, priority = options
    for x in range(source.size):
        source[x] = x
    if not alpha > 0:
        return
    subsets = subset_count(w.size, partition_ratio)
    state = random_bits(seed, 1)
    partition(state, room.dealing.label, subsets)
    deal(c, weights, recommendations, subsets, room.dealing)
    a = value_range(room.dealing.weight_key[: w.size])
    if not 0 < a < np.inf:
        return
    rank(w, recommendations.values[c], subsets, room.dealing, room.ranking, room.members)
    ends, members = room.dealing.end, room.members
    weight, place, heavier, root, turn = members
    words, levels = room.sets
    for p in range(subsets):
        begin, size = ends[0, p], ends[0, p + 1] - ends[0, p]
        if size < 2:
            continue
        least = a / size if lower == MEAN else smallest_distance(weight, begin, size)
        reach = least + alpha * a
        if priority != NEAREST:
            fresh = random_bits(state, w.size + begin)
            search_depth_first(
                begin, size, members, reach, priority == RANDOM, fresh, room.graph, source
            )
        elif size <= 64:
            find_cycles_in_one_word(
                np.uint64(begin), size, weight, place, heavier, root, turn, reach, source
            )
        elif size <= 128:
            find_cycles_in_two_words(
                np.uint64(begin), size, weight, place, heavier, root, turn, reach, source
            )
        else:
            find_cycles(begin, size, weight, place, heavier, root, reach, words, levels, source)
