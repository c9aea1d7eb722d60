"""What operations that sum over axes do to parameters: reductions, and products with data."""

import functools
from collections.abc import Sequence

from p2t_jax._vectors.origins import (
    CHOSEN,
    CONDITIONAL,
    CONSTANT,
    DATA,
    DIRECT,
    GAIN,
    LOOKED_UP,
    MIXED,
    ONE_HOT,
    PRODUCT,
    SUMMED,
    Dims,
    Origin,
    Part,
    Value,
    mixed,
)
from p2t_jax._vectors.uses import Uses, elementwise


def reduced(name: str, value: Value, axes: Sequence[int], uses: Uses) -> Value:
    """A reduction over dimensions, which are left out."""
    keep = [i for i in range(_rank(value)) if i not in axes]
    out: dict[int, Origin] = {}
    for p, origin in value.origins:
        if p < 0:
            continue
        if origin.kind == MIXED:
            out[p] = origin
            continue
        parts = [part for i in axes for part in origin.dims[i] if part.total != 1]
        rest = origin._replace(dims=tuple(origin.dims[i] for i in keep))
        if origin.kind in (DIRECT, GAIN):
            out[p] = rest if not parts else mixed("it is summed or reduced over its axes first")
        elif not parts and (origin.kind != PRODUCT or name == "reduce_sum"):
            out[p] = rest
        elif origin.kind in (PRODUCT, SUMMED) and name == "reduce_sum" and parts:
            uses.unclear(p, "it is multiplied elementwise, and the products are summed")
        else:
            uses.elementwise(p, origin)
    return Value(value.depends, tuple(sorted(out.items())))


def _rank(value: Value) -> int:
    return max((len(o.dims) for _, o in value.origins), default=0)


def contraction(
    left: Value,
    right: Value,
    contracted: tuple[Sequence[int], Sequence[int]],
    places: tuple[dict[int, int], dict[int, int]],
    rank: int,
    uses: Uses,
) -> Value:
    """A dot product: sums over the dimensions `contracted` of both sides.

    `places` has the dimension of the result where each other dimension of a side goes.
    """
    if not left.origins and not right.origins:
        return DATA if left.depends or right.depends else CONSTANT
    moved = [functools.partial(_moved, side, rank) for side in places]
    if not contracted[0]:
        return elementwise("mul", list(map(Value.mapped, (left, right), moved)), uses)
    depends = left.depends or right.depends
    out: dict[int, Origin] = {}
    for side, (value, other) in enumerate(((left, right), (right, left))):
        hot = other.dims_of(ONE_HOT)
        by_one_hot = bool(hot) and any(hot[i] for i in contracted[1 - side])
        for p, origin in value.parameters:
            if origin.kind == MIXED:
                if depends:
                    uses.indirect(p, origin.why)
                else:
                    out[p] = origin
                continue
            parts = [part for i in contracted[side] for part in origin.dims[i]]
            after = origin.mapped(moved[side])
            if not depends:
                why = "it first meets " + (
                    "another parameter" if other.parameters else "a constant"
                )
                lost = mixed(f"{why}, in a dot product")
                out[p] = lost if parts or other.parameters else after
            elif origin.kind in CONDITIONAL:
                _contract_waiting(p, origin, parts, other, uses)
            elif by_one_hot:
                out[p] = after._replace(kind=LOOKED_UP)
            else:
                uses.contracted(p, origin, parts)
    return Value(depends, tuple(sorted(out.items())))


def _moved(places: dict[int, int], rank: int, dims: Dims) -> Dims:
    """The dimensions of a side at their places in the result."""
    out: list[tuple[Part, ...]] = [()] * rank
    for i, j in places.items():
        out[j] = dims[i]
    return tuple(out)


def _contract_waiting(
    p: int, origin: Origin, parts: Sequence[Part], other: Value, uses: Uses
) -> None:
    """A dot product of what waits for what it is used for."""
    if origin.kind in (PRODUCT, SUMMED):
        if parts and not other.depends and not other.parameters:
            uses.unclear(p, "it is multiplied elementwise, and the products are summed")
        elif parts and other.depends and len(parts) < sum(map(len, origin.dims)):
            uses.unclear(p, "it is multiplied elementwise, and then contracted")
        else:
            uses.elementwise(p, origin)
    elif not parts or not other.depends:
        uses.elementwise(p, origin)
    elif origin.kind == CHOSEN:
        uses.contracted(p, origin, parts)
    else:
        how = "looked up" if origin.kind == LOOKED_UP else "put beside values that depend on inputs"
        uses.unclear(p, f"it is {how}, and then contracted")
