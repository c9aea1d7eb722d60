"""What parameters are used for, by kind of operation: the meaning of each primitive of JAX.

A parameter's weight vectors run along the axes that are summed over where it first meets something
that depends on the inputs. Every function here takes the values that go into an equation, tells
`Uses` what it does to parameters, and returns the values that come out. `sums` has the operations
that sum over axes.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

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
    PRODUCT,
    SUMMED,
    Dims,
    Origin,
    Part,
    Value,
    cut,
    mixed,
    whole_axes,
)


class Use(NamedTuple):
    """One use of a parameter.

    Attributes:
        parameter: its index.
        kind: "contracted", "elementwise", "accumulated", "unclear" or "indirect".
        axes: the axes that are contracted.
        why: for "unclear" and "indirect", the reason to ask.
    """

    parameter: int
    kind: str
    axes: tuple[int, ...] = ()
    why: str = ""


class Uses:
    """The uses that were found."""

    def __init__(self) -> None:
        self.found: set[Use] = set()

    def elementwise(self, parameter: int, origin: Origin) -> None:
        """The parameter is added to data, multiplied by them, or looked up by them."""
        if origin.kind != ACCUMULATED:
            self.found.add(Use(parameter, "elementwise"))

    def accumulated(self, parameter: int) -> None:
        """Slices of it are multiplied by data, and the products added: a contraction by hand.

        Unless what they are added to is used in between, as a residual stream is.
        """
        self.found.add(Use(parameter, "accumulated"))

    def unclear(self, parameter: int, why: str) -> None:
        """Its axes cannot be told from this use."""
        self.found.add(Use(parameter, "unclear", why=why))

    def indirect(self, parameter: int, why: str) -> None:
        """It takes part in a value that does not follow its axes: what else it does decides."""
        self.found.add(Use(parameter, "indirect", why=why))

    def contracted(self, parameter: int, origin: Origin, parts: Sequence[Part]) -> None:
        """Parts of its axes are summed over with data."""
        whole, partly = whole_axes(parts)
        if origin.kind == GAIN and parts:
            self.unclear(parameter, "it scales another parameter along axes that are contracted")
        elif partly:
            axes = ", ".join(map(str, sorted(partly)))
            self.unclear(parameter, f"only a part of axis {axes} is contracted at a time")
        elif whole:
            self.found.add(Use(parameter, "contracted", tuple(sorted(whole))))
        else:
            self.elementwise(parameter, origin)

    def ended(self, value: Value) -> None:
        """Nothing else is done with the value: what it waited for will not come."""
        for p, origin in value.parameters:
            if origin.kind in CONDITIONAL:
                self.elementwise(p, origin)
            elif value.depends:
                self.indirect(p, origin.why)


# Elementwise operations that leave a product a product, and rows that are looked up such rows.
_SCALING = {
    *("mul", "div", "neg", "convert_element_type", "reduce_precision", "copy", "real", "select_n"),
}


def elementwise(name: str, ins: Sequence[Value], uses: Uses) -> Value:
    """All operations on the elements of operands of equal shapes."""
    if name == "eq" and any(v.dims_of(IOTA) for v in ins):
        return _one_hot(ins)
    if not any(v.origins for v in ins):
        return DATA if any(v.depends for v in ins) else CONSTANT
    if not any(v.depends for v in ins):
        return _of_parameters(name, ins)
    others = sum(v.depends for v in ins) > 1
    out: dict[int, Origin] = {}
    for value in ins:
        if not value.depends:
            for p, origin in value.parameters:
                if origin.kind == MIXED:
                    uses.indirect(p, origin.why)
                elif name in ("mul", "div"):
                    out[p] = origin._replace(kind=PRODUCT)
                else:
                    uses.elementwise(p, origin)
            continue
        for p, origin in value.origins:
            if (p == ONE_HOT and name in _SCALING) or (p == FLAT and len(ins) == 1):
                out[p] = origin
            elif p >= 0:
                _conditional(name, p, origin, value, ins, others, uses, out)
    return Value(True, tuple(sorted(out.items())))


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


def _of_parameters(name: str, ins: Sequence[Value]) -> Value:
    """An elementwise operation on what depends on parameters and constants only."""
    out: dict[int, Origin] = {}
    for value in ins:
        for p, origin in value.origins:
            if p < 0:
                if name in _SCALING and len(ins) == 1:
                    out[p] = origin
                continue
            out[p] = _both(out.get(p), origin)
    covered = [
        {i for i, parts in enumerate(o.dims) if parts} for p, o in out.items() if o.kind != MIXED
    ]
    widest = set().union(*covered)
    for p, origin in out.items():
        mine = {i for i, parts in enumerate(origin.dims) if parts}
        if origin.kind == DIRECT and mine != widest:
            out[p] = origin._replace(kind=GAIN)
    return Value(False, tuple(sorted(out.items())))


def _both(a: Origin | None, b: Origin) -> Origin:
    """The origin in one parameter of what is made of two values that have it."""
    if a is None or a.kind == MIXED:
        return b
    if b.kind == MIXED or a == b or a.kind == ACCUMULATED:
        return a
    if b.kind == ACCUMULATED:
        return b
    slices = tuple(sorted({*a.slices, *b.slices}))
    if a.dims == b.dims:
        return a._replace(slices=slices)
    if all(not mine or mine == its for mine, its in zip(a.dims, b.dims, strict=False)):
        return b._replace(slices=slices)
    if all(not its or mine == its for mine, its in zip(a.dims, b.dims, strict=False)):
        return a._replace(slices=slices)
    return mixed("it meets itself in another layout")


def select(ins: Sequence[Value], uses: Uses) -> Value:
    """`where`, and the results of a `cond`: the first operand says which of the others it is."""
    which, *cases = ins
    for p, origin in which.parameters:
        if which.depends or any(v.depends for v in cases):
            _end_one(p, origin, which.depends, uses)
    if not which.depends or any(v.depends for v in cases):
        return elementwise("select_n", cases, uses)
    chosen = _of_parameters("select_n", cases)
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


def joined(values: Iterable[Value], dims_of: Callable[[int, Dims], Dims], uses: Uses) -> Value:
    """Values that are put side by side; `dims_of` gives each one's dimensions in the result."""
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
            out[p] = _both(out.get(p), new)
    return Value(depends, tuple(sorted(out.items())))


def swallowed(name: str, ins: Sequence[Value], outs: int, uses: Uses) -> list[Value]:
    """An operation that is not known: what it does to parameters cannot be told."""
    depends = any(v.depends for v in ins)
    out: dict[int, Origin] = {}
    for value in ins:
        for p, origin in value.parameters:
            if origin.kind in (PRODUCT, SUMMED) and name.startswith(("cumsum", "reduce_window")):
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
    partial = [i for i, (size, n) in enumerate(zip(sizes, full, strict=True)) if size != n]
    if not partial or not value.origins:
        return value

    def change(dims: Dims) -> Dims:
        return tuple(cut(parts) if i in partial else parts for i, parts in enumerate(dims))

    def one(origin: Origin) -> Origin:
        if origin.kind == MIXED or not any(origin.dims[i] for i in partial):
            return origin
        return origin.mapped(change)._replace(slices=(*origin.slices, where))

    return value._replace(origins=tuple((p, one(o)) for p, o in value.origins if p >= 0))


def looked_up(value: Value, depends: bool, uses: Uses) -> Value:
    """What indices take out of a value; `depends`: on the inputs."""
    if not depends:
        return value
    for p, origin in value.parameters:
        if origin.kind == MIXED:
            uses.indirect(p, origin.why)
    taken = [(p, _waiting(o, LOOKED_UP)) for p, o in value.parameters if o.kind != MIXED]
    return Value(True, tuple(taken))
