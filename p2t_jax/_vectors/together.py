"""What is known of a value that is made of several: their sum, one of them, or all side by side."""

import functools
from collections.abc import Callable, Iterable, Sequence

from p2t_jax._vectors.origins import (
    ACCUMULATED,
    DIRECT,
    GAIN,
    JOINED,
    MIXED,
    Dims,
    Origin,
    Part,
    Slice,
    Value,
    cut,
    mixed,
)
from p2t_jax._vectors.uses import Uses


def summed(a: Origin | None, b: Origin) -> Origin:
    """The origin in one parameter of what is made, element by element, of two values that have it.

    Two slices of a parameter are then in one element: it follows the axes of neither.
    """
    return _both(a, b) or mixed("it meets another part of itself")


def either(a: Origin | None, b: Origin) -> Origin:
    """The origin of a value that is one of two: each of them, in its turn, is used as a whole."""
    if a and a.kind != MIXED and b.kind != MIXED and a.dims == b.dims:
        return b if b.kind == ACCUMULATED else a._replace(slices=_union(a.slices, b.slices))
    return summed(a, b)


def beside(a: Origin | None, b: Origin, along: int) -> Origin:
    """The origin of two values that are put one after the other along a dimension.

    If they are different slices, what runs along that dimension is not one axis any more.
    """
    same = _both(a, b)
    if same or a is None or a.dims != b.dims:
        return same or mixed("it meets itself in another layout")
    slices = _union(a.slices, b.slices)
    if _apart(a.slices, b.slices):
        return a._replace(slices=slices)
    lost = [Part(axis, 0, 0, 0) for s in slices for axis in s.axes]
    dims = tuple(cut([*d, *lost]) if i == along else d for i, d in enumerate(a.dims))
    return a._replace(dims=dims, slices=slices)


def _both(a: Origin | None, b: Origin) -> Origin | None:
    """The origin of two values, unless they are different slices of a parameter."""
    if a is None or a == b:
        return b
    if MIXED in (a.kind, b.kind):
        tangled = [o for o in (a, b) if o.kind == MIXED and not o.spread]
        return tangled[0] if tangled else b if a.kind == MIXED else a
    if a.kind == ACCUMULATED or b.kind == ACCUMULATED:
        return a if a.kind == ACCUMULATED else b
    fewer = all(not mine or mine == its for mine, its in zip(a.dims, b.dims, strict=True))
    more = all(not its or mine == its for mine, its in zip(a.dims, b.dims, strict=True))
    if not (fewer or more):
        return mixed("it meets itself in another layout")
    if a.slices != b.slices:
        return None
    return b if fewer and a.dims != b.dims else a


def _union(a: Sequence[Slice], b: Sequence[Slice]) -> tuple[Slice, ...]:
    return tuple(sorted({*a, *b}))


def _apart(a: Sequence[Slice], b: Sequence[Slice]) -> bool:
    """Whether padding has put two values beside each other: blocks on a diagonal."""
    return any(
        first_end <= second or second_end <= first
        for one in a
        for other in b
        for (first, first_end), (second, second_end) in zip(one.at, other.at, strict=False)
    )


def joined(
    values: Iterable[Value],
    uses: Uses,
    meet: Callable[[Origin | None, Origin], Origin] = summed,
    dims_of: Callable[[int, Dims], Dims] = lambda i, dims: dims,
) -> Value:
    """Values that are parts of one.

    Args:
        values: the parts.
        uses: the record of what becomes of parameters.
        meet: the origin of a parameter that two of the parts have.
        dims_of: the dimensions in the result, of part i.

    Returns:
        The whole value.
    """
    values = list(values)
    depends = any(v.depends for v in values)
    out: dict[int, Origin] = {}
    for i, value in enumerate(values):
        for p, origin in value.parameters:
            new = origin.mapped(functools.partial(dims_of, i))
            if depends and origin.kind == MIXED:
                uses.indirect(p, origin.why)
                continue
            if depends and origin.kind in (DIRECT, GAIN):
                new = new._replace(kind=JOINED)
            out[p] = meet(out.get(p), new)
    out |= neurons([v.mapped(functools.partial(dims_of, i)) for i, v in enumerate(values)])
    return Value(depends, tuple(sorted(out.items())))


def neurons(values: Sequence[Value]) -> dict[int, Origin]:
    """The axes that are left of contracted parameters, in a sum of values or beside each other."""
    out: dict[int, Origin] = {}
    for value in values:
        for p, origin in value.neurons:
            known = out.get(p, origin)
            dims = tuple(
                mine if mine == its else cut([*mine, *its])
                for mine, its in zip(known.dims, origin.dims, strict=True)
            )
            out[p] = origin._replace(dims=dims)
    return out
