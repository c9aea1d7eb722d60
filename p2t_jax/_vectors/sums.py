"""What operations that sum over axes do to parameters: reductions, and products with data."""

import functools
import math
from collections.abc import Sequence

from p2t_jax._vectors import bilinear
from p2t_jax._vectors.meaning import elementwise
from p2t_jax._vectors.origins import (
    ELEMENTS,
    Dims,
    Fact,
    Kind,
    Origin,
    Part,
    Value,
    contracted,
    mixed,
    placed,
    without,
)
from p2t_jax._vectors.uses import Uses


def reduced(name: str, value: Value, axes: Sequence[int], uses: Uses) -> Value:
    """A reduction over dimensions, which are left out."""
    out: dict[int, Origin] = {}
    left = value.mapped(functools.partial(without, axes))
    if name == "reduce_sum":
        out |= {p: origin for p, origin in left.neurons if any(origin.dims)}
    for (p, origin), (_, rest) in zip(value.parameters, left.parameters, strict=True):
        if origin.kind == Kind.MIXED:
            out[p] = origin
            continue
        parts = [part for i in axes for part in origin.dims[i] if part.total != 1]
        if origin.kind in ELEMENTS:
            out[p] = rest if not parts else mixed("it is summed or reduced over its axes first")
        elif not parts and (origin.kind != Kind.PRODUCT or name == "reduce_sum"):
            out[p] = rest
        elif origin.kind in (Kind.PRODUCT, Kind.SUMMED) and name == "reduce_sum" and parts:
            uses.unclear(p, "it is multiplied elementwise, and the products are summed")
        else:
            uses.elementwise(p, origin)
    return Value.of(value.depends, out)


def contraction(
    left: Value,
    right: Value,
    contracted_dims: Sequence[tuple[int, int]],
    places: bilinear.Places,
    shapes: Sequence[Sequence[int]],
    uses: Uses,
) -> Value:
    """A dot product: sums over pairs of dimensions, one of each side.

    Args:
        left: one side.
        right: the other side.
        contracted_dims: the pairs of dimensions, of the left and of the right side.
        places: for each side, the dimension of the result where each of its other dimensions goes.
        shapes: of the left side, of the right side, and of the result.
        uses: the record of what becomes of parameters.

    Returns:
        The result.
    """
    rank = len(shapes[2])
    if not contracted_dims:
        return _outer_product(left, right, places, shapes[2], uses)
    out: dict[int, Origin] = {}
    for number, (value, other) in enumerate(((left, right), (right, left))):
        pairs = contracted_dims if number == 0 else [(b, a) for a, b in contracted_dims]
        out |= _one_side(value, other, pairs, number, places, shapes, uses)
        out |= bilinear.contract_again((left, right), number, pairs, places, rank, uses)
    return Value.of(left.depends or right.depends, out)


def _outer_product(
    left: Value, right: Value, places: bilinear.Places, shape: Sequence[int], uses: Uses
) -> Value:
    moved = [
        value.mapped(functools.partial(placed, side, len(shape)))
        for value, side in zip((left, right), places, strict=True)
    ]
    out = elementwise("mul", moved, uses)
    if not (left.depends and right.depends):
        return out
    known = bilinear.outer_product_of_data(left, right, places, shape)
    return Value.of(True, dict(out.origins) | known)


def _one_side(
    value: Value,
    other: Value,
    pairs: Sequence[tuple[int, int]],
    number: int,
    places: bilinear.Places,
    shapes: Sequence[Sequence[int]],
    uses: Uses,
) -> dict[int, Origin]:
    """What a dot product does to the parameters on one side of it."""
    depends = value.depends or other.depends
    side, rank = places[number], len(shapes[2])
    by_one_hot = _looks_up(other.dims_of(Fact.ONE_HOT), pairs, shapes[number])
    out: dict[int, Origin] = {}
    for p, origin in value.parameters:
        if origin.kind == Kind.MIXED:
            if depends:
                uses.indirect(p, origin.why)
            else:
                out[p] = origin
            continue
        parts = [part for i, _ in pairs for part in origin.dims[i]]
        after = origin.mapped(functools.partial(placed, side, rank))
        if not depends:
            why = "another parameter" if other.parameters else "a constant"
            lost = mixed(f"it first meets {why}, in a dot product")
            out[p] = lost if parts or other.parameters else after
        elif origin.waits and not (origin.kind == Kind.CHOSEN and parts and other.depends):
            _contract_waiting(p, origin, parts, other, uses)
        elif by_one_hot:
            out[p] = after._replace(kind=Kind.LOOKED_UP)
        else:
            bilinear.check_contraction(p, origin, other, pairs, uses)
            uses.contracted(p, origin, parts)
            rest = bilinear.neurons_of(origin, side, places, rank)
            out |= {contracted(p): rest} if rest else {}
    return out


def _looks_up(hot: Dims, pairs: Sequence[tuple[int, int]], shape: Sequence[int]) -> bool:
    """Whether a dot product takes one of all that it could sum: with a one-hot encoding.

    The other dimensions that it sums over must have size 1.
    """
    sizes = [(shape[mine], math.prod(p.size for p in hot[its])) for mine, its in pairs if hot]
    return any(hot[its] for _, its in pairs if hot) and all(n in (1, m) for n, m in sizes)


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
        how = (
            "looked up"
            if origin.kind == Kind.LOOKED_UP
            else "put beside values that depend on inputs"
        )
        uses.unclear(p, f"it is {how}, and then contracted")
