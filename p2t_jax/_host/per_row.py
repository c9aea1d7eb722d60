"""Running NumPy kernels on the host, on the weight vectors of many parameters at once.

How a call is made is decided when the programme is lowered. Only then is it known on how many
devices, and on which kind, the programme will run:

- compiled for one device, or running device by device (pmap, shard_map): one `jax.pure_callback`
  for all parameters together;
- partitioned by XLA: the same, each device with its share of the vectors. An ordinary callback
  would gather everything on the first device;
- where a JAX implementation exists and is faster (ranking, except on a CPU): plain JAX, which XLA
  partitions.

`in_jax` is plain JAX everywhere, for programmes without callbacks.

The result is a permutation of the first operand, vector by vector. Derivatives follow it: the
permutation itself is constant almost everywhere.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from p2t_jax import _leaves
from p2t_jax._host import internals
from p2t_jax._host.sharing import share
from p2t_jax._leaves import Axes

Array: TypeAlias = npt.NDArray[Any]
# On the host: a block of each operand, a block to write, and the range of vectors to permute. It
# writes permuted vectors, or the positions in a vector that its weights come from.
Kernel: TypeAlias = Callable[..., None]
# In JAX: from an (..., n) array of each operand to one such array.
RowsFunction: TypeAlias = Callable[..., jax.Array]

# Weights per job: enough to hide the cost of a job, few enough to share and to fit in a cache.
_JOB = 1 << 15
_SMALL = 1 << 12  # Numbers up to which an operand of a callback is packed with others.
_TOGETHER = 16  # A kernel copies this many vectors together; a job has a multiple of them.
# Weights per callback: a callback holds several copies of its operands.
WEIGHTS_PER_CALLBACK = 1 << 22


def permute_vectors(
    kernel: Kernel,
    function: RowsFunction | None,
    axes: Sequence[Axes],
    values: Sequence[jax.Array],
    *others: Sequence[jax.Array],
    positions: bool = False,
) -> list[jax.Array]:
    """Permute the weight vectors of many parameters at once.

    Args:
        kernel: how to permute on the host: `kernel(*blocks, out, start, stop)` permutes vectors
            `start` to `stop`. Blocks are as in `p2t_jax._leaves`; the kernel writes `out`. It
            must be hashable, and kernels that do the same must be equal.
        function: how to permute in JAX, from (..., n) arrays to one, on accelerators and in
            partitioned programmes; None to run the kernel on the host there, too.
        axes: for each parameter, the ascending axes along which its vectors run.
        values: what is permuted, one array for each parameter.
        *others: what the permutation depends on: lists of as many arrays. They may have other
            dtypes, and size 1 along the vector axes: one number for each vector.
        positions: whether the kernel gets the blocks of the others alone, and writes positions, of
            the dtype `position_dtype`: the result is `values[positions]`, vector by vector. That
            is faster where the values do not matter, because they need not be copied for the host.

    Returns:
        One array for each parameter, of the shape, dtype and sharding of its values.
    """
    if not values:
        return []
    varying = [internals.varying_like(*leaf) for leaf in zip(values, *others, strict=True)]
    flat = [leaf for group in (varying, *others) for leaf in group]
    return list(_permute(_Way(kernel, positions, function), tuple(axes), *flat))


class _Way(NamedTuple):
    """How vectors are permuted: see `permute_vectors`."""

    kernel: Kernel
    positions: bool
    function: RowsFunction | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _permute(way: _Way, axes: tuple[Axes, ...], *flat: jax.Array) -> list[jax.Array]:
    results: list[jax.Array] = _permute_p.bind(*flat, way=way, axes=axes)
    return results


@_permute.defjvp
def _permute_jvp(way: _Way, axes: tuple[Axes, ...], flat: Any, dots: Any) -> Any:
    results = _permute(way, axes, *flat)
    return results, list(map(_follow, axes, flat, results, dots))


def _follow(axes: Axes, values: jax.Array, result: jax.Array, dot: jax.Array) -> jax.Array:
    """Permute `dot` as `values` were permuted to give `result`: equal values keep their order."""
    before, after, moved = (_leaves.to_rows(array, axes) for array in (values, result, dot))
    bits = f"uint{8 * values.dtype.itemsize}"
    before, after = (
        jnp.argsort(jax.lax.bitcast_convert_type(x, bits), axis=-1, stable=True)
        for x in (before, after)
    )
    source = jnp.take_along_axis(before, jnp.argsort(after, axis=-1), axis=-1)
    moved = jnp.take_along_axis(moved, source, axis=-1)
    return _leaves.sharded_like(_leaves.from_rows(moved, values.shape, axes), values)


def _groups(flat: Sequence[Any], axes: Sequence[Axes]) -> list[Sequence[Any]]:
    n = len(axes)
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def in_jax(
    function: RowsFunction, axes: Sequence[Axes], *operands: Sequence[jax.Array]
) -> list[jax.Array]:
    """The same as `permute_vectors`, in plain JAX."""
    results = []
    for leaf_axes, *leaf in zip(axes, *operands, strict=True):
        rows = function(*(_leaves.to_rows(array, leaf_axes) for array in leaf))
        array = _leaves.from_rows(rows, leaf[0].shape, leaf_axes)
        results.append(_leaves.sharded_like(array, leaf[0]))
    return results


def _flat_in_jax(*flat: jax.Array, function: RowsFunction, axes: Sequence[Axes]) -> Any:
    return in_jax(function, axes, *_groups(flat, axes))


def position_dtype(n: int) -> np.dtype[Any]:
    """The dtype of positions in a vector of n weights."""
    return np.dtype(np.uint16 if n <= 1 << 16 else np.uint32)


def run_on_host(
    kernel: Kernel, axes: Sequence[Axes], *flat: Array, positions: bool = False
) -> list[Array]:
    """Run the kernel on all vectors, shared among threads. No JAX: it could deadlock."""
    outs, shapes, jobs = [], [], []
    for leaf_axes, *leaf in zip(axes, *_groups(flat, axes), strict=True):
        blocks = [_leaves.to_block(array, leaf_axes) for array in leaf]
        dtype = position_dtype(blocks[0].shape[1]) if positions else blocks[0].dtype
        out: Array = np.empty(blocks[0].shape, dtype)
        outs.append(out)
        shapes.append(leaf[0].shape)
        outer, n, inner = out.shape
        step = -(-_JOB // max(1, n) // _TOGETHER) * _TOGETHER
        jobs += [
            (blocks, out, start, min(start + step, outer * inner))
            for start in range(0, outer * inner if n else 0, step)
        ]
    share(lambda job: kernel(*job[0], *job[1:]), jobs)
    return list(map(_leaves.from_block, outs, shapes, axes))


def _compile(way: _Way, axes: Sequence[Axes], types: Sequence[Any]) -> None:
    """Let Numba compile for these dtypes now, not in the first step."""
    for leaf_axes, *leaf in zip(axes, *_groups(types, axes), strict=True):
        n = _leaves.vector_length(leaf[0].shape, leaf_axes)
        dtypes = [aval.dtype for aval in leaf]
        _compile_for(way, *dtypes, position_dtype(n) if way.positions else dtypes[0])


@functools.lru_cache
def _compile_for(way: _Way, *dtypes: np.dtype[Any]) -> None:
    blocks = [np.ones((1, 1, 1), dtype) for dtype in dtypes]
    way.kernel(*blocks[way.positions :], 0, 1)


def _by_callbacks(
    *flat: jax.Array, way: _Way, axes: Sequence[Axes], direct: bool
) -> Sequence[jax.Array]:
    """Call the host from one device: once for all parameters, and piecewise for very large ones."""
    call = functools.partial(_by_callback, way=way, direct=direct)
    leaves = list(zip(axes, *_groups(flat, axes), strict=True))
    together = [
        i for i, (_, values, *_) in enumerate(leaves) if values.size <= WEIGHTS_PER_CALLBACK
    ]
    results: dict[int, jax.Array] = {}
    if together:
        groups = zip(*(leaves[i][1:] for i in together), strict=True)
        operands = [x for group in groups for x in group]
        permuted = call(*operands, axes=[axes[i] for i in together])
        results = dict(zip(together, permuted, strict=True))
    for i, (leaf_axes, *leaf) in enumerate(leaves):
        if i not in results:
            results[i] = _piecewise(functools.partial(call, axes=[leaf_axes]), leaf_axes, *leaf)
    return [results[i] for i in range(len(leaves))]


def _piecewise(call: Any, axes: Axes, *leaf: jax.Array) -> jax.Array:
    """`call` for a few vectors at a time, in a loop that overwrites an operand."""
    shape = leaf[0].shape
    axis = _leaves.row_axis(shape, axes)
    pieces = -(-leaf[0].size // WEIGHTS_PER_CALLBACK)
    if axis is None or shape[axis] < 2:
        result: jax.Array = call(*leaf)[0]
        return result
    size = -(-shape[axis] // pieces)
    # The operand that is least likely to be needed afterwards.
    over = max(i for i, x in enumerate(leaf[:2]) if (x.shape, x.dtype) == (shape, leaf[0].dtype))

    def write(start: Any, size: int, out: jax.Array) -> jax.Array:
        operands = [*leaf[:over], out, *leaf[over + 1 :]]
        piece = call(*(jax.lax.dynamic_slice_in_dim(x, start, size, axis) for x in operands))[0]
        return jax.lax.dynamic_update_slice_in_dim(out, piece, start, axis)

    whole = shape[axis] // size
    out = jax.lax.fori_loop(0, whole, lambda i, out: write(i * size, size, out), leaf[over])
    rest = shape[axis] - whole * size
    return write(whole * size, rest, out) if rest else out


def _by_callback(
    *flat: jax.Array, way: _Way, axes: Sequence[Axes], direct: bool
) -> Sequence[jax.Array]:
    """One call of the host, by `jax.pure_callback` unless that could hang."""
    values, operands = flat[: len(axes)], flat[way.positions * len(axes) :]
    # JAX reads its 64-bit switch on the thread of the callback, where the user's context manager is
    # not visible. So 64-bit numbers are passed as pairs of 32-bit ones.
    dtypes = [np.dtype(x.dtype) for x in operands]
    sent, unpack = _pack([_as_pairs(x) for x in operands])

    def callback(*received: Any) -> list[Array]:
        arrays = [
            x if dtype.itemsize < 8 else x.view(dtype)[..., 0]
            for x, dtype in zip(unpack(received), dtypes, strict=True)
        ]
        results = run_on_host(way.kernel, axes, *arrays, positions=way.positions)
        return [
            x if x.dtype.itemsize < 8 else np.ascontiguousarray(x)[..., None].view(np.uint32)
            for x in results
        ]

    lengths = [_leaves.vector_length(x.shape, a) for x, a in zip(values, axes, strict=True)]
    if way.positions:
        types = [(x.shape, position_dtype(n)) for x, n in zip(values, lengths, strict=True)]
    else:
        types = [(x.shape, x.dtype) for x in map(_as_pairs, values)]
    call = internals.direct_callback if direct else jax.pure_callback
    received = call(callback, [jax.ShapeDtypeStruct(*x) for x in types], *sent)
    if way.positions:
        return list(map(_leaves.take, values, received, axes))
    return [
        jax.lax.bitcast_convert_type(new, x.dtype) if x.dtype.itemsize == 8 else new
        for new, x in zip(received, values, strict=True)
    ]


def _as_pairs(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, np.uint32) if x.dtype.itemsize == 8 else x


def _pack(
    arrays: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[Any]], list[Array]]]:
    """Puts all small arrays of 32-bit numbers into one: each operand of a callback costs 50 us.

    Returns the operands to send, and what gives NumPy arrays like `arrays` from what is received.
    """
    shapes, dtypes = [x.shape for x in arrays], [np.dtype(x.dtype) for x in arrays]
    small = [i for i, x in enumerate(arrays) if x.dtype.itemsize == 4 and x.size <= _SMALL]
    large = [i for i in range(len(arrays)) if i not in small]
    packed = [jax.lax.bitcast_convert_type(arrays[i], np.uint32).ravel() for i in small]
    sent = [*(arrays[i] for i in large), *([jnp.concatenate(packed)] if packed else [])]

    def unpack(received: Sequence[Any]) -> list[Array]:
        found = {i: np.asarray(x) for i, x in zip(large, received, strict=False)}
        start = 0
        for i in small:
            stop = start + math.prod(shapes[i])
            found[i] = np.asarray(received[-1])[start:stop].view(dtypes[i]).reshape(shapes[i])
            start = stop
        return [found[i] for i in range(len(shapes))]

    return sent, unpack


def pad(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Append zeros along an axis, up to a multiple of the number of shares."""
    widths = [(0, -size % multiple if i == axis else 0) for i, size in enumerate(array.shape)]
    return jnp.pad(array, widths)


def _across_devices(*flat: jax.Array, devices: int, way: _Way, axes: Sequence[Axes]) -> list[Any]:
    """Every device of a partitioned programme calls the host with its share of the vectors."""
    # The mesh of the context or of the operands' types; if there is none, a new one.
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in flat)]
    mesh: Any = next(
        (mesh for mesh in meshes if not mesh.empty),
        AbstractMesh((devices,), ("vectors",), axis_types=(AxisType.Auto,)),
    )
    n = len(axes)
    share_axes = [_leaves.row_axis(x.shape, axes[i % n]) for i, x in enumerate(flat)]
    specs = [
        PartitionSpec(*(mesh.axis_names if i == axis else None for i in range(x.ndim)))
        for x, axis in zip(flat, share_axes, strict=True)
    ]
    shares = [
        x if axis is None else pad(x, axis, devices)
        for x, axis in zip(flat, share_axes, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh):
        explicit = AxisType.Explicit in mesh.axis_types
        if explicit:
            shares = [
                jax.reshard(x, NamedSharding(mesh, spec))
                for x, spec in zip(shares, specs, strict=True)
            ]
        results = jax.shard_map(
            lambda *local: _permute_p.bind(*local, way=way, axes=axes),
            in_specs=tuple(specs),
            out_specs=specs[:n],
            check_vma=False,  # a parameter that is a single vector is searched by every device
        )(*shares)
        whole = []
        for x, result, axis in zip(flat, results, share_axes, strict=False):
            if explicit:
                result = jax.reshard(result, jax.typeof(x).sharding)
            if axis is not None:
                result = jax.lax.slice_in_dim(result, 0, x.shape[axis], axis=axis)
            whole.append(result)
    return whole


def _lower(
    placement: internals.Placement,
    on_cpu: bool,
    types: Sequence[Any],
    *,
    way: _Way,
    axes: Sequence[Axes],
) -> Callable[..., Any]:
    if way.function is not None and not (placement.per_device and on_cpu):
        return functools.partial(_flat_in_jax, function=way.function, axes=axes)
    if not placement.per_device:
        devices, way = placement.devices, way._replace(function=None)
        return functools.partial(_across_devices, devices=devices, way=way, axes=axes)
    _compile(way, axes, types)
    direct = on_cpu and internals.CALLBACKS_CAN_HANG and jax.local_device_count("cpu") > 1
    return functools.partial(_by_callbacks, way=way, axes=axes, direct=direct)


def _batch(*args: jax.Array, way: _Way, axes: Sequence[Axes]) -> Any:
    shifted = tuple(tuple(axis + 1 for axis in leaf_axes) for leaf_axes in axes)
    return _permute_p.bind(*map(_mapped_like(args), args), way=way, axes=shifted)


def _mapped_like(args: Sequence[jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Splits the mapped axis along explicit mesh axes as the operands that have it do."""
    shardings: list[Any] = [jax.typeof(x).sharding for x in args]
    split = next((s for s in shardings if len(s.spec) and s.spec[0] is not None), None)

    def mapped(x: jax.Array) -> jax.Array:
        if split is None:
            return x
        spec = PartitionSpec(split.spec[0], *jax.typeof(x).sharding.spec[1:])
        resharded: jax.Array = jax.reshard(x, NamedSharding(split.mesh, spec))
        return resharded

    return mapped


def _abstract_eval(*avals: Any, way: _Way, axes: Sequence[Axes]) -> Any:
    del way
    return list(avals[: len(axes)])


_permute_p = internals.primitive(
    "permute_vectors",
    _abstract_eval,
    _batch,
    _lower,
    static=("way", "axes"),
)
