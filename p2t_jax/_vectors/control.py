"""What control flow does to values: loops, branches, and programmes for several devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from p2t_jax._vectors import uses as meaning
from p2t_jax._vectors.equations import rank_of, resized, shape_of
from p2t_jax._vectors.origins import DATA, SUMMED, Origin, Value, mixed
from p2t_jax._vectors.uses import Uses


class Walk(Protocol):
    """What can walk through a programme, and notes the uses that it finds."""

    uses: Uses

    def run(self, closed: Any, values: Sequence[Value]) -> list[Value]:
        """What a programme makes of values."""


def _scan(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    # The body has no first axis of what it takes and gives row by row. That tells all versions of
    # JAX how many there are; the parameters do not.
    body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
    n_rows = sum(rank_of(a) != rank_of(b) for a, b in zip(eqn.invars, body.invars, strict=True))
    carried = sum(rank_of(a) == rank_of(b) for a, b in zip(eqn.outvars, body.outvars, strict=True))
    consts = len(ins) - n_rows - carried
    fixed, carry, rows = ins[:consts], ins[consts : consts + carried], ins[consts + carried :]
    rows = [_row(v) for v in rows]
    outs = _fixpoint(walk, eqn.params["jaxpr"], fixed, carry, rows)
    stacked = []
    for value in outs[carried:]:
        lost = (
            (
                p,
                mixed("it is stacked by a scan")
                if not value.depends
                else o.mapped(lambda d: ((), *d)),
            )
            for p, o in value.parameters
        )
        stacked.append(Value(value.depends, tuple(lost)))
    return outs[:carried] + stacked


def _row(value: Value) -> Value:
    """One of the rows that a scan takes."""

    def one(origin: Origin) -> Origin:
        here = origin.mapped(lambda dims: dims[1:])
        return here._replace(slices=(*here.slices, "a row")) if origin.dims else here

    return value._replace(origins=tuple((p, one(o)) for p, o in value.origins))


def _fixpoint(
    walk: Walk, jaxpr: Any, fixed: list[Value], carry: list[Value], rows: list[Value]
) -> list[Value]:
    """Walks through a loop's body until what it carries stays the same; that walk's uses count."""
    while True:
        outer, walk.uses = walk.uses, Uses()
        outs = walk.run(jaxpr, [*fixed, *carry, *rows])
        inner, walk.uses = walk.uses, outer
        new = [_either(a, _earlier(b), walk.uses) for a, b in zip(carry, outs, strict=False)]
        if new == carry:
            walk.uses.found |= inner.found
            return [*new, *outs[len(carry) :]]
        # In its first turns, too, a term of a sum is used for something else: a residual stream.
        walk.uses.found |= {use for use in inner.found if use.kind == "elementwise"}
        carry = new


def _earlier(value: Value) -> Value:
    """A value at the start of the next turn of a loop: terms of a sum are of other slices then."""
    return value._replace(
        origins=tuple(
            (p, o._replace(slices=("an earlier turn",)) if o.kind == SUMMED else o)
            for p, o in value.origins
        )
    )


def _either(a: Value, b: Value, uses: Uses) -> Value:
    """What is known of a value that is one or the other."""
    return a if a == b else meaning.joined([a, b], lambda i, dims: dims, uses)


def _while(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    of_cond, of_body, carry = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    outs = _fixpoint(walk, eqn.params["body_jaxpr"], of_body, carry, [])
    (goes_on,) = walk.run(eqn.params["cond_jaxpr"], [*of_cond, *outs])
    walk.uses.ended(goes_on)
    if not goes_on.depends:
        return outs
    return [
        out if out == before else _either(out, DATA, walk.uses)
        for out, before in zip(outs, carry, strict=True)
    ]


def _cond(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    which, *operands = ins
    walk.uses.ended(which)
    branches = [walk.run(branch, operands) for branch in eqn.params["branches"]]
    outs = []
    for cases in zip(*branches, strict=True):
        if which.depends and not any(v.depends for v in cases) and len(set(cases)) > 1:
            outs.append(meaning.select([DATA, *cases], walk.uses))
        else:
            outs.append(functools.reduce(lambda a, b: _either(a, b, walk.uses), cases))
    return outs


def _shard_map(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """The body sees shares of the axes: they are whole where all of the share is used."""
    jaxpr = eqn.params["jaxpr"]
    inner = [
        resized(v, shape_of(outside), shape_of(inside))
        for v, outside, inside in zip(ins, eqn.invars, jaxpr.invars, strict=True)
    ]
    outs = walk.run(jaxpr, inner)
    return [
        resized(v, shape_of(inside), shape_of(outside))
        for v, inside, outside in zip(outs, jaxpr.outvars, eqn.outvars, strict=True)
    ]


def _split(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    full, axis = shape_of(eqn.invars[0]), eqn.params["axis"]
    return [
        meaning.sliced(ins[0], shape_of(var), full, f"part {i} of axis {axis}")
        for i, var in enumerate(eqn.outvars)
    ]


def _unstack(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    full, axis = shape_of(eqn.invars[0]), eqn.params["axis"]
    one = [1 if i == axis else n for i, n in enumerate(full)]
    parts = [
        meaning.sliced(ins[0], one, full, f"number {i} of axis {axis}")
        for i in range(len(eqn.outvars))
    ]
    return [
        part.mapped(lambda dims: tuple(d for i, d in enumerate(dims) if i != axis))
        for part in parts
    ]


CONTROL: dict[str, Callable[[Walk, Any, list[Value]], list[Value]]] = {
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "split": _split,
    "unstack": _unstack,  # since JAX 0.12
    "while": _while,
}
