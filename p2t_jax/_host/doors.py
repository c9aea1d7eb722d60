"""The two doors to the host, for one device: XLA's FFI, and `jax.pure_callback`.

Both find positions for all parameters in one call, and JAX takes the weights. The FFI copies
nothing and waits for nothing, and its calls can be exported and cached. Before JAX 0.12,
`jax.pure_callback` can hang.
"""

import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax import _leaves
from p2t_jax._host import ffi
from p2t_jax._host.permutation import (
    Array,
    Permutation,
    by_operand,
    find,
    find_positions,
    position_dtype,
)
from p2t_jax._host.sharing import cores
from p2t_jax._leaves import Axes

# A callback of `jax.pure_callback` waits for copies of its operands. Before JAX 0.12 these are made
# on the threads that callbacks run on, as many as there are cores. So a programme hangs where
# callbacks occupy all of them: on several CPU devices, or on a single core.
CALLBACKS_CAN_HANG = jax.__version_info__ < (0, 12)

_SMALL = 1 << 12  # Numbers up to which an operand of a callback is packed with others.
# Weights per callback: a callback holds several copies of its operands.
WEIGHTS_PER_CALLBACK = 1 << 22


def door(permutation: Permutation, on_cpu: bool, asked_for_ffi: bool) -> Callable[..., Any]:
    """The door that a programme on one device takes: `by_ffi` or `by_pure_callback`."""
    crowded = jax.local_device_count("cpu") > 1 or cores() == 1
    safe = permutation.by_pure_callback and not (CALLBACKS_CAN_HANG and crowded)
    if on_cpu and (asked_for_ffi or not safe):
        if ffi.fits():
            return by_ffi
        _say_that_it_does_not_fit()
    return by_pure_callback


@functools.cache
def _say_that_it_does_not_fit() -> None:
    warnings.warn(
        "p2t_jax does not know the FFI of this version of jaxlib, and calls the host through "
        "jax.pure_callback instead. Before JAX 0.12 that can hang on several CPU devices, on a "
        "single core, and in several Python threads.",
        stacklevel=2,
    )


def _position_types(values: Sequence[Any], axes: Sequence[Axes]) -> list[jax.ShapeDtypeStruct]:
    lengths = [_leaves.vector_length(x.shape, a) for x, a in zip(values, axes, strict=True)]
    return [
        jax.ShapeDtypeStruct(x.shape, position_dtype(n))
        for x, n in zip(values, lengths, strict=True)
    ]


# XLA's FFI

TARGET = "p2t_jax.permute"  # A programme that was exported keeps it.
_FORMAT = 1  # Of the attribute.


class _Call(NamedTuple):
    """What is static about a call: its attribute, which is JSON.

    Attributes:
        permutation: what is done.
        axes: for each parameter, the ascending axes of its vectors.
        dtypes: for each parameter, those of its operands.
    """

    permutation: Permutation
    axes: Sequence[Axes]
    dtypes: Sequence[Sequence[str]]


def by_ffi(*flat: jax.Array, permutation: Permutation, axes: Sequence[Axes]) -> Sequence[jax.Array]:
    """Permutes through XLA's FFI: `flat` has the values, then each operand of all parameters."""
    values, operands = flat[: len(axes)], flat[len(axes) :]
    dtypes = [
        [x.dtype.name for x in leaf] for leaf in zip(*by_operand(operands, axes), strict=True)
    ]
    call = jax.ffi.ffi_call(TARGET, _position_types(values, axes))
    positions = call(*operands, **{ffi.ATTRIBUTE: _write(_Call(permutation, axes, dtypes))})
    return list(map(_leaves.take, values, positions, axes))


def _write(call: _Call) -> str:
    described: Any = call.permutation
    return json.dumps(
        {
            "format": _FORMAT,
            "permutation": call.permutation.name,
            "options": dataclasses.asdict(described),
            "axes": call.axes,
            "dtypes": call.dtypes,
        }
    )


@functools.lru_cache
def _read(attribute: str) -> _Call:
    try:
        found = json.loads(attribute)
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}, not {_FORMAT}")
        axes = tuple(tuple(map(int, leaf_axes)) for leaf_axes in found["axes"])
        call = _Call(find(found["permutation"], found["options"]), axes, found["dtypes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"p2t_jax: cannot carry out a call of another version of it: {error!r} in {attribute!r}"
        ) from error
    return call


def _answer(attribute: str, operands: list[Array], outs: list[Array]) -> None:
    """Carries out a call. Kernels do not look at sizes: what fits the attribute is checked here."""
    call = _read(attribute)
    kind = call.permutation
    count = kind.operands + len(kind.numbers)
    if not len(outs) == len(call.axes) == len(call.dtypes) or len(operands) != count * len(outs):
        raise ValueError(f"p2t_jax: {len(operands)} operands, {len(outs)} results: {attribute!r}")
    leaves = zip(call.axes, call.dtypes, outs, *by_operand(operands, call.axes), strict=True)
    for axes, dtypes, out, *leaf in leaves:
        inside = axes[0] >= 0 and axes[-1] < out.ndim if axes else False
        if not inside or list(axes) != sorted(set(axes)):
            raise ValueError(f"p2t_jax: axes {axes} of an array {out.shape}: {attribute!r}")
        numbers = [(_leaves.rows_shape(out.shape, axes), dtype) for dtype in kind.numbers]
        expected = [(out.shape, dtype) for dtype in dtypes[: kind.operands]] + numbers
        given = [(x.shape, x.dtype.name) for x in leaf]
        if given != expected or list(dtypes) != [dtype for _, dtype in expected]:
            raise ValueError(f"p2t_jax: expected {expected}, got {given}: {attribute!r}")
        if out.dtype != position_dtype(_leaves.vector_length(out.shape, axes)):
            raise ValueError(f"p2t_jax: positions must not be {out.dtype}: {attribute!r}")
    find_positions(kind, call.axes, operands, outs)


ffi.register(TARGET, _answer)


# jax.pure_callback


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
    types = _position_types(values, axes)
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
