"""The axes of weight vectors, as an optimizer state remembers them: structure, not data."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
import numpy.typing as npt

from p2t_jax._vectors.paths import Path, show

_NO_LEAVES = "{}"


class Text(np.ndarray):
    """A string that JAX and Optax do not take for a leaf, and that Flax stores.

    Flax stores arrays of all classes, and passes on what it has read: that needs no registration,
    so Flax may be imported before or afterwards. JAX is told below that this class has no leaves.
    """

    def __new__(cls, text: str) -> "Text":
        """The bytes of a string."""
        return np.frombuffer(text.encode(), np.uint8).view(cls)

    def __str__(self) -> str:
        return self.tobytes().decode()

    def __repr__(self) -> str:
        return repr(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self.tobytes() == other.tobytes()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.tobytes())


jax.tree_util.register_pytree_node(
    Text, lambda text: ((), str(text)), lambda text, children: Text(text)
)


class _Fields(NamedTuple):
    axes_by_path: Text


class VectorAxes(_Fields):
    """The axes of a tree's weight vectors, as an optimizer state remembers them.

    It is part of the state's structure, not an array: tools that walk a state by its leaves (JAX)
    and tools that walk it by its fields (Optax) find nothing in it. It can be compared, pickled and
    serialized everywhere. It is also a rule: `walk(weights, state.vectors)` gives the leaves with
    the axes that they had.

    `optax.tree.map_params` initializes the state once more, with a placeholder for the parameters,
    and expects the same structure. So the axes of a tree without leaves are equal to any.

    Attributes:
        axes_by_path: a JSON object of axes, or null for what is not permuted, by path. Names are
            joined by slashes; in a name, `~1` stands for a slash and `~0` for `~` (RFC 6901).

    Example:
        >>> VectorAxes.of({("Dense_0", "kernel"): (0,), ("Dense_0", "bias"): None})
        VectorAxes(axes_by_path='{"Dense_0/kernel": [0], "Dense_0/bias": null}')
    """

    # A NamedTuple, which Flax serializes without being asked to.
    __slots__ = ()

    def __new__(cls, axes_by_path: str | npt.NDArray[np.uint8] = _NO_LEAVES) -> "VectorAxes":
        """From a JSON object, or from its bytes as Flax restores them."""
        if not isinstance(axes_by_path, str):
            axes_by_path = np.asarray(axes_by_path, np.uint8).tobytes().decode()
        return super().__new__(cls, Text(axes_by_path))

    @classmethod
    def of(cls, axes: Mapping[Path, tuple[int, ...] | None]) -> "VectorAxes":
        """Remembers axes by path."""
        return cls(json.dumps({_pointer(path): leaf_axes for path, leaf_axes in axes.items()}))

    def __call__(self, path: Path, leaf: Any = None) -> tuple[int, ...] | None:
        """The axes of the leaf at a path, or None if it is not permuted."""
        del leaf
        axes = _parsed(str(self.axes_by_path))
        if _pointer(path) not in axes:
            raise ValueError(f"vectors: {show(path)} is not among the parameters: {list(axes)}.")
        leaf_axes = axes[_pointer(path)]
        return None if leaf_axes is None else tuple(leaf_axes)

    def __getnewargs__(self) -> tuple[str]:
        return (str(self.axes_by_path),)  # so that a pickle has plain text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VectorAxes):
            return False  # or a plain tuple would decide
        texts = {str(self.axes_by_path), str(other.axes_by_path)}
        return len(texts) == 1 or _NO_LEAVES in texts

    def __ne__(self, other: object) -> bool:  # or it would be the tuple's
        return not self == other

    def __hash__(self) -> int:  # equal objects must have equal hashes, and one is equal to all
        return hash(VectorAxes)


class _AsMatched:
    """The structure of axes of a tree without leaves: equal to any, and from then on that one.

    `optax.tree.map_params` maps over the state of the placeholder and the user's, in this order.
    JAX compares the two structures, and makes the result from the first.
    """

    def __init__(self) -> None:
        self.text = _NO_LEAVES

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            self.text = other
        return isinstance(other, str | _AsMatched)

    def __hash__(self) -> int:
        return hash(_AsMatched)

    def __str__(self) -> str:
        return self.text


def _pointer(path: Path) -> str:
    """A path as one string, different for different paths: Haiku's names have slashes."""
    return "/".join(name.replace("~", "~0").replace("/", "~1") for name in path)


@functools.lru_cache(maxsize=64)
def _parsed(axes_by_path: str) -> dict[str, list[int] | None]:
    parsed: dict[str, list[int] | None] = json.loads(axes_by_path)
    return parsed


def _structure(axes: VectorAxes) -> tuple[tuple[()], str | _AsMatched]:
    text = str(axes.axes_by_path)
    return (), _AsMatched() if text == _NO_LEAVES else text


jax.tree_util.register_pytree_node(
    VectorAxes, _structure, lambda structure, _: VectorAxes(str(structure))
)
jax.export.register_pytree_node_serialization(
    VectorAxes,
    serialized_name="p2t_jax.VectorAxes",
    serialize_auxdata=lambda structure: str(structure).encode(),
    deserialize_auxdata=lambda data: data.decode(),
    from_children=lambda structure, _: VectorAxes(structure),
)
