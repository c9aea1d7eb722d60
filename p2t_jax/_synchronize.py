"""The synchronization of LAPerm: Section 3.1, and error feedback, which is not in the paper."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks, _leaves, _ranking, _updates
from p2t_jax._host.host_choice import HostCallback, host_choice
from p2t_jax._jax_internals import equations, is_traced, varying_axes, varying_like
from p2t_jax._replace import replace_if
from p2t_jax._vectors import Path, VectorAxes, VectorSpec, named_leaves


class SynchronizeState(NamedTuple):
    """State of `synchronize`.

    Attributes:
        sync_step: int32 scalar, the mini-batches seen so far: the argument of a schedule of k.
        lookahead_step: int32 scalar, i of Algorithm 2: the mini-batches since the last
            synchronization.
        theta_sorted: the initial parameters, every weight vector sorted along its axes. Other
            parameters keep their initial value here, so that this tree mirrors the parameters leaf
            by leaf, for `optax.tree.map_params` and for shardings.
        feedback_error: with `error_feedback`, e: what synchronizations have cut off so far, of the
            shapes of the parameters; float32, or float64 where the parameter is. Zeros for
            parameters without weight vectors. None without `error_feedback`.
        theta_synchronized: with `average_over`, exactly the parameters that all devices agreed on
            at the last synchronization; before the first one, the initial parameters. None without
            `average_over`.
        vectors: the axes of the weight vectors; static metadata, not an array.
    """

    sync_step: jax.Array
    lookahead_step: jax.Array
    theta_sorted: optax.Params
    feedback_error: optax.Params | None
    theta_synchronized: optax.Params | None
    vectors: VectorAxes

    def exact_params(self, params: Mapping[Path, Any]) -> dict[Path, jax.Array]:
        """The exact values of those of `params` that the state knows, for `permuted_params`."""
        found = _updates.vectors_of_state(self.sync_step, self.theta_sorted, self.vectors, params)
        theta_sorted = [x.weights for x in found]
        theta = _ranking.reorder_like(
            [x.axes for x in found], theta_sorted, _look_ahead(self, found)
        )
        now = {x.path: w for x, w in zip(found, theta, strict=True)}
        if self.theta_synchronized is None:
            return now
        step, lookahead_step = map(_updates.scalar, (self.sync_step, self.lookahead_step))
        agree = (step > 0) & (lookahead_step == 0)
        return {
            path: jnp.where(agree, w, now.get(path, params[path]))
            for path, w in named_leaves(self.theta_synchronized)
            if jnp.issubdtype(w.dtype, jnp.inexact)
        }


jax.export.register_namedtuple_serialization(
    SynchronizeState, serialized_name="p2t_jax.SynchronizeState"
)


def synchronize(
    sync_period: optax.ScalarOrSchedule,
    *,
    error_feedback: optax.ScalarOrSchedule | None = None,
    vectors: VectorSpec = "flax",
    average_over: Any = None,
    host_callback: HostCallback | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The last transformation of LAPerm's chain: every k steps, it reorders the initial weights.

    In other steps, updates pass unchanged. Every `sync_period` steps, those of the weight vectors
    become :math:`\theta_{\mathrm{sorted}}[R(p + u)] - p` (Section 3.1), with p the
    parameters and u the updates. Everything before it in an `optax.chain` is the inner optimizer.
    It must be the last transformation that changes updates.

    Args:
        sync_period: see `laperm`.
        error_feedback: see `laperm`.
        vectors: see `laperm`.
        average_over: see `laperm`.
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
    # The default is not 0.0, which `optax.inject_hyperparams` would turn into an array.
    m_or_schedule = 0.0 if error_feedback is None else error_feedback
    _checks.hyperparameter(_check_feedback, m_or_schedule)
    host_choice(host_callback)
    # Only a plain number can be known to be 0 wherever `init` runs, inside `jit` as well.
    remembers = not (isinstance(m_or_schedule, int | float) and m_or_schedule == 0)

    @_updates.with_default_promotion
    def init_fn(params: optax.Params) -> SynchronizeState:
        leaves, axes = _updates.checked_init(params, vectors)
        return SynchronizeState(
            sync_step=jnp.zeros((), jnp.int32),
            lookahead_step=jnp.zeros((), jnp.int32),
            theta_sorted=jax.tree.unflatten(
                jax.tree.structure(params), _sorted(leaves, host_callback)
            ),
            feedback_error=jax.tree.map(_no_error, params) if remembers else None,
            theta_synchronized=(
                None if average_over is None else jax.tree.map(_updates.state_copy, params)
            ),
            vectors=axes,
        )

    @_updates.with_default_promotion
    def update_fn(
        updates: optax.Updates,
        state: SynchronizeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SynchronizeState]:
        del extra_args
        if state.feedback_error is None and remembers:
            raise ValueError(
                "state: has no feedback_error, which error_feedback needs: it is the state of an "
                "optimizer without error feedback. Initialize a new one."
            )
        trees = state.theta_sorted, state.feedback_error, state.theta_synchronized
        step = _updates.checked(updates, params, state.vectors, *trees)
        k, m = (x(state.sync_step) if callable(x) else x for x in (sync_period, m_or_schedule))
        _check_period(k)
        _check_feedback(m)
        m = jnp.nan_to_num(jnp.clip(jnp.asarray(m, jnp.float32), 0, 1))
        i = state.lookahead_step + 1
        synchronizes = jnp.asarray(~(i < k))
        phi = step.moving
        if average_over is not None:
            _check_same_on_all(average_over, sync_period, synchronizes)
            phi = step.moving + step.others
        axes = tuple(parameter.axes for parameter in step.moving)
        changes = replace_if(
            # The choice of now: what is compiled for equal arguments is used again.
            functools.partial(_synchronized, axes, average_over, host_choice(host_callback)),
            synchronizes,
            [_look_ahead_on(parameter, m, average_over) for parameter in phi],
            [parameter.param for parameter in phi],
            [parameter.weights for parameter in step.moving],
            m,
        )
        update, e, theta = zip(*changes, strict=True) if changes else ((), (), ())
        return step.put(updates, phi, update), state._replace(
            sync_step=optax.safe_increment(state.sync_step),
            lookahead_step=jnp.where(synchronizes, 0, i),
            feedback_error=step.put(state.feedback_error, step.moving, e[: len(axes)]),
            theta_synchronized=step.put(state.theta_synchronized, phi, theta),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Change(NamedTuple):
    """What a step does to a parameter; as proposed, unless the step synchronizes.

    Attributes:
        update: its update.
        error: e after the step; None without error feedback, or for one without weight vectors.
        agreed: with `average_over`, the value that all devices agree on; else None. Updates differ
            between devices, and so does the rounding when they are added.
    """

    update: jax.Array
    error: jax.Array | None
    agreed: jax.Array | None


def _look_ahead_on(parameter: _updates.Parameter, m: jax.Array, average_over: Any) -> _Change:
    """The change without a synchronization, of the types that it has after one."""
    param, weights, (error, agreed) = parameter.param, parameter.weights, parameter.others
    # Unlike `astype`, this leaves no weak type behind.
    dtype = jnp.result_type(param, parameter.update)
    update = jax.lax.convert_element_type(parameter.update, dtype)
    update = varying_like(_leaves.sharded_like(update, param), param, weights)
    if not parameter.axes:
        error = None
    elif error is not None:
        # With `average_over`, it belongs to the mean, which is the same on all devices.
        error = varying_like(error, weights, m, *([update] if average_over is None else []))
    if agreed is not None:
        agreed = varying_like(agreed, weights)
    return _Change(update, error, agreed)


def _synchronized(
    axes: tuple[_leaves.Axes, ...],
    average_over: Any,
    host_callback: HostCallback | None,
    given: list[_Change],
    theta: list[jax.Array],
    theta_sorted: list[jax.Array],
    m: jax.Array,
) -> list[_Change]:
    """The changes of a synchronization; parameters without weight vectors come last."""
    n = len(axes)
    phi = [
        optax.apply_updates(p if c.error is None else _widened(p), c.update)
        for p, c in zip(theta, given, strict=True)
    ]
    if average_over is not None:  # The only collective: devices communicate in a synchronization.
        phi = jax.lax.pmean(phi, average_over)
    z = [
        x if c.error is None else x + _leaves.sharded_like(c.error, x)
        for x, c in zip(phi, given, strict=True)
    ]
    z[:n] = map(varying_like, z[:n], theta_sorted)
    new = _ranking.reorder_like(axes, theta_sorted, z[:n], host_callback=host_callback) + z[n:]
    return [_change(m, average_over, *leaf) for leaf in zip(z, new, theta, given, strict=True)]


def _change(
    m: jax.Array, average_over: Any, z: jax.Array, new: jax.Array, old: jax.Array, given: _Change
) -> _Change:
    """From a parameter to its new value, and what of z is remembered: e = m (z - theta)."""
    dtype = given.update.dtype
    update = _leaves.sharded_like(new, old).astype(dtype) - old.astype(dtype)
    error = None
    if given.error is not None:
        theta = _leaves.sharded_like(_widened(new), z)
        error = m.astype(z.dtype) * (z - theta)
        if old.dtype != theta.dtype:
            # In half precision, old + update may be far from theta; the next look-ahead starts
            # there.
            lost = theta - _rounded_sum(old, update)
            error += lost if average_over is None else jax.lax.pmean(lost, average_over)
        error = _leaves.sharded_like(jnp.where(jnp.isfinite(error), error, 0), given.error)
    agreed = None if given.agreed is None else new
    change: _Change = jax.tree.map(varying_like, _Change(update, error, agreed), given)
    return change


def _rounded_sum(param: jax.Array, update: jax.Array) -> jax.Array:
    """`optax.apply_updates`, in float32: XLA may keep more digits of a number that it rounds."""
    total = _widened(param) + update.astype(jnp.float32)
    precision = jnp.finfo(param.dtype)
    return jax.lax.reduce_precision(total, precision.nexp, precision.nmant)


def _widened(array: jax.Array) -> jax.Array:
    """An array in the dtype of the error."""
    return array.astype(_leaves.compute_dtype(array.dtype))


def _no_error(param: Any) -> Any:
    """The error at first."""
    dtype = _leaves.compute_dtype(_leaves.dtype_of(param))
    if isinstance(param, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(param.shape, dtype, sharding=param.sharding)
    param = jnp.asarray(param)
    return varying_like(jnp.zeros_like(param, dtype), param)


def _look_ahead(state: SynchronizeState, found: Sequence[_updates.Exact]) -> list[jax.Array]:
    """What is ranked, whatever the step: the parameters, and what is remembered."""
    if state.feedback_error is None:
        return [x.param for x in found]
    errors, phi = dict(named_leaves(state.feedback_error)), []
    for x in found:
        error = jnp.asarray(errors[x.path])
        if x.param.dtype == error.dtype:
            # After a synchronization they are theta, and their sum with e is z but for rounding.
            # Parameters in half precision are only near theta; e has what is missing.
            error = jnp.where(_updates.scalar(state.lookahead_step) == 0, 0, error)
        phi.append(_widened(x.param) + _leaves.sharded_like(error, x.param))
    return phi


def _check_same_on_all(average_over: Any, sync_period: Any, synchronizes: jax.Array) -> None:
    """Refuses a k that may differ between devices: they would wait for each other forever."""
    devices = varying_axes(_checks.device_index("average_over", average_over))
    if devices:  # `shard_map` keeps track of what varies between them.
        differs = bool(devices & varying_axes(synchronizes))
    elif callable(sync_period):
        jaxpr = jax.make_jaxpr(sync_period)(jax.ShapeDtypeStruct((), jnp.int32))
        asks = any(eqn.primitive.name == "axis_index" for eqn in equations(jaxpr.jaxpr))
        differs = asks or any(map(is_traced, jaxpr.consts))
    else:
        differs = is_traced(sync_period)
    if differs:
        raise ValueError(
            f"sync_period: must be the same on all devices of the axis {average_over!r}, got one "
            "that may differ: devices would wait for each other forever. Pass a number, or a "
            "schedule that depends on the step alone, and keep the step counters of the state the "
            "same on all devices (under shard_map with the spec P())."
        )


def _check_period(k: Any) -> None:
    value = _checks.real_scalar("sync_period", k, schedule=True)
    if value is not None and not value >= 1:
        raise ValueError(f"sync_period: must be at least 1, got {k}.")
    if value is not None and value >= 2**31 and jnp.issubdtype(np.asarray(k).dtype, jnp.integer):
        raise ValueError(f"sync_period: must be below 2**31, the number of steps, got {k}.")


def _check_feedback(m: Any) -> None:
    value = _checks.real_scalar("error_feedback", m, schedule=True)
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"error_feedback: must be in [0, 1], got {m}.")


def _sorted(leaves: list[_leaves.Leaf], host_callback: HostCallback | None) -> list[Any]:
    if any(isinstance(leaf.array, jax.ShapeDtypeStruct) for leaf in leaves):
        # Optax optimizers can be initialized with shapes alone, to get those of the state.
        return [leaf.array for leaf in leaves]
    copies = [_updates.state_copy(leaf.array) for leaf in leaves]
    axes = {i: leaf.axes for i, leaf in enumerate(leaves) if leaf.axes is not None}
    rows = _ranking.sort_vectors(
        list(axes.values()), [copies[i] for i in axes], host_callback=host_callback
    )
    for i, leaf in zip(axes, rows, strict=True):
        copies[i] = leaf
    return copies
