"""Train neural networks by permuting their weights (Qiu & Suda, 2020).

The optimizers `laperm` and `sgperm`, and what a training script needs besides them. Study tools are
in `initializers`, `metrics`, `permutations`, `profiles`, `sparse`, `storage`, `codes` and `plots`.
The last one needs Matplotlib, and is imported when it is first used.
"""

import importlib
from typing import Any

from p2t_jax import codes, initializers, metrics, permutations, profiles, sparse, storage
from p2t_jax._exact import check_permutation, is_permutation, permuted_params
from p2t_jax._host.host_choice import set_host_callback
from p2t_jax._laperm import laperm
from p2t_jax._sgperm import CyclePermutationState, cycle_permutation, geometric_schedule, sgperm
from p2t_jax._synchronize import SynchronizeState, synchronize
from p2t_jax._vectors import (
    equinox_vectors,
    flax_vectors,
    haiku_vectors,
    infer_vectors,
    named_vectors,
    stacked,
    with_biases,
)
from p2t_jax.initializers import reinitialize
from p2t_jax.sparse import KeepZerosState, keep_zeros, prune
from p2t_jax.storage import pack, unpack

__version__ = "0.1.0"

__all__ = [
    "CyclePermutationState",
    "KeepZerosState",
    "SynchronizeState",
    "check_permutation",
    "codes",
    "cycle_permutation",
    "equinox_vectors",
    "flax_vectors",
    "geometric_schedule",
    "haiku_vectors",
    "infer_vectors",
    "initializers",
    "is_permutation",
    "keep_zeros",
    "laperm",
    "metrics",
    "named_vectors",
    "pack",
    "permutations",
    "permuted_params",
    "profiles",
    "prune",
    "reinitialize",
    "set_host_callback",
    "sgperm",
    "sparse",
    "stacked",
    "storage",
    "synchronize",
    "unpack",
    "with_biases",
]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("p2t_jax.plots")
    raise AttributeError(f"module 'p2t_jax' has no attribute {name!r}")
