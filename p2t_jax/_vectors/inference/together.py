"""What is known of a value that is made of several: their sum, one of them, or all side by side."""

from collections.abc import Callable, Sequence

from p2t_jax._vectors.inference.origins import Kind, Origin, Part, Slice, Value, cut
from p2t_jax._vectors.inference.uses import Uses


def summed(a: Origin | None, b: Origin) -> Origin:
    """The origin in one parameter of what is made, element by element, of two values that have it.

    Two slices of a parameter are then in one element: it follows the axes of neither.
    """
    return _both(a, b) or Origin.mixed("it meets another part of itself")


def either(a: Origin | None, b: Origin) -> Origin:
    """The origin of a value that is one of two: each of them, in its turn, is used as a whole."""
    if a and a.kind != Kind.MIXED and b.kind != Kind.MIXED and a.dims == b.dims:
        return b if b.kind == Kind.ACCUMULATED else a._replace(slices=_union(a.slices, b.slices))
    return summed(a, b)


def beside(a: Origin | None, b: Origin, along: int) -> Origin:
    """The origin of two values that are put one after the other along a dimension.

    If they are different slices, what runs along that dimension is not one axis any more.
    """
    same = _both(a, b)
    if same or a is None or a.dims != b.dims:
        return same or Origin.mixed("it meets itself in another layout")
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
    if Kind.MIXED in (a.kind, b.kind):
        tangled = [o for o in (a, b) if o.kind == Kind.MIXED and not o.spread]
        return tangled[0] if tangled else b if a.kind == Kind.MIXED else a
    if a.kind == Kind.ACCUMULATED or b.kind == Kind.ACCUMULATED:
        return a if a.kind == Kind.ACCUMULATED else b
    fewer = all(not mine or mine == its for mine, its in zip(a.dims, b.dims, strict=True))
    more = all(not its or mine == its for mine, its in zip(a.dims, b.dims, strict=True))
    if not (fewer or more):
        return Origin.mixed("it meets itself in another layout")
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
    values: Sequence[Value], uses: Uses, meet: Callable[[Origin | None, Origin], Origin] = summed
) -> Value:
    """Values that are parts of one. `meet`: the origin in a parameter that two of them have."""
    depends = any(v.depends for v in values)
    out: dict[int, Origin] = {}
    for value in values:
        for p, origin in value.parameters:
            if depends and origin.kind == Kind.MIXED:
                uses.indirect(p, origin.why)
                continue
            if depends and origin.plain:
                origin = origin._replace(kind=Kind.JOINED)
            out[p] = meet(out.get(p), origin)
    return Value.of(depends, out | neurons(values))


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
