"""Exactness: the parameters as a permutation of the initial weights, from any optimizer state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _leaves, _updates
from p2t_jax._host.permutation import Array, Permutation
from p2t_jax._host.permute import permute_vectors
from p2t_jax._vectors import Path, VectorSpec, named_leaves


@_updates.under_any_switch
def permuted_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""The parameters, with every weight vector an exact permutation of its initial weights.

    Optax applies updates by adding them, and :math:`p + (\theta - p)` differs from :math:`\theta`
    in the last bit about a third of the time; between two synchronizations LAPerm's weights are the
    inner optimizer's own. For LAPerm this synchronizes the current parameters, whatever the step:
    :math:`\theta = \theta_{\mathrm{sorted}}[R(\phi)]` with :math:`\phi` the parameters, or
    :math:`R(\phi + e)` with `error_feedback`, between two synchronizations. SGPerm's state has
    :math:`\theta` itself. With `average_over`, LAPerm's state has it from a synchronization until
    the next step; the result then is what all devices agreed on, for parameters without weight
    vectors, too. Evaluate and save the result, but continue training from `params`.

    Running statistics, such as BatchNorm's, belong to the look-ahead weights that they were
    averaged over. Compute them again with the result before you evaluate, or evaluate right after a
    synchronization: with a sync period of hundreds of steps the difference is large.

    Args:
        state: the state of an optimizer that contains `laperm` or `sgperm`, at any depth: in
            `optax.chain`, `masked`, `partition`, `inject_hyperparams`, `MultiSteps`,
            `apply_if_finite`.
        params: the current parameters.

    Returns:
        A tree like `params`. Its arrays are copies: the state and `params` may be donated.

    Raises:
        ValueError: If `state` contains no state of `laperm` or `sgperm`, does not match `params`,
            or belongs to a vmapped or pmapped ensemble: use `jax.vmap(permuted_params)` then.

    Example:
        >>> import jax.numpy as jnp, optax, p2t_jax as p2t
        >>> initial_params = {"kernel": jnp.array([[3.0], [1.0], [2.0]])}
        >>> tx = p2t.laperm(optax.sgd(0.1), sync_period=20)
        >>> state = tx.init(initial_params)
        >>> params = {"kernel": jnp.array([[0.5], [0.1], [0.7]])}  # after some steps
        >>> p2t.permuted_params(state, params)["kernel"].ravel()
        Array([2., 1., 3.], dtype=float32)
    """
    nodes = jax.tree.leaves(state, is_leaf=_knows_exact_params)
    states = [node for node in nodes if _knows_exact_params(node)]
    if not states:
        raise ValueError(
            "state: contains no laperm or sgperm state; pass the full optimizer state (as returned "
            "by tx.init)."
        )
    leaves = dict(named_leaves(params))
    permuted: dict[Path, Any] = {}
    for node in states:
        permuted |= node.exact_params(leaves)
    exact = [permuted.get(path, leaf) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), map(_leaves.copied, exact))


def _knows_exact_params(node: Any) -> bool:
    return hasattr(type(node), "exact_params")


@_updates.under_any_switch
def is_permutation(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> jax.Array:
    """Whether every weight vector is exactly a permutation of the initial one.

    It compares the sorted bit patterns (on a CPU, NumPy sorts them): -0.0 is not 0.0 here, and a
    NaN equals only a NaN of the same bits. It shares no code with the ranking that it checks.
    Float64 NumPy arrays are compared in float64, whether or not JAX has 64 bits; with a float32
    array, one is rounded as training rounds it. Parameters without weight vectors do not matter.

    Args:
        params: the parameters to check, for instance `permuted_params(state, params)`.
        initial_params: what they were before training; of the same structure, shapes and dtypes.
        vectors: which axes form weight vectors, as given to `laperm`.

    Returns:
        A boolean scalar; False also if the dtype of a weight vector changed.

    Raises:
        ValueError: If the two trees do not match.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> initial = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
        >>> bool(p2t.is_permutation({"kernel": jnp.array([[3.0, 2.0], [1.0, 4.0]])}, initial))
        True
        >>> bool(p2t.is_permutation({"kernel": jnp.array([[2.0, 1.0], [3.0, 4.0]])}, initial))
        False
    """
    return jnp.array([same.all() for _, same in _compared(params, initial_params, vectors)]).all()


@_updates.under_any_switch
def check_permutation(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> None:
    """Raises an error that says which parameter is no permutation of its initial weights.

    It compares as `is_permutation` does. Values are needed, so it does not work under `jit`.

    Args:
        params: the parameters to check, for instance `permuted_params(state, params)`.
        initial_params: what they were before training; of the same structure and shapes.
        vectors: which axes form weight vectors, as given to `laperm`.

    Raises:
        ValueError: If a weight vector is not a permutation of the initial one: the message lists
            these parameters, each with the number of such vectors and the first of them. Also if
            the two trees do not match.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> initial = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
        >>> p2t.check_permutation({"kernel": jnp.array([[3.0, 2.0], [1.0, 4.0]])}, initial)
        >>> p2t.check_permutation({"kernel": jnp.array([[3.0, 2.0], [1.0, 5.0]])}, initial)
        Traceback (most recent call last):
            ...
        ValueError: params: these are no permutations of their initial weights:
          kernel (2, 2), weight vectors along (0,): 1 of 2, the first is [1]
        After training pass permuted_params(state, params): adding updates rounds.
    """
    wrong = []
    for leaf, same in _compared(params, initial_params, vectors):
        different = np.argwhere(~np.asarray(same))
        if len(different):
            wrong.append(
                f"  {leaf.name} {np.shape(leaf.array)}, weight vectors along {leaf.axes}: "
                f"{len(different)} of {same.size}, the first is {different[0].tolist()}"
            )
    if wrong:
        raise ValueError(
            "params: these are no permutations of their initial weights:\n"
            + "\n".join(wrong)
            + "\nAfter training pass permuted_params(state, params): adding updates rounds."
        )


def _compared(
    params: optax.Params, initial_params: optax.Params, vectors: VectorSpec
) -> list[tuple[_leaves.Leaf, jax.Array]]:
    """The parameters with weight vectors; for each vector whether it is a permutation."""
    then = _leaves.matching("initial_params", initial_params, params)
    pairs = [
        (leaf, initial)
        for leaf, initial in zip(_leaves.walk(params, vectors), then, strict=True)
        if leaf.axes is not None
    ]
    comparable = [(x, initial) for x, initial in pairs if _leaves.fits(initial, x.array)]
    axes = [leaf.axes for leaf, _ in comparable if leaf.axes is not None]
    bits = [_leaves.bit_patterns(leaf.array, initial) for leaf, initial in comparable]
    now, before = (
        permute_vectors(_SortBits(), axes, words, words)
        for words in ([now for now, _ in bits], [before for _, before in bits])
    )
    same = {
        leaf.path: _leaves.to_rows(a == b, vector_axes).all(axis=-1)
        for (leaf, _), vector_axes, a, b in zip(comparable, axes, now, before, strict=True)
    }
    for leaf, _ in pairs:
        if leaf.path not in same and leaf.axes is not None:
            same[leaf.path] = jnp.zeros(_leaves.vector_shape(leaf.array.shape, leaf.axes), bool)
    return [(leaf, same[leaf.path]) for leaf, _ in pairs]


@dataclasses.dataclass(frozen=True)
class _SortBits(Permutation):
    """Integers into ascending order, without the kernels that are checked."""

    name = "sort_bits"

    def on_host(self, block: Array, out: Array, start: int, stop: int) -> None:
        for vector in range(start, stop):
            o, i = divmod(vector, block.shape[2])
            out[o, :, i] = np.argsort(block[o, :, i])

    def in_jax(self, values: jax.Array, bits: jax.Array) -> jax.Array:
        return jax.lax.sort((bits, values), num_keys=1)[1]
