"""Permutations as arrays of sources: which weight moved where."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _leaves
from p2t_jax._jax_internals import is_traced
from p2t_jax._vectors import VectorSpec


def permutation_of(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> optax.Params:
    r"""The permutation that took the initial weights to where they are now.

    For each weight vector :math:`\theta` it is an array of *sources*: place i has the weight that
    was at place source[i],

    .. math:: \theta_t[i] = \theta_0[source[i]].

    Weights are equal if their bits are, in the dtype that they have. Ties keep their order: the
    j-th of several equal weights was the j-th of them before.

    Args:
        params: the parameters, permuted: for instance `permuted_params(state, params)`.
        initial_params: the parameters before; of the same structure, shapes and dtypes. Not what
            `nnx.split` or `nnx.state` returns of the model that is trained: see `nnx.clone`.
        vectors: which axes form weight vectors, see `laperm`.

    Returns:
        A tree like `params`: int32 (..., n) for vectors of n weights, whose places are numbered in
        row-major order; None for other parameters. The leading axes are those of the parameter that
        enumerate vectors. Under a transformation such as `jit`, where values cannot be checked, a
        vector that is not a permutation of the initial one is -1 throughout.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If the two trees do not match, or a weight vector is not a permutation.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> before = {"kernel": jnp.array([[1.0], [2.0], [3.0]])}
        >>> after = {"kernel": jnp.array([[3.0], [1.0], [2.0]])}
        >>> p2t.permutations.permutation_of(after, before)["kernel"]
        Array([[2, 0, 1]], dtype=int32)
    """
    then = _leaves.matching("initial_params", initial_params, params, dtypes=True)
    sources: list[jax.Array | None] = []
    for leaf, initial in zip(_leaves.walk(params, vectors), then, strict=True):
        if leaf.axes is None:
            sources.append(None)
            continue
        now, before = _leaves.bit_patterns(leaf.array, initial)
        before = _leaves.placed_like(leaf.array, before)
        source = _sources(*(_leaves.to_rows(bits, leaf.axes) for bits in (now, before)))
        if not is_traced(source) and (source < 0).any():
            raise ValueError(
                f"params: {leaf.name} is not a permutation of its initial weights. Training adds "
                "updates, which rounds: pass permuted_params(state, params). " + _leaves.LIVE
            )
        sources.append(source)
    return jax.tree.unflatten(jax.tree.structure(params), sources)


@jax.jit
def _sources(now: jax.Array, then: jax.Array) -> jax.Array:
    def of_vector(now: jax.Array, then: jax.Array) -> jax.Array:
        order_now, order_then = jnp.argsort(now, stable=True), jnp.argsort(then, stable=True)
        same = (now[order_now] == then[order_then]).all()
        sources = jnp.where(same, order_then, -1).astype(jnp.int32)
        return jnp.zeros_like(sources).at[order_now].set(sources, unique_indices=True)

    sources: jax.Array = jnp.vectorize(of_vector, signature="(n),(n)->(n)")(now, then)
    return sources


def compose(later: jax.typing.ArrayLike, earlier: jax.typing.ArrayLike) -> jax.Array:
    """One permutation after another.

    Args:
        later: sources, (..., n) integers: where each weight was after the earlier permutation.
        earlier: sources, (..., n) integers: where that weight had been before.

    Returns:
        The sources of both, (..., n): `earlier[later]` for each vector.

    Raises:
        TypeError: If an argument is not of an integer dtype.
        ValueError: If one is a scalar, or they differ in n.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.permutations.compose(jnp.array([1, 0, 2]), jnp.array([2, 0, 1]))
        Array([0, 2, 1], dtype=int32)
    """
    second, first = _checked("later", later), _checked("earlier", earlier)
    if second.shape[-1] != first.shape[-1]:
        raise ValueError(
            f"earlier: expected vectors of {second.shape[-1]} weights, as in later, got "
            f"{first.shape[-1]}."
        )
    first, second = jnp.broadcast_arrays(first, second)
    return jnp.take_along_axis(first, second, axis=-1)


def invert(source: jax.typing.ArrayLike) -> jax.Array:
    """The inverse of a permutation: turns sources into destinations, or back.

    Args:
        source: (..., n) integers, as returned by `permutation_of`.

    Returns:
        Destinations, (..., n): the weight at place i went to place destination[i].

    Raises:
        TypeError: If `source` is not of an integer dtype.
        ValueError: If it is a scalar.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.permutations.invert(jnp.array([2, 0, 1]))
        Array([1, 2, 0], dtype=int32)
    """
    return jnp.argsort(_checked("source", source), axis=-1)


def cycle_labels(source: jax.typing.ArrayLike) -> jax.Array:
    """Which cycle each place is on (Section 2.2): places on the same cycle have the same label.

    Args:
        source: (..., n) integers, as returned by `permutation_of`.

    Returns:
        (..., n): the first place of the cycle. A fixed point is a cycle of one.

    Raises:
        TypeError: If `source` is not of an integer dtype.
        ValueError: If it is a scalar.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.permutations.cycle_labels(jnp.array([3, 1, 4, 0, 2]))  # 0 and 3, 1, 2 and 4
        Array([0, 1, 2, 0, 2], dtype=int32)
    """
    ahead = _checked("source", source)
    labels = _places(ahead)
    # Pointer doubling: a label is the first of 1, 2, 4, ... places along the cycle.
    for _ in range((ahead.shape[-1] - 1).bit_length()):
        labels = jnp.minimum(labels, jnp.take_along_axis(labels, ahead, axis=-1))
        ahead = jnp.take_along_axis(ahead, ahead, axis=-1)
    return labels


def cycle_lengths(source: jax.typing.ArrayLike) -> jax.Array:
    """The length of the cycle that each place is on: 1 for a fixed point.

    Args:
        source: (..., n) integers, as returned by `permutation_of`.

    Returns:
        (..., n) integers.

    Raises:
        TypeError: If `source` is not of an integer dtype.
        ValueError: If it is a scalar.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.permutations.cycle_lengths(jnp.array([3, 1, 4, 0, 2]))
        Array([2, 1, 2, 2, 2], dtype=int32)
    """

    def of_vector(labels: jax.Array) -> jax.Array:
        return jnp.zeros_like(labels).at[labels].add(1)[labels]

    lengths: jax.Array = jnp.vectorize(of_vector, signature="(n)->(n)")(cycle_labels(source))
    return lengths


class PermutationStatistics(NamedTuple):
    """What a permutation moved: one number for each weight vector, (...,).

    Attributes:
        fixed_points: weights that are where they began; of a random permutation, 1 on average.
        cycles: cycles of two or more weights.
        longest_cycle: weights on the longest cycle.
        mean_distance: how many places a weight has moved, averaged over all weights; about n / 3
            in a random permutation.
    """

    fixed_points: jax.Array
    cycles: jax.Array
    longest_cycle: jax.Array
    mean_distance: jax.Array


def statistics(source: jax.typing.ArrayLike) -> PermutationStatistics:
    """Fixed points, cycles and distances of permutations.

    Args:
        source: (..., n) integers, n > 0, as returned by `permutation_of`.

    Returns:
        `PermutationStatistics`, one number for each vector.

    Raises:
        TypeError: If `source` is not of an integer dtype.
        ValueError: If it is a scalar, or n is 0.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> moved = p2t.permutations.statistics(jnp.array([3, 1, 4, 0, 2]))
        >>> int(moved.fixed_points), int(moved.cycles), int(moved.longest_cycle)
        (1, 2, 2)
        >>> float(moved.mean_distance)
        2.0
    """
    places = _checked("source", source)
    if places.shape[-1] == 0:
        raise ValueError(f"source: expected vectors of one or more weights, got {places.shape}.")
    here = _places(places)
    fixed = (places == here).sum(axis=-1)
    return PermutationStatistics(
        fixed_points=fixed,
        cycles=(cycle_labels(places) == here).sum(axis=-1) - fixed,
        longest_cycle=cycle_lengths(places).max(axis=-1),
        mean_distance=jnp.abs(places - here).mean(axis=-1),
    )


def _places(source: jax.Array) -> jax.Array:
    """0 to n - 1 for each vector."""
    return jax.lax.broadcasted_iota(source.dtype, source.shape, source.ndim - 1)


def _checked(name: str, source: jax.typing.ArrayLike) -> jax.Array:
    """Sources in a dtype that has room for places, their differences and their number."""
    array = _leaves.in_jax(source)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an array of integers, got {array.dtype}.")
    if array.ndim == 0:
        raise ValueError(f"{name}: expected an array of shape (n,) or (..., n), got a scalar.")
    return array.astype(jnp.int64 if array.dtype.itemsize == 8 else jnp.int32)


class UpdateStatistics(NamedTuple):
    """How much one step changed: scalars.

    Attributes:
        sparsity: the fraction of all weights that did not change.
        size: the mean absolute change of those that did; 0 if none did.
    """

    sparsity: jax.Array
    size: jax.Array


def update_statistics(updates: optax.Updates, *, vectors: VectorSpec = "flax") -> UpdateStatistics:
    """How sparse and how large updates are (Section 5.1.1).

    Args:
        updates: what a step adds to the parameters, or the difference of two trees of parameters.
            The difference of two `permuted_params` is free of rounding, which can make an update
            nonzero where a weight did not move.
        vectors: which axes form weight vectors, see `laperm`. Other parameters are not counted.

    Returns:
        `UpdateStatistics` over all weight vectors together.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If there are no weight vectors, or a rule does not know a leaf.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> updates = {"kernel": jnp.array([[0.0, 2.0], [0.0, -4.0]]), "bias": jnp.ones(2)}
        >>> sparsity, size = p2t.permutations.update_statistics(updates)
        >>> float(sparsity), float(size)
        (0.5, 3.0)
    """
    leaves = _leaves.walk(updates, vectors)
    delta = [leaf.array for leaf in leaves if leaf.axes is not None]
    total = sum(u.size for u in delta)
    if not total:
        raise ValueError("updates: contains no weight vectors.")
    float64 = any(u.dtype == jnp.float64 and not _leaves.too_wide(u) for u in delta)
    wide = _leaves.wide(jnp.float64 if float64 else jnp.float32)

    def count(u: Any) -> tuple[Any, Any]:
        """How many weights change, and by how much together."""
        if _leaves.too_wide(u):
            u = np.asarray(u)
            return np.count_nonzero(u), np.abs(u).sum()
        u = jnp.asarray(u)
        return (u != 0).sum(), jnp.abs(u.astype(wide)).sum()

    counts, sizes = zip(*map(count, delta), strict=True)
    changed, absolute = sum(counts), sum(sizes)
    return UpdateStatistics(
        sparsity=1 - jnp.asarray(changed, wide) / total,
        size=jnp.asarray(absolute, wide) / jnp.asarray(jnp.maximum(changed, 1), wide),
    )
