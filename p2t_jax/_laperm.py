"""LAPerm, lookahead permutation: Algorithm 2 and Section 3 of the paper."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG  # Optax shows it nowhere else.

from p2t_jax import _checks, _ranking
from p2t_jax._vectors import Remembered, VectorSpec, flax_vectors, vector_axes

SyncPeriod: TypeAlias = jax.typing.ArrayLike | Callable[[Any], jax.typing.ArrayLike]


class SynchronizeState(NamedTuple):
    """State of `synchronize`.

    Attributes:
        sync_step: int32 scalar, the mini-batches seen so far: what a schedule of k is given.
        lookahead_step: int32 scalar, i of Algorithm 2: the mini-batches since the last
            synchronization.
        theta_sorted: the initial parameters, every weight vector sorted along its axes. Parameters
            that are no weight vectors are there too, as they began, so that this tree mirrors the
            parameters leaf by leaf for `optax.tree.map_params` and for shardings.
        vectors: where the weight vectors lie; no array, part of the tree's structure.
    """

    sync_step: jax.Array
    lookahead_step: jax.Array
    theta_sorted: optax.Params
    vectors: Remembered


def laperm(
    inner: optax.GradientTransformation,
    sync_period: SyncPeriod,
    *,
    vectors: VectorSpec = flax_vectors,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains by lookahead permutation: an optimizer looks ahead, then the weights are reordered.

    For k mini-batches the inner optimizer moves the weights freely, :math:`\phi_i \leftarrow
    \phi_{i-1} + Opt(f, \phi_{i-1}, d_i)`. Then every weight vector is replaced by the initial
    weights in the order that the inner optimizer gave them,

    .. math:: \theta_t = \theta_{sorted}[R(\phi_k)],

    with R the ranking: 0 for the smallest weight, ties ranked by position, NaN last. Whatever no
    rule declares a weight vector (biases, normalization) is left to the inner optimizer, as in
    Section 5.2.

    It is `optax.chain(inner, synchronize(sync_period))`, so `state[0]` is the inner optimizer's
    state. Between synchronizations, and by rounding also after them, the parameters are not exactly
    a permutation: evaluate and save `permuted_params(state, params)`, which is.

    Args:
        inner: the inner optimizer, Opt in Algorithm 2. Any Optax optimizer; extra arguments of
            `update` reach it.
        sync_period: k, the mini-batches between synchronizations, at least 1: an int, a scalar
            array, or a schedule. A schedule is called with the number of mini-batches seen before
            this one; the weights are synchronized once at least as many mini-batches as it then
            asks for have passed since they were last. A traced or scheduled k that is below 1 or
            NaN counts as 1.
        vectors: where the weight vectors lie: a rule `(path, leaf) -> axes | None`, or a (prefix)
            tree of axes. See `p2t_jax.vectors`.

    Returns:
        A gradient transformation whose `update` needs `params`. Its `init` needs the initial
        weights themselves: `theta_sorted` is made from them.

    Raises:
        TypeError: If `inner` is no gradient transformation or `sync_period` no number; in `init`,
            if a weight vector is not of a floating dtype.
        ValueError: If `sync_period` is below 1 or no scalar; in `init`, if the tree is empty or a
            rule does not know a leaf; in `update`, without `params` or with a state that belongs to
            other parameters.

    Example:
        >>> import jax, jax.numpy as jnp, optax, p2t_jax as p2t
        >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.0]]), "bias": jnp.zeros(1)}
        >>> tx = p2t.laperm(optax.sgd(1.0), sync_period=2)
        >>> state = tx.init(params)
        >>> grads = {"kernel": jnp.array([[0.0], [-2.0], [0.0]]), "bias": jnp.ones(1)}
        >>> for _ in range(2):
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["kernel"].ravel()
        Array([2., 3., 1.], dtype=float32)

    References:
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570>`_, 2020, Section 3.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"inner: LAPerm needs an optimizer to look ahead with, such as optax.adam(1e-3), not "
            f"{inner!r}."
        )
    return optax.chain(inner, synchronize(sync_period, vectors=vectors))


def synchronize(
    sync_period: SyncPeriod, *, vectors: VectorSpec = flax_vectors
) -> optax.GradientTransformationExtraArgs:
    r"""The link that LAPerm puts behind an optimizer: every k steps, reorder the initial weights.

    Passes updates on as they come, but every `sync_period` steps replaces those of the weight
    vectors by :math:`\theta_{sorted}[R(params + updates)] - params` (Section 3.1). Whatever stands
    in front of it in an `optax.chain` is the inner optimizer; nothing that changes updates should
    stand behind it.

    Args:
        sync_period: see `laperm`.
        vectors: see `laperm`.

    Returns:
        A gradient transformation with a `SynchronizeState`.

    Raises:
        TypeError: see `laperm`.
        ValueError: see `laperm`.

    Example:
        >>> import optax, p2t_jax as p2t
        >>> tx = optax.chain(
        ...     optax.clip_by_global_norm(1.0), optax.adam(1e-3), p2t.synchronize(sync_period=20)
        ... )
    """
    _check_period(sync_period(0) if callable(sync_period) else sync_period)

    def init_fn(params: optax.Params) -> SynchronizeState:
        _checks.not_empty(params)
        axes = vector_axes(vectors, params)
        leaves = jax.tree.leaves(params)
        return SynchronizeState(
            sync_step=jnp.zeros((), jnp.int32),
            lookahead_step=jnp.zeros((), jnp.int32),
            theta_sorted=jax.tree.unflatten(jax.tree.structure(params), _sorted_copy(axes, leaves)),
            vectors=Remembered(vectors),
        )

    def update_fn(
        updates: optax.Updates,
        state: SynchronizeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SynchronizeState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        axes = vector_axes(vectors, params)
        leaves = jax.tree.leaves(params)
        theta_sorted = _checks.matching_leaves("state", state.theta_sorted, params, dtypes=True)
        delta = _checks.matching_leaves("updates", updates, params)

        k = sync_period(state.sync_step) if callable(sync_period) else sync_period
        _check_period(k)
        step = state.lookahead_step + 1
        synchronizes = ~(step < k)

        # A parameter without an update (None) is no part of this step.
        where = {i: a for i, a in enumerate(axes) if a is not None and delta[i] is not None}
        theta = [leaves[i] for i in where]
        dtypes = [jnp.result_type(leaves[i], delta[i]) for i in where]

        def look_ahead(delta: list[jax.Array]) -> list[jax.Array]:
            return [
                _as_if_with(w, jnp.asarray(u, dtype))
                for u, w, dtype in zip(delta, theta, dtypes, strict=True)
            ]

        def permute(delta: list[jax.Array]) -> list[jax.Array]:
            phi = optax.apply_updates(theta, delta)
            permuted = _ranking.synchronize(
                list(where.values()), phi, [theta_sorted[i] for i in where]
            )
            return [
                jnp.where(synchronizes, new.astype(u.dtype) - old.astype(u.dtype), u)
                for new, old, u in zip(permuted, theta, look_ahead(delta), strict=True)
            ]

        if where:
            operands = [delta[i] for i in where]
            if any(isinstance(x, jax.core.Tracer) for x in [synchronizes, *theta, *operands]):
                new = jax.lax.cond(_any(synchronizes), permute, look_ahead, operands)
            else:  # Outside of jit a cond would compile anew in every step.
                new = permute(operands) if synchronizes else look_ahead(operands)
            for i, u in zip(where, new, strict=True):
                delta[i] = u
        return jax.tree.unflatten(jax.tree.structure(params), delta), state._replace(
            sync_step=optax.safe_increment(state.sync_step),
            lookahead_step=jnp.where(synchronizes, 0, step),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _as_if_with(w: jax.Array, u: jax.Array) -> jax.Array:
    """`u`, sharded or varying over the mesh axes that `w` is, as both branches of a `cond` must be.

    Replicated updates of sharded parameters are the ones that need it.
    """
    ours: Any = jax.typeof(u).sharding
    theirs: Any = jax.typeof(w).sharding
    if ours.spec != theirs.spec and not any(ours.spec):  # along explicit mesh axes
        u = jax.reshard(u, theirs)
    return jnp.where(True, u, w.astype(u.dtype))  # in a shard_map


def _check_period(k: Any) -> None:
    value = _checks.real_scalar("sync_period", k)
    if value is not None and not value >= 1:
        raise ValueError(f"sync_period: weights are synchronized every 1 or more steps, not {k}.")


def _sorted_copy(axes: Any, leaves: list[Any]) -> list[Any]:
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return leaves  # Optax optimizers can be initialized with shapes alone, to see the state's.
    copies = [jnp.array(leaf, copy=True) for leaf in leaves]
    where = {i: leaf_axes for i, leaf_axes in enumerate(axes) if leaf_axes is not None}
    rows = _ranking.sort(list(where.values()), [copies[i] for i in where])
    for i, leaf in zip(where, rows, strict=True):
        copies[i] = leaf
    return copies


@jax.custom_batching.custom_vmap
def _any(predicate: jax.Array) -> jax.Array:
    """Whether any member of a vmapped ensemble synchronizes: so that `cond` stays a `cond`."""
    return predicate


@_any.def_vmap
def _any_of_batch(size: int, batched: list[bool], predicate: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched
    return _any(predicate.any()), False
