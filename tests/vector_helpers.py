"""Axes by path, for the tests of where weight vectors are."""

from typing import Any

import jax
from flax import nnx

from p2t_jax._vectors import named_leaves, vector_axes

KEY = jax.random.key(0)
struct = jax.ShapeDtypeStruct


def named_axes(vectors: Any, tree: Any) -> dict[str, Any]:
    paths = ["/".join(path) for path, _ in named_leaves(tree)]
    return dict(zip(paths, vector_axes(vectors, tree), strict=True))


def permuted(vectors: Any, tree: Any) -> dict[str, Any]:
    return {path: axes for path, axes in named_axes(vectors, tree).items() if axes is not None}


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(KEY, shape)


class Nnx(nnx.Module):
    """A module with these layers as attributes."""

    def __init__(self, **layers: Any) -> None:
        for name, layer in layers.items():
            setattr(self, name, layer)
