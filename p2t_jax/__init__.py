"""Train neural networks by permuting their weights (Qiu & Suda, 2020)."""

from p2t_jax.laperm import SynchronizeState, laperm, synchronize
from p2t_jax.permutation import is_permutation, permuted_params
from p2t_jax.sgperm import CyclePermutationState, cycle_permutation, sgperm
from p2t_jax.vectors import equinox_vectors, flax_vectors, haiku_vectors, stacked

__all__ = [
    "CyclePermutationState",
    "SynchronizeState",
    "cycle_permutation",
    "equinox_vectors",
    "flax_vectors",
    "haiku_vectors",
    "is_permutation",
    "laperm",
    "permuted_params",
    "sgperm",
    "stacked",
    "synchronize",
]
