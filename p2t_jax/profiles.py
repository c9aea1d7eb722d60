"""Weight profiles: sorted weight vectors, and how much alike they are (Section 1.2)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from p2t_jax import _checks, _ranking
from p2t_jax._vectors import VectorSpec, vector_axes


def weight_profiles(params: optax.Params, *, vectors: VectorSpec = "flax") -> optax.Params:
    """The sorted weights of every neuron.

    Args:
        params: the parameters.
        vectors: where the weight vectors lie, see `laperm`.

    Returns:
        A tree like `params`: (..., n) for vectors of n weights, each ascending (-0.0 equals 0.0,
        NaN is last); None for all else. The axes before the last are those of the parameter that
        enumerate vectors.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If the tree is empty or a rule does not know a leaf.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.weight_profiles({"kernel": jnp.array([[3.0, 5.0], [1.0, 7.0]])})["kernel"]
        Array([[1., 3.],
               [5., 7.]], dtype=float32)
    """
    _checks.not_empty(params)
    leaves, treedef = jax.tree.flatten(params)
    axes = {i: a for i, a in enumerate(vector_axes(vectors, params)) if a is not None}
    rows = _ranking.sort(list(axes.values()), [jnp.asarray(leaves[i]) for i in axes])
    profiles: list[jax.Array | None] = [None] * len(leaves)
    for (i, leaf_axes), leaf in zip(axes.items(), rows, strict=True):
        profiles[i] = as_rows(leaf, leaf_axes)
    return jax.tree.unflatten(treedef, profiles)


def profile_similarity(profiles: jax.Array) -> jax.Array:
    r"""How much alike weight profiles are: the share of their variance that one profile explains.

    With :math:`w_j` the sorted weights of neuron j, :math:`\bar w` the mean of these vectors and
    :math:`\mu` that of all their weights,

    .. math:: 1 - \frac{\sum_j |w_j - \bar w|^2}{\sum_j |w_j - \mu|^2}.

    It is 1 if all neurons have the same profile. Of m random vectors that are *not* sorted, the
    mean explains 1 / m.

    Args:
        profiles: (..., m, n), m weight vectors of each layer: a leaf of `weight_profiles`. Vectors
            that are not sorted will do as well. (n,) is a single one.

    Returns:
        A number in [0, 1] for each layer, (...,), up to rounding.

    Raises:
        ValueError: If `profiles` is empty or a scalar.

    Example:
        >>> import jax, p2t_jax as p2t
        >>> w = jax.random.normal(jax.random.key(0), (100, 1000))  # 100 neurons
        >>> f"{p2t.profile_similarity(w):.2f}"
        '0.01'
        >>> f"{p2t.profile_similarity(jax.numpy.sort(w, axis=1)):.2f}"
        '1.00'
    """
    w = jnp.atleast_2d(profiles)
    if w.size == 0 or jnp.ndim(profiles) == 0:
        raise ValueError(
            f"profiles: give the weights of m neurons, (m, n), not shape {jnp.shape(profiles)}."
        )
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    w = w - w[..., :1, :1]  # equal weights are then zero, without rounding
    left = jnp.sum((w - w.mean(axis=-2, keepdims=True)) ** 2, axis=(-2, -1))
    total = jnp.sum((w - w.mean(axis=(-2, -1), keepdims=True)) ** 2, axis=(-2, -1))
    return jnp.where(total == 0, 1, 1 - left / jnp.where(total == 0, 1, total))


def as_rows(leaf: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The weight vectors of a parameter along the last axis, (..., n)."""
    sharding: Any = jax.typeof(leaf).sharding
    spec = [None if axis in axes else name for axis, name in enumerate(sharding.spec)]
    if spec != list(sharding.spec):  # explicit mesh axes: no vector may be split
        leaf = jax.reshard(leaf, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    moved = jnp.moveaxis(leaf, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: -len(axes)], math.prod(moved.shape[-len(axes) :]))
