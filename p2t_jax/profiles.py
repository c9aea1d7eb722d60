"""Weight profiles: sorted weight vectors, and how similar they are (Section 1.2)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _leaves, _ranking
from p2t_jax._vectors import VectorSpec


def weight_profiles(params: optax.Params, *, vectors: VectorSpec = "flax") -> optax.Params:
    """The sorted weights of every neuron.

    Args:
        params: the parameters.
        vectors: which axes form weight vectors, see `laperm`.

    Returns:
        A tree like `params`: (..., n) for vectors of n weights, each ascending (-0.0 equals 0.0,
        NaN is last); None for other parameters. The leading axes are those of the parameter that
        enumerate vectors. The profiles are JAX arrays; those of a float64 NumPy array, which JAX
        would round unless it has 64 bits, are one, too.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If the tree is empty or a rule does not know a leaf.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> params = {"kernel": jnp.array([[3.0, 5.0], [1.0, 7.0]])}
        >>> p2t.profiles.weight_profiles(params)["kernel"]
        Array([[1., 3.],
               [5., 7.]], dtype=float32)
    """
    _leaves.not_empty(params)
    leaves = _leaves.walk(params, vectors)
    profiles: list[Any] = [None] * len(leaves)
    axes = {i: leaf.axes for i, leaf in enumerate(leaves) if leaf.axes is not None}
    for i in [i for i in axes if _leaves.too_wide(leaves[i].array)]:
        rows = _leaves.to_rows(np.asarray(leaves[i].array), axes.pop(i))
        profiles[i] = np.sort(rows, axis=-1, kind="stable")
    ascending = _ranking.sort(list(axes.values()), [jnp.asarray(leaves[i].array) for i in axes])
    for (i, leaf_axes), array in zip(axes.items(), ascending, strict=True):
        profiles[i] = _leaves.to_rows(array, leaf_axes)
    return jax.tree.unflatten(jax.tree.structure(params), profiles)


def profile_similarity(profiles: jax.typing.ArrayLike) -> jax.Array:
    r"""How similar weight profiles are: the fraction of their variance that their mean explains.

    With :math:`w_j` the sorted weights of neuron j, :math:`\bar w` the mean of these vectors and
    :math:`\mu` that of all their weights, it is

    .. math:: 1 - \frac{\sum_j |w_j - \bar w|^2}{\sum_j |w_j - \mu|^2}.

    It is 1 if all neurons have the same profile. For m random vectors that are *not* sorted, it is
    about 1 / m.

    Args:
        profiles: (..., m, n), m weight vectors of each layer: a leaf of `weight_profiles`, or
            vectors that are not sorted. (n,) is a single one.

    Returns:
        A number in [0, 1] for each layer, (...,), up to rounding.

    Raises:
        ValueError: If `profiles` is empty or a scalar.

    Example:
        >>> import jax, p2t_jax as p2t
        >>> w = jax.random.normal(jax.random.key(0), (100, 1000))  # 100 neurons
        >>> f"{p2t.profiles.profile_similarity(w):.2f}"
        '0.01'
        >>> f"{p2t.profiles.profile_similarity(jax.numpy.sort(w, axis=1)):.2f}"
        '1.00'
    """
    w: Any = profiles if _leaves.too_wide(profiles) else _leaves.in_jax(profiles)
    if w.size == 0 or w.ndim == 0:
        raise ValueError(
            f"profiles: expected weights of m neurons, (..., m, n), got shape {w.shape}."
        )
    with np.errstate(all="ignore"):
        return jnp.asarray(_similarity(w, np if _leaves.too_wide(w) else jnp))


def _similarity(w: Any, xp: Any) -> Any:
    """The same in JAX or in NumPy."""
    w = xp.atleast_2d(w)
    w = w.astype(np.float64 if xp is np else _leaves.wide(w.dtype))
    # Equal weights are then zero, without rounding. Not the first weight: arrays that are split
    # along explicit mesh axes have no index.
    w = w - w.min(axis=(-2, -1), keepdims=True)
    left = xp.sum((w - w.mean(axis=-2, keepdims=True)) ** 2, axis=(-2, -1))
    total = xp.sum((w - w.mean(axis=(-2, -1), keepdims=True)) ** 2, axis=(-2, -1))
    return xp.where(total == 0, 1, 1 - left / xp.where(total == 0, 1, total))
