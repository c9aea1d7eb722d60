"""The door of `jax.pure_callback`: on every platform, with copies of all operands."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax import _leaves
from p2t_jax._host.permutation import (
    Array,
    Permutation,
    by_operand,
    find_positions,
    position_types,
)
from p2t_jax._leaves import Axes

_SMALL = 1 << 12  # Numbers up to which an operand of a callback is packed with others.
# Weights per callback: a callback holds several copies of its operands.
WEIGHTS_PER_CALLBACK = 1 << 22


def by_pure_callback(
    *flat: jax.Array, permutation: Permutation, axes: Sequence[Axes]
) -> Sequence[jax.Array]:
    """Permutes as `by_ffi` does: once for all parameters, and piecewise for very large ones."""
    call = functools.partial(_by_callback, permutation=permutation)
    leaves = list(zip(axes, *by_operand(flat, axes), strict=True))
    together = [
        i for i, (_, values, *_) in enumerate(leaves) if values.size <= WEIGHTS_PER_CALLBACK
    ]
    results: dict[int, jax.Array] = {}
    if together:
        groups = zip(*(leaves[i][1:] for i in together), strict=True)
        operands = [x for group in groups for x in group]
        permuted = call(*operands, axes=[axes[i] for i in together])
        results = dict(zip(together, permuted, strict=True))
    for i, (leaf_axes, *leaf) in enumerate(leaves):
        if i not in results:
            results[i] = _piecewise(functools.partial(call, axes=[leaf_axes]), leaf_axes, *leaf)
    return [results[i] for i in range(len(leaves))]


def _piecewise(call: Any, axes: Axes, *leaf: jax.Array) -> jax.Array:
    """`call` for a few vectors at a time, in a loop that overwrites an operand."""
    shape = leaf[0].shape
    axis = _leaves.row_axis(shape, axes)
    pieces = -(-leaf[0].size // WEIGHTS_PER_CALLBACK)
    if axis is None or shape[axis] < 2:
        result: jax.Array = call(*leaf)[0]
        return result
    size = -(-shape[axis] // pieces)
    # The operand that is least likely to be needed afterwards: phi or r.
    over = max(i for i, x in enumerate(leaf[:3]) if (x.shape, x.dtype) == (shape, leaf[0].dtype))

    def write(start: Any, size: int, out: jax.Array) -> jax.Array:
        operands = [*leaf[:over], out, *leaf[over + 1 :]]
        piece = call(*(jax.lax.dynamic_slice_in_dim(x, start, size, axis) for x in operands))[0]
        return jax.lax.dynamic_update_slice_in_dim(out, piece, start, axis)

    whole = shape[axis] // size
    out = jax.lax.fori_loop(0, whole, lambda i, out: write(i * size, size, out), leaf[over])
    rest = shape[axis] - whole * size
    return write(whole * size, rest, out) if rest else out


def _by_callback(
    *flat: jax.Array, permutation: Permutation, axes: Sequence[Axes]
) -> Sequence[jax.Array]:
    values, operands = flat[: len(axes)], flat[len(axes) :]
    types = position_types(values, axes)
    sent, unpack = _pack(operands)

    def callback(*received: Any) -> list[Array]:
        outs: list[Array] = [np.empty(x.shape, x.dtype) for x in types]
        find_positions(permutation, axes, unpack(received), outs)
        return outs

    positions = jax.pure_callback(callback, types, *sent)
    return list(map(_leaves.take, values, positions, axes))


def _pack(
    arrays: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[Any]], list[Array]]]:
    """Prepares operands for a callback.

    All small arrays of 32-bit numbers are put into one: each operand of a callback costs 50 us.
    64-bit numbers become pairs of 32-bit ones: JAX reads its 64-bit switch on the thread of the
    callback, where the user's context manager is not visible.

    Returns the operands to send, and what gives NumPy arrays like `arrays` from what is received.
    """
    dtypes = [np.dtype(x.dtype) for x in arrays]
    sent = [_as_words(x) if x.dtype.itemsize == 8 else x for x in arrays]
    shapes = [x.shape for x in sent]
    small = [i for i, x in enumerate(sent) if x.dtype.itemsize == 4 and x.size <= _SMALL]
    large = [i for i in range(len(sent)) if i not in small]
    together = [jnp.concatenate([_as_words(sent[i]).ravel() for i in small])] if small else []

    def unpack(received: Sequence[Any]) -> list[Array]:
        found = {i: np.asarray(x) for i, x in zip(large, received, strict=False)}
        start = 0
        for i in small:
            stop = start + math.prod(shapes[i])
            found[i] = np.asarray(received[-1])[start:stop].reshape(shapes[i])
            start = stop
        views = [found[i].view(dtype) for i, dtype in enumerate(dtypes)]
        return [
            x[..., 0] if dtype.itemsize == 8 else x for x, dtype in zip(views, dtypes, strict=True)
        ]

    return [*(sent[i] for i in large), *together], unpack


def _as_words(x: jax.Array) -> jax.Array:
    """The bits as uint32, in pairs for 64-bit numbers."""
    return jax.lax.bitcast_convert_type(x, np.uint32)
