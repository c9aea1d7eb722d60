"""What parameters are used for: a record of what was found."""

from collections.abc import Sequence
from typing import NamedTuple

from p2t_jax._vectors.inference.origins import Kind, Origin, Part, Value, whole_axes


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


class Uses(set[Use]):
    """The uses that were found."""

    def elementwise(self, parameter: int, origin: Origin) -> None:
        """The parameter is added to data, multiplied by them, or looked up by them."""
        if origin.kind != Kind.ACCUMULATED:
            self.add(Use(parameter, "elementwise"))

    def accumulated(self, parameter: int) -> None:
        """Slices of it are multiplied by data, and the products added: a contraction by hand.

        Unless what they are added to is used in between, as a residual stream is.
        """
        self.add(Use(parameter, "accumulated"))

    def unclear(self, parameter: int, why: str) -> None:
        """Its axes cannot be told from this use."""
        self.add(Use(parameter, "unclear", why=why))

    def indirect(self, parameter: int, why: str) -> None:
        """It takes part in a value that does not follow its axes: what else it does decides."""
        self.add(Use(parameter, "indirect", why=why))

    def contracted(self, parameter: int, origin: Origin, parts: Sequence[Part]) -> None:
        """Parts of its axes are summed over with data."""
        whole, partly = whole_axes(parts)
        if origin.kind == Kind.GAIN and parts:
            self.unclear(parameter, "it scales another parameter along axes that are contracted")
        elif partly:
            axes = ", ".join(map(str, sorted(partly)))
            self.unclear(parameter, f"only a part of axis {axes} is contracted at a time")
        elif whole:
            self.add(Use(parameter, "contracted", tuple(sorted(whole))))
        else:
            self.elementwise(parameter, origin)

    def ended(self, value: Value) -> None:
        """Nothing else is done with the value: what it waited for will not come."""
        for p, origin in value.parameters:
            if origin.waits:
                self.elementwise(p, origin)
            elif value.depends:
                self.indirect(p, origin.why)
