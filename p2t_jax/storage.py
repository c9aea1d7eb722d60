"""A network as bytes: which permutation of its initial weights it is (Section 6, direction 3).

The format is that of docs/storage.md. What a vector costs is in the kernel; here are the header,
the checksums, and the blocks that threads share.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks
from p2t_jax._host import per_row as host
from p2t_jax._vectors import Path, VectorSpec, named_leaves, vector_axes

Data: TypeAlias = bytes | bytearray | memoryview

_MAGIC, _VERSION = b"P2T", 1
_HEADER = struct.Struct("<3sBQI")  # magic, version, bytes in all, checksum of the tree
_BLOCK = struct.Struct("<II")  # checksum of the initial weights, words of code
_CHECKSUM = struct.Struct("<I")

# Weights a block: so many that what a block costs is nothing beside its code, pruned or not.
_WEIGHTS = 1 << 20


def pack(
    params: optax.Params, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> bytes:
    r"""The bytes that tell a trained network from its initial weights, which you can make again.

    A weight vector :math:`w` is one of the :math:`n! / \prod_v c_v!` orders of its initial weights,
    with :math:`c_v` the number of weights that are :math:`v`, and is stored in
    :math:`\log_2` of that many bits. All other leaves are stored as they are. The format is in
    docs/storage.md (Section 6, direction 3).

    Args:
        params: the parameters, NumPy or JAX arrays, sharded or not. Every weight vector is bit for
            bit a permutation of the initial one, as in `permuted_params(state, params)`.
        initial_params: what they were before training; of the same structure, shapes and dtypes.
        vectors: where the weight vectors lie, as given to `laperm`.

    Returns:
        The bytes, for `unpack`.

    Raises:
        TypeError: If a leaf is traced, or is no array of numbers.
        ValueError: If a weight vector is no permutation of the initial one, or if the two trees are
            not alike.

    Example:
        >>> import numpy as np, p2t_jax as p2t
        >>> initial_params = {"kernel": np.random.default_rng(0).normal(size=(1000, 10))}
        >>> params = {"kernel": np.random.default_rng(1).permuted(initial_params["kernel"], axis=0)}
        >>> data = p2t.pack(params, initial_params)
        >>> len(data) / 10**4, params["kernel"].nbytes / 10**4  # bytes a weight
        (1.0692, 8.0)
        >>> np.array_equal(p2t.unpack(data, initial_params)["kernel"], params["kernel"])
        True
    """
    from p2t_jax._host.kernels import coder as codec  # `import p2t_jax` does not wait for Numba

    values = _on_host("params", params, jax.tree.leaves(params))
    initial = _checks.matching_leaves("initial_params", initial_params, params)
    leaves = _leaves(params, _on_host("initial_params", params, initial), vectors)
    body: list[Any] = []
    jobs = []
    for leaf, now in zip(leaves, values, strict=True):
        if leaf.then.dtype != now.dtype:
            raise _checks.other_parameters("initial_params", leaf.path, leaf.then, now)
        if leaf.axes is None:
            body.append(now.astype(now.dtype.newbyteorder("<"), copy=False).tobytes())
            continue
        then_rows, now_rows = leaf.rows(leaf.then), leaf.rows(now)
        for block in _blocks(now_rows):
            jobs.append((len(body), leaf, block.start, then_rows[block], now_rows[block]))
            body.append(b"")

    def encode(job: tuple[int, _Leaf, int, host.Array, host.Array]) -> None:
        place, leaf, start, then, now = job
        sorted_rows = _sorted(then)
        words = codec.encode_rows(sorted_rows, np.array(now, order="C"))
        if isinstance(words, int):
            raise ValueError(
                f"params: {leaf.show_vector(start + words)} is no permutation of its initial "
                "weights. Pack permuted_params(state, params), with the initial_params and the "
                "vectors that the optimizer was given."
            )
        code = words.astype("<u4", copy=False).tobytes()
        body[place] = _BLOCK.pack(_checksum(sorted_rows), len(words)) + code

    _share(encode, jobs)
    size = _HEADER.size + sum(map(len, body)) + _CHECKSUM.size
    data = b"".join([_HEADER.pack(_MAGIC, _VERSION, size, _fingerprint(leaves)), *body])
    return data + _CHECKSUM.pack(zlib.crc32(data))


def unpack(
    data: Data, initial_params: optax.Params, *, vectors: VectorSpec = "flax"
) -> optax.Params:
    """The parameters that `pack` was given.

    Args:
        data: what `pack` returned.
        initial_params: as given to `pack`. Only the values of weight vectors matter, and not their
            order.
        vectors: as given to `pack`.

    Returns:
        A tree of the structure of `initial_params`: each leaf with the shape and dtype of the
        initial one, a NumPy array where that is one, else a JAX array of the same sharding.

    Raises:
        TypeError: If `data` is no bytes; if a leaf is traced, or is no array of numbers.
        ValueError: If `data` is not what `pack` made of parameters like these, from the same
            initial weights. It is safe to unpack what comes from somebody you do not trust: the
            memory it takes depends on the parameters and the length of `data` alone, and the
            weight vectors are permutations of the initial ones, whatever the bytes are.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t
        >>> initial_params = {"kernel": jnp.array([[1.0], [2.0], [3.0]])}
        >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.0]])}
        >>> p2t.unpack(p2t.pack(params, initial_params), initial_params)["kernel"].ravel()
        Array([3., 1., 2.], dtype=float32)
    """
    from p2t_jax._host.kernels import coder as codec

    like, treedef = jax.tree.flatten(initial_params)
    leaves = _leaves(initial_params, _on_host("initial_params", initial_params, like), vectors)
    body = _Body(_checked(data, _fingerprint(leaves)))
    # Read all that there is before anything is made of it.
    contents = [body.read(leaf) for leaf in leaves]
    body.end()

    jobs = []
    arrays: list[host.Array] = []
    for leaf, content in zip(leaves, contents, strict=True):
        if leaf.axes is None:
            dtype = leaf.then.dtype.newbyteorder("<")
            raw = np.frombuffer(content, dtype).astype(leaf.then.dtype)
            arrays.append(raw.reshape(leaf.then.shape))
            continue
        then = leaf.rows(leaf.then)
        out: host.Array = np.empty(then.shape, then.dtype)
        arrays.append(host._unrows(out.view(leaf.then.dtype), leaf.then.shape, leaf.axes))
        for block, (checksum, code) in zip(_blocks(then), content, strict=True):
            jobs.append((leaf, then[block], checksum, code, out[block]))

    def decode(job: tuple[_Leaf, host.Array, int, memoryview, host.Array]) -> None:
        leaf, then, checksum, code, out = job
        sorted_rows = _sorted(then)
        if _checksum(sorted_rows) != checksum:
            raise ValueError(
                f"data: it was packed with other initial weights: those of {leaf.name} are not "
                "the same. Make initial_params by the same rule from the same seed."
            )
        if not codec.decode_rows(sorted_rows, np.frombuffer(code, "<u4").astype(np.uint32), out):
            raise ValueError(f"data: what it has for {leaf.name} is no code of a permutation.")

    _share(decode, jobs)
    return jax.tree.unflatten(treedef, map(_like, arrays, like))


class _Leaf(NamedTuple):
    """An initial parameter, on the host."""

    path: Path
    then: host.Array
    axes: host.LeafAxes | None

    @property
    def name(self) -> str:
        return "/".join(self.path) or "the root of the tree"

    def rows(self, array: host.Array) -> host.Array:
        """The weight vectors of such a parameter, as rows of unsigned integers."""
        assert self.axes is not None
        return host._rows(array.view(f"u{array.dtype.itemsize}"), self.axes)

    def show_vector(self, row: int) -> str:
        assert self.axes is not None
        shape = self.then.shape
        others = iter(np.unravel_index(row, [s for i, s in enumerate(shape) if i not in self.axes]))
        index = [":" if i in self.axes else str(next(others)) for i in range(len(shape))]
        return f"{self.name}[{', '.join(index)}]"


class _Body:
    """What lies between header and checksum, read leaf by leaf."""

    def __init__(self, view: memoryview):
        self.rest = view

    def take(self, size: int, leaf: _Leaf) -> memoryview:
        if size > len(self.rest):
            raise ValueError(
                f"data: it ends within {leaf.name}, where {size} bytes should follow and "
                f"{len(self.rest)} do."
            )
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def read(self, leaf: _Leaf) -> Any:
        if leaf.axes is None:
            raw = self.take(leaf.then.nbytes, leaf)
            if leaf.then.dtype == np.bool_ and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
                raise ValueError(f"data: what it has for {leaf.name} is neither False nor True.")
            return raw
        blocks = []
        for _ in _blocks(leaf.rows(leaf.then)):
            checksum, size = _BLOCK.unpack(self.take(_BLOCK.size, leaf))
            blocks.append((checksum, self.take(4 * size, leaf)))
        return blocks

    def end(self) -> None:
        if self.rest:
            raise ValueError(f"data: {len(self.rest)} bytes follow the last parameter.")


def _checked(data: Data, fingerprint: int) -> memoryview:
    """The body of `data`, once it is sure that it is all there and belongs to these parameters."""
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"data: give the bytes that pack returned, not {data!r:.50}.") from None
    least = _HEADER.size + _CHECKSUM.size
    if not _MAGIC.startswith(bytes(view[:3])):
        raise ValueError(f"data: pack has not written it: it begins with {bytes(view[:3])!r}.")
    if len(view) > 3 and view[3] != _VERSION:
        raise ValueError(
            f"data: it has version {view[3]} of the format, and this release of p2t_jax reads "
            f"version {_VERSION}."
        )
    if len(view) < least:
        raise ValueError(f"data: it is truncated: it has {len(view)} of at least {least} bytes.")
    _, _, size, tree = _HEADER.unpack_from(view)
    if len(view) != size:
        what = "truncated" if len(view) < size else "too long"
        raise ValueError(f"data: it is {what}: it has {len(view)} bytes and should have {size}.")
    body = view[: -_CHECKSUM.size]
    if (zlib.crc32(body),) != _CHECKSUM.unpack(view[-_CHECKSUM.size :]):
        raise ValueError("data: it is damaged: its checksum is not that of its bytes.")
    if tree != fingerprint:
        raise ValueError(
            "data: it belongs to other parameters: their paths, shapes, dtypes or vector axes are "
            "not those of initial_params."
        )
    return body[_HEADER.size :]


def _paths(tree: Any) -> list[Path]:
    return [path for path, _ in named_leaves(tree)]


def _leaves(tree: Any, arrays: Sequence[host.Array], vectors: VectorSpec) -> list[_Leaf]:
    """The arrays of a tree, with the paths and axes of its leaves."""
    return list(map(_Leaf, _paths(tree), arrays, vector_axes(vectors, tree)))


def _on_host(name: str, tree: Any, leaves: Sequence[Any]) -> list[host.Array]:
    """The leaves that are to be those of a tree, as NumPy arrays."""
    arrays = []
    for path, leaf in zip(_paths(tree), leaves, strict=True):
        where = f"{name}: {'/'.join(path) or 'the root of the tree'}"
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(
                f"{where} is traced, and bytes are made of values: pack and unpack outside of jit, "
                "vmap and grad."
            )
        is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
        if not is_array or not (leaf.dtype == np.bool_ or jnp.issubdtype(leaf.dtype, np.number)):
            given = f"of dtype {leaf.dtype}" if is_array else repr(leaf)
            raise TypeError(
                f"{where} is {given:.60}: give an array of numbers (of a random key, its "
                "jax.random.key_data)."
            )
        arrays.append(np.asarray(leaf, np.dtype(leaf.dtype).newbyteorder("=")))
    return arrays


def _blocks(rows: host.Array) -> list[slice]:
    """The rows that are one code each."""
    if not rows.size:
        return []
    if rows.shape[1] >= 1 << 31:
        raise ValueError(f"vectors: {rows.shape[1]} weights are too many for one vector.")
    step = max(1, _WEIGHTS // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _sorted(rows: host.Array) -> host.Array:
    sorted_rows = np.array(rows, order="C")
    sorted_rows.sort(axis=-1)
    return sorted_rows


def _share(do: Callable[[Any], None], jobs: Sequence[Any]) -> None:
    done: Iterable[None] = host._pool().map(do, jobs) if len(jobs) > 1 else map(do, jobs)
    for _ in done:
        pass


def _fingerprint(leaves: Sequence[_Leaf]) -> int:
    tree = [[leaf.path, leaf.then.dtype.name, leaf.then.shape, leaf.axes] for leaf in leaves]
    return zlib.crc32(json.dumps(tree, separators=(",", ":")).encode())


def _checksum(sorted_rows: host.Array) -> int:
    return zlib.crc32(sorted_rows.astype(sorted_rows.dtype.newbyteorder("<"), copy=False).data)


def _like(array: host.Array, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return np.array(array, order="C")
    return jax.device_put(array, leaf.sharding if leaf.committed else None)
