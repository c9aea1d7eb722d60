"""LAPerm, lookahead permutation: Algorithm 2 and Section 3 of the paper."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from p2t_jax._host.host_choice import HostCallback
from p2t_jax._synchronize import synchronize
from p2t_jax._vectors import VectorSpec


def laperm(
    inner: optax.GradientTransformation,
    sync_period: optax.ScalarOrSchedule,
    *,
    error_feedback: optax.ScalarOrSchedule | None = None,
    vectors: VectorSpec = "flax",
    average_over: Any = None,
    host_callback: HostCallback | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains by lookahead permutation: an optimizer looks ahead, then the weights are reordered.

    For k mini-batches the inner optimizer moves the weights freely, :math:`\phi_i \leftarrow
    \phi_{i-1} + \mathrm{Opt}(f, \phi_{i-1}, d_i)`. Then every weight vector is replaced by the
    initial weights in the order of the inner optimizer's weights,

    .. math:: \theta_t = \theta_{\mathrm{sorted}}[R(\phi_k)],

    with R the ranking: 0 for the smallest weight, ties ranked by position, NaN last. All other
    parameters (biases, normalization) are trained by the inner optimizer, as in Section 5.2.

    A synchronization projects: of all permutations of the initial weights, :math:`\theta_t` is the
    one nearest to :math:`\phi_k`. The paper forgets the rest, :math:`\phi_k - \theta_t`. With
    `error_feedback` m above 0, which is not in the paper, it is remembered and added when weights
    are ranked next, as error feedback does for compressed gradients: with e = 0 at first,

    .. math::

        z = \phi_k + e, \qquad \theta_t = \theta_{\mathrm{sorted}}[R(z)],
        \qquad e = m (z - \theta_t).

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
        error_feedback: m, the fraction of what a synchronization cuts off that is remembered, from
            0 to 1: a number, a scalar array, or a schedule, called like that of k. None, the
            default, is 0, the paper's. Both need no state; anything else adds one float32 per
            weight. What is not finite is not remembered. A traced or scheduled m outside [0, 1] is
            clipped, and NaN counts as 0.
        vectors: which axes of a parameter form a weight vector: a rule `(path, leaf) -> axes |
            None`, the name of one ("flax", "equinox", "haiku"), or a (prefix) tree of axes, such as
            `infer_vectors` returns.
        average_over: the axis of a `pmap`, `shard_map` or `vmap` whose devices look ahead alone,
            each on its own mini-batches. Do not average the gradients; the inner states stay local.
            A synchronization averages the parameters over the axis, those without weight vectors,
            too: it ranks the mean of :math:`\phi_k`. Nothing else is communicated. If a weight is
            not finite on one device, the mean may be NaN on all; NaN is ranked last. All devices
            must start from the same parameters, and k must be the same on all.
        host_callback: whether ranking may run on the host, as it does on CPUs, where XLA sorts
            slowly. False for plain JAX everywhere, which can be exported for other platforms.
            True and "ffi" are the same: XLA's FFI. None for the default of the process, see
            `set_host_callback`.

    Returns:
        A gradient transformation whose `update` needs `params`. Its `init` needs the initial
        weights themselves, because it sorts them.

    Raises:
        TypeError: If `inner` is not a gradient transformation, or `sync_period` or
            `error_feedback` is not a number; in `init`, if a weight vector is not of a floating
            dtype.
        ValueError: If `sync_period` is below 1 or a fraction, `error_feedback` is outside [0, 1],
            or one of them is not a scalar; in `init`, if the tree is empty, no parameter has weight
            vectors, or a rule does not know a leaf; in `update`, without `params` or with a state
            that does not match them, if `average_over` is not bound, or if k may differ between
            the devices of that axis.

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
        synchronize(
            sync_period,
            error_feedback=error_feedback,
            vectors=vectors,
            average_over=average_over,
            host_callback=host_callback,
        ),
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
