"""Train neural networks by permuting their weights (Qiu & Suda, 2020)."""

from p2t_jax._exact import is_permutation, permuted_params
from p2t_jax._laperm import SynchronizeState, laperm, synchronize
from p2t_jax._sgperm import CyclePermutationState, cycle_permutation, sgperm
from p2t_jax._vectors import (
    equinox_vectors,
    flax_vectors,
    haiku_vectors,
    infer_vectors,
    named_vectors,
    stacked,
)
from p2t_jax.initializers import from_profile, kaiming, reinitialize, to_grid
from p2t_jax.permutations import (
    PermutationStatistics,
    UpdateStatistics,
    compose_permutations,
    cycle_labels,
    cycle_lengths,
    invert_permutation,
    permutation_of,
    permutation_statistics,
    update_statistics,
)
from p2t_jax.profiles import profile_similarity, weight_profiles
from p2t_jax.sparse import KeepZerosState, keep_zeros, prune
from p2t_jax.storage import pack, unpack

__all__ = [
    "CyclePermutationState",
    "KeepZerosState",
    "PermutationStatistics",
    "SynchronizeState",
    "UpdateStatistics",
    "compose_permutations",
    "cycle_labels",
    "cycle_lengths",
    "cycle_permutation",
    "equinox_vectors",
    "flax_vectors",
    "from_profile",
    "haiku_vectors",
    "infer_vectors",
    "invert_permutation",
    "is_permutation",
    "kaiming",
    "keep_zeros",
    "laperm",
    "named_vectors",
    "pack",
    "permutation_of",
    "permutation_statistics",
    "permuted_params",
    "profile_similarity",
    "prune",
    "reinitialize",
    "sgperm",
    "stacked",
    "synchronize",
    "to_grid",
    "unpack",
    "update_statistics",
    "weight_profiles",
]
