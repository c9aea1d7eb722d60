"""One parameter and its weight vectors: the only place that knows how an array stores them.

Everything else asks `walk` for the leaves of a tree, and uses the vectors of a leaf in one of two
forms:

- rows, (..., n): one weight vector along the last axis, for JAX and NumPy operations;
- a block, (outer, n, inner): C-contiguous, for kernels on the host. Vector number
  `o * inner + i` is `block[o, :, i]`. The memory of a Dense or Conv kernel is such a block.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import NamedSharding, PartitionSpec

from p2t_jax._jax_internals import is_traced
from p2t_jax._vectors import Path, VectorSpec, named_leaves, show, vector_axes

Axes: TypeAlias = tuple[int, ...]

# For errors of tools that compare parameters with those before training.
LIVE = (
    "nnx.split and nnx.state return a model's own Variables, which training changes: split "
    "nnx.clone(model) before it to keep the initial weights."
)


class Leaf(NamedTuple):
    """A parameter.

    Attributes:
        path: plain names, as `named_leaves` gives them.
        array: the parameter: an array, or anything with its shape and dtype.
        axes: the ascending axes along which its weight vectors run; None if it has none.
    """

    path: Path
    array: Any
    axes: Axes | None

    @property
    def name(self) -> str:
        """The path as errors show it."""
        return show(self.path)

    def vector_name(self, row: int) -> str:
        """One weight vector, as one would index it; `row` counts those of `to_rows`."""
        assert self.axes is not None
        others = iter(np.unravel_index(row, vector_shape(self.array.shape, self.axes)))
        index = [":" if i in self.axes else str(next(others)) for i in range(self.array.ndim)]
        return f"{self.name}[{', '.join(index)}]"


def walk(tree: Any, vectors: VectorSpec) -> list[Leaf]:
    """The leaves of a tree of parameters, in the order of `jax.tree.leaves`.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If a rule does not know a leaf, or `vectors` does not match the tree.
    """
    axes = vector_axes(vectors, tree)
    return [
        Leaf(path, native(leaf), leaf_axes)
        for (path, leaf), leaf_axes in zip(named_leaves(tree), axes, strict=True)
    ]


def not_empty(params: Any) -> None:
    """Refuses a tree of empty containers with a ValueError."""

    # Optax puts leafless nodes of its own in place of parameters (`MaskedNode`, the placeholder of
    # `optax.tree.map_params`): these stand for parameters, but empty containers do not.
    def stands_for_parameters(node: Any) -> bool:
        return node is not None and type(node) not in (dict, list, tuple)

    if not jax.tree.leaves(params, is_leaf=stands_for_parameters):
        raise ValueError(f"params: contains no parameters: {params!r}.")


def note_single_weights(leaves: Sequence[Leaf]) -> None:
    """Warns about parameters whose vectors have one permutation: of one weight, or of equal ones.

    For `init`. Values are looked at where they are known.
    """
    reasons: dict[str, list[str]] = {}
    for leaf in leaves:
        if leaf.axes is not None and (reason := _why_constant(leaf.array, leaf.axes)):
            reasons.setdefault(reason, []).append(f"{leaf.name} {tuple(leaf.array.shape)}")
    if reasons:
        which = " and those of ".join(f"{', '.join(names)} {why}" for why, names in reasons.items())
        warnings.warn(
            f"vectors: the weight vectors of {which}, so they cannot be permuted and stay at their "
            "initial values. Give them None to train them, or draw them at random.",
            UserWarning,
            stacklevel=3,
        )


def _why_constant(array: Any, axes: Axes) -> str | None:
    """Why no vector has a second permutation; None if one has, or values are not known here.

    A layer with some constant vectors (dead neurons, zero padding) still trains.
    """
    if vector_length(array.shape, axes) == 1:
        return "have one weight"
    known = isinstance(array, np.ndarray | jax.Array) and not is_traced(array) and array.size
    if not known or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return None
    xp: Any = jnp
    if isinstance(array, np.ndarray) or {device.platform for device in array.devices()} == {"cpu"}:
        xp, array = np, np.asarray(array)  # no copy, and nothing to compile
    size = f"int{8 * array.dtype.itemsize}"
    words = array.view(size) if xp is np else jax.lax.bitcast_convert_type(array, size)
    same = (words.min(axis=axes) == words.max(axis=axes)).all()
    return "have equal weights" if same else None


def matching(name: str, tree: Any, params: Any, *, dtypes: bool = False) -> list[Any]:
    """The leaves of a tree that mirrors `params`, in the order of `jax.tree.leaves(params)`.

    None may stand for a leaf. `name` is the argument that the tree came in, for the error.

    Raises:
        ValueError: If structure or shapes differ, or dtypes if these must be equal, too.
    """
    treedef: Any = jax.tree.structure(params)
    try:
        leaves: list[Any] = treedef.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(f"{name}: does not match params: {error}") from None
    for (path, leaf), other in zip(named_leaves(params), leaves, strict=True):
        if other is None:
            continue
        if np.shape(leaf) != np.shape(other) or (dtypes and not fits(other, leaf)):
            raise mismatch(name, path, other, leaf)
    return list(map(native, leaves))


def dtype_of(leaf: Any) -> np.dtype[Any]:
    """The dtype of a leaf, also of one that is not an array."""
    # Not `result_type` alone, which says float32 of a float64 NumPy array.
    dtype: np.dtype[Any] = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
    return dtype


def fits(array: Any, leaf: Any) -> bool:
    """Whether an array has the shape and the dtype of a leaf, as JAX takes it."""
    dtypes = [_in_jax(dtype_of(x)) for x in (array, leaf)]
    return np.shape(array) == np.shape(leaf) and bool(dtypes[0] == dtypes[1])


def _in_jax(dtype: Any) -> Any:
    """The dtype that JAX makes of a NumPy array's."""
    if not isinstance(dtype, np.dtype):  # such as that of a random key
        return dtype
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype.newbyteorder("=")))


def native(leaf: Any) -> Any:
    """A NumPy array in the byte order of this machine, as JAX needs it; else the leaf."""
    if isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf


def too_wide(array: Any) -> bool:
    """Whether JAX would cast a known array: one of 64 bits, while `jax_enable_x64` is off.

    Tools of study then compute with NumPy, in the dtype of the array.
    """
    if is_traced(array) or not isinstance(array, np.ndarray | np.generic | jax.Array):
        return False
    return bool(_in_jax(array.dtype).itemsize < array.dtype.itemsize)


def wide(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype to compute with: float64 if it is that, else float32."""
    # Not `jnp.promote_types`, which strict promotion forbids.
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def in_jax(array: Any) -> jax.Array:
    """An array as JAX takes it: of 64 bits it makes 32, while `jax_enable_x64` is off."""
    return jnp.asarray(np.asarray(array) if too_wide(array) else native(array))


def bit_patterns(one: Any, other: Any) -> tuple[jax.Array, jax.Array]:
    """Integers for the weights of two arrays: equal only if the weights are identical.

    Weights are compared in the dtype that both have. Training makes float32 of a float64 NumPy
    array, so where only one of them is that, it is rounded.
    """
    if too_wide(one) and too_wide(other):
        words = np.stack([one, other]).view(f"u{one.dtype.itemsize}")
        numbers = np.unique(words, return_inverse=True)[1].reshape(words.shape)
        return jnp.asarray(numbers[0], jnp.int32), jnp.asarray(numbers[1], jnp.int32)
    first, second = in_jax(one), in_jax(other)
    dtype = f"int{8 * first.dtype.itemsize}"
    as_bits = jax.lax.bitcast_convert_type
    return as_bits(first, dtype), as_bits(second, dtype)


def mismatch(name: str, path: Path, leaf: Any, param: Any) -> ValueError:
    """The error for a tree with a leaf that does not fit the parameter in its place."""

    def describe(x: Any) -> str:
        return "nothing" if x is None else f"{dtype_of(x)}{list(np.shape(x))}"

    return ValueError(
        f"{name}: does not match params: {describe(leaf)} at {show(path)}, but params has "
        f"{describe(param)}."
    )


def vector_length(shape: Sequence[int], axes: Axes) -> int:
    """n, the number of weights in a vector."""
    return math.prod(shape[axis] for axis in axes)


def vector_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The shape of an array with one number for each vector, without the axes of the vectors."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def rows_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The shape of an array with one number for each vector: 1 along the axes of the vectors."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def to_rows(array: Any, axes: Axes) -> Any:
    """The weight vectors of a parameter along the last axis: (..., n).

    The other axes keep their order. NumPy arrays give NumPy arrays, views where strides allow it.
    """
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    if xp is jnp:  # With explicit mesh axes no vector may be split between devices.
        sharding: Any = jax.typeof(array).sharding
        spec = PartitionSpec(*(None if i in axes else s for i, s in enumerate(sharding.spec)))
        if spec != sharding.spec:
            array = jax.reshard(array, NamedSharding(sharding.mesh, spec))
    moved = xp.moveaxis(array, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: -len(axes)], vector_length(array.shape, axes))


def from_rows(rows: Any, shape: Sequence[int], axes: Axes) -> Any:
    """The inverse of `to_rows`: a parameter of this shape."""
    xp: Any = np if isinstance(rows, np.ndarray) else jnp
    moved = rows.reshape(*vector_shape(shape, axes), *(shape[axis] for axis in axes))
    return xp.moveaxis(moved, range(-len(axes), 0), axes)


def to_block(array: Any, axes: Axes) -> Any:
    """The weight vectors of a parameter as an (outer, n, inner) block; C-contiguous in NumPy.

    A view where the axes of the vectors are neighbours and the array is C-contiguous, else a copy.
    For an array with one number for each vector (see `rows_shape`), n is 1.
    """
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    first, last = axes[0], axes[-1]
    if last - first + 1 != len(axes):
        array = xp.moveaxis(array, axes, range(-len(axes), 0))
        first, last = array.ndim - len(axes), array.ndim - 1
    outer, inner = math.prod(array.shape[:first]), math.prod(array.shape[last + 1 :])
    n = math.prod(array.shape[first : last + 1])
    if xp is np:
        array = np.ascontiguousarray(array)
    return array.reshape(outer, n, inner)


def from_block(block: Any, shape: Sequence[int], axes: Axes) -> Any:
    """The inverse of `to_block`: a parameter of this shape."""
    if axes[-1] - axes[0] + 1 == len(axes):
        return block.reshape(shape)
    return from_rows(block, shape, axes)


def take(array: jax.Array, positions: jax.Array, axes: Axes) -> jax.Array:
    """`w[positions]` for each weight vector w of an array, given positions of the same shape."""
    w, at = to_block(array, axes), to_block(positions, axes)
    taken = jnp.take_along_axis(w, at.astype(jnp.int32), axis=1, mode="promise_in_bounds")
    new: jax.Array = from_block(taken, array.shape, axes)
    return new


def row_axis(shape: Sequence[int], axes: Axes) -> int | None:
    """The axis along which vectors are shared between devices: the longest outside the vectors."""
    others = [axis for axis in range(len(shape)) if axis not in axes]
    return max(others, key=lambda axis: shape[axis], default=None)


def copied(leaf: Any) -> Any:
    """A copy as a JAX array, so that either may be donated; anything else is returned unchanged."""
    is_array = isinstance(leaf, jax.Array | np.ndarray)
    return jnp.array(native(leaf), copy=True) if is_array else leaf


def sharded_like(array: jax.Array, other: jax.Array) -> jax.Array:
    """`array` with the sharding of `other` along explicit mesh axes.

    An array that was made before a mesh was set has none. It is like one that is not split.
    """
    now: Any = jax.typeof(array).sharding
    wanted: Any = jax.typeof(other).sharding
    if wanted.mesh.empty:
        wanted = NamedSharding(now.mesh, PartitionSpec(*(None for _ in now.spec)))
    if now == wanted:
        return array
    resharded: jax.Array = jax.reshard(array, wanted)
    return resharded


def placed_like(leaf: Any, new: Any) -> Any:
    """`new` on the devices of `leaf`, with its sharding; under a transformation with its type."""
    if is_traced(leaf):
        return sharded_like(new, leaf)
    if isinstance(leaf, jax.Array) and leaf.committed:
        return jax.device_put(new, leaf.sharding)
    return new
