"""Weight profiles: sorted weight vectors, and how similar they are (Section 1.2)."""

import jax
import jax.numpy as jnp
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
        enumerate vectors.

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
    axes = {i: leaf.axes for i, leaf in enumerate(leaves) if leaf.axes is not None}
    ascending = _ranking.sort(list(axes.values()), [jnp.asarray(leaves[i].array) for i in axes])
    profiles: list[jax.Array | None] = [None] * len(leaves)
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
    w = jnp.atleast_2d(profiles)
    if w.size == 0 or jnp.ndim(profiles) == 0:
        raise ValueError(
            f"profiles: expected weights of m neurons, (..., m, n), got shape "
            f"{jnp.shape(profiles)}."
        )
    w = w.astype(_leaves.wide(w.dtype))
    w = w - w[..., :1, :1]  # equal weights are then zero, without rounding
    left = jnp.sum((w - w.mean(axis=-2, keepdims=True)) ** 2, axis=(-2, -1))
    total = jnp.sum((w - w.mean(axis=(-2, -1), keepdims=True)) ** 2, axis=(-2, -1))
    return jnp.where(total == 0, 1, 1 - left / jnp.where(total == 0, 1, total))
