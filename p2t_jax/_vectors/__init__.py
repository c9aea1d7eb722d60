"""Which axes of a parameter are the incoming weights of one neuron (Section 1.1)."""

from p2t_jax._vectors.match import (
    Axes,
    Path,
    Remembered,
    VectorRule,
    VectorSpec,
    is_index,
    pair,
    path_names,
    positions,
    show,
    vector_axes,
)
from p2t_jax._vectors.rules import equinox_vectors, flax_vectors, haiku_vectors, stacked

__all__ = [
    "Axes",
    "Path",
    "Remembered",
    "VectorRule",
    "VectorSpec",
    "equinox_vectors",
    "flax_vectors",
    "haiku_vectors",
    "is_index",
    "pair",
    "path_names",
    "positions",
    "show",
    "stacked",
    "vector_axes",
]
