"""Permutations as arrays of sources: what moved where."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks
from p2t_jax._host import per_row as host
from p2t_jax._vectors import VectorSpec, named_leaves, show, vector_axes
from p2t_jax.profiles import as_rows


def permutation_of(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> optax.Params:
    r"""The permutation that took the initial weights to where they are now.

    For each weight vector :math:`\theta` it is the array of *sources*: place i has the weight that
    was at place source[i],

    .. math:: \theta_t[i] = \theta_0[source[i]].

    Weights are told apart by their bits. The j-th of several equal ones is the j-th of them before:
    equal weights never pass each other.

    Args:
        params: the parameters, permuted: for instance `permuted_params(state, params)`.
        initial_params: what they were before; of the same structure, shapes and dtypes.
        vectors: where the weight vectors lie, see `laperm`.

    Returns:
        A tree like `params`: int32 (..., n) for vectors of n weights, whose places are numbered in
        row-major order; None for all else. The axes before the last are those of the parameter that
        enumerate vectors. Under a transformation such as `jit`, where values cannot be checked, -1
        throughout a vector that is no permutation of the initial one.

    Raises:
        ValueError: If the two trees are not alike, or a weight vector is no permutation.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> before = {"kernel": jnp.array([[1.0], [2.0], [3.0]])}
        >>> after = {"kernel": jnp.array([[3.0], [1.0], [2.0]])}
        >>> p2t.permutation_of(after, before)["kernel"]
        Array([[2, 0, 1]], dtype=int32)
    """
    axes = {i: a for i, a in enumerate(vector_axes(vectors, params)) if a is not None}
    with_path, treedef = jax.tree_util.tree_flatten_with_path(params)
    then = _checks.matching_leaves("initial_params", initial_params, params, dtypes=True)

    def wide_bits(leaf: Any) -> jax.Array:
        bits = _bits(jnp.asarray(leaf))
        return bits.astype(jnp.promote_types(bits.dtype, jnp.int32))

    found = host.per_row(
        _sources_kernel,
        _sources,
        list(axes.values()),
        [wide_bits(with_path[i][1]) for i in axes],
        [wide_bits(then[i]) for i in axes],
    )
    sources: list[jax.Array | None] = [None] * len(then)
    for (i, leaf_axes), source in zip(axes.items(), found, strict=True):
        if not isinstance(source, jax.core.Tracer) and (source < 0).any():
            path = show(named_leaves(params)[i][0])
            raise ValueError(
                f"params: {path} is no permutation of its initial weights. Training adds updates, "
                "with rounding: give permuted_params(state, params)."
            )
        sources[i] = as_rows(source.astype(jnp.int32), leaf_axes)
    return jax.tree.unflatten(treedef, sources)


def _bits(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, f"int{8 * leaf.dtype.itemsize}")


def _sources_kernel(now: host.Array, then: host.Array, out: host.Array) -> None:
    order_now = np.argsort(now, axis=-1, kind="stable")
    order_then = np.argsort(then, axis=-1, kind="stable")
    same = np.take_along_axis(now, order_now, -1) == np.take_along_axis(then, order_then, -1)
    order_then[~same.all(axis=-1)] = -1
    np.put_along_axis(out, order_now, order_then.astype(out.dtype), axis=-1)


def _sources(now: jax.Array, then: jax.Array) -> jax.Array:
    def one(now: jax.Array, then: jax.Array) -> jax.Array:
        order_now, order_then = jnp.argsort(now, stable=True), jnp.argsort(then, stable=True)
        same = (now[order_now] == then[order_then]).all()
        sources = jnp.where(same, order_then, -1).astype(now.dtype)
        return jnp.zeros_like(now).at[order_now].set(sources, unique_indices=True)

    for _ in range(now.ndim - 1):
        one = jax.vmap(one)
    return one(now, then)


def compose_permutations(later: jax.typing.ArrayLike, earlier: jax.typing.ArrayLike) -> jax.Array:
    """One permutation after another.

    Args:
        later: sources, (..., n) integers: where each weight was after the earlier permutation.
        earlier: sources, (..., n): where the weight that then was at a place had come from.

    Returns:
        Sources, (..., n): `earlier[later]`, vector by vector.

    Raises:
        TypeError: If an argument is not of integers.
        ValueError: If one has no axis, or they differ in n.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.compose_permutations(jnp.array([1, 0, 2]), jnp.array([2, 0, 1]))
        Array([0, 2, 1], dtype=int32)
    """
    second, first = _checked_sources("later", later), _checked_sources("earlier", earlier)
    if second.shape[-1] != first.shape[-1]:
        raise ValueError(
            f"earlier: it permutes vectors of {first.shape[-1]} weights, and later vectors of "
            f"{second.shape[-1]}."
        )
    first, second = jnp.broadcast_arrays(first, second)
    return jnp.take_along_axis(first, second, axis=-1)


def invert_permutation(source: jax.typing.ArrayLike) -> jax.Array:
    """Where each weight went, from where the weight at each place came from; and the reverse.

    Args:
        source: (..., n) integers, as `permutation_of` gives them.

    Returns:
        Destinations, (..., n): place i's weight went to destination[i].

    Raises:
        TypeError: If `source` is not of integers.
        ValueError: If it has no axis.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.invert_permutation(jnp.array([2, 0, 1]))
        Array([1, 2, 0], dtype=int32)
    """
    return jnp.argsort(_checked_sources("source", source), axis=-1)


def cycle_labels(source: jax.typing.ArrayLike) -> jax.Array:
    """Which cycle each place lies on (Section 2.2): two places have the same label if on the same.

    Args:
        source: (..., n) integers, as `permutation_of` gives them.

    Returns:
        (..., n): the first place of the cycle. A fixed point is its own, and alone.

    Raises:
        TypeError: If `source` is not of integers.
        ValueError: If it has no axis.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.cycle_labels(jnp.array([3, 1, 4, 0, 2]))  # 0 and 3, 1 alone, 2 and 4
        Array([0, 1, 2, 0, 2], dtype=int32)
    """
    ahead = _checked_sources("source", source)
    n = ahead.shape[-1]
    labels = jnp.broadcast_to(jnp.arange(n, dtype=ahead.dtype), ahead.shape)
    # Pointer doubling: a label is the first of 1, 2, 4, ... places along the cycle.
    for _ in range((n - 1).bit_length()):
        labels = jnp.minimum(labels, jnp.take_along_axis(labels, ahead, axis=-1))
        ahead = jnp.take_along_axis(ahead, ahead, axis=-1)
    return labels


def cycle_lengths(source: jax.typing.ArrayLike) -> jax.Array:
    """How long the cycle is that each place lies on: 1 for a fixed point.

    Args:
        source: (..., n) integers, as `permutation_of` gives them.

    Returns:
        (..., n) integers.

    Raises:
        TypeError: If `source` is not of integers.
        ValueError: If it has no axis.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> p2t.cycle_lengths(jnp.array([3, 1, 4, 0, 2]))
        Array([2, 1, 2, 2, 2], dtype=int32)
    """

    def of_vector(labels: jax.Array) -> jax.Array:
        return jnp.zeros_like(labels).at[labels].add(1)[labels]

    lengths: jax.Array = jnp.vectorize(of_vector, signature="(n)->(n)")(cycle_labels(source))
    return lengths


class PermutationStatistics(NamedTuple):
    """What a permutation moved: one number a weight vector, (...,).

    Attributes:
        fixed_points: weights at the place where they began; 1 on average, if all is random.
        cycles: cycles of two or more weights.
        longest_cycle: weights on the longest cycle.
        mean_distance: places from where a weight began, averaged over all; about n / 3, if all is
            random.
    """

    fixed_points: jax.Array
    cycles: jax.Array
    longest_cycle: jax.Array
    mean_distance: jax.Array


def permutation_statistics(source: jax.typing.ArrayLike) -> PermutationStatistics:
    """Fixed points, cycles and distances of permutations.

    Args:
        source: (..., n) integers, n > 0, as `permutation_of` gives them.

    Returns:
        `PermutationStatistics`, one number for each vector.

    Raises:
        TypeError: If `source` is not of integers.
        ValueError: If it has no axis, or n is 0.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> moved = p2t.permutation_statistics(jnp.array([3, 1, 4, 0, 2]))
        >>> int(moved.fixed_points), int(moved.cycles), int(moved.longest_cycle)
        (1, 2, 2)
        >>> float(moved.mean_distance)
        2.0
    """
    places = _checked_sources("source", source)
    n = places.shape[-1]
    if n == 0:
        raise ValueError(f"source: there is nothing to permute in shape {places.shape}.")
    here = jnp.arange(n, dtype=places.dtype)
    fixed = (places == here).sum(axis=-1)
    return PermutationStatistics(
        fixed_points=fixed,
        cycles=(cycle_labels(places) == here).sum(axis=-1) - fixed,
        longest_cycle=cycle_lengths(places).max(axis=-1),
        mean_distance=jnp.abs(places - here).mean(axis=-1),
    )


def _checked_sources(name: str, source: jax.typing.ArrayLike) -> jax.Array:
    array = jnp.asarray(source)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: a permutation is an array of integers, not of {array.dtype}.")
    if array.ndim == 0:
        raise ValueError(f"{name}: give a permutation, (n,), or several, (..., n), not a scalar.")
    return array


class UpdateStatistics(NamedTuple):
    """How much one step changed: scalars.

    Attributes:
        sparsity: the fraction of all weights that did not change.
        size: the mean absolute change of those that did; 0 if none did.
    """

    sparsity: jax.Array
    size: jax.Array


def update_statistics(updates: optax.Updates, *, vectors: VectorSpec = "flax") -> UpdateStatistics:
    """How sparse updates are, and how large (Section 5.1.1).

    Args:
        updates: what a step adds to the parameters, or the difference of two trees of parameters.
            That of two `permuted_params` is free of rounding, by which an update can differ from
            zero where a weight did not move.
        vectors: where the weight vectors lie, see `laperm`. Nothing else is counted.

    Returns:
        `UpdateStatistics`, over all weight vectors together.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If there is no weight vector, or a rule does not know a leaf.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> updates = {"kernel": jnp.array([[0.0, 2.0], [0.0, -4.0]]), "bias": jnp.ones(2)}
        >>> sparsity, size = p2t.update_statistics(updates)
        >>> float(sparsity), float(size)
        (0.5, 3.0)
    """
    pairs = zip(jax.tree.leaves(updates), vector_axes(vectors, updates), strict=True)
    delta = [jnp.asarray(u) for u, leaf_axes in pairs if leaf_axes is not None]
    total = sum(u.size for u in delta)
    if not total:
        raise ValueError("updates: there are no weight vectors in it.")
    changed = jnp.asarray(sum((u != 0).sum() for u in delta))
    absolute = sum(jnp.abs(u.astype(jnp.promote_types(u.dtype, jnp.float32))).sum() for u in delta)
    return UpdateStatistics(sparsity=1 - changed / total, size=absolute / jnp.maximum(changed, 1))
