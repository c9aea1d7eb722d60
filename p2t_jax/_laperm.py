"""LAPerm, lookahead permutation: Algorithm 2 and Section 3 of the paper."""

import functools
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks, _leaves, _ranking, _updates
from p2t_jax._host.internals import is_traced, varying_axes, varying_like
from p2t_jax._host.switch import host_callbacks
from p2t_jax._vectors import VectorAxes, VectorSpec


class SynchronizeState(NamedTuple):
    """State of `synchronize`.

    Attributes:
        sync_step: int32 scalar, the mini-batches seen so far: the argument of a schedule of k.
        lookahead_step: int32 scalar, i of Algorithm 2: the mini-batches since the last
            synchronization.
        theta_sorted: the initial parameters, every weight vector sorted along its axes. Other
            parameters keep their initial value here, so that this tree mirrors the parameters leaf
            by leaf, for `optax.tree.map_params` and for shardings.
        theta_synchronized: with `axis_name`, exactly the parameters that all devices agreed on at
            the last synchronization; before the first one, the initial parameters. None without
            `axis_name`.
        vectors: the axes of the weight vectors; static metadata, not an array.
    """

    sync_step: jax.Array
    lookahead_step: jax.Array
    theta_sorted: optax.Params
    theta_synchronized: optax.Params | None
    vectors: VectorAxes


jax.export.register_namedtuple_serialization(
    SynchronizeState, serialized_name="p2t_jax.SynchronizeState"
)


def laperm(
    inner: optax.GradientTransformation,
    sync_period: optax.ScalarOrSchedule,
    *,
    vectors: VectorSpec = "flax",
    axis_name: Any = None,
    host_callback: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains by lookahead permutation: an optimizer looks ahead, then the weights are reordered.

    For k mini-batches the inner optimizer moves the weights freely, :math:`\phi_i \leftarrow
    \phi_{i-1} + Opt(f, \phi_{i-1}, d_i)`. Then every weight vector is replaced by the initial
    weights in the order of the inner optimizer's weights,

    .. math:: \theta_t = \theta_{sorted}[R(\phi_k)],

    with R the ranking: 0 for the smallest weight, ties ranked by position, NaN last. All other
    parameters (biases, normalization) are trained by the inner optimizer, as in Section 5.2.

    It is `optax.chain(inner, synchronize(sync_period))`, so `state[0]` is the inner optimizer's
    state. In addition, a synchronization makes a line search forget the value and the gradient that
    it remembers of the look-ahead point, so that `optax.value_and_grad_from_state` computes both
    again. Between synchronizations the parameters are not a permutation, and after one they are
    only up to rounding. Use `permuted_params` to evaluate and save.

    Args:
        inner: the inner optimizer, Opt in Algorithm 2. Any Optax optimizer; extra arguments of
            `update` reach it.
        sync_period: k, the mini-batches between synchronizations, at least 1: an int, a scalar
            array, or a schedule. A schedule is called with the number of mini-batches seen before
            this one; weights are synchronized when the steps since the last synchronization reach
            its current value. A traced or scheduled k that is below 1 or NaN counts as 1. One that
            is a fraction, from a schedule that grows smoothly or in a JAX array, counts as the next
            whole number. Infinity never synchronizes.
        vectors: which axes of a parameter form a weight vector: a rule `(path, leaf) -> axes |
            None`, the name of one ("flax", "equinox", "haiku"), or a (prefix) tree of axes, such as
            `infer_vectors` returns.
        axis_name: the axis of a `pmap`, `shard_map` or `vmap` whose devices look ahead alone, each
            on its own mini-batches. Do not average the gradients; the inner states stay local.
            A synchronization averages the parameters over the axis, those without weight vectors,
            too: it ranks the mean of :math:`\phi_k`. Nothing else is communicated. If a weight is
            not finite on one device, the mean may be NaN on all; NaN is ranked last. All devices
            must start from the same parameters, and k must be the same on all.
        host_callback: whether ranking may run on the host, as it does on CPUs, where XLA sorts
            slowly. False for plain JAX, which can be exported and cached. None for the default of
            the process, see `set_host_callback`.

    Returns:
        A gradient transformation whose `update` needs `params`. Its `init` needs the initial
        weights themselves, because it sorts them.

    Raises:
        TypeError: If `inner` is not a gradient transformation or `sync_period` is not a number; in
            `init`, if a weight vector is not of a floating dtype.
        ValueError: If `sync_period` is below 1, a fraction or not a scalar; in `init`, if the tree
            is empty, no parameter has weight vectors, or a rule does not know a leaf; in `update`,
            without `params` or with a state that does not match them, if `axis_name` is not bound,
            or if k may differ between the devices of that axis.

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
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570v4>`_, 2020, Section 3.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"inner: expected an Optax optimizer, such as optax.adam(1e-3), got {inner!r}."
        )
    chain = optax.chain(
        inner,
        synchronize(sync_period, vectors=vectors, axis_name=axis_name, host_callback=host_callback),
    )

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, (inner_state, sync_state) = chain.update(updates, state, params, **extra_args)
        return updates, (_forget(inner_state, sync_state.lookahead_step == 0), sync_state)

    return optax.GradientTransformationExtraArgs(chain.init, update_fn)


def synchronize(
    sync_period: optax.ScalarOrSchedule,
    *,
    vectors: VectorSpec = "flax",
    axis_name: Any = None,
    host_callback: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The last transformation of LAPerm's chain: every k steps, it reorders the initial weights.

    In other steps, updates pass unchanged. Every `sync_period` steps, those of the weight vectors
    become :math:`\theta_{sorted}[R(params + updates)] - params` (Section 3.1). Everything before
    it in an `optax.chain` is the inner optimizer. It must be the last transformation that changes
    updates.

    Args:
        sync_period: see `laperm`.
        vectors: see `laperm`.
        axis_name: see `laperm`.
        host_callback: see `laperm`.

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
    _checks.hyperparameter(_check_period, sync_period)
    _checks.whole("sync_period", sync_period)

    @_updates.under_any_switch
    def init_fn(params: optax.Params) -> SynchronizeState:
        leaves, axes = _updates.initial(params, vectors)
        return SynchronizeState(
            sync_step=jnp.zeros((), jnp.int32),
            lookahead_step=jnp.zeros((), jnp.int32),
            theta_sorted=jax.tree.unflatten(
                jax.tree.structure(params), _sorted(leaves, host_callbacks(host_callback))
            ),
            theta_synchronized=(None if axis_name is None else jax.tree.map(_updates.kept, params)),
            vectors=axes,
        )

    @_updates.under_any_switch
    def update_fn(
        updates: optax.Updates,
        state: SynchronizeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SynchronizeState]:
        del extra_args
        step = _updates.take_apart(updates, state.theta_sorted, state.vectors, params)
        k = sync_period(state.sync_step) if callable(sync_period) else sync_period
        _check_period(k)
        i = state.lookahead_step + 1
        synchronizes = jnp.asarray(~(i < k))
        leaves, agreed = step.moving, jax.tree.leaves(state.theta_synchronized)
        if axis_name is not None:
            _check_same_on_all(axis_name, sync_period, synchronizes)
            leaves = leaves + step.others
        axes = tuple(leaf.axes for leaf in step.moving)
        permute = functools.partial(_permute, axes, axis_name, host_callbacks(host_callback))
        values = (
            [_as_promoted(leaf) for leaf in leaves],
            [varying_like(agreed[leaf.number], leaf.weights) for leaf in leaves if agreed],
        )
        theta = [leaf.param for leaf in leaves]
        theta_sorted = [leaf.weights for leaf in step.moving]
        new = _replace_if(permute, synchronizes, values, theta, theta_sorted)
        for whole, parts in zip((step.updates, agreed), new, strict=True):
            for leaf, part in zip(leaves, parts, strict=bool(parts)):
                whole[leaf.number] = part
        return step.tree(step.updates), state._replace(
            sync_step=optax.safe_increment(state.sync_step),
            lookahead_step=jnp.where(synchronizes, 0, i),
            theta_synchronized=step.tree(agreed) if agreed else None,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _permute(
    axes: tuple[_leaves.Axes, ...],
    axis_name: Any,
    host_callback: bool,
    values: tuple[list[jax.Array], list[jax.Array]],
    theta: list[jax.Array],
    theta_sorted: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The updates of a synchronization, and what all devices agree on.

    The latter are parameters, with `axis_name` only: updates differ between devices, and so does
    the rounding when they are added. In both lists, parameters without weight vectors come last.
    """
    delta, agreed = values
    new = optax.apply_updates(theta, delta)
    if axis_name is not None:  # The only collective: devices communicate in a synchronization.
        new = jax.lax.pmean(new, axis_name)
    n = len(axes)
    phi = list(map(varying_like, new[:n], theta_sorted))
    new[:n] = _ranking.give_ranking(axes, theta_sorted, phi, host_callback=host_callback)
    updates = [
        varying_like(_leaves.sharded_like(w, old).astype(u.dtype) - old.astype(u.dtype), u)
        for w, old, u in zip(new, theta, delta, strict=True)
    ]
    return updates, [varying_like(w, old) for w, old in zip(new, agreed, strict=False)]


def _check_same_on_all(axis_name: Any, sync_period: Any, synchronizes: jax.Array) -> None:
    """Refuses a k that may differ between devices: they would wait for each other forever."""
    devices = varying_axes(_checks.device_index(axis_name))
    if devices:  # `shard_map` keeps track of what varies between them.
        differs = bool(devices & varying_axes(synchronizes))
    elif callable(sync_period):
        jaxpr = jax.make_jaxpr(sync_period)(jax.ShapeDtypeStruct((), jnp.int32))
        differs = "axis_index" in str(jaxpr) or any(map(is_traced, jaxpr.consts))
    else:
        differs = is_traced(sync_period)
    if differs:
        raise ValueError(
            f"sync_period: must be the same on all devices of axis_name {axis_name!r}, got one "
            "that may differ: devices would wait for each other forever. Pass a number, or a "
            "schedule that depends on the step alone, and keep the step counters of the state the "
            "same on all devices (under shard_map with the spec P())."
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _replace_if(
    function: functools.partial[Any], predicate: jax.Array, values: Any, *args: Any
) -> Any:
    """`function(values, *args) if predicate else values`, without a copy of the values.

    A `lax.cond` copies what it passes through, in every step. A loop of no turns does not, but it
    has no derivative in reverse mode; hence the rule below. Outside of `jit`, JAX compiles a loop
    anew for each new function, so equal ones are told from their (hashable) parts.
    """
    if not is_traced(predicate):
        return function(values, *args) if predicate else values
    return _loop(function.func, function.args, predicate, values, *args)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _loop(function: Any, options: Any, predicate: jax.Array, values: Any, *args: Any) -> Any:
    def turn(carry: Any) -> Any:
        again, values = carry
        return jnp.zeros_like(again), function(*options, values, *args)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (predicate, values))[1]


@_replace_if.defjvp
def _replace_if_jvp(function: functools.partial[Any], primals: Any, tangents: Any) -> Any:
    predicate, *rest = primals
    if is_traced(predicate):
        dot = _derivative(function.func, function.args, predicate, rest, list(tangents[1:]))
    else:
        dot = jax.jvp(function, tuple(rest), tangents[1:])[1] if predicate else tangents[1]
    return _replace_if(function, *primals), dot


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _derivative(
    function: Any, options: Any, predicate: jax.Array, primals: Any, tangents: Any
) -> Any:
    return jax.lax.cond(
        predicate,
        lambda primals, tangents: jax.jvp(functools.partial(function, *options), primals, tangents)[
            1
        ],
        lambda primals, tangents: tangents[0],
        primals,
        tangents,
    )


def _as_promoted(leaf: _updates.Moving) -> jax.Array:
    """The update in the dtype and with the sharding that it has after a synchronization."""
    dtype = jnp.result_type(leaf.param, leaf.update)
    # Unlike `astype`, this leaves no weak type behind.
    update = jax.lax.convert_element_type(leaf.update, dtype)
    update = _leaves.sharded_like(update, leaf.param)
    return varying_like(update, leaf.param, leaf.weights)


def _check_period(k: Any) -> None:
    value = _checks.real_scalar("sync_period", k, schedule=True)
    if value is not None and not value >= 1:
        raise ValueError(f"sync_period: must be at least 1, got {k}.")
    if value is not None and value >= 2**31 and jnp.issubdtype(np.asarray(k).dtype, jnp.integer):
        raise ValueError(f"sync_period: must be below 2**31, the number of steps, got {k}.")


def _sorted(leaves: list[_leaves.Leaf], host_callback: bool) -> list[Any]:
    if any(isinstance(leaf.array, jax.ShapeDtypeStruct) for leaf in leaves):
        # Optax optimizers can be initialized with shapes alone, to get those of the state.
        return [leaf.array for leaf in leaves]
    copies = [_updates.kept(leaf.array) for leaf in leaves]
    axes = {i: leaf.axes for i, leaf in enumerate(leaves) if leaf.axes is not None}
    rows = _ranking.sort(
        list(axes.values()), [copies[i] for i in axes], host_callback=host_callback
    )
    for i, leaf in zip(axes, rows, strict=True):
        copies[i] = leaf
    return copies


def _forget(inner_state: Any, synchronized: jax.Array) -> Any:
    """Makes line searches forget the value and gradient at a point that the parameters left."""

    # By type: states and parameters of others may have fields of the same names.
    def remembers(node: Any) -> bool:
        return isinstance(
            node, optax.ScaleByBacktrackingLinesearchState | optax.ScaleByZoomLinesearchState
        )

    def forget(node: Any) -> Any:
        if not remembers(node) or node.value is None:
            return node
        # Optax computes both again where the value is not finite.
        return node._replace(value=jnp.where(synchronized, jnp.inf, node.value))

    return jax.tree.map(forget, inner_state, is_leaf=remembers)
