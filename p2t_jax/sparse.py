"""Sparse networks: random pruning, and training what is left (Sections 4.4 and 5.2.3)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2t_jax import _checks, _leaves
from p2t_jax._vectors import VectorSpec, match_prefix


def prune(
    key: Any,
    params: optax.Params,
    keep: Any,
    *,
    overall: bool = False,
    vectors: VectorSpec = "flax",
) -> optax.Params:
    """Sets weights to zero at random and keeps exactly `round(keep * size)` of them.

    A weight of zero is a missing connection, so permuting the weights rewires the network
    (Section 4.4).

    Args:
        key: a key of `jax.random`, or an integer seed.
        params: the initial parameters.
        keep: the fraction of its weights that each layer keeps, in (0, 1]; or a tree of fractions
            that is a prefix of `params`, with None for layers that are not pruned. Neurons of a
            layer may keep different numbers of weights.
        overall: whether `keep` is the fraction of all weights together; each layer then keeps a
            random number of its weights.
        vectors: which axes form weight vectors, see `laperm`. Other parameters are not pruned.

    Returns:
        A tree like `params` with the same dtypes and shardings. Its arrays are JAX arrays, and
        copies where nothing was pruned.

    Raises:
        TypeError: If `key` is not a key, or a fraction not a real number.
        ValueError: If a fraction is outside (0, 1]; if the tree is empty, or the tree of fractions
            does not match it; if a rule does not know a leaf.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> params = {"kernel": jnp.ones((20, 5)), "bias": jnp.ones(5)}
        >>> params = p2t.prune(0, params, keep=0.1)
        >>> int(params["kernel"].sum()), int(params["bias"].sum())
        (10, 5)
    """
    _leaves.not_empty(params)
    key = _checks.random_key("key", key)
    leaves = _leaves.walk(params, vectors)
    if overall:
        _check_keep(keep, "all weights together")
    fractions = [fraction for *_, fraction in match_prefix(keep, params, "keep")]
    pruned = [
        i
        for i, (leaf, fraction) in enumerate(zip(leaves, fractions, strict=True))
        if leaf.axes is not None and fraction is not None
    ]
    for i in pruned:
        _check_keep(fractions[i], leaves[i].name)

    sizes = [math.prod(leaves[i].array.shape) for i in pruned]
    if overall:
        kept = _random_mask(key, keep, sum(sizes))
        masks = jnp.split(kept, [sum(sizes[:number]) for number in range(1, len(sizes))])
    else:
        masks = [
            _random_mask(jax.random.fold_in(key, i), fractions[i], size)
            for i, size in zip(pruned, sizes, strict=True)
        ]
    new = [_leaves.copied(leaf.array) for leaf in leaves]
    for i, mask in zip(pruned, masks, strict=True):
        mask = _leaves.placed_like(leaves[i].array, mask.reshape(new[i].shape))
        new[i] = jnp.where(mask, new[i], 0)
    return jax.tree.unflatten(jax.tree.structure(params), new)


def _random_mask(key: jax.Array, keep: Any, size: int) -> jax.Array:
    """Booleans, (size,): which weights are kept."""
    kept: int | jax.Array
    fraction = _checks.real_scalar("keep", keep)
    if fraction is None:  # traced; not multiplied in its own dtype, which may have 8 or 16 bits
        keep = jnp.asarray(keep, _leaves.wide(keep.dtype))
        kept = jnp.round(keep * size).astype(jnp.int32)
    else:
        kept = round(fraction * size)
    return jax.random.permutation(key, size) < kept


def _check_keep(keep: Any, where: str) -> None:
    value = _checks.real_scalar("keep", keep)
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"keep: must be in (0, 1], got {keep} for {where}.")


class KeepZerosState(NamedTuple):
    """State of `keep_zeros`.

    Attributes:
        pruned: booleans in a tree like the parameters: which weights were zero in `init`.
    """

    pruned: Any


def keep_zeros(*, vectors: VectorSpec = "flax") -> optax.GradientTransformation:
    """Keeps zero weights zero: trains a sparse network without new connections.

    Chain it after an optimizer. It sets the updates of weights that were zero in `init` to zero.
    Parameters without weight vectors are trained, whether they are zero or not.

    Args:
        vectors: which axes form weight vectors, see `laperm`.

    Returns:
        A gradient transformation with a `KeepZerosState`.

    Raises:
        TypeError: In `init`, if a weight vector is not of a floating dtype.
        ValueError: In `init`, if the tree is empty or a rule does not know a leaf; in `update`, if
            the updates do not match the parameters of `init`.

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
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570v4>`_, 2020, phase 2 of
        Section 5.2.3.
    """

    def init_fn(params: optax.Params) -> KeepZerosState:
        _leaves.not_empty(params)
        pruned = [
            # Compared as it is given: JAX makes zero of a small float64 NumPy weight.
            jnp.zeros_like(leaf.array, bool) if leaf.axes is None else jnp.asarray(leaf.array == 0)
            for leaf in _leaves.walk(params, vectors)
        ]
        return KeepZerosState(jax.tree.unflatten(jax.tree.structure(params), pruned))

    def update_fn(
        updates: optax.Updates, state: KeepZerosState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, KeepZerosState]:
        del params
        pruned, treedef = jax.tree.flatten(state.pruned)
        delta = _leaves.matching("updates", updates, state.pruned)
        stopped = [
            None if u is None else jnp.where(_leaves.placed_like(u, zero), jnp.zeros_like(u), u)
            for zero, u in zip(pruned, delta, strict=True)
        ]
        return jax.tree.unflatten(treedef, stopped), state

    return optax.GradientTransformation(init_fn, update_fn)
