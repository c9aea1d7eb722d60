"""The only door to the host: one primitive that runs NumPy on the rows of many arrays at once.

`per_row` takes parameters as they lie and says along which axes their weight vectors run. How it is
carried out is decided when the programme is lowered, for only then is it known on how many devices,
and of what kind, it will run:

- compiled for one device, or running device by device (pmap, shard_map): one callback for all
  arrays together;
- partitioned by XLA: the same, each device with its share of the rows. An ordinary callback would
  gather everything on the first device;
- where there is another way and the callback does not pay (ranking, unless on one CPU): ordinary
  JAX, which XLA partitions as it likes.

The callback is what `jax.pure_callback` lowers to, without the `device_put` of its operands. That
one copies them, and waits for a thread of XLA's pool to do so: a deadlock as soon as callbacks
occupy all of the pool, which is every step of a pmap.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

Array: TypeAlias = npt.NDArray[Any]
LeafAxes: TypeAlias = tuple[int, ...]
# On the host: (m, n) C-contiguous rows of each operand, and (m, n) rows to write.
RowsKernel: TypeAlias = Callable[..., None]
# The same on a device: (..., n) arrays of each operand, to one such array.
RowsFunction: TypeAlias = Callable[..., jax.Array]

# Weights a job: enough to drown what a job costs, few enough to share out and to fit a cache.
_BLOCK = 1 << 16


@functools.cache
def _pool() -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(cores or 1, thread_name_prefix="p2t_jax")


def _rows(array: Array, axes: LeafAxes) -> Array:
    """The weight vectors of an array as (m, n) rows: a view, where strides can say so."""
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    n = math.prod(array.shape[axis] for axis in axes)
    return moved.reshape(math.prod(moved.shape[: -len(axes)]), n)


def _unrows(rows: Array, shape: tuple[int, ...], axes: LeafAxes) -> Array:
    """The inverse of `_rows`; JAX makes the transposed copy faster than NumPy."""
    others = [size for axis, size in enumerate(shape) if axis not in axes]
    moved = rows.reshape(*others, *(shape[axis] for axis in axes))
    return np.moveaxis(moved, range(-len(axes), 0), axes)


def _run(kernel: RowsKernel, axes: Sequence[LeafAxes], *operands: Sequence[Array]) -> list[Array]:
    """Run `kernel` on all rows of all leaves, shared among threads. No JAX: it could deadlock."""
    results, jobs = [], []
    leaves: Any = zip(axes, *operands, strict=True)
    for leaf_axes, *leaf in leaves:
        rows = [_rows(array, leaf_axes) for array in leaf]
        out: Array = np.empty(rows[0].shape, rows[0].dtype)
        results.append(_unrows(out, leaf[0].shape, leaf_axes))
        step = max(1, _BLOCK // max(1, out.shape[1]))
        for start in range(0, len(out), step):
            jobs.append([array[start : start + step] for array in (*rows, out)])

    def do(job: list[Array]) -> None:
        *inputs, out = job
        kernel(*map(np.ascontiguousarray, inputs), out)

    for _ in _pool().map(do, jobs) if len(jobs) > 1 else map(do, jobs):
        pass
    return results


per_row_p = Primitive("per_row")
per_row_p.multiple_results = True


def per_row(
    kernel: RowsKernel,
    function: RowsFunction | None,
    axes: Sequence[LeafAxes],
    *operands: Sequence[jax.Array],
) -> list[Any]:
    """Permute the rows of many arrays at once.

    Args:
        kernel: what to do on the host, `kernel(*rows, out)` on (m, n) C-contiguous NumPy rows.
        function: the same on a device, from (..., n) arrays to one of that shape, for wherever that
            is faster than the host; None if there is no such way.
        axes: for each leaf, the ascending axes along which its vectors run.
        *operands: lists of as many leaves. In the first, each leaf has the shape and dtype of the
            result; in the others it may have another dtype, and size 1 along the vector axes: one
            number a row.

    Returns:
        One array for each leaf, of its shape, dtype and sharding.
    """
    flat = [leaf for group in operands for leaf in group]
    if not flat:
        return []
    results: list[Any] = per_row_p.bind(*flat, kernel=kernel, function=function, axes=tuple(axes))
    return results


def row_axis(shape: Sequence[int], axes: LeafAxes) -> int | None:
    """The axis along which rows are shared out: the longest that is not in the vectors."""
    others = [axis for axis in range(len(shape)) if axis not in axes]
    return max(others, key=lambda axis: shape[axis], default=None)


def pad(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Append zeros along an axis, up to a multiple of the number of shares."""
    widths = [(0, -size % multiple if i == axis else 0) for i, size in enumerate(array.shape)]
    return jnp.pad(array, widths)


def _groups(flat: Sequence[Any], axes: Sequence[LeafAxes]) -> list[Sequence[Any]]:
    n = len(axes)
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def _on_device(*flat: jax.Array, function: RowsFunction, axes: Sequence[LeafAxes]) -> list[Any]:
    leaves = zip(axes, *_groups(flat, axes), strict=True)
    return [_apply(function, leaf_axes, *leaf) for leaf_axes, *leaf in leaves]


def _apply(function: RowsFunction, axes: LeafAxes, *leaf: jax.Array) -> jax.Array:
    # Explicit mesh axes: no operation may mix shardings, or sort along a split axis. XLA takes care
    # of all others.
    sharding: Any = jax.typeof(leaf[0]).sharding
    spec = PartitionSpec(*(None if i in axes else s for i, s in enumerate(sharding.spec)))
    explicit = any(jax.typeof(array).sharding.spec != spec for array in leaf)
    if explicit:
        leaf = tuple(jax.reshard(array, NamedSharding(sharding.mesh, spec)) for array in leaf)
    last = tuple(range(-len(axes), 0))
    moved = [jnp.moveaxis(array, axes, last) for array in leaf]
    shape = moved[0].shape
    n = math.prod(shape[-len(axes) :])
    rows = [array.reshape(*shape[: -len(axes)], n) for array in moved]
    out = jnp.moveaxis(function(*rows).reshape(shape), last, axes)
    return jax.reshard(out, sharding) if explicit else out


def _across_devices(
    *flat: jax.Array, kernel: RowsKernel, axes: Sequence[LeafAxes], devices: int
) -> list[Any]:
    """Every device of a partitioned programme calls the host with its share of the rows."""
    # The mesh that the programme speaks of, in context or in its types; if none, one of our own.
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in flat)]
    mesh: Any = next(
        (mesh for mesh in meshes if not mesh.empty),
        AbstractMesh((devices,), ("rows",), axis_types=(AxisType.Auto,)),
    )
    n = len(axes)
    share_axes = [row_axis(x.shape, axes[i % n]) for i, x in enumerate(flat)]
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
            lambda *local: per_row_p.bind(*local, kernel=kernel, function=None, axes=axes),
            in_specs=tuple(specs),
            out_specs=specs[:n],
            check_vma=False,  # a leaf that is a single vector is searched by every device, alike
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
    ctx: mlir.LoweringRuleContext,
    *args: Any,
    kernel: RowsKernel,
    function: RowsFunction | None,
    axes: Sequence[LeafAxes],
    sorts_slowly: bool = False,
) -> Any:
    context: Any = ctx.module_context.axis_context
    if isinstance(context, mlir.SPMDAxisContext):
        per_device = context.manual_axes == frozenset(context.mesh.axis_names)
        devices = context.mesh.size
    else:
        devices = context.num_devices
        per_device = devices == 1
    if function is not None and not (per_device and sorts_slowly):
        way = functools.partial(_on_device, function=function, axes=axes)
        return mlir.lower_fun(way, multiple_results=True)(ctx, *args)
    if not per_device:
        way = functools.partial(_across_devices, kernel=kernel, axes=axes, devices=devices)
        return mlir.lower_fun(way, multiple_results=True)(ctx, *args)

    # Numba compiles for dtypes when it first meets them: let that be now, not in the first step.
    avals: Any = (ctx.avals_in, ctx.avals_out)
    for dtypes in set(zip(*_groups([aval.dtype for aval in avals[0]], axes), strict=True)):
        kernel(*(np.ones((1, 1), dtype) for dtype in (*dtypes, dtypes[0])))

    def callback(*flat: Array) -> list[Array]:
        return _run(kernel, axes, *_groups(flat, axes))

    results, _, _ = mlir.emit_python_callback(
        ctx, callback, None, args, *avals, has_side_effect=False
    )
    return results


def _batch(args: Sequence[Any], dims: Sequence[Any], *, axes: Any, **params: Any) -> Any:
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    args = [batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True)]
    axes = tuple(tuple(axis + 1 for axis in leaf_axes) for leaf_axes in axes)
    return per_row_p.bind(*args, axes=axes, **params), [0] * len(axes)


def _abstract_eval(*avals: Any, axes: Sequence[LeafAxes], **params: Any) -> Any:
    del params
    return list(avals[: len(axes)])


per_row_p.def_impl(jax.jit(per_row_p.bind, static_argnames=("kernel", "function", "axes")))
per_row_p.def_abstract_eval(_abstract_eval)
batching.primitive_batchers[per_row_p] = _batch
mlir.register_lowering(per_row_p, _lower)
mlir.register_lowering(per_row_p, functools.partial(_lower, sorts_slowly=True), platform="cpu")
