"""Permuting the weight vectors of many parameters at once: a primitive of JAX.

How it runs is decided when the programme is lowered. Only then is it known on how many devices, and
on which kind, the programme will run:

- compiled for one device, or running device by device (pmap, shard_map): one call of the host for
  all parameters together, through one of the `doors`;
- partitioned by XLA: the same, each device with its share of the vectors. An ordinary call would
  gather everything on the first device;
- where JAX does the same and is faster (ranking, except on a CPU): plain JAX, which XLA partitions.

Derivatives follow the permutation, which itself is constant almost everywhere.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from p2t_jax import _leaves
from p2t_jax._host import doors, internals
from p2t_jax._host.permutation import Permutation, by_operand, compile_for
from p2t_jax._host.switch import HostCallback
from p2t_jax._leaves import Axes


def permute_vectors(
    permutation: Permutation,
    axes: Sequence[Axes],
    values: Sequence[jax.Array],
    *operands: Sequence[jax.Array],
    host_callback: HostCallback,
) -> list[jax.Array]:
    """Permute the weight vectors of many parameters at once.

    Args:
        permutation: how.
        axes: for each parameter, the ascending axes along which its vectors run.
        values: what is permuted, one array for each parameter.
        *operands: what the permutation depends on: lists of as many arrays. They may have other
            dtypes, and size 1 along the vector axes: one number for each vector.
        host_callback: False for plain JAX everywhere; "ffi" to call the host through XLA's FFI on
            CPUs.

    Returns:
        One array for each parameter, of the shape, dtype and sharding of its values.
    """
    if not values:
        return []
    if not host_callback:
        return _in_jax(permutation, axes, values, *operands)
    varying = [internals.varying_like(*leaf) for leaf in zip(values, *operands, strict=True)]
    flat = [leaf for group in (varying, *operands) for leaf in group]
    return list(_permute(permutation, host_callback == "ffi", tuple(axes), *flat))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _permute(
    permutation: Permutation, by_ffi: bool, axes: tuple[Axes, ...], *flat: jax.Array
) -> list[jax.Array]:
    results: list[jax.Array] = _permute_p.bind(
        *flat, permutation=permutation, by_ffi=by_ffi, axes=axes
    )
    return results


@_permute.defjvp
def _permute_jvp(
    permutation: Permutation, by_ffi: bool, axes: tuple[Axes, ...], flat: Any, dots: Any
) -> Any:
    """Values and tangents are taken from the same positions: those that positions come from."""
    values, operands = flat[: len(axes)], flat[len(axes) :]
    places = list(map(_places, values, axes))
    # Not of the second order either: positions have no derivative.
    positions = _permute(permutation, by_ffi, axes, *places, *jax.lax.stop_gradient(operands))
    return tuple(
        list(map(_take, arrays, positions, axes)) for arrays in (values, dots[: len(axes)])
    )


def _places(array: jax.Array, axes: Axes) -> jax.Array:
    """For each weight of an array, its place in its vector."""
    n = _leaves.vector_length(array.shape, axes)
    others = [size for axis, size in enumerate(array.shape) if axis not in axes]
    rows = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint32), (*others, n))
    places = _leaves.sharded_like(_leaves.from_rows(rows, array.shape, axes), array)
    return internals.varying_like(places, array)


def _take(array: jax.Array, positions: jax.Array, axes: Axes) -> jax.Array:
    """`w[positions]` for each weight vector w of an array, which may be split between devices."""
    w, at = (_leaves.to_rows(x, axes) for x in (array, positions))
    taken = jnp.take_along_axis(w, at.astype(jnp.int32), axis=-1, mode="promise_in_bounds")
    return _leaves.sharded_like(_leaves.from_rows(taken, array.shape, axes), array)


def _flat_in_jax(*flat: jax.Array, permutation: Permutation, axes: Sequence[Axes]) -> Any:
    return _in_jax(permutation, axes, *by_operand(flat, axes))


def _in_jax(
    permutation: Permutation, axes: Sequence[Axes], *operands: Sequence[jax.Array]
) -> list[jax.Array]:
    results = []
    for leaf_axes, *leaf in zip(axes, *operands, strict=True):
        rows = permutation.in_jax(*(_leaves.to_rows(array, leaf_axes) for array in leaf))
        array = _leaves.from_rows(rows, leaf[0].shape, leaf_axes)
        results.append(_leaves.sharded_like(array, leaf[0]))
    return results


def pad(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Append zeros along an axis, up to a multiple of the number of shares."""
    widths = [(0, -size % multiple if i == axis else 0) for i, size in enumerate(array.shape)]
    return jnp.pad(array, widths)


def _across_devices(
    *flat: jax.Array, devices: int, permutation: Permutation, by_ffi: bool, axes: Sequence[Axes]
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
            lambda *local: _permute_p.bind(
                *local, permutation=permutation, by_ffi=by_ffi, axes=axes
            ),
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
    permutation: Permutation,
    by_ffi: bool,
    axes: Sequence[Axes],
) -> Callable[..., Any]:
    if permutation.same_in_jax and not (placement.per_device and on_cpu):
        return functools.partial(_flat_in_jax, permutation=permutation, axes=axes)
    if not placement.per_device:
        return functools.partial(
            _across_devices,
            devices=placement.devices,
            permutation=permutation,
            by_ffi=by_ffi,
            axes=axes,
        )
    compile_for(permutation, axes, types)
    door = doors.door(permutation, on_cpu, by_ffi)
    return functools.partial(door, permutation=permutation, axes=axes)


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
    static=("permutation", "by_ffi", "axes"),
)
