"""A network as bytes: which permutation of its initial weights it is (Section 6, direction 3)."""

# docs/development/storage_format.md describes the format. The kernel codes vectors; the header, the
# checksums and the blocks that threads share are here.

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from p2t_jax import _leaves
from p2t_jax._host.run_jobs import run_jobs
from p2t_jax._jax_internals import is_traced
from p2t_jax._leaves import Leaf
from p2t_jax._vectors import VectorSpec

Data: TypeAlias = bytes | bytearray | memoryview
Array: TypeAlias = npt.NDArray[Any]

_MAGIC, _VERSION = b"P2T", 1
_HEADER = struct.Struct("<3sBQIB")  # magic, version, total bytes, checksum of the tree, origin
_BLOCK = struct.Struct("<II")  # checksum of the initial weights, words of code
_CHECKSUM = struct.Struct("<I")

_SCALARS = (bool, int, float, complex)

# Weights per block: enough for the cost of a block to vanish beside its code, pruned or not.
_WEIGHTS = 1 << 20


def pack(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> bytes:
    r"""Stores which permutation of its initial weights a network is, in few bytes.

    A weight vector :math:`w` is one of the :math:`n! / \prod_v c_v!` orders of its initial weights,
    where :math:`c_v` of its weights equal :math:`v`, and takes about :math:`\log_2` of that number
    of bits. All other leaves are stored unchanged (Section 6, direction 3).

    Args:
        params: the parameters, NumPy or JAX arrays, sharded or not. Every weight vector is exactly
            a permutation of the initial one, as in `permuted_params(state, params)`.
        initial_params: the parameters before training; of the same structure, shapes and dtypes.
        vectors: which axes form weight vectors, as given to `laperm`.

    Returns:
        The bytes, for `unpack`.

    Raises:
        TypeError: If a leaf is traced, or is not an array of numbers.
        ValueError: If a weight vector is not a permutation of the initial one, or if the two trees
            do not match.

    Example:
        >>> import numpy as np, p2t_jax as p2t
        >>> initial_params = {"kernel": np.random.default_rng(0).normal(size=(1000, 10))}
        >>> params = {"kernel": np.random.default_rng(1).permuted(initial_params["kernel"], axis=0)}
        >>> data = p2t.pack(params, initial_params)
        >>> bool(len(data) < 1.08 * 10**4), params["kernel"].nbytes / 10**4  # bytes per weight
        (True, 8.0)
        >>> np.array_equal(p2t.unpack(data, initial_params)["kernel"], params["kernel"])
        True
    """
    from p2t_jax._host.kernels import coder  # `import p2t_jax` does not wait for Numba

    initial = _leaves.matching("initial_params", initial_params, params)
    now = _on_host("params", _leaves.walk(params, vectors))
    # Another dtype may not be one that weights can have: what matters then is that it differs.
    then = _on_host(
        "initial_params", [leaf._replace(array=x) for leaf, x in zip(now, initial, strict=True)]
    )
    body: list[Any] = []
    jobs = []
    for leaf, first in zip(now, then, strict=True):
        if first.array.dtype != leaf.array.dtype:
            raise _leaves.mismatch("initial_params", leaf.path, first.array, leaf.array)
        if leaf.axes is None:
            body.append(_little_endian(leaf.array).tobytes())
            continue
        rows, first_rows = _bit_rows(leaf), _bit_rows(first)
        for block in _blocks(rows):
            jobs.append((len(body), leaf, block.start, first_rows[block], rows[block]))
            body.append(b"")

    def encode(job: tuple[int, Leaf, int, Array, Array]) -> None:
        place, leaf, start, first_rows, rows = job
        sorted_rows = np.sort(np.ascontiguousarray(first_rows))
        words = coder.encode_rows(sorted_rows, np.array(rows, order="C"))
        if isinstance(words, int):
            raise ValueError(
                f"params: {leaf.vector_name(start + words)} is not a permutation of its initial "
                "weights. Pack permuted_params(state, params), with the initial_params and the "
                "vectors that the optimizer was given. " + _leaves.LIVE
            )
        body[place] = _BLOCK.pack(_checksum(sorted_rows), len(words)) + _little_endian(words).data

    run_jobs(encode, jobs)
    origin = _origin().encode("ascii")[:255]
    size = _HEADER.size + len(origin) + sum(map(len, body)) + _CHECKSUM.size
    header = _HEADER.pack(_MAGIC, _VERSION, size, _fingerprint(then), len(origin))
    data = b"".join([header, origin, *body])
    return data + _CHECKSUM.pack(zlib.crc32(data))


def unpack(
    data: Data, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> optax.Params:
    """Restores the parameters that `pack` has stored.

    Args:
        data: what `pack` returned.
        initial_params: as given to `pack`. Only the values of weight vectors matter, in any order.
        vectors: as given to `pack`.

    Returns:
        A tree like `initial_params`. Each leaf has the shape, dtype, type (NumPy or JAX) and
        sharding of the initial one.

    Raises:
        TypeError: If `data` is not bytes; if a leaf is traced, or is not an array of numbers.
        ValueError: If `data` is not what `pack` made of such parameters and the same initial
            weights. Unpacking untrusted data is safe: the memory it takes depends only on the
            parameters and the length of `data`, and the weight vectors are permutations of the
            initial ones, whichever bytes `data` has.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> initial_params = {"kernel": jnp.array([[1.0], [2.0], [3.0]])}
        >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.0]])}
        >>> p2t.unpack(p2t.pack(params, initial_params), initial_params)["kernel"].ravel()
        Array([3., 1., 2.], dtype=float32)
    """
    from p2t_jax._host.kernels import coder

    leaves = _on_host("initial_params", _leaves.walk(initial_params, vectors))
    origin, body = _checked(data, _fingerprint(leaves))
    contents = _contents(body, leaves)  # all is read before anything is made of it
    jobs = []
    arrays: list[Array] = []
    for leaf, content in zip(leaves, contents, strict=True):
        shape, dtype = leaf.array.shape, leaf.array.dtype
        if leaf.axes is None:
            raw = np.frombuffer(content, dtype.newbyteorder("<"))
            arrays.append(raw.astype(dtype).reshape(shape))
            continue
        first_rows = _bit_rows(leaf)
        out: Array = np.empty(first_rows.shape, first_rows.dtype)
        arrays.append(_leaves.from_rows(out.view(dtype), shape, leaf.axes))
        for block, (checksum, code) in zip(_blocks(first_rows), content, strict=True):
            jobs.append((leaf, first_rows[block], checksum, code, out[block]))

    def decode(job: tuple[Leaf, Array, int, memoryview, Array]) -> None:
        leaf, first_rows, checksum, code, out = job
        sorted_rows = np.sort(np.ascontiguousarray(first_rows))
        if _checksum(sorted_rows) != checksum:
            raise ValueError(
                f"data: was packed with other initial weights than those of {leaf.name}. Make "
                "initial_params by the same rule from the same seed. Data made with "
                f"{origin!r}, here is {_origin()!r}: random numbers may differ between them."
            )
        words = np.frombuffer(code, "<u4").astype(np.uint32)
        if not coder.decode_rows(sorted_rows, words, out):
            raise ValueError(f"data: the code for {leaf.name} is invalid.")

    run_jobs(decode, jobs)
    like, treedef = jax.tree.flatten(initial_params)
    return jax.tree.unflatten(treedef, map(_as_leaf, like, arrays))


def _contents(body: memoryview, leaves: Sequence[Leaf]) -> list[Any]:
    """What is stored of each leaf: its bytes, or the checksum and the code of each block."""

    def take(size: int, leaf: Leaf) -> memoryview:
        nonlocal body
        if size > len(body):
            raise ValueError(
                f"data: ends within {leaf.name}: expected {size} more bytes, got {len(body)}."
            )
        taken, body = body[:size], body[size:]
        return taken

    def read(leaf: Leaf) -> Any:
        if leaf.axes is not None:
            heads = (_BLOCK.unpack(take(_BLOCK.size, leaf)) for _ in _blocks(_bit_rows(leaf)))
            return [(checksum, take(4 * size, leaf)) for checksum, size in heads]
        raw = take(leaf.array.nbytes, leaf)
        if leaf.array.dtype == np.bool_ and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
            raise ValueError(f"data: a boolean of {leaf.name} must be 0 or 1.")
        return raw

    contents = list(map(read, leaves))
    if body:
        raise ValueError(f"data: has {len(body)} bytes after the last parameter.")
    return contents


def _checked(data: Data, fingerprint: int) -> tuple[str, memoryview]:
    """Origin and body of `data`, which is complete, undamaged and of these parameters."""
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"data: expected the bytes that pack returned, got {data!r:.50}.") from None
    if not _MAGIC.startswith(bytes(view[:3])):
        raise ValueError(f"data: not written by p2t_jax.pack: begins with {bytes(view[:3])!r}.")
    if len(view) > 3 and view[3] != _VERSION:
        raise ValueError(
            f"data: has version {view[3]} of the format, but this release of p2t_jax reads "
            f"version {_VERSION}."
        )
    if len(view) < (least := _HEADER.size + _CHECKSUM.size):
        raise ValueError(f"data: truncated: expected at least {least} bytes, got {len(view)}.")
    _, _, size, tree, origin = _HEADER.unpack_from(view)
    if len(view) != size:
        what = "truncated" if len(view) < size else "too long"
        raise ValueError(f"data: {what}: expected {size} bytes, got {len(view)}.")
    if (zlib.crc32(view[: -_CHECKSUM.size]),) != _CHECKSUM.unpack(view[-_CHECKSUM.size :]):
        raise ValueError("data: damaged: the checksum does not match.")
    if tree != fingerprint:
        raise ValueError(
            "data: does not match initial_params: was packed with other paths, shapes, dtypes or "
            "vector axes."
        )
    body = view[_HEADER.size : -_CHECKSUM.size]
    return str(body[:origin], "ascii", "replace"), body[origin:]


def _on_host(name: str, leaves: Sequence[Leaf]) -> list[Leaf]:
    """Leaves with NumPy arrays in native byte order."""
    on_host = []
    for leaf in leaves:
        array = leaf.array
        if is_traced(array):
            raise TypeError(
                f"{name}: {leaf.name} is traced, so it has no values yet. Call pack and unpack "
                "outside of jit, vmap and grad."
            )
        if type(array) in _SCALARS:
            array = np.asarray(array)
        is_array = isinstance(array, np.ndarray | np.generic | jax.Array)
        if not is_array or not (array.dtype == np.bool_ or jnp.issubdtype(array.dtype, np.number)):
            given = f"an array of {array.dtype}" if is_array else repr(array)
            raise TypeError(
                f"{name}: expected an array of numbers at {leaf.name}, got {given:.60}. For a "
                "random key, pass its jax.random.key_data."
            )
        native = np.asarray(array, np.dtype(array.dtype).newbyteorder("="))
        on_host.append(leaf._replace(array=native))
    return on_host


def _bit_rows(leaf: Leaf) -> Array:
    """The weight vectors of a leaf as (m, n) rows of unsigned integers."""
    assert leaf.axes is not None
    rows = _leaves.to_rows(leaf.array.view(f"u{leaf.array.dtype.itemsize}"), leaf.axes)
    n = rows.shape[-1]
    if n >= 1 << 31:
        raise ValueError(f"vectors: expected fewer than 2**31 weights per vector, got {n}.")
    bit_rows: Array = rows.reshape(rows.size // n if n else 0, n)
    return bit_rows


def _blocks(rows: Array) -> list[slice]:
    """The rows of each block."""
    if not rows.size:
        return []
    step = max(1, _WEIGHTS // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _origin() -> str:
    """What random initial weights may depend on, besides rule and seed."""
    config: Any = jax.config
    random_bits = str(config.jax_default_prng_impl)
    if not getattr(config, "jax_threefry_partitionable", True):  # the only way, some day
        random_bits += " not partitionable"
    return f"jax {jax.__version__}, numpy {np.__version__}, {random_bits}"


def _fingerprint(leaves: Sequence[Leaf]) -> int:
    tree = [[leaf.path, leaf.array.dtype.name, leaf.array.shape, leaf.axes] for leaf in leaves]
    return zlib.crc32(json.dumps(tree, separators=(",", ":")).encode())


def _checksum(sorted_rows: Array) -> int:
    return zlib.crc32(_little_endian(sorted_rows).data)


def _little_endian(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _as_leaf(leaf: Any, array: Array) -> Any:
    """An array that nothing else refers to, as a leaf of the type and sharding of `leaf`."""
    if isinstance(leaf, jax.Array):
        return jax.device_put(array, leaf.sharding if leaf.committed else None)
    return array.item() if type(leaf) in _SCALARS else np.array(array, order="C")
