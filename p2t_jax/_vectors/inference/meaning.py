"""What each kind of operation does to parameters: the meaning of the primitives of JAX.

A parameter's weight vectors run along the axes that are summed over where it first meets something
that depends on the inputs. Every function here takes the values that go into an equation, tells
`Uses` what it does to parameters, and returns the values that come out. `sums` has the operations
that sum over axes, `together` what is put together of several values.
"""

from collections.abc import Sequence
from typing import Any

from p2t_jax._vectors.inference import bilinear, together
from p2t_jax._vectors.inference.origins import (
    CONSTANT,
    DATA,
    Fact,
    Kind,
    Origin,
    Part,
    Slice,
    Value,
    cut,
    is_contracted,
)
from p2t_jax._vectors.inference.uses import Uses

# Elementwise operations that leave a product a product, and rows that are looked up such rows.
_SCALING = {
    *("mul", "div", "neg", "convert_element_type", "reduce_precision", "copy", "real", "select_n")
}
_ADDING = {"add", "sub", "add_any", "select_n"}
_TERMS = (Kind.PRODUCT, Kind.SUMMED, Kind.ACCUMULATED)  # what may be a term of a contraction
# What a parameter is after operations with data that do not decide what it is used for.
_BESIDE_DATA = {"mul": Kind.PRODUCT, "div": Kind.PRODUCT, "select_n": Kind.JOINED}


def elementwise(name: str, ins: Sequence[Value], uses: Uses) -> Value:
    """All operations on the elements of operands of equal shapes."""
    if name == "eq" and any(v.dims_of(Fact.IOTA) for v in ins):
        return _one_hot(ins)
    if not any(v.depends for v in ins):
        return _of_parameters(name, ins)
    out = _of_data(name, ins)
    for value in ins:
        for p, origin in value.parameters:
            if value.depends:
                new = _kept_waiting(name, p, value, ins, out.get(p), uses)
            elif origin.kind == Kind.MIXED:
                uses.indirect(p, origin.why)
                continue
            else:
                kind = _BESIDE_DATA.get(name)
                new = origin._replace(kind=kind) if kind else None
            if new:
                out[p] = new
            else:
                uses.elementwise(p, origin)
    return Value.of(True, out)


def _of_data(name: str, ins: Sequence[Value]) -> dict[int, Origin]:
    """What is known of the result but for the parameters in it."""
    data = [v for v in ins if v.depends]
    out = _neurons(name, ins, data)
    if len(ins) == 1 and name != "neg":
        out |= _kept(ins[0], Fact.FLAT, Fact.TRUTH)
    if name == "select_n":
        hot = {v.dims_of(Fact.ONE_HOT) for v in ins if Fact.ZERO not in dict(v.origins)}
        if len(hot) == 1:
            out |= _kept(data[0], Fact.ONE_HOT)
    elif name in _SCALING and len(data) == 1 and (name != "div" or data[0] is ins[0]):
        out |= _kept(data[0], Fact.ONE_HOT, Fact.OUTER)
    elif name == "mul":
        out |= bilinear.product_of_data(*data)
        for one, other in (data, data[::-1]):
            if other.dims_of(Fact.TRUTH) or other.dims_of(Fact.ONE_HOT):
                out |= _kept(one, Fact.ONE_HOT, Fact.OUTER)
    return out


def _neurons(name: str, ins: Sequence[Value], data: Sequence[Value]) -> dict[int, Origin]:
    """The axes of contracted parameters, if the operation is linear in the outputs of neurons."""
    if name == "div":
        return together.neurons(ins[:1])
    if name in _ADDING:  # Neurons and other data, as in a residual stream, are not followed.
        return together.neurons(data) if all(v.neurons for v in data) else {}
    return together.neurons(data) if name in _SCALING else {}


def _kept(value: Value, *facts: Fact) -> dict[int, Origin]:
    return {p: origin for p, origin in value.origins if p in facts}


def _kept_waiting(
    name: str, p: int, value: Value, ins: Sequence[Value], made: Origin | None, uses: Uses
) -> Origin | None:
    """What waits in a value for what it is used for, if it still waits in what is made of it.

    `made` is what is known so far of that.
    """
    origin = dict(value.origins)[p]
    others = [v for v in ins if v is not value]
    if name in ("add", "sub", "add_any") and origin.kind in _TERMS:
        terms = [o for v in others for q, o in v.origins if q == p]
        if origin.kind == Kind.ACCUMULATED:
            return origin
        if origin.slices and any(o.slices and o.slices != origin.slices for o in terms):
            uses.accumulated(p)
            return origin._replace(kind=Kind.ACCUMULATED)
        if made:  # The other operand has been seen to accumulate.
            return made
        if origin.slices:  # The other slices may come.
            return origin._replace(kind=Kind.SUMMED)
        return None if any(v.depends or v.origins for v in others) else origin
    if name == "select_n" and origin.kind == Kind.CHOSEN:
        return together.summed(made, origin)
    alone = origin.kind == Kind.PRODUCT or sum(v.depends for v in ins) == 1
    return origin if name in _SCALING and origin.kind != Kind.SUMMED and alone else None


def _one_hot(ins: Sequence[Value]) -> Value:
    """Numbers compared with 0 to n - 1: if they do not vary along those, one of them is equal."""
    if not any(v.depends for v in ins):
        return CONSTANT
    (counted,) = [v for v in ins if v.dims_of(Fact.IOTA)][:1]
    (numbers,) = [v for v in ins if v is not counted][:1] or [CONSTANT]
    along = [i for i, parts in enumerate(counted.dims_of(Fact.IOTA)) if parts]
    flat = numbers.dims_of(Fact.FLAT)
    if not all(flat and flat[i] for i in along):
        return DATA
    return Value(True, ((Fact.ONE_HOT, Origin(Kind.DIRECT, counted.dims_of(Fact.IOTA))),))


def _of_parameters(name: str, ins: Sequence[Value], meet: Any = together.summed) -> Value:
    """An elementwise operation on what depends on parameters and constants only."""
    out: dict[int, Origin] = {}
    for value in ins:
        for p, origin in value.origins:
            if p >= 0:
                out[p] = meet(out.get(p), origin)
            elif name in _SCALING and len(ins) == 1:
                out[p] = origin
    covered = {
        p: {i for i, parts in enumerate(o.dims) if parts}
        for p, o in out.items()
        if o.kind != Kind.MIXED
    }
    widest = set().union(*covered.values())
    for p, origin in out.items():
        if origin.kind == Kind.DIRECT and covered[p] != widest:
            out[p] = origin._replace(kind=Kind.GAIN)
    return Value.of(False, out)


def select(ins: Sequence[Value], uses: Uses, *, whole: bool) -> Value:
    """`where`, and the results of a `cond`: the first operand says which of the others it is.

    `whole` tells that it says so for all elements at once.
    """
    which, *cases = ins
    depends = any(v.depends for v in cases)
    for p, origin in which.parameters if which.depends or depends else ():
        if origin.waits or (origin.kind == Kind.DIRECT and which.depends):
            uses.elementwise(p, origin)
        else:
            uses.indirect(p, origin.why or "it decides between other values")
    if not which.depends or depends:
        return elementwise("select_n", cases, uses)
    meet = together.either if whole else together.summed
    return _waiting(_of_parameters("select_n", cases, meet), Kind.CHOSEN, uses)


def looked_up(value: Value, depends: bool, uses: Uses) -> Value:
    """What indices take out of a value; `depends`: on the inputs."""
    return _waiting(value, Kind.LOOKED_UP, uses) if depends else value


def _waiting(value: Value, kind: Kind, uses: Uses) -> Value:
    """A value in which inputs decide what parameters are: what it is used for matters."""
    out: dict[int, Origin] = {}
    for p, origin in value.parameters:
        if origin.kind == Kind.MIXED:
            uses.indirect(p, origin.why)
        else:
            out[p] = origin._replace(kind=kind) if origin.plain else origin
    return Value.of(True, out)


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
            if origin.kind in (Kind.PRODUCT, Kind.SUMMED) and may_sum:
                uses.unclear(p, "it is multiplied elementwise, and the products are summed")
            elif origin.waits and value.depends:
                uses.elementwise(p, origin)
            elif depends and origin.plain:
                uses.unclear(p, f"it goes into {name}, an operation that is not known")
            else:
                if origin.kind != Kind.MIXED:
                    origin = Origin.mixed(f"it goes through {name}")
                if depends:
                    uses.indirect(p, origin.why)
                else:
                    out[p] = origin
    return [Value.of(depends, out)] * outs


def sliced(value: Value, sizes: Sequence[int], full: Sequence[int], where: str) -> Value:
    """A slice: dimensions that are not all there lose their axes."""
    partial = {i: size for i, (size, n) in enumerate(zip(sizes, full, strict=True)) if size != n}
    if not partial or not value.origins:
        return value

    def one(p: int, origin: Origin) -> Origin:
        if origin.kind == Kind.MIXED or not any(origin.dims[i] for i in partial):
            return origin
        if p == Fact.ONE_HOT:  # It has one 1, or none.
            fewer = {i: (Part(0, 1, n, n),) for i, n in partial.items() if origin.dims[i]}
            return origin._replace(dims=tuple(fewer.get(i, d) for i, d in enumerate(origin.dims)))
        dims = tuple(cut(d) if i in partial else d for i, d in enumerate(origin.dims))
        slices = *origin.slices, Slice(where, origin.axes(partial))
        return origin._replace(dims=dims, slices=slices)

    kept = [(p, o) for p, o in value.origins if p >= 0 or p == Fact.ONE_HOT or is_contracted(p)]
    return value._replace(origins=tuple((p, one(p, o)) for p, o in kept))


def reordered(value: Value, dimensions: Sequence[int]) -> Value:
    """A value whose order along some dimensions is another one."""
    out = dict(value.origins)
    for p, origin in value.parameters:
        if origin.kind != Kind.MIXED and (axes := origin.axes(dimensions)):
            put = Slice(f"reordered along {tuple(dimensions)}", axes)
            out[p] = origin._replace(slices=(*origin.slices, put))
    return Value.of(value.depends, out)


def across_devices(name: str, value: Value, uses: Uses) -> Value:
    """A reduction over devices, which may each have a share of an axis."""
    out = together.neurons([value]) if name.startswith("psum") else {}
    for p, origin in value.parameters:
        if not value.depends:
            follows = origin.kind != Kind.MIXED and any(origin.dims)
            out[p] = Origin.mixed("it is combined across devices") if follows else origin
        elif origin.kind in (Kind.PRODUCT, Kind.SUMMED):
            uses.unclear(p, "it is multiplied elementwise, and combined across devices")
        else:
            uses.elementwise(p, origin)
    return Value.of(value.depends, out)
