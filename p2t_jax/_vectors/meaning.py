"""What each kind of operation does to parameters: the meaning of the primitives of JAX.

A parameter's weight vectors run along the axes that are summed over where it first meets something
that depends on the inputs. Every function here takes the values that go into an equation, tells
`Uses` what it does to parameters, and returns the values that come out. `sums` has the operations
that sum over axes, `together` what is put together of several values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from p2t_jax._vectors import bilinear, together
from p2t_jax._vectors.origins import (
    ACCUMULATED,
    CHOSEN,
    CONDITIONAL,
    CONSTANT,
    DATA,
    DIRECT,
    FLAT,
    GAIN,
    IOTA,
    JOINED,
    LOOKED_UP,
    MIXED,
    ONE_HOT,
    OUTER,
    PRODUCT,
    SUMMED,
    TRUTH,
    ZERO,
    Dims,
    Origin,
    Part,
    Slice,
    Value,
    cut,
    is_contracted,
    mixed,
)
from p2t_jax._vectors.uses import Uses

# Elementwise operations that leave a product a product, and rows that are looked up such rows.
_SCALING = {
    *("mul", "div", "neg", "convert_element_type", "reduce_precision", "copy", "real", "select_n"),
}
_ADDING = {"add", "sub", "add_any", "select_n"}


def elementwise(name: str, ins: Sequence[Value], uses: Uses) -> Value:
    """All operations on the elements of operands of equal shapes."""
    if name == "eq" and any(v.dims_of(IOTA) for v in ins):
        return _one_hot(ins)
    if not any(v.origins for v in ins):
        return DATA if any(v.depends for v in ins) else CONSTANT
    if not any(v.depends for v in ins):
        return _of_parameters(name, ins)
    others = sum(v.depends for v in ins) > 1
    out = _of_data(name, ins)
    for value in ins:
        if not value.depends:
            for p, origin in value.parameters:
                if origin.kind == MIXED:
                    uses.indirect(p, origin.why)
                elif name in ("mul", "div"):
                    out[p] = origin._replace(kind=PRODUCT)
                elif name == "select_n":
                    out[p] = origin._replace(kind=JOINED)
                else:
                    uses.elementwise(p, origin)
            continue
        for p, origin in value.parameters:
            _conditional(name, p, origin, value, ins, others, uses, out)
    return Value(True, tuple(sorted(out.items())))


def _of_data(name: str, ins: Sequence[Value]) -> dict[int, Origin]:
    """What is known of the result but for the parameters in it."""
    data = [v for v in ins if v.depends]
    out = _neurons(name, ins, data)
    if len(ins) == 1 and name != "neg":
        out |= _kept(ins[0], FLAT, TRUTH)
    if name == "select_n":
        hot = {v.dims_of(ONE_HOT) for v in ins if not _is_zero(v)}
        if len(hot) == 1:
            out |= _kept(data[0], ONE_HOT)
    elif name in _SCALING and len(data) == 1 and (name != "div" or data[0] is ins[0]):
        out |= _kept(data[0], ONE_HOT, OUTER)
    elif name == "mul":
        out |= bilinear.product_of_data(*data)
        for one, other in (data, data[::-1]):
            if other.dims_of(TRUTH) or other.dims_of(ONE_HOT):
                out |= _kept(one, ONE_HOT, OUTER)
    return out


def _neurons(name: str, ins: Sequence[Value], data: Sequence[Value]) -> dict[int, Origin]:
    """The axes of contracted parameters, if the operation is linear in the outputs of neurons."""
    if name == "div":
        return together.neurons(ins[:1])
    if name in _ADDING:  # Neurons and other data, as in a residual stream, are not followed.
        return together.neurons(data) if all(v.neurons for v in data) else {}
    return together.neurons(data) if name in _SCALING else {}


def _is_zero(value: Value) -> bool:
    return any(p == ZERO for p, _ in value.origins)


def _kept(value: Value, *pseudo: int) -> dict[int, Origin]:
    return {p: origin for p, origin in value.origins if p in pseudo}


def _conditional(
    name: str,
    p: int,
    origin: Origin,
    value: Value,
    ins: Sequence[Value],
    others: bool,
    uses: Uses,
    out: dict[int, Origin],
) -> None:
    """What an elementwise operation does to a value that waits for what it is used for."""
    terms = [o for v in ins if v is not value for q, o in v.origins if q == p]
    if name in ("add", "sub", "add_any") and origin.kind in (PRODUCT, SUMMED, ACCUMULATED):
        if origin.kind == ACCUMULATED:
            out[p] = origin
        elif origin.slices and any(o.slices and o.slices != origin.slices for o in terms):
            uses.accumulated(p)
            out[p] = origin._replace(kind=ACCUMULATED)
        elif p in out:
            pass  # The other operand has been seen to accumulate.
        elif origin.slices:  # The other slices may come.
            out[p] = origin._replace(kind=SUMMED)
        elif any(v.depends or v.origins for v in ins if v is not value):
            uses.elementwise(p, origin)
        else:
            out[p] = origin
    elif name == "select_n" and origin.kind == CHOSEN:
        out[p] = together.summed(out.get(p), origin)
    elif name in _SCALING and origin.kind != SUMMED and (origin.kind == PRODUCT or not others):
        out[p] = origin
    else:
        uses.elementwise(p, origin)


def _one_hot(ins: Sequence[Value]) -> Value:
    """Numbers compared with 0 to n - 1: if they do not vary along those, one of them is equal."""
    if not any(v.depends for v in ins):
        return CONSTANT
    (counted,) = [v for v in ins if v.dims_of(IOTA)][:1]
    (numbers,) = [v for v in ins if v is not counted][:1] or [CONSTANT]
    along = [i for i, parts in enumerate(counted.dims_of(IOTA)) if parts]
    flat = numbers.dims_of(FLAT)
    if not all(flat and flat[i] for i in along):
        return DATA
    return Value(True, ((ONE_HOT, Origin(DIRECT, counted.dims_of(IOTA))),))


def _of_parameters(name: str, ins: Sequence[Value], meet: Any = together.summed) -> Value:
    """An elementwise operation on what depends on parameters and constants only."""
    out: dict[int, Origin] = {}
    for value in ins:
        for p, origin in value.origins:
            if p < 0:
                if name in _SCALING and len(ins) == 1:
                    out[p] = origin
                continue
            out[p] = meet(out.get(p), origin)
    covered = [
        {i for i, parts in enumerate(o.dims) if parts} for p, o in out.items() if o.kind != MIXED
    ]
    widest = set().union(*covered)
    for p, origin in out.items():
        mine = {i for i, parts in enumerate(origin.dims) if parts}
        if origin.kind == DIRECT and mine != widest:
            out[p] = origin._replace(kind=GAIN)
    return Value(False, tuple(sorted(out.items())))


def select(ins: Sequence[Value], uses: Uses, *, whole: bool) -> Value:
    """`where`, and the results of a `cond`: the first operand says which of the others it is.

    `whole` tells that it says so for all elements at once.
    """
    which, *cases = ins
    for p, origin in which.parameters:
        if which.depends or any(v.depends for v in cases):
            _end_one(p, origin, which.depends, uses)
    if not which.depends or any(v.depends for v in cases):
        return elementwise("select_n", cases, uses)
    meet = together.either if whole else together.summed
    chosen = _of_parameters("select_n", cases, meet)
    for p, origin in chosen.parameters:
        if origin.kind == MIXED:
            uses.indirect(p, origin.why)
    waiting = [(p, _waiting(o, CHOSEN)) for p, o in chosen.parameters if o.kind != MIXED]
    return Value(True, tuple(waiting))


def _waiting(origin: Origin, kind: str) -> Origin:
    return origin._replace(kind=kind) if origin.kind in (DIRECT, GAIN) else origin


def _end_one(p: int, origin: Origin, depends: bool, uses: Uses) -> None:
    if origin.kind in CONDITIONAL or (origin.kind == DIRECT and depends):
        uses.elementwise(p, origin)
    else:
        uses.indirect(p, origin.why or "it decides between other values")


def swallowed(
    name: str, ins: Sequence[Value], outs: int, uses: Uses, *, may_sum: bool = False
) -> list[Value]:
    """An operation that is not known: what it does to parameters cannot be told.

    `may_sum` tells that it may sum what products with parameters are in it.
    """
    depends = any(v.depends for v in ins)
    out: dict[int, Origin] = {}
    for value in ins:
        for p, origin in value.parameters:
            if origin.kind in (PRODUCT, SUMMED) and may_sum:
                uses.unclear(p, "it is multiplied elementwise, and the products are summed")
            elif origin.kind in CONDITIONAL and value.depends:
                uses.elementwise(p, origin)
            elif depends and origin.kind in (DIRECT, GAIN):
                uses.unclear(p, f"it goes into {name}, an operation that is not known")
            else:
                lost = origin if origin.kind == MIXED else mixed(f"it goes through {name}")
                if depends:
                    uses.indirect(p, lost.why)
                else:
                    out[p] = lost
    return [Value(depends, tuple(sorted(out.items())))] * outs


def sliced(value: Value, sizes: Sequence[int], full: Sequence[int], where: str) -> Value:
    """A slice: dimensions that are not all there lose their axes."""
    partial = {i: size for i, (size, n) in enumerate(zip(sizes, full, strict=True)) if size != n}
    if not partial or not value.origins:
        return value

    def one(p: int, origin: Origin) -> Origin:
        if origin.kind == MIXED or not any(origin.dims[i] for i in partial):
            return origin
        if p == ONE_HOT:  # It has one 1, or none.
            return origin.mapped(lambda dims: _shortened(dims, partial))
        axes = tuple(sorted({part.axis for i in partial for part in origin.dims[i]}))
        cut_ = origin.mapped(
            lambda dims: tuple(cut(d) if i in partial else d for i, d in enumerate(dims))
        )
        return cut_._replace(slices=(*origin.slices, Slice(where, axes)))

    kept = [(p, o) for p, o in value.origins if p >= 0 or p == ONE_HOT or is_contracted(p)]
    return value._replace(origins=tuple((p, one(p, o)) for p, o in kept))


def _shortened(dims: Dims, sizes: Mapping[int, int]) -> Dims:
    return tuple(
        (Part(d[0].axis, 1, sizes[i], sizes[i]),) if d and i in sizes else d
        for i, d in enumerate(dims)
    )


def reordered(value: Value, dimensions: Sequence[int]) -> Value:
    """A value whose order along some dimensions is another one."""

    def one(origin: Origin) -> Origin:
        axes = tuple(sorted({part.axis for i in dimensions for part in origin.dims[i]}))
        put = Slice(f"reordered along {tuple(dimensions)}", axes)
        return origin._replace(slices=(*origin.slices, put)) if axes else origin

    changed = ((p, one(o) if p >= 0 and o.kind != MIXED else o) for p, o in value.origins)
    return value._replace(origins=tuple(changed))


def across_devices(name: str, value: Value, uses: Uses) -> Value:
    """A reduction over devices, which may each have a share of an axis."""
    out = together.neurons([value]) if name.startswith("psum") else {}
    for p, origin in value.parameters:
        if not value.depends:
            follows = origin.kind != MIXED and any(origin.dims)
            out[p] = mixed("it is combined across devices") if follows else origin
        elif origin.kind in (PRODUCT, SUMMED):
            uses.unclear(p, "it is multiplied elementwise, and combined across devices")
        else:
            uses.elementwise(p, origin)
    return Value(value.depends, tuple(sorted(out.items())))


def looked_up(value: Value, depends: bool, uses: Uses) -> Value:
    """What indices take out of a value; `depends`: on the inputs."""
    if not depends:
        return value
    for p, origin in value.parameters:
        if origin.kind == MIXED:
            uses.indirect(p, origin.why)
    taken = [(p, _waiting(o, LOOKED_UP)) for p, o in value.parameters if o.kind != MIXED]
    return Value(True, tuple(taken))
