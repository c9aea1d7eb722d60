"""SGPerm, stochastic gradient permutation: Algorithm 1 and Section 2 of the paper."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.export
import jax.numpy as jnp
import optax

from p2t_jax import _checks, _leaves, _sgperm_in_jax, _updates
from p2t_jax._host.host_choice import HostCallback, host_choice
from p2t_jax._host.permutation import Permutation
from p2t_jax._host.permute import permute_vectors
from p2t_jax._host.shares import gathered, own_shares
from p2t_jax._jax_internals import is_traced
from p2t_jax._vectors import Path, VectorAxes, VectorSpec

Lower: TypeAlias = Literal["mean", "smallest"]
Priority: TypeAlias = Literal["nearest", "farthest", "random"]

_LOWER: tuple[Lower, ...] = ("mean", "smallest")
_PRIORITY: tuple[Priority, ...] = ("nearest", "farthest", "random")


def geometric_schedule(init_value: float, rate: float, limit: float) -> optax.Schedule:
    r"""The schedules of Algorithm 1: multiplied in every step, before the value is used.

    The first mini-batch has :math:`x_1 = rate \cdot x_0`, and then :math:`x_t = \max(rate \cdot
    x_{t-1}, limit)` if the rate is below 1, and with min in place of max if it is above 1.

    Args:
        init_value: :math:`x_0`: :math:`\alpha_0` or :math:`\lambda_0`.
        rate: :math:`\beta_1` or :math:`\beta_2`; positive, and not 1.
        limit: :math:`\alpha_{\mathrm{min}}` or :math:`\lambda_{\mathrm{max}}`.

    Returns:
        A schedule for `sgperm`: `optax.exponential_decay` from :math:`x_1` on.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If `rate` is not positive or is 1, or a value is not positive.

    Example:
        >>> import p2t_jax as p2t
        >>> alpha = p2t.geometric_schedule(0.5, rate=0.5, limit=0.1)
        >>> [float(alpha(step)) for step in range(3)]
        [0.25, 0.125, 0.10000000149011612]

    References:
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570v4>`_, 2020, Algorithm 1.
    """
    numbers: list[Any] = []
    for name, value in (("init_value", init_value), ("rate", rate), ("limit", limit)):
        number = _checks.real_scalar(name, value)
        if number is not None and not number > 0:
            raise ValueError(f"{name}: must be positive, got {value}.")
        numbers.append(value if number is None else number)  # a product of bytes would overflow
    init, factor, end = numbers
    if not is_traced(factor) and factor == 1:
        raise ValueError("rate: must not be 1; a constant needs no schedule.")
    schedule: optax.Schedule = optax.exponential_decay(init * factor, 1, factor, end_value=end)
    return schedule


# Section 5.1.2.
AGGRESSIVENESS = geometric_schedule(0.07, 0.985, 0.005)
PARTITION_RATIO = geometric_schedule(0.05, 1 / 0.995, 0.1)


class CyclePermutationState(NamedTuple):
    """State of `cycle_permutation`.

    Attributes:
        sgperm_step: int32 scalar, the mini-batches seen so far: the argument of schedules.
        sgperm_key: uint32 (2,), raw data of the key that the random partitions are drawn from.
        theta: the current parameters, exactly; the tree mirrors the parameters leaf by leaf.
        vectors: the axes of the weight vectors; static metadata, not an array.
    """

    sgperm_step: jax.Array
    sgperm_key: jax.Array
    theta: optax.Params
    vectors: VectorAxes

    def exact_params(self, params: Mapping[Path, Any]) -> dict[Path, jax.Array]:
        """The exact values of those of `params` that the state knows, for `permuted_params`."""
        found = _updates.vectors_of_state(self.sgperm_step, self.theta, self.vectors, params)
        return {x.path: x.weights for x in found}


jax.export.register_namedtuple_serialization(
    CyclePermutationState, serialized_name="p2t_jax.CyclePermutationState"
)


def sgperm(
    key: jax.typing.ArrayLike,
    aggressiveness: optax.ScalarOrSchedule = AGGRESSIVENESS,
    partition_ratio: optax.ScalarOrSchedule = PARTITION_RATIO,
    *,
    inner: optax.GradientTransformation | None = None,
    others: optax.GradientTransformation | None = None,
    lower: Lower = "mean",
    priority: Priority = "nearest",
    vectors: VectorSpec = "flax",
    share_over: Any = None,
    host_callback: HostCallback | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains by stochastic gradient permutation: each step moves weights along disjoint cycles.

    The recommendation r of a weight is the momentum-accelerated gradient (Section 2.1.2). The
    weight of y may move to the place of x, in the same neuron, if that changes the weight at x
    against the sign of its recommendation, and by less than the reach u,

    .. math:: r_x (w_x - w_y) > 0, \qquad |w_x - w_y| < u = \ell + \alpha A,

    with A the range of the weight vector. Every step partitions the vector at random into
    :math:`\lfloor 1/\lambda \rfloor` subsets, and weights move within these. Starting from the
    largest :math:`|r|`, a depth-first search along the movements, nearest first, finds cycles
    through the weight that it starts from. Weights without a recommendation (0 or NaN) stay.

    It is `optax.chain(inner, cycle_permutation(...))`. Parameters without weight vectors (biases,
    normalization) stay unchanged, unless `others` trains them; to permute biases, too, pass
    `vectors=with_biases("flax")`.

    Args:
        key: where the random partitions come from: a seed, or a key of `jax.random`.
        aggressiveness: :math:`\alpha \in (0, 1]`, a number, scalar array or schedule. By default
            that of Section 5.1.2, `geometric_schedule(0.07, 0.985, 0.005)`.
        partition_ratio: :math:`\lambda \in (0, 1]`, likewise; by default
            `geometric_schedule(0.05, 1 / 0.995, 0.1)`. A subset never has fewer than ten weights,
            if the vector has as many. Traced or scheduled values of either are clipped to [0, 1];
            0 and NaN let nothing move.
        inner: what turns gradients into updates; the recommendation is the negative update. By
            default `optax.sgd(1.0, momentum=0.9)`. `optax.sgd(1.0)` recommends by the gradient
            alone, any other optimizer by the change that it would make.
        others: an optimizer for the parameters without weight vectors, such as `optax.adam(1e-3)`.
            The result is then an `optax.partition` of the two. None to leave them unchanged.
        lower: how :math:`\ell` is chosen: "mean", the mean distance A / m of the m weights of the
            subset that have a recommendation, as in the authors' code; or "smallest", the smallest
            distance between two of them, as in the text of Section 2.1.4.
        priority: which of its permissible movements a weight tries first (Section 2.2.1): to the
            "nearest" weight, the "farthest", or a "random" one. Only "nearest" has a closed form,
            linear in the weights once they are sorted. The others are a plain search of the graph,
            up to quadratic in a subset for each weight: many times slower, and only on the host.
        vectors: which axes of a parameter form a weight vector, see `laperm`.
        share_over: the axis of a `pmap` or `shard_map` over which parameters are replicated: each
            device then searches its share of the neurons, and the results are gathered. Gradients
            must have been averaged.
        host_callback: whether the search runs on the host, where it is by far the fastest: True,
            through `jax.pure_callback` where that is safe; or "ffi", on CPUs through XLA's FFI,
            which is faster, and whose programs can be cached and exported. False for plain JAX,
            which can be exported for other platforms; it draws other partitions of the same
            distribution. None for the default, see `set_host_callback`.

    Returns:
        A gradient transformation whose `update` needs `params`.

    Raises:
        TypeError: If `key` is not a key, or a hyperparameter is not a number; in `init`, if a
            weight vector is not of a floating dtype.
        ValueError: If a hyperparameter is outside (0, 1] or not a scalar, or `lower` or `priority`
            is unknown; in `init`, if the tree is empty, no parameter has weight vectors, or a rule
            does not know a leaf; in `update`, without `params`, with a state that does not match
            them, or if `share_over` is not bound.

    Example:
        >>> import jax.numpy as jnp, optax, p2t_jax as p2t
        >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.5]])}  # one neuron with three inputs
        >>> tx = p2t.sgperm(key=0, aggressiveness=1.0, partition_ratio=1.0)
        >>> state = tx.init(params)
        >>> grads = {"kernel": jnp.array([[1.0], [-1.0], [1.0]])}  # the second should grow
        >>> updates, state = tx.update(grads, state, params)
        >>> optax.apply_updates(params, updates)["kernel"].ravel()
        Array([2.5, 3. , 1. ], dtype=float32)

    References:
        Qiu and Suda, `Permute to Train <https://arxiv.org/abs/2003.02570v4>`_, 2020, Section 2.
    """
    permuting = optax.chain(
        optax.sgd(1.0, momentum=0.9) if inner is None else inner,
        cycle_permutation(
            key,
            aggressiveness,
            partition_ratio,
            lower=lower,
            priority=priority,
            vectors=vectors,
            share_over=share_over,
            host_callback=host_callback,
        ),
    )
    if others is None:
        return permuting

    def groups(params: optax.Params) -> Any:
        names = ["others" if x.axes is None else "permuted" for x in _leaves.walk(params, vectors)]
        return jax.tree.unflatten(jax.tree.structure(params), names)

    return optax.partition({"permuted": permuting, "others": others}, groups)


def cycle_permutation(
    key: jax.typing.ArrayLike,
    aggressiveness: optax.ScalarOrSchedule = AGGRESSIVENESS,
    partition_ratio: optax.ScalarOrSchedule = PARTITION_RATIO,
    *,
    lower: Lower = "mean",
    priority: Priority = "nearest",
    vectors: VectorSpec = "flax",
    share_over: Any = None,
    host_callback: HostCallback | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The last transformation of SGPerm's chain: it turns updates into permutations.

    The recommendation is :math:`r = -updates`. A weight should change against its sign; its size
    decides where the search starts. It must be the last transformation that
    changes updates.

    Args:
        key: see `sgperm`.
        aggressiveness: see `sgperm`.
        partition_ratio: see `sgperm`.
        lower: see `sgperm`.
        priority: see `sgperm`.
        vectors: see `sgperm`.
        share_over: see `sgperm`.
        host_callback: see `sgperm`.

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
    _checks.check_key("key", key)  # without computing: JAX may not have been set up yet
    for name, choice, choices in (("lower", lower, _LOWER), ("priority", priority, _PRIORITY)):
        if choice not in choices:
            raise ValueError(f"{name}: must be one of {', '.join(choices)}, got {choice!r}.")
    for name, value in (("aggressiveness", aggressiveness), ("partition_ratio", partition_ratio)):
        _checks.hyperparameter(functools.partial(_checks.ratio, name), value)
    if not host_choice(host_callback) and priority != "nearest":
        raise ValueError(f'priority: must be "nearest" without host callbacks, got {priority!r}.')
    search = _Search(_LOWER.index(lower), _PRIORITY.index(priority))

    @_updates.with_default_promotion
    def init_fn(params: optax.Params) -> CyclePermutationState:
        _, axes = _updates.checked_init(params, vectors)
        return CyclePermutationState(
            sgperm_step=jnp.zeros((), jnp.int32),
            # Raw data, since not every checkpointer restores typed keys.
            sgperm_key=jax.random.bits(_checks.random_key("key", key), (2,), jnp.uint32),
            theta=jax.tree.map(_updates.state_copy, params),
            vectors=axes,
        )

    @_updates.with_default_promotion
    def update_fn(
        updates: optax.Updates,
        state: CyclePermutationState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CyclePermutationState]:
        del extra_args
        step = _updates.checked(updates, params, state.vectors, state.theta)
        alpha = _value("aggressiveness", aggressiveness, state.sgperm_step)
        lambda_ = _value("partition_ratio", partition_ratio, state.sgperm_step)
        operands = _operands(step.moving, jnp.where(lambda_ > 0, alpha, 0), lambda_, state)
        permuted = _permuted(search, step.moving, operands, share_over, host_callback)

        held = jax.tree.map(jnp.zeros_like, updates)
        return step.put_theta(held, permuted), state._replace(
            sgperm_step=optax.safe_increment(state.sgperm_step),
            theta=step.put(state.theta, step.moving, permuted),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@dataclasses.dataclass(frozen=True)
class _Search(Permutation):
    """SGPerm's search. In plain JAX it draws other subsets, and has priority "nearest" only."""

    lower: int
    priority: int

    name = "search"
    operands = 2  # theta, r
    numbers = ("float32", "float32", "uint32")  # alpha, lambda, seed
    same_in_jax = False
    by_pure_callback = True

    def on_host(self, *blocks: Any) -> None:
        from p2t_jax._host.kernels import cycles  # `import p2t_jax` does not wait for Numba

        cycles.search(*blocks, lower=self.lower, priority=self.priority)

    def in_jax(self, theta: jax.Array, *operands: jax.Array) -> jax.Array:
        mean = _LOWER[self.lower] == "mean"
        permuted: jax.Array = _sgperm_in_jax.search(theta, *operands[1:], mean=mean)
        return permuted


def _permuted(
    search: _Search,
    moving: Sequence[_updates.Parameter],
    operands: Sequence[Sequence[jax.Array]],
    share_over: Any,
    host_callback: HostCallback | None,
) -> list[jax.Array]:
    """The parameters after the search, of which each device along `share_over` does a share."""
    axes = [leaf.axes for leaf in moving]
    if share_over is None:
        return permute_vectors(search, axes, operands[0], *operands, host_callback=host_callback)
    _checks.device_index("share_over", share_over)
    mine = own_shares(axes, operands, share_over)
    found = permute_vectors(search, axes, mine[0], *mine, host_callback=host_callback)
    return gathered(axes, found, [leaf.weights.shape for leaf in moving], share_over)


def _value(name: str, hyperparameter: Any, step: jax.Array) -> jax.Array:
    value = hyperparameter(step) if callable(hyperparameter) else hyperparameter
    _checks.ratio(name, value)
    value = jnp.asarray(value, jnp.float32)
    return jnp.where(jnp.isnan(value), 0, jnp.clip(value, 0, 1))


def _operands(
    moving: Sequence[_updates.Parameter],
    alpha: jax.Array,
    lambda_: jax.Array,
    state: CyclePermutationState,
) -> list[list[jax.Array]]:
    """The operands: theta, r; and alpha, lambda and the seed, one each per weight vector."""
    key = jax.random.wrap_key_data(state.sgperm_key, impl="threefry2x32")
    key = jax.random.fold_in(key, state.sgperm_step)
    shapes = [_leaves.rows_shape(leaf.param.shape, leaf.axes) for leaf in moving]
    updates = [_leaves.sharded_like(leaf.update, leaf.param) for leaf in moving]
    return [
        [leaf.weights for leaf in moving],
        # Not `-u`: XLA removes two products with -1, but not a product and a minus.
        [-1.0 * u.astype(_leaves.compute_dtype(u.dtype)) for u in updates],
        *([jnp.broadcast_to(number, shape) for shape in shapes] for number in (alpha, lambda_)),
        [
            jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32)
            for i, shape in enumerate(shapes)
        ],
    ]
