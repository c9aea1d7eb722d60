"""Vectors of a block to contiguous rows and back, `LANES` together to use whole cache lines.

A block is (outer, n, inner), see `p2t_jax._leaves`; `o * inner + i` is the number of the vector
`block[o, :, i]`.
"""

import functools
from typing import Any

from p2t_jax._host.kernels import LANES
from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.lanes import transpose


@jit
def read_columns(block: Any, first: Any, count: Any, columns: Any) -> None:
    """Copy vectors of a block to contiguous rows, a few together to use whole cache lines.

    Args:
        block: (outer, n, inner).
        first: the number of the first vector; `o * inner + i` is the number of `block[o, :, i]`.
        count: how many vectors, of the same `o`.
        columns: (>= count, n) C-contiguous, like the block; written.
    """
    _, n, inner = block.shape
    o, i = first // inner, first % inner
    done = n // LANES * LANES if count == LANES else 0
    for x in range(0, done, LANES):
        transpose(block, (o * n + x) * inner + i, inner, columns, x, n)
    for x in range(done, n):
        for c in range(count):
            columns[c, x] = block[o, x, i + c]


@jit
def write_columns(columns: Any, first: Any, count: Any, block: Any) -> None:
    """The inverse of `read_columns`."""
    _, n, inner = block.shape
    o, i = first // inner, first % inner
    done = n // LANES * LANES if count == LANES else 0
    for x in range(0, done, LANES):
        transpose(columns, x, n, block, (o * n + x) * inner + i, inner)
    for x in range(done, n):
        for c in range(count):
            block[o, x, i + c] = columns[c, x]


@functools.partial(jit, inline="always")
def together(block: Any, first: Any, stop: Any) -> Any:
    """How many vectors from `first` on can be copied together."""
    return min(LANES, stop - first, block.shape[2] - first % block.shape[2])
