"""What single equations of a traced program do to the values that go into them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from p2t_jax._jax_internals import is_literal, is_traced
from p2t_jax._vectors.inference import meaning, sums, together
from p2t_jax._vectors.inference.bilinear import Side
from p2t_jax._vectors.inference.origins import (
    CONSTANT,
    Dims,
    Fact,
    Kind,
    Origin,
    Part,
    Slice,
    Value,
    cut,
    placed,
    reshaped,
)
from p2t_jax._vectors.inference.uses import Uses


def constant(const: Any) -> Value:
    """A constant, which may be 0, or 0 to n - 1 along an axis, as one-hot encodings compare."""
    shape = np.shape(const)
    if is_traced(const) or np.size(const) > 10**6 or not jnp.issubdtype(const.dtype, np.number):
        return CONSTANT
    if not np.any(const):
        return Value(False, ((Fact.ZERO, Origin(Kind.DIRECT, ((),) * len(shape))),))
    long = [axis for axis, n in enumerate(shape) if n > 1]
    if len(long) != 1:
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
    wider = any(n > 1 for j, n in enumerate(new) if j not in kept)
    origins = [(p, o._replace(spread=o.spread or wider)) for p, o in out.origins if p != Fact.FLAT]
    if value.depends:
        was_flat = out.dims_of(Fact.FLAT) or ((),) * len(new)
        same = [was_flat[j] if j in kept else (Part(0, 1, n, n),) for j, n in enumerate(new)]
        origins.append((Fact.FLAT, Origin(Kind.DIRECT, tuple(same))))
    return Value(value.depends, tuple(sorted(origins)))


def _iota(shape: Sequence[int], axis: int) -> Value:
    n = shape[axis]
    dims = tuple((Part(0, 1, n, n),) if i == axis else () for i in range(len(shape)))
    return Value(False, ((Fact.IOTA, Origin(Kind.DIRECT, dims)),))


def shape_of(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)


def ndim_of(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))


# Operations that move elements


def _broadcast(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    old, new = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return _broadcast_to(ins[0], old, new, eqn.params["broadcast_dimensions"])


def _transpose(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0].mapped(lambda dims: tuple(dims[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0].without(eqn.params["dimensions"])


def _reshape(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    old, order = shape_of(eqn.invars[0]), eqn.params["dimensions"]
    order = range(len(old)) if order is None else order  # It transposes first.
    change = reshaped([old[i] for i in order], shape_of(eqn.outvars[0]))
    return ins[0].mapped(lambda dims: change(tuple(dims[i] for i in order)))


def _slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    where = f"{starts}:{limits}:{eqn.params['strides']}"
    return meaning.sliced(ins[0], shape_of(eqn.outvars[0]), shape_of(eqn.invars[0]), where)


def _dynamic_slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, *indices = ins
    # What is taken by the same equation is the same, if its indices are.
    where = str([var.val if is_literal(var) else f"? {id(eqn)}" for var in eqn.invars[1:]])
    out = meaning.sliced(value, shape_of(eqn.outvars[0]), shape_of(eqn.invars[0]), where)
    return meaning.looked_up(out, any(v.depends for v in indices), uses)


def _pad(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, padding = ins
    config, sizes = eqn.params["padding_config"], shape_of(eqn.invars[0])
    low_high = [(low, high) for low, high, _ in config]
    if min((n for pair in low_high for n in pair), default=0) < 0:
        value = meaning.sliced(value, [0] * len(low_high), [1] * len(low_high), str(low_high))
    at = tuple(
        (low, low + n + max(n - 1, 0) * interior)
        for n, (low, _, interior) in zip(sizes, config, strict=True)
    )
    value = value.each(lambda o: o._replace(slices=(*o.slices, Slice("padded", at=at))))
    return together.joined([value, padding.mapped(lambda _: ((),) * len(config))], uses)


def _concatenate(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    meet = functools.partial(together.beside, along=eqn.params["dimension"])
    return together.joined(ins, uses, meet)


def _dynamic_update_slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return together.joined(ins[:2], uses)


def _reverse(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.reordered(ins[0], eqn.params["dimensions"])


def _gather(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, indices = ins
    if not value.parameters:
        uses.ended(indices)
        return Value(value.depends or indices.depends)
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    full, ndim = shape_of(eqn.invars[0]), ndim_of(eqn.outvars[0])
    batching = tuple(numbers.operand_batching_dims)
    kept = [i for i in range(len(full)) if i not in (*numbers.collapsed_slice_dims, *batching)]
    places = dict(zip(kept, numbers.offset_dims, strict=True))
    taken = [full[i] if i in batching else size for i, size in enumerate(sizes)]
    part = meaning.sliced(value, taken, full, f"? {id(eqn)}")

    def change(dims: Dims) -> Dims:
        indexed = cut([p for i in (*numbers.start_index_map, *batching) for p in dims[i]])
        moved = placed(places, ndim, dims)
        return tuple(d if j in numbers.offset_dims else indexed for j, d in enumerate(moved))

    return meaning.looked_up(part.mapped(change), indices.depends, uses)


# Operations that contract


def _dot_general(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    contracted, batch = eqn.params["dimension_numbers"]
    return _contract(eqn, ins, contracted, contracted, batch, uses)


def _ragged(eqn: Any, ins: list[Value], uses: Uses) -> Value | None:
    """Rows of the left side, in groups, with one matrix of the right side for each group."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    if (
        eqn.params["group_offset"] is not None
        or batch != ((), ())
        or any(row in contracted[0] for row in numbers.lhs_ragged_dimensions)
        or len(numbers.rhs_group_dimensions) != 1
    ):
        return None
    uses.ended(ins[2])
    gone = contracted[0], (*contracted[1], *numbers.rhs_group_dimensions)
    return _contract(eqn, ins, contracted, gone, batch, uses)


def _contract(
    eqn: Any, ins: list[Value], contracted: Any, gone: Any, batch: Any, uses: Uses
) -> Value:
    """A dot product: the result has the batch, then what is left of each side."""
    sides = []
    n = len(batch[0])
    for k in (0, 1):
        shape = shape_of(eqn.invars[k])
        free = [i for i in range(len(shape)) if i not in (*gone[k], *batch[k])]
        at = {i: j for j, i in enumerate(batch[k])} | {i: n + j for j, i in enumerate(free)}
        n += len(free)
        sides.append(Side(ins[k], shape, contracted[k], at))
    return sums.contraction(sides[0], sides[1], shape_of(eqn.outvars[0]), uses)


def _conv(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    image, kernel = ins
    numbers = eqn.params["dimension_numbers"]
    for p, origin in image.parameters:
        if kernel.depends and not origin.waits:
            uses.unclear(p, "it is the input of a convolution, with a kernel that depends on data")
    if kernel.depends and not image.depends:
        image = CONSTANT
    (batch, *of_image), (neurons, *of_kernel) = numbers.lhs_spec, numbers.rhs_spec
    rows = {batch: numbers.out_spec[0]} if eqn.params["batch_group_count"] == 1 else {}
    left, right = map(shape_of, eqn.invars)
    return sums.contraction(
        Side(image, left, of_image, rows),
        Side(kernel, right, of_kernel, {neurons: numbers.out_spec[1]}),
        shape_of(eqn.outvars[0]),
        uses,
    )


def resized(value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
    changed = {i: n for i, n in enumerate(new) if n != old[i]}

    def change(dims: Dims) -> Dims:
        return tuple(_share(d, changed[i]) if i in changed else d for i, d in enumerate(dims))

    return value.mapped(change)


def _share(parts: tuple[Part, ...], n: int) -> tuple[Part, ...]:
    if len(parts) == 1 and parts[0].stride == 1 and parts[0].total in (parts[0].size, n):
        return (Part(parts[0].axis, 1, n, n),)
    return cut(parts)


def _all_gather(eqn: Any, ins: list[Value], uses: Uses) -> Value | None:
    if not eqn.params["tiled"] or eqn.params["axis_index_groups"] is not None:
        return None
    return resized(ins[0], shape_of(eqn.invars[0]), shape_of(eqn.outvars[0]))


def _new_iota(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return _iota(shape_of(eqn.outvars[0]), eqn.params["dimension"])


def _select(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    whole = not shape_of(eqn.invars[0])
    return meaning.select(broadcast_ones(eqn, ins), uses, whole=whole)


def _convert(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    out = meaning.elementwise("convert_element_type", ins, uses)
    if not (out.depends and eqn.invars[0].aval.dtype == np.bool_):
        return out
    truth = Origin(Kind.DIRECT, ((),) * ndim_of(eqn.outvars[0]))
    return Value.of(True, dict(out.origins) | {Fact.TRUTH: truth})


RULES: dict[str, Callable[[Any, list[Value], Uses], Value | None]] = {
    "all_gather": _all_gather,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _new_iota,
    "pad": _pad,
    "ragged_dot_general": _ragged,
    "reshape": _reshape,
    "rev": _reverse,
    "select_n": _select,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
