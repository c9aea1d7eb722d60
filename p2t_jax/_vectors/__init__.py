"""Which axes of a parameter are the incoming weights of one neuron (Section 1.1)."""

from p2t_jax._vectors.biases import is_bias, with_biases
from p2t_jax._vectors.combine import named_vectors, stacked
from p2t_jax._vectors.inference.infer import infer_vectors
from p2t_jax._vectors.match import VectorSpec, match_prefix, vector_axes
from p2t_jax._vectors.paths import AxesLike, Path, named_leaves, show
from p2t_jax._vectors.remembered import VectorAxes
from p2t_jax._vectors.rules import equinox_vectors, flax_vectors, haiku_vectors

__all__ = [
    "AxesLike",
    "Path",
    "VectorAxes",
    "VectorSpec",
    "equinox_vectors",
    "flax_vectors",
    "haiku_vectors",
    "infer_vectors",
    "is_bias",
    "match_prefix",
    "named_leaves",
    "named_vectors",
    "show",
    "stacked",
    "vector_axes",
    "with_biases",
]
