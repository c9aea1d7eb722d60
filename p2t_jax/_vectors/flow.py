"""Follows parameters through a traced program to where they meet what depends on its inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal

from p2t_jax._vectors import uses as meaning
from p2t_jax._vectors.origins import (
    CONDITIONAL,
    CONSTANT,
    DATA,
    DIRECT,
    FLAT,
    IOTA,
    Dims,
    Origin,
    Part,
    Value,
    cut,
    mixed,
    reshaped,
)
from p2t_jax._vectors.primitives import CALLS, ELEMENTWISE, IDENTITY, NOISE, REDUCTIONS
from p2t_jax._vectors.uses import Use, Uses


class Flow:
    """One walk through a program; `uses` are the uses of its parameters that it finds."""

    def __init__(self) -> None:
        self.uses = Uses()
        self._seen: dict[Any, tuple[tuple[Value, ...], frozenset[Use]]] = {}
        self._alive: list[Any] = []  # or an id might come again

    def run(self, closed: Any, values: Sequence[Value]) -> list[Value]:
        """What a program makes of values; where it repeats, it is not walked through again."""
        jaxpr = getattr(closed, "jaxpr", closed)
        names = list(dict.fromkeys(p for v in values for p, _ in v.parameters))
        local = {p: i for i, p in enumerate(names)}
        key = (id(closed), tuple(_renamed(v, local) for v in values))
        if key not in self._seen:
            self._alive.append(closed)
            outer, self.uses = self.uses, Uses()
            outs = self._walk(jaxpr, _constants(closed), key[1])
            self._seen[key] = tuple(outs), frozenset(self.uses.found)
            self.uses = outer
        outs_, found = self._seen[key]
        self.uses.found |= {use._replace(parameter=names[use.parameter]) for use in found}
        back = dict(enumerate(names))
        return [_renamed(v, back) for v in outs_]

    def _walk(self, jaxpr: Any, constants: Sequence[Value], values: Sequence[Value]) -> list[Value]:
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(var: Any) -> Value:
            return _constant(var.val) if isinstance(var, Literal) else known[var]

        for eqn in jaxpr.eqns:
            outs = self._apply(eqn, [read(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _apply(self, eqn: Any, ins: list[Value]) -> list[Value]:
        name, outs = eqn.primitive.name, len(eqn.outvars)
        rule = _RULES.get(name)
        if name in CALLS:
            return self.run(eqn.params[CALLS[name]], ins)
        if name in _CONTROL:
            return _CONTROL[name](self, eqn, ins)
        if name.startswith(NOISE):
            return [CONSTANT] * outs  # Noise is no input.
        if rule is None and not any(v.origins for v in ins):
            return [DATA if any(v.depends for v in ins) else CONSTANT] * outs
        if name in ELEMENTWISE:
            return [meaning.elementwise(name, _broadcast_ones(eqn, ins), self.uses)] * outs
        if name in IDENTITY and outs == len(ins):
            return ins
        if name in REDUCTIONS:
            return [meaning.reduced(name, ins[0], eqn.params["axes"], self.uses)]
        if rule is not None:
            return [rule(eqn, ins, self.uses)]
        return meaning.swallowed(name, ins, outs, self.uses)


def _renamed(value: Value, names: dict[int, int]) -> Value:
    if not value.origins:
        return value
    renamed = ((names[p] if p >= 0 else p, origin) for p, origin in value.origins)
    return value._replace(origins=tuple(sorted(renamed)))


def _constants(closed: Any) -> list[Value]:
    return [_constant(const) for const in getattr(closed, "consts", ())]


def _constant(const: Any) -> Value:
    """A constant: known to be 0 to n - 1 along an axis, as a one-hot encoding compares with."""
    shape = np.shape(const)
    long = [axis for axis, n in enumerate(shape) if n > 1]
    if len(long) != 1 or np.size(const) > 10**6 or isinstance(const, Tracer):
        return CONSTANT
    if not jnp.issubdtype(const.dtype, np.number):
        return CONSTANT
    counted = np.array_equal(np.asarray(const).ravel(), np.arange(np.size(const)))
    return _iota(shape, long[0]) if counted else CONSTANT


def _broadcast_ones(eqn: Any, ins: list[Value]) -> list[Value]:
    """The operands with the dimensions of the result: scalars and sizes of 1 are broadcast."""
    new = _shape(eqn.outvars[0])
    return [
        v.mapped(_expanded(_shape(var), new)) if v.origins and _shape(var) != new else v
        for v, var in zip(ins, eqn.invars, strict=True)
    ]


def _expanded(old: Sequence[int], new: Sequence[int]) -> Callable[[Dims], Dims]:
    if len(old) != len(new):
        return lambda dims: ((),) * len(new)
    return lambda dims: tuple(d if m == n else () for d, m, n in zip(dims, old, new, strict=True))


def _iota(shape: Sequence[int], axis: int) -> Value:
    n = shape[axis]
    dims = tuple((Part(0, 1, n, n),) if i == axis else () for i in range(len(shape)))
    return Value(False, ((IOTA, Origin(DIRECT, dims)),))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)


def _rank(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))


# Operations that move elements


def _broadcast(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    where = eqn.params["broadcast_dimensions"]

    def change(dims: Dims) -> Dims:
        out: list[tuple[Part, ...]] = [()] * len(new)
        for i, j in enumerate(where):
            if old[i] == new[j]:
                out[j] = dims[i]
        return tuple(out)

    out = ins[0].mapped(change)
    if out.depends and jnp.issubdtype(eqn.outvars[0].aval.dtype, np.integer):
        flat = tuple(
            () if j in where and old[where.index(j)] == n else (Part(0, 1, n, n),)
            for j, n in enumerate(new)
        )
        out = Value(True, tuple(sorted([*out.parameters, (FLAT, Origin(DIRECT, flat))])))
    return out


def _transpose(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0].mapped(lambda dims: tuple(dims[i] for i in eqn.params["permutation"]))


def _squeeze(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    gone = eqn.params["dimensions"]
    return ins[0].mapped(lambda dims: tuple(d for i, d in enumerate(dims) if i not in gone))


def _reshape(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0].mapped(reshaped(_shape(eqn.invars[0]), _shape(eqn.outvars[0])))


def _slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    where = f"{starts}:{limits}:{eqn.params['strides']}"
    return meaning.sliced(ins[0], _shape(eqn.outvars[0]), _shape(eqn.invars[0]), where)


def _dynamic_slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, *indices = ins
    where = str([var.val if isinstance(var, Literal) else "?" for var in eqn.invars[1:]])
    out = meaning.sliced(value, _shape(eqn.outvars[0]), _shape(eqn.invars[0]), where)
    return meaning.looked_up(out, any(v.depends for v in indices), uses)


def _pad(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, padding = ins
    low_high = [(low, high) for low, high, _ in eqn.params["padding_config"]]
    if min((n for pair in low_high for n in pair), default=0) < 0:
        value = meaning.sliced(value, [0] * len(low_high), [1] * len(low_high), str(low_high))
    return meaning.joined([value, padding], lambda i, dims: dims or ((),) * len(low_high), uses)


def _concatenate(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.joined(ins, lambda i, dims: dims, uses)


def _dynamic_update_slice(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.joined(ins[:2], lambda i, dims: dims, uses)


def _split(self: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
    full, axis = _shape(eqn.invars[0]), eqn.params["axis"]
    return [
        meaning.sliced(ins[0], _shape(var), full, f"part {i} of axis {axis}")
        for i, var in enumerate(eqn.outvars)
    ]


def _gather(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    value, indices = ins
    if not value.origins:
        uses.ended(indices)
        return DATA if value.depends or indices.depends else CONSTANT
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    full, rank = _shape(eqn.invars[0]), _rank(eqn.outvars[0])
    batching = tuple(numbers.operand_batching_dims)
    kept = [i for i in range(len(full)) if i not in (*numbers.collapsed_slice_dims, *batching)]
    batch = [i for i in range(rank) if i not in numbers.offset_dims]
    part = meaning.sliced(value, sizes, full, "?") if not batching else value

    def change(dims: Dims) -> Dims:
        out: list[tuple[Part, ...]] = [()] * rank
        for i, j in zip(kept, numbers.offset_dims, strict=True):
            out[j] = dims[i]
        indexed = [p for i in (*numbers.start_index_map, *batching) for p in dims[i]]
        for j in batch:
            out[j] = cut(indexed)
        return tuple(out)

    return meaning.looked_up(part.mapped(change), indices.depends, uses)


# Operations that contract


def _dot_general(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    numbers = eqn.params.get("dimension_numbers")
    if numbers is None:
        numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    contracted, batch = numbers
    ranks = [_rank(var) for var in eqn.invars[:2]]
    if "ragged_dot_dimension_numbers" in eqn.params:
        uses.ended(ins[2])
        return _ragged(eqn, ins[0], ins[1], contracted, uses)
    free = [
        [i for i in range(rank) if i not in (*contracted[side], *batch[side])]
        for side, rank in enumerate(ranks)
    ]
    order = [[*batch[0], *free[0]], [*batch[1]]]
    places = (
        {i: j for j, i in enumerate(order[0])},
        {i: j for j, i in enumerate(order[1])}
        | {i: len(order[0]) + j for j, i in enumerate(free[1])},
    )
    return meaning.contraction(ins[0], ins[1], contracted, places, _rank(eqn.outvars[0]), uses)


def _ragged(eqn: Any, left: Value, right: Value, contracted: Any, uses: Uses) -> Value:
    rank = _rank(eqn.outvars[0])
    return meaning.contraction(left, right, contracted, ({}, {}), rank, uses)


def _conv(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    image, kernel = ins
    numbers = eqn.params["dimension_numbers"]
    for p, origin in image.parameters:
        if kernel.depends and origin.kind not in CONDITIONAL:
            uses.unclear(p, "it is the input of a convolution, with a kernel that depends on data")
    if kernel.depends and not image.depends:
        image = CONSTANT
    image_dims = tuple(numbers.lhs_spec[1:])
    kernel_dims = tuple(numbers.rhs_spec[1:])
    rank = _rank(eqn.outvars[0])
    return meaning.contraction(image, kernel, (image_dims, kernel_dims), ({}, {}), rank, uses)


# Control flow


def _scan(self: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
    consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    fixed, carry, rows = ins[:consts], ins[consts : consts + carried], ins[consts + carried :]
    rows = [v.mapped(lambda dims: dims[1:]) for v in rows]
    outs = _fixpoint(self, eqn.params["jaxpr"], fixed, carry, rows)
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


def _fixpoint(
    flow: Flow, jaxpr: Any, fixed: list[Value], carry: list[Value], rows: list[Value]
) -> list[Value]:
    """Walks through a loop's body until what it carries stays the same; that walk's uses count."""
    while True:
        outer, flow.uses = flow.uses, Uses()
        outs = flow.run(jaxpr, [*fixed, *carry, *rows])
        inner, flow.uses = flow.uses, outer
        new = [_either(a, b, flow.uses) for a, b in zip(carry, outs, strict=False)]
        if new == carry:
            flow.uses.found |= inner.found
            return [*new, *outs[len(carry) :]]
        carry = new


def _either(a: Value, b: Value, uses: Uses) -> Value:
    """What is known of a value that is one or the other."""
    return a if a == b else meaning.joined([a, b], lambda i, dims: dims, uses)


def _while(self: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    of_cond, of_body, carry = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    outs = _fixpoint(self, eqn.params["body_jaxpr"], of_body, carry, [])
    (goes_on,) = self.run(eqn.params["cond_jaxpr"], [*of_cond, *outs])
    self.uses.ended(goes_on)
    if not goes_on.depends:
        return outs
    return [
        out if out == before else _either(out, DATA, self.uses)
        for out, before in zip(outs, carry, strict=True)
    ]


def _cond(self: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
    which, *operands = ins
    self.uses.ended(which)
    branches = [self.run(branch, operands) for branch in eqn.params["branches"]]
    outs = []
    for cases in zip(*branches, strict=True):
        if which.depends and not any(v.depends for v in cases) and len(set(cases)) > 1:
            outs.append(meaning.select([DATA, *cases], self.uses))
        else:
            outs.append(functools.reduce(lambda a, b: _either(a, b, self.uses), cases))
    return outs


def _shard_map(self: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
    """The body sees shares of the axes: they are whole where all of the share is used."""
    jaxpr = eqn.params["jaxpr"]
    inner = [
        _resized(v, _shape(outside), _shape(inside))
        for v, outside, inside in zip(ins, eqn.invars, jaxpr.invars, strict=True)
    ]
    outs = self.run(jaxpr, inner)
    return [
        _resized(v, _shape(inside), _shape(outside))
        for v, inside, outside in zip(outs, jaxpr.outvars, eqn.outvars, strict=True)
    ]


def _resized(value: Value, old: Sequence[int], new: Sequence[int]) -> Value:
    changed = {i: n for i, n in enumerate(new) if n != old[i]}

    def change(dims: Dims) -> Dims:
        return tuple(_share(d, changed[i]) if i in changed else d for i, d in enumerate(dims))

    return value.mapped(change)


def _share(parts: tuple[Part, ...], n: int) -> tuple[Part, ...]:
    if len(parts) == 1 and parts[0].size == parts[0].total:
        return (Part(parts[0].axis, 1, n, n),)
    return cut(parts)


def _all_gather(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    if not eqn.params["tiled"]:
        (out,) = meaning.swallowed("all_gather", ins, 1, uses)
        return out
    return _resized(ins[0], _shape(eqn.invars[0]), _shape(eqn.outvars[0]))


def _new_iota(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return _iota(_shape(eqn.outvars[0]), eqn.params["dimension"])


def _select(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return meaning.select(_broadcast_ones(eqn, ins), uses)


def _reverse(eqn: Any, ins: list[Value], uses: Uses) -> Value:
    return ins[0]


_CONTROL: dict[str, Callable[[Flow, Any, list[Value]], list[Value]]] = {
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "split": _split,
    "while": _while,
}
_RULES: dict[str, Callable[[Any, list[Value], Uses], Value]] = {
    "all_gather": _all_gather,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _new_iota,
    "pad": _pad,
    "ragged_dot": _dot_general,
    "ragged_dot_general": _dot_general,
    "reshape": _reshape,
    "rev": _reverse,
    "select_n": _select,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
