"""What operations that sum over axes do to parameters: reductions, and products with data."""

import functools
import math
from collections.abc import Sequence

from p2t_jax._vectors.inference import bilinear
from p2t_jax._vectors.inference.bilinear import Side
from p2t_jax._vectors.inference.meaning import elementwise
from p2t_jax._vectors.inference.origins import Fact, Kind, Origin, Part, Value, contracted, placed
from p2t_jax._vectors.inference.uses import Uses


def reduced(name: str, value: Value, axes: Sequence[int], uses: Uses) -> Value:
    """A reduction over dimensions, which are left out."""
    out: dict[int, Origin] = {}
    left = value.without(axes)
    if name == "reduce_sum":
        out |= {p: origin for p, origin in left.neurons if any(origin.dims)}
    for (p, origin), (_, rest) in zip(value.parameters, left.parameters, strict=True):
        if origin.kind == Kind.MIXED:
            out[p] = origin
            continue
        parts = [part for i in axes for part in origin.dims[i] if part.total != 1]
        if origin.plain:
            lost = Origin.mixed("it is summed or reduced over its axes first")
            out[p] = lost if parts else rest
        elif not parts and (origin.kind != Kind.PRODUCT or name == "reduce_sum"):
            out[p] = rest
        elif origin.kind in (Kind.PRODUCT, Kind.SUMMED) and name == "reduce_sum" and parts:
            uses.unclear(p, "it is multiplied elementwise, and the products are summed")
        else:
            uses.elementwise(p, origin)
    return Value.of(value.depends, out)


def contraction(left: Side, right: Side, shape: Sequence[int], uses: Uses) -> Value:
    """A dot product, of this shape: sums over pairs of dimensions, one of each side."""
    if not left.summed:
        return _outer_product(left, right, shape, uses)
    out: dict[int, Origin] = {}
    for side, other in ((left, right), (right, left)):
        out |= _one_side(side, other, len(shape), uses)
        out |= bilinear.contract_again(side, other, len(shape), uses)
    return Value.of(left.value.depends or right.value.depends, out)


def _outer_product(left: Side, right: Side, shape: Sequence[int], uses: Uses) -> Value:
    moved = [
        side.value.mapped(functools.partial(placed, side.places, len(shape)))
        for side in (left, right)
    ]
    out = elementwise("mul", moved, uses)
    if not (left.value.depends and right.value.depends):
        return out
    return Value.of(True, dict(out.origins) | bilinear.outer_product_of_data(left, right, shape))


def _one_side(side: Side, other: Side, ndim: int, uses: Uses) -> dict[int, Origin]:
    """What a dot product does to the parameters on one side of it."""
    depends = side.value.depends or other.value.depends
    by_one_hot = _looks_up(side, other)
    out: dict[int, Origin] = {}
    for p, origin in side.value.parameters:
        if origin.kind == Kind.MIXED:
            if depends:
                uses.indirect(p, origin.why)
            else:
                out[p] = origin
            continue
        parts = [part for i in side.summed for part in origin.dims[i]]
        after = origin.mapped(functools.partial(placed, side.places, ndim))
        if not depends:
            why = "another parameter" if other.value.parameters else "a constant"
            lost = Origin.mixed(f"it first meets {why}, in a dot product")
            out[p] = lost if parts or other.value.parameters else after
        elif origin.waits and not (origin.kind == Kind.CHOSEN and parts and other.value.depends):
            _contract_waiting(p, origin, parts, other.value, uses)
        elif by_one_hot:
            out[p] = after._replace(kind=Kind.LOOKED_UP)
        else:
            bilinear.check_contraction(p, origin, side, other, uses)
            uses.contracted(p, origin, parts)
            rest = bilinear.neurons_of(origin, side, other, ndim)
            out |= {contracted(p): rest} if rest else {}
    return out


def _looks_up(side: Side, other: Side) -> bool:
    """Whether a dot product takes one of all that it could sum: with a one-hot encoding.

    The other dimensions that it sums over must have size 1.
    """
    hot = other.value.dims_of(Fact.ONE_HOT)
    if not any(hot[i] for i in other.summed if hot):
        return False
    sizes = (math.prod(part.size for part in hot[i]) for i in other.summed)
    return all(side.shape[i] in (1, n) for i, n in zip(side.summed, sizes, strict=True))


def _contract_waiting(
    p: int, origin: Origin, parts: Sequence[Part], other: Value, uses: Uses
) -> None:
    """A dot product of what waits for what it is used for."""
    if origin.kind in (Kind.PRODUCT, Kind.SUMMED):
        if parts and not other.depends and not other.parameters:
            uses.unclear(p, "it is multiplied elementwise, and the products are summed")
        elif parts and other.depends and len(parts) < sum(map(len, origin.dims)):
            uses.unclear(p, "it is multiplied elementwise, and then contracted")
        else:
            uses.elementwise(p, origin)
    elif not parts or not other.depends:
        uses.elementwise(p, origin)
    else:
        beside = "put beside values that depend on inputs"
        how = "looked up" if origin.kind == Kind.LOOKED_UP else beside
        uses.unclear(p, f"it is {how}, and then contracted")
