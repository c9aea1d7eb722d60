"""Axes by path, for the tests of where weight vectors are."""

from typing import Any

import jax
from flax import nnx

import p2t_jax as p2t
from p2t_jax._vectors import named_leaves, vector_axes

KEY = jax.random.key(0)
struct = jax.ShapeDtypeStruct


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def tokens(*sizes: int) -> jax.ShapeDtypeStruct:
    return shape(*sizes, dtype="int32")


def infer(fn: Any, params: Any, *inputs: Any) -> Any:
    """The axes; for a parameter that is asked for, "asked"."""
    asked = []
    axes = p2t.infer_vectors(fn, params, *inputs, otherwise=lambda path, _: asked.append(path))
    if not isinstance(params, dict):
        return "asked" if asked else axes
    return axes | {path[0]: "asked" for path in asked}


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
