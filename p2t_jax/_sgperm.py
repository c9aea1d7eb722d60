"""SGPerm, stochastic gradient permutation: Algorithm 1 and Section 2 of the paper."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax._src.base import NO_PARAMS_MSG  # Optax shows it nowhere else.

from p2t_jax import _checks
from p2t_jax._host import per_row as host
from p2t_jax._vectors import Remembered, VectorSpec, flax_vectors, vector_axes

Priority: TypeAlias = Literal["nearest", "farthest", "random"]

# Section 5.1.2. Algorithm 1 multiplies before it uses: the first mini-batch has beta_1 alpha_0.
_AGGRESSIVENESS = optax.exponential_decay(0.985 * 0.07, 1, 0.985, end_value=0.005)
_PARTITION_RATIO = optax.exponential_decay(0.05 / 0.995, 1, 1 / 0.995, end_value=0.1)

# What traced hyperparameters are clipped to: so little that nothing moves, and everything.
_LEAST, _MOST = 1e-30, 1.0


class CyclePermutationState(NamedTuple):
    """State of `cycle_permutation`.

    Attributes:
        sgperm_step: int32 scalar, the mini-batches seen so far: what schedules are given.
        sgperm_key: uint32 (2,), raw data of the key that the random partitions are drawn from.
        theta: the current parameters, exactly; the tree mirrors the parameters leaf by leaf.
        vectors: where the weight vectors lie; no array, part of the tree's structure.
    """

    sgperm_step: jax.Array
    sgperm_key: jax.Array
    theta: optax.Params
    vectors: Remembered


def sgperm(
    key: jax.typing.ArrayLike,
    aggressiveness: optax.ScalarOrSchedule = _AGGRESSIVENESS,
    partition_ratio: optax.ScalarOrSchedule = _PARTITION_RATIO,
    *,
    inner: optax.GradientTransformation | None = None,
    priority: Priority = "nearest",
    vectors: VectorSpec = flax_vectors,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains by stochastic gradient permutation: each step moves weights along disjoint cycles.

    The recommendation r of a weight is the momentum-accelerated gradient (Section 2.1.2). Weight y
    may move to the place of weight x of the same neuron where that follows the recommendation and
    is neither too small nor too big a change,

    .. math:: r_x (w_x - w_y) \ge 0, \qquad \ell < |w_x - w_y| < u = \ell + \alpha A,

    with A the range of the weight vector, :math:`\ell` the smallest distance between two weights
    of the random subset that both are in, and :math:`\lfloor 1/\lambda \rfloor` subsets drawn anew
    in every step. Permutations are cycles of such movements, found by depth-first search.

    It is `optax.chain(inner, cycle_permutation(...))`. Whatever no rule declares a weight vector is
    held; to train it otherwise, use `optax.partition`.

    Args:
        key: where the random partitions come from: a seed, or a key of `jax.random`.
        aggressiveness: :math:`\alpha \in (0, 1]`, a number, scalar array or schedule. By default
            that of Section 5.1.2. Algorithm 1's :math:`\alpha_t = \max(\beta_1 \alpha_{t-1},
            \alpha_{min})` is `optax.exponential_decay(beta_1 * alpha_0, 1, beta_1,
            end_value=alpha_min)`.
        partition_ratio: :math:`\lambda \in (0, 1]`, likewise. Algorithm 1's :math:`\lambda_t =
            \min(\beta_2 \lambda_{t-1}, \lambda_{max})` is `optax.exponential_decay(beta_2 *
            lambda_0, 1, beta_2, end_value=lambda_max)`. Traced or scheduled values of either are
            clipped to (0, 1]; NaN lets nothing move.
        inner: what turns gradients into updates; the recommendation is the negative update. By
            default `optax.sgd(1.0, momentum=0.9)`; `optax.sgd(1.0)` for plain gradients; any
            optimizer for the weight difference that it would make.
        priority: which of its permissible movements a weight tries first (Section 2.2.1): to the
            "nearest" weight, the "farthest", or a "random" one.
        vectors: where the weight vectors lie, see `laperm`.
        axis_name: the axis of a `pmap` or `shard_map` over which parameters are replicated: each
            device then searches its share of the neurons, and the results are gathered. Gradients
            must have been averaged.

    Returns:
        A gradient transformation whose `update` needs `params`.

    Raises:
        TypeError: If `key` is none, or a hyperparameter is no number; in `init`, if a weight vector
            is not of a floating dtype.
        ValueError: If a hyperparameter is outside (0, 1] or no scalar, or `priority` is unknown; in
            `init`, if the tree is empty or a rule does not know a leaf; in `update`, without
            `params`, with a state of other parameters, or if `axis_name` is not bound.

    Example:
        >>> import jax.numpy as jnp, optax, p2t_jax as p2t
        >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.5]])}  # one neuron with three inputs
        >>> tx = p2t.sgperm(key=0, aggressiveness=1.0, partition_ratio=1.0)
        >>> state = tx.init(params)
        >>> grads = {"kernel": jnp.array([[1.0], [-1.0], [1.0]])}  # the second should grow
        >>> updates, state = tx.update(grads, state, params)
        >>> optax.apply_updates(params, updates)["kernel"].ravel()
        Array([3. , 2.5, 1. ], dtype=float32)

    References:
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570>`_, 2020, Section 2.
    """
    return optax.chain(
        optax.sgd(1.0, momentum=0.9) if inner is None else inner,
        cycle_permutation(
            key,
            aggressiveness,
            partition_ratio,
            priority=priority,
            vectors=vectors,
            axis_name=axis_name,
        ),
    )


def cycle_permutation(
    key: jax.typing.ArrayLike,
    aggressiveness: optax.ScalarOrSchedule = _AGGRESSIVENESS,
    partition_ratio: optax.ScalarOrSchedule = _PARTITION_RATIO,
    *,
    priority: Priority = "nearest",
    vectors: VectorSpec = flax_vectors,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The link that SGPerm puts behind an optimizer: updates become permutations.

    The recommendation is :math:`r = -updates`. Only its sign counts, the wanted direction: which
    cycles are found does not depend on where the search starts, so the paper's order of starting by
    |r| changes nothing. Nothing that changes updates should stand behind it.

    Args:
        key: see `sgperm`.
        aggressiveness: see `sgperm`.
        partition_ratio: see `sgperm`.
        priority: see `sgperm`.
        vectors: see `sgperm`.
        axis_name: see `sgperm`.

    Returns:
        A gradient transformation with a `CyclePermutationState`.

    Raises:
        TypeError: see `sgperm`.
        ValueError: see `sgperm`.

    Example:
        >>> import optax, p2t_jax as p2t
        >>> tx = optax.chain(
        ...     optax.adam(1e-3), p2t.cycle_permutation(key=0, aggressiveness=0.05)
        ... )
    """
    _check_key(key)
    if priority not in _KERNELS:
        raise ValueError(f"priority: give one of {', '.join(_KERNELS)}, not {priority!r}.")
    for name, value in (("aggressiveness", aggressiveness), ("partition_ratio", partition_ratio)):
        _check_ratio(name, value(0) if callable(value) else value)

    def init_fn(params: optax.Params) -> CyclePermutationState:
        _checks.not_empty(params)
        vector_axes(vectors, params)
        return CyclePermutationState(
            sgperm_step=jnp.zeros((), jnp.int32),
            sgperm_key=_raw_key(key),
            theta=jax.tree.map(_copy, params),
            vectors=Remembered(vectors),
        )

    def update_fn(
        updates: optax.Updates,
        state: CyclePermutationState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CyclePermutationState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        axes = vector_axes(vectors, params)
        leaves = jax.tree.leaves(params)
        theta = _checks.matching_leaves("state", state.theta, params, dtypes=True)
        delta = _checks.matching_leaves("updates", updates, params)

        alpha = _value("aggressiveness", aggressiveness, state.sgperm_step)
        lambda_ = _value("partition_ratio", partition_ratio, state.sgperm_step)
        step_key = jax.random.fold_in(
            jax.random.wrap_key_data(state.sgperm_key, impl="threefry2x32"), state.sgperm_step
        )
        where = {i: a for i, a in enumerate(axes) if a is not None and delta[i] is not None}
        vector_axes_ = list(where.values())
        operands = [
            [theta[i] for i in where],
            [-delta[i].astype(jnp.promote_types(delta[i].dtype, jnp.float32)) for i in where],
            [_a_number_a_row(leaves[i], a, alpha) for i, a in where.items()],
            [_a_number_a_row(leaves[i], a, lambda_) for i, a in where.items()],
            [
                jax.random.bits(jax.random.fold_in(step_key, number), _rows_shape(leaves[i], a))
                for number, (i, a) in enumerate(where.items())
            ],
        ]
        permuted = _permute(_KERNELS[priority], vector_axes_, operands, axis_name)

        for i, new in zip(where, permuted, strict=True):
            dtype = jnp.result_type(leaves[i], delta[i])
            delta[i] = new.astype(dtype) - leaves[i].astype(dtype)
            theta[i] = new
        for i, u in enumerate(delta):
            if i not in where and u is not None:
                delta[i] = jnp.zeros_like(u)
        treedef = jax.tree.structure(params)
        return jax.tree.unflatten(treedef, delta), state._replace(
            sgperm_step=optax.safe_increment(state.sgperm_step),
            theta=jax.tree.unflatten(treedef, theta),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _permute(
    kernel: host.RowsKernel,
    axes: Sequence[host.LeafAxes],
    operands: Sequence[Sequence[jax.Array]],
    axis_name: Any,
) -> list[jax.Array]:
    if axis_name is None:
        return host.per_row(kernel, None, axes, *operands)
    try:
        device, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name: no axis {axis_name!r} is bound here. Call `update` inside the pmap or "
            "shard_map that has it, or leave axis_name out."
        ) from None
    shapes = [leaf.shape for leaf in operands[0]]
    share_axes = [host.row_axis(shape, a) for shape, a in zip(shapes, axes, strict=True)]

    def share(array: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            return array
        array = host.pad(array, axis, devices)
        size = array.shape[axis] // devices
        return jax.lax.dynamic_slice_in_dim(array, device * size, size, axis)

    shares = [
        [share(array, axis) for array, axis in zip(group, share_axes, strict=True)]
        for group in operands
    ]
    results = host.per_row(kernel, None, axes, *shares)
    return [
        result
        if axis is None
        else jax.lax.slice_in_dim(
            jax.lax.all_gather(result, axis_name, axis=axis, tiled=True, to="invarying"),
            0,
            shape[axis],
            axis=axis,
        )
        for result, axis, shape in zip(results, share_axes, shapes, strict=True)
    ]


def _search_kernel(priority: int) -> host.RowsKernel:
    def kernel(
        theta: host.Array,
        r: host.Array,
        alpha: host.Array,
        lambda_: host.Array,
        bits: host.Array,
        out: host.Array,
    ) -> None:
        from p2t_jax._host.kernels import cycles  # `import p2t_jax` does not wait for Numba

        w = theta if theta.dtype.itemsize >= 4 else theta.astype(np.float32)
        bits_dtype = np.dtype(f"u{theta.dtype.itemsize}")  # Numba knows no bfloat16
        source = np.empty(theta.shape, np.int32)
        # One pair of hyperparameters for all rows, but in an ensemble whose members differ.
        pairs = np.concatenate([alpha, lambda_], axis=1)
        starts = np.flatnonzero(np.diff(pairs, axis=0).any(axis=1)) + 1
        for start, end in itertools.pairwise([0, *starts, len(pairs)]):
            some = slice(start, end)
            if not alpha[start]:  # rows that only fill up a device's share
                out[some] = theta[some]
                continue
            cycles.search_rows(
                w[some],
                r[some],
                float(alpha[start, 0]),
                cycles.subset_count(float(lambda_[start, 0])),
                np.empty(0, np.uint32),
                bits[some, 0].astype(np.int64),
                priority,
                source[some],
            )
            cycles.take_rows(theta[some].view(bits_dtype), source[some], out[some].view(bits_dtype))

    return kernel


_KERNELS: dict[str, host.RowsKernel] = {
    name: _search_kernel(number) for number, name in enumerate(("nearest", "farthest", "random"))
}


def _rows_shape(leaf: jax.Array, axes: host.LeafAxes) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(leaf.shape))


def _a_number_a_row(leaf: jax.Array, axes: host.LeafAxes, number: jax.Array) -> jax.Array:
    return jnp.broadcast_to(number, _rows_shape(leaf, axes))


def _copy(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.array(leaf, copy=True)


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    is_seed = isinstance(key, int) and not isinstance(key, bool)
    if dtype is not None:
        is_seed = jnp.ndim(key) == 0 and (
            jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jax.dtypes.prng_key)
        )
        is_seed = is_seed or (jnp.shape(key) == (2,) and dtype == jnp.uint32)
    if not is_seed:
        raise TypeError(f"key: give a seed (an int) or a key of jax.random, not {key!r}.")


def _raw_key(key: Any) -> jax.Array:
    """Raw data, since typed keys are not restored by every checkpointer."""
    if isinstance(key, int) or (jnp.ndim(key) == 0 and jnp.issubdtype(key.dtype, jnp.integer)):
        key = jax.random.key(key)
    elif jnp.ndim(key) == 1:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.random.bits(key, (2,), jnp.uint32)


def _check_ratio(name: str, ratio: Any) -> None:
    value = _checks.real_scalar(name, ratio)
    if value is not None and not 0 < value <= 1:
        raise ValueError(f"{name}: it must be in (0, 1], and is {ratio}.")


def _value(name: str, hyperparameter: Any, step: jax.Array) -> jax.Array:
    value = hyperparameter(step) if callable(hyperparameter) else hyperparameter
    _check_ratio(name, value)
    value = jnp.asarray(value, jnp.float32)
    return jnp.where(jnp.isnan(value), _LEAST, jnp.clip(value, _LEAST, _MOST))
