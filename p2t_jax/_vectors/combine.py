"""Rules made of rules: by name, by a table of parameters, and for stacks of layers."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from p2t_jax._vectors.paths import AxesLike, Path, VectorRule, is_index, normalized_axes
from p2t_jax._vectors.rules import STACK_MARK, as_rule


def named_vectors(
    table: Mapping[str, VectorRule | str | AxesLike],
    *,
    otherwise: VectorRule | str | AxesLike = "flax",
) -> VectorRule:
    """A rule from a table of names.

    A name in the table stands for all parameters whose path ends with it: "q_einsum/w" for
    ("layers", "3", "q_einsum", "w"). A `*` stands for any part of one name. If several names fit,
    the longest decides.

    Args:
        table: for each name the axes, None for "not permuted", or a rule or its name.
        otherwise: the same for all other parameters.

    Returns:
        The rule. An optimizer's `init` raises a ValueError if no parameter fits one of the names.

    Raises:
        TypeError: If `table` is not a mapping from strings.

    Example:
        >>> rule = named_vectors({"cls": None, "q_einsum/w": 1}, otherwise="flax")
        >>> rule(("layers", "3", "q_einsum", "w"), np.zeros((4, 16, 6)))
        1
        >>> rule(("Dense_0", "kernel"), np.zeros((16, 6)))
        0
    """
    if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
        raise TypeError(f"table: expected a mapping from names to axes, got {table!r}.")
    entries = tuple(
        (name, tuple(axes) if isinstance(axes, list) else axes) for name, axes in table.items()
    )
    return NamedVectors(entries, otherwise)


@dataclasses.dataclass(frozen=True)
class NamedVectors:
    """The rule of a table; not a closure, so that rules can be compared and pickled."""

    table: tuple[tuple[str, Any], ...]
    otherwise: Any

    def __call__(self, path: Path, leaf: Any) -> AxesLike:
        fitting = [entry for entry in self.table if _fits(entry[0], path)]
        # Of equally long names, the one with fewer wildcards.
        fitting.sort(key=lambda entry: (entry[0].count("/"), len(entry[0].replace("*", ""))))
        axes = as_rule(fitting[-1][1] if fitting else self.otherwise)
        found: AxesLike = axes(path, leaf) if callable(axes) else axes
        return found

    def unused(self, paths: list[Path]) -> list[str]:
        """The names that none of the paths ends with."""
        return [name for name, _ in self.table if not any(_fits(name, path) for path in paths)]


def _fits(name: str, path: Path) -> bool:
    wanted, names = name.split("/"), "/".join(path).split("/")
    patterns = [".*".join(map(re.escape, part.split("*"))) for part in wanted]
    return len(wanted) <= len(names) and all(
        re.fullmatch(pattern, part)
        for pattern, part in zip(patterns, names[-len(wanted) :], strict=True)
    )


def stacked(rule: VectorRule | str, axis: int = 0) -> VectorRule:
    """A rule for layers that a scan or vmap has stacked along one more axis.

    `rule` is asked about one layer of the stack. The axis of the stack is never part of a vector.
    Use this rule for the paths of the stack only: elsewhere it would take one of the parameter's
    own axes for that of a stack.

    Args:
        rule: the rule of a single layer, or its name. If Linen's `Scan`/`Vmap` or Haiku's
            `__layer_stack` is the only sign of the stack in the path, `rule` is given the path
            without it.
        axis: the stack's axis in the parameter.

    Returns:
        The rule of the stack.

    Raises:
        TypeError: If `axis` is not an integer; the rule, if `rule` does not give axes.
        ValueError: The rule, if a parameter has no such axis, or not the axes that `rule` gives.

    Example:
        >>> def vectors(path, leaf):
        ...     rule = stacked("flax") if "blocks" in path else flax_vectors
        ...     return rule(path, leaf)
        >>> vectors(("blocks", "Dense_0", "kernel"), np.zeros((12, 64, 128)))
        (1,)
    """
    if not is_index(axis):
        raise TypeError(f"axis: expected the axis of the stack, an int, got {axis!r}.")
    return _Stacked(as_rule(rule), axis)


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """The rule of a stack; not a closure, so that rules can be compared and pickled."""

    rule: VectorRule
    axis: int

    def __call__(self, path: Path, leaf: Any) -> AxesLike:
        shape = np.shape(leaf)
        (stack,) = normalized_axes(self.axis, path, leaf, "the stack's axis")
        layer = jax.ShapeDtypeStruct(shape[:stack] + shape[stack + 1 :], leaf.dtype)
        axes = self.rule(_without_mark(path), layer)
        if axes is None:
            return None
        return tuple(a + (a >= stack) for a in normalized_axes(axes, path, layer))


def _without_mark(path: Path) -> Path:
    """The path as it is within the stack that an unnamed scan or vmap made."""
    for i, name in enumerate(path):
        if STACK_MARK.search(name):
            return (*path[:i], STACK_MARK.sub("", name, 1), *path[i + 1 :])
    return path
