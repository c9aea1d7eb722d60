"""Sharing weight vectors among devices, so that no two search the same ones."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from p2t_jax import _leaves
from p2t_jax._leaves import Axes


def across_devices(
    call: Callable[..., Sequence[jax.Array]], devices: int, axes: Sequence[Axes], *flat: jax.Array
) -> list[jax.Array]:
    """Gives every device of a program that XLA partitions its share of the vectors.

    Args:
        call: what a device does with its share of `flat`: it returns as many arrays as `axes` has,
            like the first of `flat`.
        devices: how many there are.
        axes: for each parameter, the ascending axes along which its vectors run.
        *flat: an array for each parameter of the first operand, then of the second, etc.

    Returns:
        An array for each parameter, with the sharding of the first operand.
    """
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
        x if axis is None else _padded(x, axis, devices)
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
            call,
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


def own_shares(
    axes: Sequence[Axes], operands: Sequence[Sequence[jax.Array]], axis_name: Any
) -> list[list[jax.Array]]:
    """In `pmap` or `shard_map`: this device's share of the vectors of replicated parameters.

    Args:
        axes: for each parameter, the ascending axes along which its vectors run.
        operands: lists of an array for each parameter; the first has the parameters' shapes.
        axis_name: the axis whose devices share.

    Returns:
        Lists of arrays like `operands`, each a part of the one there.
    """
    device, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)

    def own(array: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            return array
        array = _padded(array, axis, devices)
        size = array.shape[axis] // devices
        return jax.lax.dynamic_slice_in_dim(array, device * size, size, axis)

    shared = [_leaves.row_axis(leaf.shape, a) for leaf, a in zip(operands[0], axes, strict=True)]
    return [list(map(own, group, shared)) for group in operands]


def gathered(
    axes: Sequence[Axes],
    shares: Sequence[jax.Array],
    whole: Sequence[tuple[int, ...]],
    axis_name: Any,
) -> list[jax.Array]:
    """The inverse of `own_shares`, from the shapes of the whole: the same arrays on all devices."""

    def gather(array: jax.Array, shape: tuple[int, ...], axis: int | None) -> jax.Array:
        if axis is None:
            return array
        array = jax.lax.all_gather(array, axis_name, axis=axis, tiled=True, to="invarying")
        return jax.lax.slice_in_dim(array, 0, shape[axis], axis=axis)

    return list(map(gather, shares, whole, map(_leaves.row_axis, whole, axes)))


def _padded(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Appends zeros along an axis, up to a multiple of the number of shares."""
    widths = [(0, -size % multiple if i == axis else 0) for i, size in enumerate(array.shape)]
    return jnp.pad(array, widths)
