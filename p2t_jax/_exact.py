"""Exactness: the parameters as a permutation of the initial weights, from any optimizer state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks, _ranking
from p2t_jax._host import per_row as host
from p2t_jax._laperm import SynchronizeState
from p2t_jax._sgperm import CyclePermutationState
from p2t_jax._vectors import VectorSpec, path_names, vector_axes


def permuted_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""The parameters with every weight vector bit for bit a permutation of its initial weights.

    Optax applies updates by adding them, and :math:`p + (\theta - p)` misses :math:`\theta` by a
    rounding error in a third of all cases; between two synchronizations LAPerm's weights are the
    inner optimizer's own. For LAPerm this synchronizes `params` as they are now,
    :math:`\theta = \theta_{sorted}[R(params)]`, at any step; SGPerm's state has :math:`\theta`
    itself. Evaluate, save and count on these; go on training from `params`.

    Args:
        state: the state of an optimizer that has `laperm` or `sgperm` in it, however deep: in
            `optax.chain`, `masked`, `partition`, `inject_hyperparams`, `MultiSteps`,
            `apply_if_finite`.
        params: the current parameters.

    Returns:
        `params`, its weight vectors permuted initial ones; all else as it is.

    Raises:
        ValueError: If `state` holds no weights of `laperm` or `sgperm`, belongs to other
            parameters, or is that of a vmapped or pmapped ensemble: for those,
            `jax.vmap(permuted_params)`.

    Example:
        >>> import jax.numpy as jnp, optax, p2t_jax as p2t
        >>> initial_params = {"kernel": jnp.array([[3.0], [1.0], [2.0]])}
        >>> tx = p2t.laperm(optax.sgd(0.1), sync_period=20)
        >>> state = tx.init(initial_params)
        >>> params = {"kernel": jnp.array([[0.5], [0.1], [0.7]])}  # after some steps
        >>> p2t.permuted_params(state, params)["kernel"].ravel()
        Array([2., 1., 3.], dtype=float32)
    """
    nodes = jax.tree.leaves(state, is_leaf=_holds_weights)
    states = [node for node in nodes if _holds_weights(node)]
    if not states:
        raise ValueError(
            "state: there is no state of p2t_jax.laperm or p2t_jax.sgperm in it. Give the whole "
            "optimizer state."
        )
    with_path, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves = {path_names(key_path): leaf for key_path, leaf in with_path}
    for node in states:
        leaves |= _permuted(node, leaves)
    return jax.tree.unflatten(treedef, leaves.values())


def _holds_weights(node: Any) -> bool:
    return isinstance(node, SynchronizeState | CyclePermutationState)


def _permuted(
    state: SynchronizeState | CyclePermutationState, leaves: dict[Any, Any]
) -> dict[Any, Any]:
    """The weight vectors among `leaves`, by path, that this state knows."""
    if isinstance(state, SynchronizeState):
        step, weights = state.sync_step, state.theta_sorted
    else:
        step, weights = state.sgperm_step, state.theta
    (step,) = jax.tree.leaves(step)  # flax.nnx puts arrays in boxes
    if jnp.ndim(step):
        raise ValueError(
            f"state: its step has shape {jnp.shape(step)}, so it is that of an ensemble or of "
            "replicas: use jax.vmap(p2t_jax.permuted_params)(state, params)."
        )
    axes, theta = {}, {}
    for (key_path, w), leaf_axes in zip(
        jax.tree_util.tree_leaves_with_path(weights),
        vector_axes(state.vectors.spec, weights),
        strict=True,
    ):
        path = path_names(key_path)
        leaf = leaves.get(path)
        if leaf is None or (leaf.shape, leaf.dtype) != (w.shape, w.dtype):
            raise _checks.other_parameters("state", path, w, leaf)
        if leaf_axes is not None:
            axes[path], theta[path] = leaf_axes, w
    if isinstance(state, CyclePermutationState):
        return theta
    phi = [jnp.asarray(leaves[path]) for path in theta]
    permuted = _ranking.synchronize(list(axes.values()), phi, list(theta.values()))
    return dict(zip(theta, permuted, strict=True))


def is_permutation(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> jax.Array:
    """Whether every weight vector is bit for bit a permutation of the initial one.

    Compares the sorted bit patterns, in NumPy on a CPU: -0.0 is not 0.0 here, and a NaN only
    itself. Shares no code with the ranking that it checks. Parameters that are no weight vectors do
    not matter.

    Args:
        params: the parameters to check, for instance `permuted_params(state, params)`.
        initial_params: what they were before training; of the same structure, shapes and dtypes.
        vectors: where the weight vectors lie, as given to `laperm`.

    Returns:
        A boolean scalar; False also where a dtype changed.

    Raises:
        ValueError: If the two trees are not alike.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> initial = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
        >>> bool(p2t.is_permutation({"kernel": jnp.array([[3.0, 2.0], [1.0, 4.0]])}, initial))
        True
        >>> bool(p2t.is_permutation({"kernel": jnp.array([[2.0, 1.0], [3.0, 4.0]])}, initial))
        False
    """
    axes = vector_axes(vectors, params)
    now = jax.tree.leaves(params)
    then = _checks.matching_leaves("initial_params", initial_params, params)
    where = {i: leaf_axes for i, leaf_axes in enumerate(axes) if leaf_axes is not None}
    if any(now[i].dtype != then[i].dtype for i in where):
        return jnp.array(False)

    def sorted_bits(leaves: list[Any]) -> list[jax.Array]:
        bits = [_bits(jnp.asarray(leaves[i])) for i in where]
        return host.per_row(_sort_kernel, jnp.sort, list(where.values()), bits)

    pairs = zip(sorted_bits(now), sorted_bits(then), strict=True)
    return jnp.array([jnp.all(a == b) for a, b in pairs]).all()


def _bits(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, f"int{8 * leaf.dtype.itemsize}")


def _sort_kernel(rows: host.Array, out: host.Array) -> None:
    out[:] = np.sort(rows, axis=-1)
