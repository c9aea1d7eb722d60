"""Leaves by name, and axes: what rules and specs are made of."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

Path: TypeAlias = tuple[str, ...]
AxesLike: TypeAlias = int | Sequence[int] | None
VectorRule: TypeAlias = Callable[[Path, Any], AxesLike]


class LayerPath(tuple[str, ...]):
    """The path of a parameter of a known layer: plain names, and the layer.

    A rule that wraps another one passes on the path, and the layer with it.
    """

    layer: Any

    @classmethod
    def of(cls, path: Path, layer: Any) -> "LayerPath":
        """`path`, which is that of a parameter of `layer`."""
        made = cls(path)
        made.layer = layer
        return made


def named_leaves(tree: Any) -> list[tuple[Path, Any]]:
    """The leaves of a tree with their paths in plain names, in the order of `jax.tree.leaves`.

    Dict keys, attribute names and indices become strings. A Flax nnx `Variable` and Linen's
    `Partitioned` are boxes: they add nothing to the path, so that a tree has the same paths with
    and without them. A parameter whose attribute is called `value` keeps its name.

    Example:
        >>> named_leaves({"layers": [{"kernel": 1.0}]})
        [(('layers', '0', 'kernel'), 1.0)]
    """
    found: list[tuple[Path, Any]] = []
    special = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: _kind(x) is not None)
    for key_path, node in special:
        at = tuple(map(key_name, key_path))
        if is_box(node):
            for key, child in children(node):
                here = at if key_name(key) == "value" else (*at, key_name(key))
                found += [(below(here, path), leaf) for path, leaf in named_leaves(child)]
        elif _kind(node) == "layer":
            for key, child in children(node):
                for path, leaf in named_leaves(child):
                    inner = getattr(path, "layer", node)
                    found.append((LayerPath.of((*at, key_name(key), *path), inner), leaf))
        else:
            found.append((at, node))
    return found


def below(at: Path, path: Path) -> Path:
    """The path from the root, for `path` within a node at `at`."""
    whole = at + path
    return LayerPath.of(whole, path.layer) if isinstance(path, LayerPath) else whole


def children(node: Any) -> list[tuple[Any, Any]]:
    """The keys and children one level below a node; a leaf has none."""
    inside = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    return [(key_path[0], child) for key_path, child in inside if key_path]


def key_name(key: Any) -> str:
    """A key of a JAX key path as a plain name."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def is_box(node: Any) -> bool:
    """Whether a node is an nnx Variable or one of Linen's boxes around a parameter."""
    return _kind(node) == "box"


def unboxed(node: Any) -> Any:
    """The content of a box; any other node is returned unchanged."""
    while is_box(node):
        inside = [child for key, child in children(node) if key_name(key) == "value"]
        if not inside:
            break
        (node,) = inside
    return node


def _kind(node: Any) -> str | None:
    node_type: Any = type(node)
    return _kind_of(node_type)


@functools.cache
def _kind_of(node_type: Any) -> str | None:
    """What the ancestors of a class say about it, without importing a framework."""
    for base in node_type.__mro__:
        if base.__name__ in ("Variable", "AxisMetadata") and base.__module__.startswith("flax."):
            return "box"
        if base.__name__ in EQUINOX_LAYERS and base.__module__.startswith("equinox.nn."):
            return "layer"
    return None


def layer_class(layer: Any) -> str | None:
    """The name of the Equinox class that a layer is an instance of."""
    names = [b.__name__ for b in type(layer).__mro__ if b.__module__.startswith("equinox.nn.")]
    return next((name for name in names if name in EQUINOX_LAYERS), None)


# Equinox's layers that have parameters of their own.
EQUINOX_LAYERS = (
    *("Linear", "Conv", "ConvTranspose", "Embedding", "GRUCell", "LSTMCell", "PReLU"),
    *("LayerNorm", "GroupNorm", "RMSNorm", "BatchNorm", "WeightNorm"),
)


def is_index(value: Any) -> bool:
    """Whether a value is an integer, and not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def normalized_axes(axes: Any, path: Path, leaf: Any, what: str = "axes") -> tuple[int, ...]:
    """Checks the axes given for a leaf, and makes them non-negative and ascending."""
    ndim = np.ndim(leaf)
    given = f"vectors: {what} {axes!r} for {show(path)} of shape {np.shape(leaf)}"
    axes = tuple(axes) if isinstance(axes, tuple | list | range) else (axes,)
    if not all(map(is_index, axes)):
        raise TypeError(f"{given}: expected an int, a tuple or list of ints, or None.")
    if not axes:
        raise ValueError(f"{given}: expected at least one axis, or None for 'not permuted'.")
    if not all(-ndim <= a < ndim for a in axes):
        expected = f"expected axes from {-ndim} to {ndim - 1}"
        raise ValueError(f"{given}: {expected if ndim else 'a scalar has none, give it None'}.")
    found = tuple(sorted({int(a) % ndim for a in axes}))
    if len(found) < len(axes):
        raise ValueError(f"{given}: names an axis twice; expected {found}.")
    return found


def show(path: Path) -> str:
    """A path as errors show it."""
    return "/".join(path) or "the root of the tree"
