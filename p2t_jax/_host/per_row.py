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

A kernel finds positions: those that the weights of a vector come from. JAX takes the weights there,
so that only what decides about the permutation is copied for the host. Derivatives follow the
permutation, which itself is constant almost everywhere.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from p2t_jax import _leaves
from p2t_jax._host import internals
from p2t_jax._host.sharing import cores, share
from p2t_jax._leaves import Axes

Array: TypeAlias = npt.NDArray[Any]
# On the host: a block of each operand, a block of positions to write, and the range of vectors.
Kernel: TypeAlias = Callable[..., None]
# In JAX: from (..., n) arrays of the values and of each operand to the permuted values.
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
    *operands: Sequence[jax.Array],
) -> list[jax.Array]:
    """Permute the weight vectors of many parameters at once.

    Args:
        kernel: what is done on the host: `kernel(*blocks, out, start, stop)` writes to `out`, of
            the dtype `position_dtype(n)`, which positions the weights of vectors `start` to `stop`
            come from: the result is `values[out]`, vector by vector. Blocks are as in
            `p2t_jax._leaves`. It must be hashable, and kernels that do the same must be equal.
        function: the same in JAX, from (..., n) arrays to one, on accelerators and in
            partitioned programmes; None to run the kernel on the host there, too.
        axes: for each parameter, the ascending axes along which its vectors run.
        values: what is permuted, one array for each parameter.
        *operands: what the permutation depends on, and the kernel gets: lists of as many arrays.
            They may have other dtypes, and size 1 along the vector axes: one number for each
            vector.

    Returns:
        One array for each parameter, of the shape, dtype and sharding of its values.
    """
    if not values:
        return []
    varying = [internals.varying_like(*leaf) for leaf in zip(values, *operands, strict=True)]
    flat = [leaf for group in (varying, *operands) for leaf in group]
    return list(_permute(kernel, function, tuple(axes), *flat))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _permute(
    kernel: Kernel, function: Any, axes: tuple[Axes, ...], *flat: jax.Array
) -> list[jax.Array]:
    results: list[jax.Array] = _permute_p.bind(*flat, kernel=kernel, function=function, axes=axes)
    return results


@_permute.defjvp
def _permute_jvp(
    kernel: Kernel, function: Any, axes: tuple[Axes, ...], flat: Any, dots: Any
) -> Any:
    results = _permute(kernel, function, axes, *flat)
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
        rows = [_leaves.to_rows(array, leaf_axes) for array in leaf]
        # The vectors of operands may be spread over devices in another way.
        result = function(*(_leaves.sharded_like(x, rows[0]) for x in rows))
        array = _leaves.from_rows(result, leaf[0].shape, leaf_axes)
        results.append(_leaves.sharded_like(array, leaf[0]))
    return results


def _flat_in_jax(*flat: jax.Array, function: RowsFunction, axes: Sequence[Axes]) -> Any:
    return in_jax(function, axes, *_groups(flat, axes))


def position_dtype(n: int) -> np.dtype[Any]:
    """The dtype of positions in a vector of n weights."""
    return np.dtype(np.uint16 if n <= 1 << 16 else np.uint32)


def run_on_host(kernel: Kernel, axes: Sequence[Axes], *flat: Array) -> list[Array]:
    """Find positions for all vectors, shared among threads. No JAX: it could deadlock."""
    outs, shapes, jobs = [], [], []
    for leaf_axes, *leaf in zip(axes, *_groups(flat, axes), strict=True):
        blocks = [_leaves.to_block(array, leaf_axes) for array in leaf]
        out: Array = np.empty(blocks[0].shape, position_dtype(blocks[0].shape[1]))
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


def _compile(kernel: Kernel, axes: Sequence[Axes], types: Sequence[Any]) -> None:
    """Let Numba compile for these dtypes now, not in the first step."""
    for leaf_axes, values, *operands in zip(axes, *_groups(types, axes), strict=True):
        n = _leaves.vector_length(values.shape, leaf_axes)
        _compile_for(kernel, *(x.dtype for x in operands), position_dtype(n))


@functools.lru_cache
def _compile_for(kernel: Kernel, *dtypes: np.dtype[Any]) -> None:
    kernel(*(np.ones((1, 1, 1), dtype) for dtype in dtypes), 0, 1)


def _by_callbacks(
    *flat: jax.Array, kernel: Kernel, axes: Sequence[Axes], direct: bool
) -> Sequence[jax.Array]:
    """Call the host from one device: once for all parameters, and piecewise for very large ones."""
    call = functools.partial(_by_callback, kernel=kernel, direct=direct)
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
    # The operand that is least likely to be needed afterwards: phi or r.
    over = max(i for i, x in enumerate(leaf[:3]) if (x.shape, x.dtype) == (shape, leaf[0].dtype))

    def write(start: Any, size: int, out: jax.Array) -> jax.Array:
        operands = [*leaf[:over], out, *leaf[over + 1 :]]
        piece = call(*(jax.lax.dynamic_slice_in_dim(x, start, size, axis) for x in operands))[0]
        return jax.lax.dynamic_update_slice_in_dim(out, piece, start, axis)

    whole = shape[axis] // size
    out = jax.lax.fori_loop(0, whole, lambda i, out: write(i * size, size, out), leaf[over])
    rest = shape[axis] - whole * size
    return write(whole * size, rest, out) if rest else out


def _by_callback(
    *flat: jax.Array, kernel: Kernel, axes: Sequence[Axes], direct: bool
) -> Sequence[jax.Array]:
    """One call of the host, by `jax.pure_callback` unless that could hang."""
    values, operands = flat[: len(axes)], flat[len(axes) :]
    sent, unpack = _pack(operands)

    def callback(*received: Any) -> list[Array]:
        return run_on_host(kernel, axes, *unpack(received))

    lengths = [_leaves.vector_length(x.shape, a) for x, a in zip(values, axes, strict=True)]
    types = [
        jax.ShapeDtypeStruct(x.shape, position_dtype(n))
        for x, n in zip(values, lengths, strict=True)
    ]
    call = internals.direct_callback if direct else jax.pure_callback
    return list(map(_leaves.take, values, call(callback, types, *sent), axes))


def _pack(
    arrays: Sequence[jax.Array],
) -> tuple[list[jax.Array], Callable[[Sequence[Any]], list[Array]]]:
    """Prepares operands for a callback.

    All small arrays of 32-bit numbers are put into one: each operand of a callback costs 50 us.
    64-bit numbers become pairs of 32-bit ones: JAX reads its 64-bit switch on the thread of the
    callback, where the user's context manager is not visible.

    Returns the operands to send, and what gives NumPy arrays like `arrays` from what is received.
    """
    dtypes = [np.dtype(x.dtype) for x in arrays]
    sent = [_as_words(x) if x.dtype.itemsize == 8 else x for x in arrays]
    shapes = [x.shape for x in sent]
    small = [i for i, x in enumerate(sent) if x.dtype.itemsize == 4 and x.size <= _SMALL]
    large = [i for i in range(len(sent)) if i not in small]
    together = [jnp.concatenate([_as_words(sent[i]).ravel() for i in small])] if small else []

    def unpack(received: Sequence[Any]) -> list[Array]:
        found = {i: np.asarray(x) for i, x in zip(large, received, strict=False)}
        start = 0
        for i in small:
            stop = start + math.prod(shapes[i])
            found[i] = np.asarray(received[-1])[start:stop].reshape(shapes[i])
            start = stop
        views = [found[i].view(dtype) for i, dtype in enumerate(dtypes)]
        return [
            x[..., 0] if dtype.itemsize == 8 else x for x, dtype in zip(views, dtypes, strict=True)
        ]

    return [*(sent[i] for i in large), *together], unpack


def _as_words(x: jax.Array) -> jax.Array:
    """The bits as uint32, in pairs for 64-bit numbers."""
    return jax.lax.bitcast_convert_type(x, np.uint32)


def pad(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Append zeros along an axis, up to a multiple of the number of shares."""
    widths = [(0, -size % multiple if i == axis else 0) for i, size in enumerate(array.shape)]
    return jnp.pad(array, widths)


def _across_devices(
    *flat: jax.Array, devices: int, kernel: Kernel, axes: Sequence[Axes]
) -> list[Any]:
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
            lambda *local: _permute_p.bind(*local, kernel=kernel, function=None, axes=axes),
            in_specs=tuple(specs),
            out_specs=specs[:n],
            check_vma=False,  # a parameter that is a single vector is searched by every device
        )(*shares)
        whole = []
        for x, result, axis in zip(flat, results, share_axes, strict=False):
            if explicit:
                result = _leaves.sharded_like(result, x)
            if axis is not None:
                result = jax.lax.slice_in_dim(result, 0, x.shape[axis], axis=axis)
            whole.append(result)
    return whole


def _lower(
    placement: internals.Placement,
    on_cpu: bool,
    types: Sequence[Any],
    *,
    kernel: Kernel,
    function: RowsFunction | None,
    axes: Sequence[Axes],
) -> Callable[..., Any]:
    if function is not None and not (placement.per_device and on_cpu):
        return functools.partial(_flat_in_jax, function=function, axes=axes)
    if not placement.per_device:
        return functools.partial(
            _across_devices, devices=placement.devices, kernel=kernel, axes=axes
        )
    _compile(kernel, axes, types)
    crowded = jax.local_device_count("cpu") > 1 or cores() == 1
    direct = on_cpu and internals.CALLBACKS_CAN_HANG and crowded
    return functools.partial(_by_callbacks, kernel=kernel, axes=axes, direct=direct)


def _batch(*args: jax.Array, axes: Sequence[Axes], **params: Any) -> Any:
    shifted = tuple(tuple(axis + 1 for axis in leaf_axes) for leaf_axes in axes)
    return _permute_p.bind(*map(_mapped_like(args), args), axes=shifted, **params)


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


def _abstract_eval(*avals: Any, axes: Sequence[Axes], **params: Any) -> Any:
    del params
    return list(avals[: len(axes)])


_permute_p = internals.primitive(
    "permute_vectors",
    _abstract_eval,
    _batch,
    _lower,
    static=("kernel", "function", "axes"),
)
