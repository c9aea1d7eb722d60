"""What both optimizers share: from a tree of updates to weight vectors and back."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from p2t_jax import _leaves
from p2t_jax._leaves import Leaf
from p2t_jax._vectors import VectorAxes, VectorSpec

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Moving(NamedTuple):
    """A floating parameter in one step, with or without weight vectors.

    Attributes:
        number: its place among the leaves of the tree.
        axes: the ascending axes along which its weight vectors run; () for another parameter.
        param: the parameter, an array.
        weights: its weights in the state: `theta_sorted` or `theta`.
        update: the proposed update, an array.
    """

    number: int
    axes: _leaves.Axes
    param: jax.Array
    weights: jax.Array
    update: jax.Array


class Step(NamedTuple):
    """The arguments of one `update`, checked and taken apart.

    Attributes:
        treedef: the structure of the parameters.
        updates: the updates of all parameters, None where there is none.
        weights: the weights of all parameters in the state.
        moving: the parameters that have weight vectors and an update.
        others: the other floating parameters that have an update.
    """

    treedef: Any
    updates: list[Any]
    weights: list[Any]
    moving: list[Moving]
    others: list[Moving]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """A tree like the parameters."""
        return jax.tree.unflatten(self.treedef, leaves)


def take_apart(updates: Any, weights: Any, vectors: VectorAxes, params: Any) -> Step:
    """Checks the arguments of `update` against each other, and finds the weight vectors.

    Args:
        updates: the proposed updates.
        weights: the tree of weights in the state.
        vectors: the axes in the state.
        params: the parameters.

    Raises:
        ValueError: If `params` is None, or the trees do not match.
    """
    if params is None:
        raise ValueError(
            "You are using a transformation that requires the current value of parameters, but you "
            "are not passing `params` when calling `update`."  # the words of Optax
        )
    kept = _leaves.matching("state", weights, params, dtypes=True)
    proposed = _leaves.matching("updates", updates, params)
    moving: list[Moving] = []
    others: list[Moving] = []
    for i, leaf in enumerate(_leaves.walk(params, vectors)):
        if proposed[i] is None:
            continue
        if leaf.axes is not None:
            group = moving
        elif jnp.issubdtype(_leaves.dtype_of(leaf.array), jnp.inexact):
            group = others
        else:
            continue
        arrays = jnp.asarray(leaf.array), kept[i], jnp.asarray(proposed[i])
        group.append(Moving(i, leaf.axes or (), *arrays))
    return Step(jax.tree.structure(params), proposed, kept, moving, others)


def initial(params: optax.Params, vectors: VectorSpec) -> tuple[list[Leaf], VectorAxes]:
    """The leaves of a tree and the axes that a state remembers of it, checked for `init`.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If the tree is empty, has no weight vectors although a rule was asked, or a
            rule does not know a leaf.
    """
    _leaves.not_empty(params)
    leaves = _leaves.walk(params, vectors)
    asked = isinstance(vectors, str) or callable(vectors)
    if asked and leaves and all(leaf.axes is None for leaf in leaves):
        names = ", ".join(f"{leaf.name} {list(jnp.shape(leaf.array))}" for leaf in leaves[:5])
        raise ValueError(
            f"vectors: no parameter has weight vectors, so nothing would be permuted: {names}. "
            "Wrappers that hide the shapes of the parameters, such as optax.flatten, do not work. "
            "If this is intended, pass vectors=None."
        )
    _leaves.note_single_weights(leaves)
    return leaves, VectorAxes.of({leaf.path: leaf.axes for leaf in leaves})


def kept(leaf: Any) -> Any:
    """A copy for the state, so that the original may be donated; shapes stay shapes."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jnp.array(_leaves.native(leaf), copy=True)


def under_any_switch(function: _Function) -> _Function:
    """Lets a function compute as JAX does by default, regardless of the user's settings.

    Strict promotion of dtypes or ranks is meant for the user's arithmetic, not for ours.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _default_switches():
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


@contextlib.contextmanager
def _default_switches() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
