"""Sparse networks: random pruning, and training what is left (Sections 4.4 and 5.2.3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2t_jax import _checks
from p2t_jax._vectors import VectorSpec, vector_axes
from p2t_jax.initializers import leaf_by_leaf, placed_like


def prune(
    key: jax.Array,
    params: optax.Params,
    keep: Any,
    *,
    overall: bool = False,
    vectors: VectorSpec = "flax",
) -> optax.Params:
    """Sets weights to zero at random, and keeps exactly `round(keep * size)` of them.

    A zero is no connection, so permuting the weights rewires the network (Section 4.4).

    Args:
        key: a key of `jax.random`.
        params: the initial parameters.
        keep: the fraction of its weights that each layer keeps, in (0, 1]; or a tree of fractions
            for parts of `params`, matched as `vectors` is, with None for what is not pruned. Which
            weights of the layer they are is random: neurons do not all keep as many.
        overall: keep that fraction of all weights taken together, in whatever layers they are.
        vectors: where the weight vectors lie, see `laperm`. Nothing else is pruned.

    Returns:
        A tree like `params`, with their dtypes and shardings.

    Raises:
        TypeError: If a fraction is no real number.
        ValueError: If a fraction is outside (0, 1]; if there is more than one for `overall`; if the
            tree is empty, or that of the fractions does not match it; if a rule does not know a
            leaf.

    Example:
        >>> import jax, jax.numpy as jnp, p2t_jax as p2t
        >>> params = {"kernel": jnp.ones((20, 5)), "bias": jnp.ones(5)}
        >>> params = p2t.prune(jax.random.key(0), params, keep=0.1)
        >>> int(params["kernel"].sum()), int(params["bias"].sum())
        (10, 5)
    """
    _checks.not_empty(params)
    axes = vector_axes(vectors, params)
    if overall:
        _check_keep(keep, "all weights together")
    entries = leaf_by_leaf("keep", keep, params)
    where = {}
    for i, (path, leaf, fraction) in enumerate(entries):
        if axes[i] is not None and fraction is not None:
            _check_keep(fraction, "/".join(path) or "the root of the tree")
            where[i] = leaf

    if overall:
        sizes = [leaf.size for leaf in where.values()]
        kept = _random(key, keep, sum(sizes))
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        masks = [kept[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    else:
        masks = [
            _random(jax.random.fold_in(key, i), entries[i][2], leaf.size)
            for i, leaf in where.items()
        ]
    leaves = [leaf for _, leaf, _ in entries]
    for (i, leaf), mask in zip(where.items(), masks, strict=True):
        leaves[i] = jnp.where(placed_like(leaf, mask.reshape(leaf.shape)), leaf, 0)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _random(key: jax.Array, keep: Any, size: int) -> jax.Array:
    """Which of so many weights are kept."""
    fraction = _checks.real_scalar("keep", keep)
    kept = jnp.round(keep * size) if fraction is None else round(fraction * size)
    return jax.random.permutation(key, size) < kept


def _check_keep(keep: Any, where: str) -> None:
    value = _checks.real_scalar("keep", keep)
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"keep: it must be in (0, 1], and is {keep} for {where}.")


class KeepZerosState(NamedTuple):
    """State of `keep_zeros`.

    Attributes:
        pruned: a tree of booleans that mirrors the parameters: which weights were zero at first.
    """

    pruned: Any


def keep_zeros(*, vectors: VectorSpec = "flax") -> optax.GradientTransformation:
    """Keeps the weights zero that are zero at first: trains a sparse network as it is connected.

    To be put behind an optimizer: it stops the updates of the weights that were zero in `init`. All
    that is no weight vector is trained, zero or not.

    Args:
        vectors: where the weight vectors lie, see `laperm`.

    Returns:
        A gradient transformation with a `KeepZerosState`.

    Raises:
        TypeError: In `init`, if a weight vector is not of a floating dtype.
        ValueError: In `init`, if the tree is empty or a rule does not know a leaf; in `update`, if
            the state belongs to other parameters.

    Example:
        >>> import jax.numpy as jnp, optax, p2t_jax as p2t
        >>> params = {"kernel": jnp.array([[0.0], [2.0]]), "bias": jnp.zeros(1)}
        >>> tx = optax.chain(optax.sgd(1.0), p2t.keep_zeros())
        >>> state = tx.init(params)
        >>> grads = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        >>> updates, state = tx.update(grads, state)
        >>> updates["kernel"].ravel(), updates["bias"]
        (Array([ 0., -1.], dtype=float32), Array([-1.], dtype=float32))

    References:
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570>`_, 2020, phase 2 of
        Section 5.2.3.
    """

    def init_fn(params: optax.Params) -> KeepZerosState:
        _checks.not_empty(params)
        leaves, treedef = jax.tree.flatten(params)
        pruned = [
            jnp.zeros_like(leaf, bool) if leaf_axes is None else leaf == 0
            for leaf, leaf_axes in zip(leaves, vector_axes(vectors, params), strict=True)
        ]
        return KeepZerosState(jax.tree.unflatten(treedef, pruned))

    def update_fn(
        updates: optax.Updates, state: KeepZerosState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, KeepZerosState]:
        del params
        pruned, treedef = jax.tree.flatten(state.pruned)
        delta = _checks.matching_leaves("updates", updates, state.pruned)
        stopped = [
            None if u is None else jnp.where(zero, jnp.zeros_like(u), u)
            for zero, u in zip(pruned, delta, strict=True)
        ]
        return jax.tree.unflatten(treedef, stopped), state

    return optax.GradientTransformation(init_fn, update_fn)
