"""Networks with few different weights as integers, for other runtimes and for hardware.

A network that begins with few values in each weight vector (`initializers.kaiming(values=n)`) ends
with them, because permuting keeps every weight. `to_codes` says which value each weight is.
"""

import math
import operator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from p2t_jax import _leaves
from p2t_jax._jax_internals import is_traced
from p2t_jax._leaves import Leaf
from p2t_jax._vectors import VectorSpec

Array: TypeAlias = npt.NDArray[Any]

_BITS = (1, 2, 4, 8)
_WEIGHTS = 1 << 20  # sorted at once, for the sake of memory


class Codes(NamedTuple):
    """A parameter as integers: which of its neuron's values each weight is.

    NumPy alone makes the parameter of it, whichever axes its vectors run along::

        w = np.take_along_axis(values, codes[..., None], axis=-1)[..., 0]

    Of fewer than 8 bits, the codes in row-major order of the parameter fill bytes, 8 / bits in
    each, the first in the lowest bits; the last byte is filled up with zeros. To unpack them::

        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (codes[:, None] >> shifts & (1 << bits) - 1).ravel()
        codes = codes[: math.prod(shape)].reshape(shape)

    Attributes:
        codes: uint8, of the shape of the parameter; of fewer than 8 bits, (bytes,).
        values: of the dtype of the parameter, (..., k): k values in ascending order, along the last
            axis. The axes before it are those of the parameter, of size 1 along the axes of weight
            vectors; of size 1 all if its vectors have the same values. A vector of fewer than k
            values repeats its last one.
        bits: how many each code takes: 1, 2, 4 or 8.
        shape: the shape of the parameter.
    """

    codes: Array
    values: Array
    bits: int
    shape: tuple[int, ...]


def to_codes(params: optax.Params, *, vectors: VectorSpec = "flax", bits: int = 8) -> Any:
    r"""Writes every weight as an integer that says which value of its weight vector it is.

    A vector of k different values is these values in ascending order, and a code
    :math:`c_i < k` for each weight:

    .. math:: w_i = values[c_i].

    Weights are the same value if their bits are: -0.0 is below 0.0, and NaNs of different payloads
    are different values, at either end by their sign. So nothing is lost.

    Args:
        params: the parameters, NumPy or JAX arrays: for instance `permuted_params(state, params)`
            of a network that began with `initializers.kaiming(values=k)`.
        vectors: which axes form weight vectors, as given to `laperm`.
        bits: 8 for a byte a code; 1, 2 or 4 to pack them, if no vector has more than 2, 4 or 16
            values.

    Returns:
        A tree like `params` with `Codes` (NumPy arrays) in place of each parameter that has weight
        vectors; copies of all other leaves.

    Raises:
        TypeError: If a weight vector is traced, or not of a floating dtype.
        ValueError: If `bits` is none of these; if a vector has more values than they tell apart,
            at most 256; if a rule does not know a leaf.

    Example:
        >>> import jax, p2t_jax as p2t
        >>> params = p2t.initializers.kaiming(values=4)(jax.random.key(0), (784, 10))
        >>> coded = p2t.codes.to_codes({"kernel": params}, bits=2)["kernel"]
        >>> coded.codes.nbytes, params.nbytes, coded.values.shape
        (1960, 31360, (1, 1, 4))
    """
    if bits not in _BITS or isinstance(bits, bool):
        raise ValueError(f"bits: expected 1, 2, 4 or 8, got {bits!r}.")
    new = [
        _copied(leaf.array) if leaf.axes is None else _coded(_on_host(leaf), int(bits))
        for leaf in _leaves.walk(params, vectors)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def from_codes(coded: Any) -> optax.Params:
    """The parameters that `to_codes` has written, bit for bit.

    Args:
        coded: what `to_codes` returned, or the same arrays from a file. The arrays may be NumPy or
            JAX arrays.

    Returns:
        A tree of parameters: NumPy arrays of the dtype of the values in place of each `Codes`, and
        copies of all other leaves.

    Raises:
        TypeError: If an array is traced; if codes are not uint8, or values not floating.
        ValueError: If the parts of a `Codes` do not fit together, or a code has no value.

    Example:
        >>> import numpy as np, p2t_jax as p2t
        >>> params = {"kernel": np.float16([[-1, 2], [0, 2], [1, 3]]), "bias": np.zeros(2)}
        >>> coded = p2t.codes.to_codes(params)
        >>> coded["kernel"].codes.tolist(), coded["kernel"].values.tolist()
        ([[0, 0], [1, 0], [2, 1]], [[[-1.0, 0.0, 1.0], [2.0, 3.0, 3.0]]])
        >>> p2t.codes.from_codes(coded)["kernel"].tolist()
        [[-1.0, 2.0], [0.0, 2.0], [1.0, 3.0]]
    """

    def decoded(path: Any, leaf: Any) -> Any:
        return _decoded(path, leaf) if isinstance(leaf, Codes) else _copied(leaf)

    return jax.tree.map_with_path(decoded, coded, is_leaf=lambda node: isinstance(node, Codes))


def _copied(leaf: Any) -> Any:
    """Of the same kind: `_leaves.copied` makes JAX arrays, which may be narrower."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else _leaves.copied(leaf)


def _on_host(leaf: Leaf) -> Leaf:
    """With a NumPy array in native byte order."""
    if is_traced(leaf.array):
        raise TypeError(
            f"params: {leaf.name} is traced, so it has no values yet. Call to_codes outside of "
            "jit, vmap and grad."
        )
    dtype = np.dtype(leaf.array.dtype)
    return leaf._replace(array=np.asarray(leaf.array, dtype.newbyteorder("=")))


def _coded(leaf: Leaf, bits: int) -> Codes:
    assert leaf.axes is not None
    shape, dtype = leaf.array.shape, leaf.array.dtype
    rows = _leaves.to_rows(_in_order(leaf.array), leaf.axes)
    m, n = math.prod(rows.shape[:-1]), rows.shape[-1]
    rows = rows.reshape(m, n)
    codes, values = np.empty((m, n), np.uint8), []
    step = max(1, _WEIGHTS // max(1, n))
    for start in range(0, m, step):
        block = slice(start, start + step)
        codes[block], found = _codes_of(rows[block], leaf, start, bits)
        values.append(found)
    k = max((found.shape[1] for found in values), default=0)
    padded = [np.pad(found, [(0, 0), (0, k - found.shape[1])], "edge") for found in values]
    table = np.concatenate([np.zeros((0, k), rows.dtype), *padded])
    outer = _leaves.rows_shape(shape, leaf.axes)
    if m and (table == table[0]).all():
        table, outer = table[:1], (1,) * len(shape)
    table = _from_order(table, dtype).reshape(*outer, k)
    whole = np.ascontiguousarray(_leaves.from_rows(codes, shape, leaf.axes))
    return Codes(whole if bits == 8 else _packed(whole, bits), table, bits, shape)


def _codes_of(rows: Array, leaf: Leaf, start: int, bits: int) -> tuple[Array, Array]:
    """The codes of some weight vectors, and their values (m, k), the last one repeated."""
    order = rows.argsort(axis=1)
    ascending = np.take_along_axis(rows, order, axis=1)
    first = np.ones(rows.shape, bool)
    first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    counts = first.sum(axis=1)
    if (too_many := counts > 1 << bits).any():
        row = int(np.argmax(too_many))
        raise ValueError(
            f"params: {leaf.vector_name(start + row)} has {counts[row]} different values, but "
            f"{bits} bits tell {1 << bits} apart. Begin with few values, as of "
            "initializers.kaiming(values=...), and give permuted_params(state, params)."
        )
    ranks = (first.cumsum(axis=1) - 1).astype(np.uint8)
    codes = np.empty(rows.shape, np.uint8)
    np.put_along_axis(codes, order, ranks, axis=1)
    k = int(counts.max(initial=0))
    values = np.repeat(ascending[:, -1:], k, axis=1)
    np.put_along_axis(values, ranks, ascending, axis=1)
    return codes, values


def _in_order(array: Array) -> Array:
    """Unsigned integers, one for each bit pattern, in the order of the weights."""
    bits = array.view(f"u{array.dtype.itemsize}")
    top = np.array(1 << 8 * array.dtype.itemsize - 1, bits.dtype)
    return np.where(bits & top, ~bits, bits | top)


def _from_order(integers: Array, dtype: npt.DTypeLike) -> Array:
    """The inverse of `_in_order`."""
    top = np.array(1 << 8 * integers.dtype.itemsize - 1, integers.dtype)
    return np.where(integers & top, integers ^ top, ~integers).view(dtype)


def _packed(codes: Array, bits: int) -> Array:
    per_byte = 8 // bits
    filled = np.pad(codes.ravel(), (0, -codes.size % per_byte)).reshape(-1, per_byte)
    shifted = filled << np.arange(0, 8, bits, dtype=np.uint8)
    packed: Array = np.bitwise_or.reduce(shifted, axis=1)
    return packed


def _unpacked(codes: Array, bits: int, shape: tuple[int, ...]) -> Array:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    flat = (codes[:, None] >> shifts & np.uint8((1 << bits) - 1)).ravel()
    return flat[: math.prod(shape)].reshape(shape)


def _decoded(path: Any, coded: Codes) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/") or "the root of the tree"
    codes, values, bits, shape = _checked(name, coded)
    whole = codes if bits == 8 else _unpacked(codes, bits, shape)
    k = values.shape[-1]
    if whole.size and whole.max() >= k:
        raise ValueError(f"coded: code {whole.max()} at {name} is of no value: there are {k}.")
    as_bits = values.view(f"u{values.dtype.itemsize}")  # NaNs are moved like all others
    weights = np.take_along_axis(as_bits, whole[..., None], axis=-1)[..., 0]
    return np.ascontiguousarray(weights).view(values.dtype)


def _checked(name: str, coded: Codes) -> Codes:
    """NumPy arrays that fit together, or an error that names the parameter."""
    if any(map(is_traced, coded)):
        raise TypeError(f"coded: {name} is traced. Call from_codes outside of jit, vmap and grad.")
    codes, values = np.asarray(coded.codes), np.asarray(coded.values)
    try:
        bits, shape = operator.index(coded.bits), tuple(map(operator.index, coded.shape))
    except TypeError:
        raise TypeError(
            f"coded: expected bits and a shape of integers at {name}, got {coded.bits!r} and "
            f"{coded.shape!r}."
        ) from None
    if codes.dtype != np.uint8 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"coded: expected uint8 codes and floating values at {name}, got {codes.dtype} and "
            f"{values.dtype}."
        )
    if bits not in _BITS:
        raise ValueError(f"coded: expected 1, 2, 4 or 8 bits at {name}, got {bits}.")
    expected = shape if bits == 8 else (-(-math.prod(shape) * bits // 8),)
    if codes.shape != expected or min(shape, default=0) < 0:
        raise ValueError(
            f"coded: expected codes of shape {expected} at {name}, a parameter of shape {shape} in "
            f"{bits} bits, got {codes.shape}."
        )
    sizes = zip(values.shape[:-1], shape, strict=False)
    if values.ndim != len(shape) + 1 or not all(size in (1, whole) for size, whole in sizes):
        raise ValueError(
            f"coded: expected values of shape (..., k) at {name}, each size before the last 1 or "
            f"that of the parameter, {shape}, got {values.shape}."
        )
    return Codes(codes, values, bits, shape)
