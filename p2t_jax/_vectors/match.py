"""Where the weight vectors lie in a parameter (Section 1.1).

A *weight vector* is the incoming weights of one neuron. A spec names the axis or axes along which
a vector runs, every other axis enumerates vectors, and `None` leaves a parameter alone::

    (in, out)      axes 0        out vectors of in weights       a dense layer
    (*k, in, out)  axes 0..k     out vectors of prod(k) * in     a convolution
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

Path: TypeAlias = tuple[str, ...]
Axes: TypeAlias = int | Sequence[int] | None
VectorRule: TypeAlias = Callable[[Path, Any], Axes]
VectorSpec: TypeAlias = VectorRule | Any  # a rule, or a (prefix) tree of axes

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def path_names(key_path: Sequence[Any]) -> Path:
    """Turns a JAX key path into plain names.

    A Flax nnx `Variable` adds the attribute `.value` to the path of the array it holds, so `init`
    (given Variables) and `update` (given pure arrays) would see different paths; so does Linen's
    `Partitioned`. A last *attribute* named `value` is therefore dropped; a last dict key is not.

    Args:
        key_path: A path as `jax.tree_util.tree_leaves_with_path` gives it.

    Returns:
        Dict keys, attribute names and indices as strings.

    Example:
        >>> tree = {"layers": [{"kernel": 1.0}]}
        >>> [path_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
        [('layers', '0', 'kernel')]
    """
    boxed = len(key_path) > 0 and _is_box(key_path[-1])
    return tuple(_name(key) for key in (key_path[:-1] if boxed else key_path))


def vector_axes(vectors: VectorSpec, tree: Any) -> tuple[tuple[int, ...] | None, ...]:
    """Resolves a spec: the axes of the weight vectors of every leaf of a tree.

    The spec is a rule `(path, leaf) -> axes`, or a tree of axes that is a prefix of `tree`: an int,
    a tuple or list of ints, None or a rule stands for all that lies below it. The nodes are matched
    by the names of their children, not by type: a dict fits an nnx `State`, with its Variables or
    without. A tuple or list is structure where `tree` has a tuple or list (or nnx `List`) there,
    and axes anywhere else. A node of `tree` without leaves (`optax.MaskedNode()`, None) fits
    anything and yields nothing.

    Args:
        vectors: The spec.
        tree: Parameters, or anything of their structure, shapes and dtypes.

    Returns:
        For each of `jax.tree.leaves(tree)` the axes, non-negative and ascending, or None.

    Raises:
        TypeError: If axes are not integers, or a leaf with axes is not of a floating dtype.
        ValueError: If a leaf lacks an axis, has it twice or has none; if the trees do not match; if
            a rule does not know a leaf.

    Example:
        >>> params = {"conv": np.zeros((3, 3, 8, 16)), "dense": (np.zeros((4, 2)), np.zeros(2))}
        >>> vector_axes({"conv": (0, 1, -2), "dense": (0, None)}, params)
        ((0, 1, 2), (0,), None)
    """
    resolved = []
    for key_path, leaf, spec in pair(vectors, tree, ()):
        path = path_names(key_path)
        axes = spec(path, leaf) if callable(spec) else spec
        resolved.append(None if axes is None else positions(axes, path, leaf))
        if axes is not None and leaf.dtype.name not in _FLOATS:
            raise TypeError(
                f"vectors: axes {axes!r} for {show(path)} of shape {np.shape(leaf)}: it has dtype "
                f"{leaf.dtype.name}, and weights are {', '.join(_FLOATS)}. Give it None."
            )
    return tuple(resolved)


@jax.tree_util.register_static
class Remembered:
    """A spec inside an optimizer's state: no leaf, but part of the structure, hence static.

    It is the spec and not the axes it resolves to, because `optax.tree.map_params` initializes the
    state once more with a placeholder for the parameters and wants the same structure back.
    """

    def __init__(self, spec: VectorSpec):
        self.spec = spec
        leaves, treedef = jax.tree.flatten(spec, is_leaf=lambda node: node is None)
        self._key = (tuple(leaves), treedef)
        # Flax's own checkpoints know no static nodes, and nobody else could tell them.
        flax = sys.modules.get("flax.serialization")
        if flax is not None:
            flax.register_serialization_state(
                Remembered, lambda node: {}, lambda node, _: node, override=True
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remembered) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Remembered({getattr(self.spec, '__name__', self.spec)})"


def pair(spec: Any, tree: Any, at: tuple[Any, ...]) -> Iterator[tuple[Any, Any, Any]]:
    """Yields every leaf of `tree` with its key path and the rule or axes that `spec` has for it."""
    spec, tree = _unbox(spec), _unbox(tree)
    parts, nodes = _children(spec), _children(tree)
    names = [_name(key) for key, _ in nodes]
    is_sequence = isinstance(tree, tuple | list) or (nodes and all(n.isdigit() for n in names))
    is_axes = isinstance(spec, tuple | list) and not is_sequence
    # An Equinox module is callable too: as the tree of axes of such a module, it is not a rule.
    is_rule = callable(spec) and type(spec) is not type(tree)
    if is_rule or is_axes or not parts or not nodes:
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield at + key_path, leaf, spec
    elif jax.tree.leaves(tree):
        by_name = {_name(key): part for key, part in parts}
        if by_name.keys() != set(names):
            where = show(path_names(at))
            raise ValueError(
                f"vectors: the tree of axes does not match the parameters at {where}: they have "
                f"{names}, vectors has {list(by_name)}. Give every one of them an entry (None for "
                "'not permuted'), or a single one for all that lies here. Where the parameters "
                "have a tuple or list, a tuple or list of axes is taken to be that one."
            )
        for key, node in nodes:
            yield from pair(by_name[_name(key)], node, (*at, key))


def _children(node: Any) -> list[tuple[Any, Any]]:
    """The keys and children one level below a node; a leaf has none."""
    below, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    return [(key_path[0], child) for key_path, child in below if key_path]


def _unbox(node: Any) -> Any:
    """Takes an array, or the axes that a spec has for it, out of an nnx Variable."""
    children = _children(node)
    if len(children) == 1 and _is_box(children[0][0]):
        child = children[0][1]
        return child if isinstance(child, tuple | list) or not _children(child) else node
    return node


def _is_box(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def positions(axes: Any, path: Path, leaf: Any, what: str = "axes") -> tuple[int, ...]:
    """Checks the axes given for a leaf, and makes them non-negative and ascending."""
    rank = np.ndim(leaf)
    given = f"vectors: {what} {axes!r} for {show(path)} of shape {np.shape(leaf)}"
    axes = tuple(axes) if isinstance(axes, tuple | list | range) else (axes,)
    if not all(map(is_index, axes)):
        raise TypeError(f"{given}: give an int, a tuple or list of ints, or None.")
    if not axes:
        raise ValueError(f"{given}: give at least one axis, or None for 'not permuted'.")
    if not all(-rank <= a < rank for a in axes):
        right = f"its axes are {-rank} to {rank - 1}" if rank else "a scalar has none, give it None"
        raise ValueError(f"{given}: {right}.")
    positions = tuple(sorted({int(a) % rank for a in axes}))
    if len(positions) < len(axes):
        raise ValueError(f"{given}: an axis is named twice, write {positions}.")
    return positions


def show(path: Path) -> str:
    return "/".join(path) or "the root of the tree"
