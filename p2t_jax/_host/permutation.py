"""What is done to weight vectors, on the host and in JAX: the base of sorting, ranking and search.

On the host, a permutation is positions: those that the weights of a vector come from. So only what
decides about the permutation goes there, and JAX takes the weights.
"""

import abc
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import numpy as np
import numpy.typing as npt

from p2t_jax import _leaves
from p2t_jax._host.kernels import LANES
from p2t_jax._host.run_jobs import run_jobs
from p2t_jax._leaves import Axes

Array: TypeAlias = npt.NDArray[Any]

# Weights per job: enough to hide the cost of a job, few enough to share and to fit in a cache.
_JOB = 1 << 15


class Permutation(abc.ABC):
    """A way to permute weight vectors. It is hashable, and equal ones do the same.

    A subclass is a frozen dataclass of numbers, its options. With `name` it is found again in
    another process, which must have imported its module.

    Attributes:
        name: what programs call it by. A program that was exported keeps it.
        operands: how many operands there are that have the shape of the values.
        numbers: the dtypes of the operands after these, with one number for each vector.
        same_in_jax: whether `in_jax` does the same as `on_host`, to the bit. Then JAX permutes
            wherever that is faster: on accelerators and in partitioned programs.
        by_pure_callback: whether a CPU calls the host through `jax.pure_callback` where that is
            safe, or else always through XLA's FFI.
    """

    name: ClassVar[str]
    operands: ClassVar[int] = 1
    numbers: ClassVar[tuple[str, ...]] = ()
    same_in_jax: ClassVar[bool] = True
    by_pure_callback: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        _by_name[cls.name] = cls

    @abc.abstractmethod
    def on_host(self, *blocks: Any) -> None:
        """Finds the positions of some vectors: `(*operands, out, start, stop)`.

        Operands and `out` are blocks, see `p2t_jax._leaves`; those with one number for each vector
        are (outer, 1, inner). It writes which positions the weights of vectors `start` to `stop`
        come from to `out`, of `position_dtype(n)`: `values[out]`, vector by vector.
        """

    @abc.abstractmethod
    def in_jax(self, *rows: Any) -> jax.Array:
        """Permutes (..., n) `values`: `(values, *operands)`, with numbers as (..., 1)."""


_by_name: dict[str, type[Permutation]] = {}


def find(name: str, options: dict[str, int]) -> Permutation:
    """The permutation of this name, for instance one of a program of another process."""
    return _by_name[name](**options)


def position_dtype(n: int) -> np.dtype[Any]:
    """The dtype of positions in a vector of n weights."""
    return np.dtype(np.uint16 if n <= 1 << 16 else np.uint32)


def position_types(values: Sequence[Any], axes: Sequence[Axes]) -> list[jax.ShapeDtypeStruct]:
    """The types of the positions of the weights in some arrays."""
    lengths = [_leaves.vector_length(x.shape, a) for x, a in zip(values, axes, strict=True)]
    return [
        jax.ShapeDtypeStruct(x.shape, position_dtype(n))
        for x, n in zip(values, lengths, strict=True)
    ]


def by_operand(flat: Sequence[Any], axes: Sequence[Axes]) -> list[Sequence[Any]]:
    """Splits `flat`, an array for each parameter of the first operand, then of the second, etc."""
    n = len(axes)
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def compile_for(permutation: Permutation, axes: Sequence[Axes], types: Sequence[Any]) -> None:
    """Lets Numba compile for these types of values and operands now, not in the first step."""
    for leaf_axes, values, *operands in zip(axes, *by_operand(types, axes), strict=True):
        n = _leaves.vector_length(values.shape, leaf_axes)
        _compile_for(permutation, *(x.dtype for x in operands), position_dtype(n))


@functools.lru_cache
def _compile_for(permutation: Permutation, *dtypes: np.dtype[Any]) -> None:
    *operands, out = (np.ones((1, 1, 1), dtype) for dtype in dtypes)
    for array in operands:
        array.flags.writeable = False  # as XLA's buffers, for which Numba compiles anew
    permutation.on_host(*operands, out, 0, 1)


def find_positions(
    permutation: Permutation, axes: Sequence[Axes], flat: Sequence[Array], outs: Sequence[Array]
) -> None:
    """Writes the positions of all vectors to `outs`, on several threads.

    It is called while a program runs: nothing here uses JAX, which could wait for the program.
    """
    blocks = [_leaves.to_block(out, leaf_axes) for out, leaf_axes in zip(outs, axes, strict=True)]
    jobs = []
    for leaf_axes, out, *leaf in zip(axes, blocks, *by_operand(flat, axes), strict=True):
        operands = [_leaves.to_block(array, leaf_axes) for array in leaf]
        outer, n, inner = out.shape
        step = -(-_JOB // max(1, n) // LANES) * LANES  # kernels copy so many vectors together
        jobs += [
            (*operands, out, start, min(start + step, outer * inner))
            for start in range(0, outer * inner if n else 0, step)
        ]
    run_jobs(lambda job: permutation.on_host(*job), jobs)
    for leaf_axes, out, block in zip(axes, outs, blocks, strict=True):
        if not np.may_share_memory(out, block):  # the axes of its vectors are not neighbours
            out[...] = _leaves.from_block(block, out.shape, leaf_axes)
