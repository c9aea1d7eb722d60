"""What an algorithm is given: from the arguments of `init` and `update` to weight vectors and back.

An algorithm is an Optax transformation whose `init` calls `checked_init`, and whose `update` calls
`checked` and `Step.put_theta`. Its state is a NamedTuple with a method

    exact_params(self, params: Mapping[Path, Any]) -> dict[Path, jax.Array]

which gives the exact values of those of `params` that it knows; `permuted_params` asks for it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from p2t_jax import _leaves
from p2t_jax._leaves import Leaf
from p2t_jax._vectors import Path, VectorAxes, VectorSpec

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Parameter(NamedTuple):
    """A floating parameter in one step, from the arguments of `update` to its result.

    Attributes:
        number: its position among the leaves of the tree.
        axes: the ascending axes along which its weight vectors run; () if it has none.
        param: the parameter, an array.
        weights: its weights in the state: `theta_sorted` or `theta`.
        update: the proposed update, an array.
        others: what the state has of it besides, in the order in which `checked` was given it;
            None where the state has nothing.
    """

    number: int
    axes: _leaves.Axes
    param: jax.Array
    weights: jax.Array
    update: jax.Array
    others: tuple[Any, ...]


class Step(NamedTuple):
    """The arguments of one `update`, checked.

    Attributes:
        treedef: the structure of the parameters.
        moving: the parameters that have weight vectors and an update.
        others: the other floating parameters that have an update.
    """

    treedef: Any
    moving: list[Parameter]
    others: list[Parameter]

    def put(self, tree: Any, parameters: Sequence[Parameter], new: Iterable[Any]) -> Any:
        """A tree like the parameters, with new leaves for some of them; None stays None."""
        if tree is None:
            return None
        leaves = self.treedef.flatten_up_to(tree)
        for parameter, leaf in zip(parameters, new, strict=True):
            leaves[parameter.number] = leaf
        return self.treedef.unflatten(leaves)

    def put_theta(self, updates: Any, theta: Iterable[jax.Array]) -> Any:
        """Updates that take the weight vectors to theta: :math:`theta - params`."""
        deltas = map(difference, theta, self.moving)
        return self.put(updates, self.moving, deltas)


def difference(theta: jax.Array, parameter: Parameter) -> jax.Array:
    """The update from a parameter to theta, in the dtype of their sum."""
    dtype = jnp.result_type(parameter.param, parameter.update)
    theta = _leaves.sharded_like(theta, parameter.param)
    return theta.astype(dtype) - parameter.param.astype(dtype)


def checked(updates: Any, params: Any, vectors: VectorAxes, weights: Any, *others: Any) -> Step:
    """Checks the arguments of `update` against each other, and finds the weight vectors.

    Args:
        updates: the proposed updates.
        params: the parameters.
        vectors: the axes in the state.
        weights: the tree of weights in the state.
        *others: other trees of the state, of the shapes of the parameters; each may be None.

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
    nothing = [None] * len(kept)
    besides = [
        nothing if tree is None else _leaves.matching("state", tree, params) for tree in others
    ]
    step = Step(jax.tree.structure(params), [], [])
    for i, leaf in enumerate(_leaves.walk(params, vectors)):
        floating = jnp.issubdtype(_leaves.dtype_of(leaf.array), jnp.inexact)
        if proposed[i] is None or not floating:
            continue
        group = step.others if leaf.axes is None else step.moving
        arrays = jnp.asarray(leaf.array), kept[i], jnp.asarray(proposed[i])
        group.append(Parameter(i, leaf.axes or (), *arrays, tuple(tree[i] for tree in besides)))
    return step


class Exact(NamedTuple):
    """A parameter with weight vectors whose exact value a state knows.

    Attributes:
        path: where it is.
        axes: the ascending axes along which its weight vectors run.
        weights: its weights in the state, an array.
        param: the parameter, an array.
    """

    path: Path
    axes: _leaves.Axes
    weights: jax.Array
    param: jax.Array


def vectors_of_state(
    step: Any, weights: Any, vectors: VectorAxes, params: Mapping[Path, Any]
) -> list[Exact]:
    """The weight vectors of a state, each with its parameter; for `exact_params` of a state.

    Args:
        step: a counter of the state, to see whether it is of an ensemble.
        weights: the tree of weights in the state.
        vectors: the axes in the state.
        params: the parameters, and perhaps others, by path.

    Raises:
        ValueError: If the counter is not a scalar, or the weights do not match the parameters.
    """
    if jnp.ndim(scalar(step)):
        raise ValueError(
            f"state: its step must be a scalar, got shape {jnp.shape(scalar(step))}. For an "
            "ensemble or replicas use jax.vmap(p2t_jax.permuted_params)(state, params)."
        )
    found = []
    for path, w, axes in _leaves.walk(weights, vectors):
        param = params.get(path)
        if param is None or not _leaves.fits(w, param):
            raise _leaves.mismatch("state", path, w, param)
        if axes is not None:
            found.append(Exact(path, axes, jnp.asarray(w), _leaves.in_jax(param)))
    return found


def scalar(counter: Any) -> jax.Array:
    """A counter of a state, out of the box that flax.nnx may have put it in."""
    (array,) = jax.tree.leaves(counter)
    return array  # type: ignore[no-any-return]


def checked_init(params: optax.Params, vectors: VectorSpec) -> tuple[list[Leaf], VectorAxes]:
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


def state_copy(leaf: Any) -> Any:
    """A copy for the state, so that the original may be donated; shapes stay shapes."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jnp.array(_leaves.native(leaf), copy=True)


def with_default_promotion(function: _Function) -> _Function:
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
