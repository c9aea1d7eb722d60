"""What training has moved, as a few numbers for a logger."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _leaves, _ranking, _updates
from p2t_jax._host.host_choice import HostCallback, host_choice
from p2t_jax._jax_internals import is_traced
from p2t_jax._vectors import VectorSpec


@_updates.under_any_switch
def movement(
    params: optax.Params, reference: optax.Params, *, vectors: VectorSpec = "flax"
) -> dict[str, float | jax.Array]:
    r"""How far the weights have moved from where they were: four numbers per parameter, and in all.

    With w the weights of a parameter now, v those of the reference, R their ranks within the weight
    vector of n weights, and sums over all vectors of the parameter, from each of which its mean
    has been subtracted:

    ============= ================================================= =======================
    number        meaning                                           a random permutation
    ============= ================================================= =======================
    moved         share of the positions with another weight        about 1
    change        mean of :math:`|w - v|` over the standard         1.13, of normal weights
                  deviation of v
    correlation   :math:`\sum w v / \sqrt{\sum w^2 \sum v^2}`       about 0
    rank_distance mean of :math:`|R(w) - R(v)| / n`                 about 1/3
    ============= ================================================= =======================

    The first counts how many weights moved, the others how much that changes the network. Equal
    weights share a rank, the mean of theirs, so exchanging them counts as nothing.

    Args:
        params: the parameters, permuted: for instance `permuted_params(state, params)`. Of
            look-ahead weights, `moved` is about 1; the other numbers have a meaning for them, too.
        reference: the initial parameters, or those of an earlier step; of the same structure,
            shapes and dtypes.
        vectors: which axes form weight vectors, see `laperm`. Other parameters do not count.

    Returns:
        A flat dict, such as `{"moved": 0.9, ..., "Dense_0/kernel/moved": 0.8, ...}`. The first four
        are means over all weights of all parameters. The values are Python floats; under a
        transformation such as `jit` they are float32 scalars.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If the two trees do not match, or there are no weight vectors.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> before = {"kernel": jnp.array([[0.0], [2.0], [4.0], [6.0]])}
        >>> after = {"kernel": jnp.array([[2.0], [0.0], [4.0], [6.0]])}
        >>> moved = p2t.metrics.movement(after, before)
        >>> {name: round(value, 3) for name, value in moved.items() if "/" not in name}
        {'change': 0.447, 'correlation': 0.8, 'moved': 0.5, 'rank_distance': 0.125}
    """
    then = _leaves.matching("reference", reference, params, dtypes=True)
    pairs = [
        (leaf, jnp.asarray(leaf.array), _leaves.placed_like(leaf.array, jnp.asarray(before)))
        for leaf, before in zip(_leaves.walk(params, vectors), then, strict=True)
        if leaf.axes is not None and np.size(leaf.array)
    ]
    if not pairs:
        raise ValueError("params: contains no weight vectors.")
    numbers: dict[str, jax.Array] = _numbers(
        [now for _, now, _ in pairs],
        [before for *_, before in pairs],
        axes=tuple(leaf.axes for leaf, *_ in pairs),
        names=tuple(leaf.name for leaf, *_ in pairs),
        host_callback=host_choice(None),
    )
    if any(map(is_traced, numbers.values())):
        return {**numbers}
    return {name: float(value) for name, value in jax.device_get(numbers).items()}


@functools.partial(jax.jit, static_argnames=("axes", "names", "host_callback"))
def _numbers(
    now: Sequence[jax.Array],
    then: Sequence[jax.Array],
    axes: tuple[_leaves.Axes, ...],
    names: tuple[str, ...],
    host_callback: HostCallback,
) -> dict[str, jax.Array]:
    ordered = _ranking.sort(axes, then, host_callback=host_callback)
    ranks = list(map(_shared_ranks, ordered, axes))
    ranks_now, ranks_then = (
        _ranking.give_ranking(axes, ranks, w, host_callback=host_callback) for w in (now, then)
    )
    of_parameters = list(map(_of_parameter, now, then, ranks_now, ranks_then, axes))
    sizes = np.array([w.size for w in now])
    shares = jnp.asarray(sizes / sizes.sum(), jnp.float32)
    numbers = {
        what: jnp.stack([of[what] for of in of_parameters]) @ shares for what in of_parameters[0]
    }
    for name, of in zip(names, of_parameters, strict=True):
        numbers |= {f"{name}/{what}": value for what, value in of.items()}
    return numbers


def _of_parameter(
    now: jax.Array, then: jax.Array, rank_now: jax.Array, rank_then: jax.Array, axes: _leaves.Axes
) -> dict[str, jax.Array]:
    wide = _leaves.wide(then.dtype)
    moved = jnp.not_equal(*_leaves.bit_patterns(now, then))
    w, v = now.astype(wide), then.astype(wide)
    change = jnp.abs(w - v).mean()
    w, v = (array - array.mean(axes, keepdims=True) for array in (w, v))
    deviation, scale = jnp.sqrt((v * v).mean()), jnp.sqrt((w * w).mean() * (v * v).mean())
    n = _leaves.vector_length(now.shape, axes)
    numbers = {
        "moved": moved.mean(),
        "change": jnp.where(deviation > 0, change / jnp.where(deviation > 0, deviation, 1), 0),
        "correlation": jnp.where(
            scale > 0, jnp.clip((w * v).mean() / jnp.where(scale > 0, scale, 1), -1, 1), 1
        ),
        "rank_distance": jnp.abs(rank_now - rank_then).mean() / n,
    }
    return {what: value.astype(jnp.float32) for what, value in numbers.items()}


def _shared_ranks(ordered: jax.Array, axes: _leaves.Axes) -> jax.Array:
    """For sorted weights their ranks; equal ones have the mean of their ranks."""
    rows = _leaves.to_rows(ordered, axes)
    last = rows.ndim - 1
    place = jax.lax.broadcasted_iota(jnp.int32, rows.shape, last)
    differ = rows[..., 1:] != rows[..., :-1]
    edge = jnp.ones_like(rows[..., :1], bool)
    begins = jnp.concatenate([edge, differ], axis=last)
    ends = jnp.concatenate([differ, edge], axis=last)
    first = jax.lax.cummax(jnp.where(begins, place, 0), axis=last)
    final = jax.lax.cummin(
        jnp.where(ends, place, jnp.iinfo(jnp.int32).max), axis=last, reverse=True
    )
    ranks = (first + (final - first) / 2).astype(jnp.float32)
    shared: jax.Array = _leaves.from_rows(ranks, ordered.shape, axes)
    return shared
