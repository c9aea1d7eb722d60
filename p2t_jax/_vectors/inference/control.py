"""What control flow does to values: loops, branches, and programs for several devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from p2t_jax._vectors.inference import meaning, together
from p2t_jax._vectors.inference.equations import ndim_of, resized, shape_of
from p2t_jax._vectors.inference.origins import DATA, Dims, Kind, Origin, Slice, Value
from p2t_jax._vectors.inference.uses import Uses

# What a program makes of values, adding the uses in it to a record: `Flow.run`.
Run: TypeAlias = Callable[[Any, Sequence[Value], Uses], list[Value]]


def _scan(run: Run, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
    # The body has no first axis of what it takes and gives row by row. That tells all versions of
    # JAX how many there are; the parameters do not.
    body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
    n_rows = sum(ndim_of(a) != ndim_of(b) for a, b in zip(eqn.invars, body.invars, strict=True))
    carried = sum(ndim_of(a) == ndim_of(b) for a, b in zip(eqn.outvars, body.outvars, strict=True))
    consts = len(ins) - n_rows - carried
    fixed, carry, rows = ins[:consts], ins[consts : consts + carried], ins[consts + carried :]
    rows = [v.each(_row) for v in rows]
    outs = _fixpoint(run, eqn.params["jaxpr"], fixed, carry, rows, uses)
    stacked = [
        Value(v.depends, tuple((p, _stacked(v, o)) for p, o in v.parameters))
        for v in outs[carried:]
    ]
    return outs[:carried] + stacked


def _row(origin: Origin) -> Origin:
    """One of the rows that a scan takes."""
    here = Slice("a row", origin.axes([0]))
    return origin._replace(dims=origin.dims[1:], slices=(*origin.slices, here))


def _stacked(value: Value, origin: Origin) -> Origin:
    if value.depends:
        return origin.mapped(lambda dims: ((), *dims))
    return Origin.mixed("it is stacked by a scan")


def _fixpoint(
    run: Run, jaxpr: Any, fixed: list[Value], carry: list[Value], rows: list[Value], uses: Uses
) -> list[Value]:
    """Walks through a loop's body until what it carries stays the same; that walk's uses count."""
    while True:
        found = Uses()
        outs = run(jaxpr, [*fixed, *carry, *rows], found)
        new = [_either(a, b.each(_earlier), uses) for a, b in zip(carry, outs, strict=False)]
        if new == carry:
            uses.update(found)
            return [*new, *outs[len(carry) :]]
        # In its first turns, too, a term of a sum is used for something else: a residual stream.
        uses.update(use for use in found if use.kind == "elementwise")
        carry = new


def _earlier(origin: Origin) -> Origin:
    """What a turn of a loop makes, at the start of the next one: its slices are other ones then."""
    if not origin.slices or not (origin.plain or origin.kind == Kind.SUMMED):
        return origin
    axes = tuple(sorted({axis for s in origin.slices for axis in s.axes}))
    return origin._replace(slices=(Slice("an earlier turn", axes),))


def _either(a: Value, b: Value, uses: Uses) -> Value:
    """What is known of a value that is one or the other."""
    return a if a == b else together.joined([a, b], uses, together.either)


def _while(run: Run, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    of_cond, of_body, carry = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    outs = _fixpoint(run, eqn.params["body_jaxpr"], of_body, carry, [], uses)
    (goes_on,) = run(eqn.params["cond_jaxpr"], [*of_cond, *outs], uses)
    uses.ended(goes_on)
    if not goes_on.depends:
        return outs
    return [
        out if out == before else _either(out, DATA, uses)
        for out, before in zip(outs, carry, strict=True)
    ]


def _cond(run: Run, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
    which, *operands = ins
    uses.ended(which)
    branches = [run(branch, operands, uses) for branch in eqn.params["branches"]]
    outs = []
    for cases in zip(*branches, strict=True):
        if which.depends and not any(v.depends for v in cases) and len(set(cases)) > 1:
            outs.append(meaning.select([DATA, *cases], uses, whole=True))
        else:
            outs.append(functools.reduce(lambda a, b: _either(a, b, uses), cases))
    return outs


def _shard_map(run: Run, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
    """The body sees shares of the axes. They are whole where devices exchange what they made."""
    jaxpr = eqn.params["jaxpr"]
    exchanged = _exchanged(jaxpr)
    inner = []
    for value, spec, outside, inside in zip(
        ins, eqn.params["in_specs"], eqn.invars, jaxpr.invars, strict=True
    ):
        share = resized(value, shape_of(outside), shape_of(inside))
        alone = [i for i, names in enumerate(spec) if names and not {*_names(names)} & exchanged]
        inner.append(share.mapped(functools.partial(_a_part, alone, shape_of(outside))))
    outs = run(jaxpr, inner, uses)
    return [
        resized(v, shape_of(inside), shape_of(outside))
        for v, inside, outside in zip(outs, jaxpr.outvars, eqn.outvars, strict=True)
    ]


def _a_part(dimensions: Sequence[int], full: Sequence[int], dims: Dims) -> Dims:
    """Dimensions of which a device has a part that it does not share."""
    return tuple(
        tuple(part._replace(total=full[i]) if part.size == part.total else part for part in parts)
        if i in dimensions
        else parts
        for i, parts in enumerate(dims)
    )


def _exchanged(jaxpr: Any) -> set[str]:
    """The axes of the mesh along which a program communicates."""
    found: set[str] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in ("axis_index", "pvary"):
            found.update(_names(eqn.params.get("axis_name", ())))
            found.update(_names(eqn.params.get("axes", ())))
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                found |= _exchanged(inner) if hasattr(inner, "eqns") else set()
    return found


def _names(names: Any) -> list[str]:
    """The names of axes of the mesh, of one or several; other axes are numbers."""
    several = names if isinstance(names, tuple | list) else (names,)
    return [name for name in several if isinstance(name, str)]


def _split(run: Run, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
    full, axis = shape_of(eqn.invars[0]), eqn.params["axis"]
    return [
        meaning.sliced(ins[0], shape_of(var), full, f"part {i} of axis {axis}")
        for i, var in enumerate(eqn.outvars)
    ]


def _unstack(run: Run, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
    full, axis = shape_of(eqn.invars[0]), eqn.params["axis"]
    one = [1 if i == axis else n for i, n in enumerate(full)]
    return [
        meaning.sliced(ins[0], one, full, f"number {i} of axis {axis}").without([axis])
        for i in range(len(eqn.outvars))
    ]


CONTROL: dict[str, Callable[[Run, Any, list[Value], Uses], list[Value]]] = {
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "split": _split,
    "unstack": _unstack,  # since JAX 0.12
    "while": _while,
}
