"""Biases as weight vectors: the paper's authors permute them, too (Section 5.1)."""

import dataclasses
import re
from typing import Any

import numpy as np

from p2t_jax._vectors.match import axes_of
from p2t_jax._vectors.paths import AxesLike, Path, VectorRule

# What frameworks call a bias; also b1 of a flat tree and bias_hh of a recurrent layer.
_NAME = re.compile(r".*bias.*|b_?\d*")


def is_bias(path: Path, leaf: Any) -> bool:
    """Whether a parameter is a bias, by its name or as an unnamed one of rank 1."""
    name = path[-1].lower() if path else ""
    return bool(_NAME.fullmatch(name)) or (name.isdigit() and np.ndim(leaf) == 1)


def with_biases(vectors: VectorRule | str = "flax") -> VectorRule:
    """A rule that permutes biases, too: those of a layer are a weight vector (Section 5.1).

    A bias is a parameter of rank 1 with such a name (`bias`, `b`, `b1`), or an unnamed one. The
    rule decides about all other parameters.

    Args:
        vectors: the rule for all other parameters, or its name.

    Returns:
        A rule `(path, leaf) -> axes`, for every argument `vectors`.

    Raises:
        TypeError: If `vectors` is not a rule.
        ValueError: If it is not the name of one.

    Example:
        >>> rule = with_biases("flax")
        >>> rule(("Dense_0", "bias"), np.zeros(5)), rule(("Dense_0", "kernel"), np.zeros((8, 5)))
        ((0,), (0,))
    """
    if not (callable(vectors) or isinstance(vectors, str)):
        raise TypeError(f"vectors: expected a rule or its name, got {vectors!r}.")
    return _WithBiases(vectors)


@dataclasses.dataclass(frozen=True)
class _WithBiases:
    """Not a closure, so that equal rules are equal."""

    vectors: VectorRule | str

    def __call__(self, path: Path, leaf: Any) -> AxesLike:
        if np.ndim(leaf) == 1 and is_bias(path, leaf):
            return (0,)
        return axes_of(self.vectors, path, leaf)
