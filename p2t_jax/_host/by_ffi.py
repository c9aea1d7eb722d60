"""The door of XLA's FFI: on CPUs, without copies. Its calls can be exported and cached.

What is static about a call is a string in the program, and no object of Python's: the program
may run in another process, which has imported the library.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from p2t_jax import _leaves
from p2t_jax._host import ffi
from p2t_jax._host.permutation import (
    Array,
    Permutation,
    by_operand,
    find,
    find_positions,
    position_dtype,
    position_types,
)
from p2t_jax._leaves import Axes

TARGET = "p2t_jax.permute"  # A program that was exported keeps it.
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
    call = jax.ffi.ffi_call(TARGET, position_types(values, axes))
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
