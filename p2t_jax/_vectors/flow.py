"""Follows parameters through a traced program to where they meet what depends on its inputs."""

from collections.abc import Sequence
from typing import Any

from p2t_jax._jax_internals import is_literal
from p2t_jax._vectors import meaning, sums
from p2t_jax._vectors.control import CONTROL
from p2t_jax._vectors.equations import RULES, broadcast_ones, constant
from p2t_jax._vectors.origins import CONSTANT, DATA, Value, contracted, is_contracted
from p2t_jax._vectors.primitives import (
    CALLS,
    COLLECTIVES,
    ELEMENTWISE,
    IDENTITY,
    NOISE,
    PROGRAMMES,
    REDUCTIONS,
    SUMS_OF_DEVICES,
    has_unknown_parameters,
)
from p2t_jax._vectors.uses import Use, Uses


class Flow:
    """One walk through a program; `uses` are the uses of its parameters that it finds."""

    def __init__(self) -> None:
        self.uses = Uses()
        self._seen: dict[Any, tuple[tuple[Value, ...], frozenset[Use]]] = {}
        self._alive: list[Any] = []  # keeps ids unique: one may be used again after its object

    def run(self, closed: Any, values: Sequence[Value]) -> list[Value]:
        """What a program makes of values; where it repeats, it is not walked through again."""
        jaxpr = getattr(closed, "jaxpr", closed)
        names = list(
            dict.fromkeys(
                contracted(p) if is_contracted(p) else p
                for v in values
                for p, _ in v.origins
                if p >= 0 or is_contracted(p)
            )
        )
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
            return constant(var.val) if is_literal(var) else known[var]

        for eqn in jaxpr.eqns:
            outs = self._apply(eqn, [read(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _apply(self, eqn: Any, ins: list[Value]) -> list[Value]:
        name, outs = eqn.primitive.name, len(eqn.outvars)
        if name.startswith(NOISE):
            return [CONSTANT] * outs  # Noise is not an input.
        if name not in _LOOKED_INTO and not any(v.origins for v in ins):
            return [DATA if any(v.depends for v in ins) else CONSTANT] * outs
        try:
            known = self._known(name, eqn, ins)
        except (AttributeError, KeyError):  # Another version of JAX may describe it differently.
            known = None
        if known is not None:
            return known
        may_sum = name in _MAY_SUM or name.startswith(("cumsum", "reduce_window"))
        return meaning.swallowed(name, ins, outs, self.uses, may_sum=may_sum)

    def _known(self, name: str, eqn: Any, ins: list[Value]) -> list[Value] | None:
        if has_unknown_parameters(name, eqn.params):
            return None
        if name in CALLS:
            (program,) = (eqn.params[key] for key in PROGRAMMES if key in eqn.params)
            return self.run(program, ins)
        if name in CONTROL:
            return CONTROL[name](self, eqn, ins)
        if name in RULES:
            found = RULES[name](eqn, ins, self.uses)
            return None if found is None else [found]
        if name in ELEMENTWISE:
            return [meaning.elementwise(name, broadcast_ones(eqn, ins), self.uses)]
        if name in REDUCTIONS:
            return [sums.reduced(name, ins[0], eqn.params["axes"], self.uses)]
        if name in SUMS_OF_DEVICES:
            return [meaning.across_devices(name, value, self.uses) for value in ins]
        if name in COLLECTIVES:
            return [meaning.elementwise(name, [value], self.uses) for value in ins]
        return ins if name in IDENTITY else None


# What a rule knows, but for its parameters, that sums or may have sums in it.
_MAY_SUM = {*CALLS, *CONTROL, *RULES, *REDUCTIONS}
# Where values without origins in parameters matter: one-hot encodings, and what has a program.
_LOOKED_INTO = {*CALLS, *CONTROL, *RULES, "eq"}


def _renamed(value: Value, names: dict[int, int]) -> Value:
    if not value.origins:
        return value

    def new(p: int) -> int:
        if is_contracted(p):
            return contracted(names[contracted(p)])
        return names[p] if p >= 0 else p

    renamed = ((new(p), origin) for p, origin in value.origins)
    return value._replace(origins=tuple(sorted(renamed)))


def _constants(closed: Any) -> list[Value]:
    return [constant(const) for const in getattr(closed, "consts", ())]
