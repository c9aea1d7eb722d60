"""What single equations of a traced programme do to the values that go into them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from p2t_jax._host.internals import is_literal, is_traced
from p2t_jax._vectors import sums
from p2t_jax._vectors import uses as meaning
from p2t_jax._vectors.origins import (
    CONDITIONAL,
    CONSTANT,
    DATA,
    DIRECT,
    FLAT,
    IOTA,
    Dims,
    Origin,
    Part,
    Value,
    cut,
    reshaped,
)
from p2t_jax._vectors.uses import Uses


def constant(const: Any) -> Value:
    """A constant: known to be 0 to n - 1 along an axis, as a one-hot encoding compares with."""
    shape = np.shape(const)
    long = [axis for axis, n in enumerate(shape) if n > 1]
    if len(long) != 1 or np.size(const) > 10**6 or is_traced(const):
        return CONSTANT
    if not jnp.issubdtype(const.dtype, np.number):
        return CONSTANT
    counted = np.array_equal(np.asarray(const).ravel(), np.arange(np.size(const)))
    return _iota(shape, long[0]) if counted else CONSTANT


def broadcast_ones(eqn: Any, ins: list[Value]) -> list[Value]:
    """The operands with the dimensions of the result: scalars and sizes of 1 are broadcast."""
    new = shape_of(eqn.outvars[0])
    return [
        _broadcast_to(v, shape_of(var), new, range(len(new))[len(new) - len(shape_of(var)) :])
        if shape_of(var) != new
        else v
        for v, var in zip(ins, eqn.invars, strict=True)
    ]


def _broadcast_to(
    value: Value, old: Sequence[int], new: Sequence[int], where: Sequence[int]
) -> Value:
    """A value of which dimension i becomes dimension `where[i]`; along all else it is the same."""
    kept = {j: i for i, j in enumerate(where) if old[i] == new[j]}
    out = value.mapped(lambda d: tuple(d[kept[j]] if j in kept else () for j in range(len(new))))
    if not value.depends:
        return out
    was_flat = out.dims_of(FLAT) or ((),) * len(new)
    same = tuple(was_flat[j] if j in kept else (Part(0, 1, n, n),) for j, n in enumerate(new))
    others = [(p, o) for p, o in out.origins if p != FLAT]
    return Value(True, tuple(sorted([*others, (FLAT, Origin(DIRECT, same))])))


def _iota(shape: Sequence[int], axis: int) -> Value:
    n = shape[axis]
    dims = tuple((Part(0, 1, n, n),) if i == axis else () for i in range(len(shape)))
    return Value(False, ((IOTA, Origin(DIRECT, dims)),))


def shape_of(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)


def rank_of(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))


# Operations that move elements


def _broadcast(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    value = ins[0]
    if value.origins or jnp.issubdtype(eqn.outvars[0].aval.dtype, np.integer):
        return _broadcast_to(value, old, new, eqn.params["broadcast_dimensions"])
    return value


def _transpose(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0].mapped(lambda dims: tuple(dims[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    gone = eqn.params["dimensions"]
    return ins[0].mapped(lambda dims: tuple(d for i, d in enumerate(dims) if i not in gone))


def _reshape(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0].mapped(reshaped(shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])))


def _slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    where = f"{starts}:{limits}:{eqn.params['strides']}"
    return meaning.sliced(ins[0], shape_of(eqn.outvars[0]), shape_of(eqn.invars[0]), where)


def _dynamic_slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, *indices = ins
    where = str([var.val if is_literal(var) else "?" for var in eqn.invars[1:]])
    out = meaning.sliced(value, shape_of(eqn.outvars[0]), shape_of(eqn.invars[0]), where)
    return meaning.looked_up(out, any(v.depends for v in indices), uses)


def _pad(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, padding = ins
    low_high = [(low, high) for low, high, _ in eqn.params["padding_config"]]
    if min((n for pair in low_high for n in pair), default=0) < 0:
        value = meaning.sliced(value, [0] * len(low_high), [1] * len(low_high), str(low_high))
    return meaning.joined([value, padding], lambda i, dims: dims or ((),) * len(low_high), uses)


def _concatenate(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.joined(ins, lambda i, dims: dims, uses)


def _dynamic_update_slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.joined(ins[:2], lambda i, dims: dims, uses)


def _gather(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, indices = ins
    if not value.origins:
        uses.ended(indices)
        return DATA if value.depends or indices.depends else CONSTANT
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    full, rank = shape_of(eqn.invars[0]), rank_of(eqn.outvars[0])
    batching = tuple(numbers.operand_batching_dims)
    kept = [i for i in range(len(full)) if i not in (*numbers.collapsed_slice_dims, *batching)]
    batch = [i for i in range(rank) if i not in numbers.offset_dims]
    part = meaning.sliced(value, sizes, full, "?") if not batching else value

    def change(dims: Dims) -> Dims:
        out: list[tuple[Part, ...]] = [()] * rank
        for i, j in zip(kept, numbers.offset_dims, strict=True):
            out[j] = dims[i]
        indexed = [p for i in (*numbers.start_index_map, *batching) for p in dims[i]]
        for j in batch:
            out[j] = cut(indexed)
        return tuple(out)

    return meaning.looked_up(part.mapped(change), indices.depends, uses)


# Operations that contract


def _dot_general(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    numbers = eqn.params.get("dimension_numbers")
    if numbers is None:
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    contracted, batch = numbers
    ranks = [rank_of(var) for var in eqn.invars[:2]]
    if "ragged_dot_dimension_numbers" in eqn.params:
        uses.ended(ins[2])
        return _ragged(eqn, ins[0], ins[1], contracted, uses)
    free = [
        [i for i in range(rank) if i not in (*contracted[side], *batch[side])]
        for side, rank in enumerate(ranks)
    ]
    order = [[*batch[0], *free[0]], [*batch[1]]]
    places = (
        {i: j for j, i in enumerate(order[0])},
        {i: j for j, i in enumerate(order[1])}
        | {i: len(order[0]) + j for j, i in enumerate(free[1])},
    )
    return sums.contraction(ins[0], ins[1], contracted, places, rank_of(eqn.outvars[0]), uses)


def _ragged(eqn: Any, left: Value, right: Value, contracted: Any, uses: Uses) -> Value:
    rank = rank_of(eqn.outvars[0])
    return sums.contraction(left, right, contracted, ({}, {}), rank, uses)


def _conv(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    image, kernel = ins
    numbers = eqn.params["dimension_numbers"]
    for p, origin in image.parameters:
        if kernel.depends and origin.kind not in CONDITIONAL:
            uses.unclear(p, "it is the input of a convolution, with a kernel that depends on data")
    if kernel.depends and not image.depends:
        image = CONSTANT
    image_dims = tuple(numbers.lhs_spec[1:])
    kernel_dims = tuple(numbers.rhs_spec[1:])
    rank = rank_of(eqn.outvars[0])
    return sums.contraction(image, kernel, (image_dims, kernel_dims), ({}, {}), rank, uses)


def resized(value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
    changed = {i: n for i, n in enumerate(new) if n != old[i]}

    def change(dims: Dims) -> Dims:
        return tuple(_share(d, changed[i]) if i in changed else d for i, d in enumerate(dims))

    return value.mapped(change)


def _share(parts: tuple[Part, ...], n: int) -> tuple[Part, ...]:
    if len(parts) == 1 and parts[0].size == parts[0].total:
        return (Part(parts[0].axis, 1, n, n),)
    return cut(parts)


def _all_gather(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    if not eqn.params["tiled"]:
        (out,) = meaning.swallowed("all_gather", ins, 1, uses)
        return out
    return resized(ins[0], shape_of(eqn.invars[0]), shape_of(eqn.outvars[0]))


def _new_iota(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return _iota(shape_of(eqn.outvars[0]), eqn.params["dimension"])


def _select(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.select(broadcast_ones(eqn, ins), uses)


def _reverse(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0]


RULES: dict[str, Callable[[Any, list[Value], Uses], Value]] = {
    "all_gather": _all_gather,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _new_iota,
    "pad": _pad,
    "ragged_dot": _dot_general,
    "ragged_dot_general": _dot_general,
    "reshape": _reshape,
    "rev": _reverse,
    "select_n": _select,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
