"""Follows parameters through a traced program to where they meet what depends on its inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from p2t_jax._jax_internals import is_literal
from p2t_jax._vectors.inference import meaning, primitives, sums
from p2t_jax._vectors.inference.control import CONTROL
from p2t_jax._vectors.inference.equations import RULES, broadcast_ones, constant
from p2t_jax._vectors.inference.origins import CONSTANT, Value, contracted, is_contracted
from p2t_jax._vectors.inference.primitives import has_unknown_parameters
from p2t_jax._vectors.inference.uses import Uses


class Flow:
    """A walk through a program; what repeats in it is not walked through again."""

    def __init__(self) -> None:
        # With the program, since the id of one that is gone may be another's.
        self._seen: dict[Any, tuple[Any, list[Value], Uses]] = {}

    def run(self, closed: Any, values: Sequence[Value], uses: Uses) -> list[Value]:
        """What a program makes of values; the uses of parameters in it are added to `uses`."""
        numbers = (p for v in values for p, _ in v.origins if p >= 0 or is_contracted(p))
        names = list(dict.fromkeys(contracted(p) if is_contracted(p) else p for p in numbers))
        local = {p: i for i, p in enumerate(names)}
        renamed = tuple(_renamed(v, local) for v in values)
        key = id(closed), renamed
        if key not in self._seen:
            found = Uses()
            self._seen[key] = closed, self._walk(closed, renamed, found), found
        _, outs, found = self._seen[key]
        uses.update(use._replace(parameter=names[use.parameter]) for use in found)
        return [_renamed(v, dict(enumerate(names))) for v in outs]

    def _walk(self, closed: Any, values: Sequence[Value], uses: Uses) -> list[Value]:
        jaxpr = getattr(closed, "jaxpr", closed)
        constants = map(constant, getattr(closed, "consts", ()))
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(var: Any) -> Value:
            return constant(var.val) if is_literal(var) else known[var]

        for eqn in jaxpr.eqns:
            outs = self._apply(eqn, [read(var) for var in eqn.invars], uses)
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _apply(self, eqn: Any, ins: list[Value], uses: Uses) -> list[Value]:
        name, outs = eqn.primitive.name, len(eqn.outvars)
        if name.startswith(primitives.NOISE):
            return [CONSTANT] * outs  # Noise is not an input.
        if name not in _LOOKED_INTO and not any(v.origins for v in ins):
            return [Value(any(v.depends for v in ins))] * outs
        try:
            known = self._known(name, eqn, ins, uses)
        except (AttributeError, KeyError):  # Another version of JAX may describe it differently.
            known = None
        if known is not None:
            return known
        may_sum = name in _MAY_SUM or name.startswith(("cumsum", "reduce_window"))
        return meaning.swallowed(name, ins, outs, uses, may_sum=may_sum)

    def _known(self, name: str, eqn: Any, ins: list[Value], uses: Uses) -> list[Value] | None:
        if has_unknown_parameters(name, eqn.params):
            return None
        if name in primitives.CALLS:
            (program,) = (eqn.params[key] for key in primitives.PROGRAMMES if key in eqn.params)
            return self.run(program, ins, uses)
        if name in CONTROL:
            return CONTROL[name](self.run, eqn, ins, uses)
        if name in RULES:
            found = RULES[name](eqn, ins, uses)
            return None if found is None else [found]
        if name in primitives.ELEMENTWISE:
            return [meaning.elementwise(name, broadcast_ones(eqn, ins), uses)]
        if name in primitives.REDUCTIONS:
            return [sums.reduced(name, ins[0], eqn.params["axes"], uses)]
        if name in primitives.SUMS_OF_DEVICES:
            return [meaning.across_devices(name, value, uses) for value in ins]
        if name in primitives.COLLECTIVES:
            return [meaning.elementwise(name, [value], uses) for value in ins]
        return ins if name in primitives.IDENTITY else None


# What a rule knows, but for its parameters, that sums or may have sums in it.
_MAY_SUM = {*primitives.CALLS, *CONTROL, *RULES, *primitives.REDUCTIONS}
# Where values without origins in parameters matter: one-hot encodings, and what has a program.
_LOOKED_INTO = {*primitives.CALLS, *CONTROL, *RULES, "eq"}


def _renamed(value: Value, names: Mapping[int, int]) -> Value:
    def new(p: int) -> int:
        if is_contracted(p):
            return contracted(names[contracted(p)])
        return names[p] if p >= 0 else p

    return Value.of(value.depends, {new(p): origin for p, origin in value.origins})
