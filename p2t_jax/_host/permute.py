"""Permuting the weight vectors of many parameters at once: a primitive of JAX.

How it runs is decided when the program is lowered. Only then is it known on how many devices, and
on which kind, the program will run:

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
from jax.sharding import NamedSharding, PartitionSpec

from p2t_jax import _leaves
from p2t_jax._host.doors import door
from p2t_jax._host.host_choice import HostCallback, host_choice
from p2t_jax._host.permutation import Permutation, by_operand, compile_for
from p2t_jax._host.shares import across_devices
from p2t_jax._jax_internals import Placement, primitive, varying_like
from p2t_jax._leaves import Axes


def permute_vectors(
    permutation: Permutation,
    axes: Sequence[Axes],
    values: Sequence[jax.Array],
    *operands: Sequence[jax.Array],
    host_callback: HostCallback | None = None,
) -> list[jax.Array]:
    """Permute the weight vectors of many parameters at once.

    Args:
        permutation: how.
        axes: for each parameter, the ascending axes along which its vectors run.
        values: what is permuted, one array for each parameter.
        *operands: what the permutation depends on: lists of as many arrays. They may have other
            dtypes, and size 1 along the vector axes: one number for each vector.
        host_callback: the user's choice, see `set_host_callback`; None for that of the process.

    Returns:
        One array for each parameter, of the shape, dtype and sharding of its values.
    """
    if not values:
        return []
    choice = host_choice(host_callback)
    if not choice:
        return _in_jax(permutation, axes, values, *operands)
    varying = [varying_like(*leaf) for leaf in zip(values, *operands, strict=True)]
    flat = [leaf for group in (varying, *operands) for leaf in group]
    return list(_permute(permutation, choice == "ffi", tuple(axes), *flat))


def _in_jax(
    permutation: Permutation, axes: Sequence[Axes], *operands: Sequence[jax.Array]
) -> list[jax.Array]:
    results = []
    for leaf_axes, *leaf in zip(axes, *operands, strict=True):
        rows = [_leaves.to_rows(array, leaf_axes) for array in leaf]
        # The vectors of operands may be spread over devices in another way.
        permuted = permutation.in_jax(*(_leaves.sharded_like(x, rows[0]) for x in rows))
        array = _leaves.from_rows(permuted, leaf[0].shape, leaf_axes)
        results.append(_leaves.sharded_like(array, leaf[0]))
    return results


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _permute(
    permutation: Permutation, by_ffi: bool, axes: tuple[Axes, ...], *flat: jax.Array
) -> list[jax.Array]:
    results: list[jax.Array] = _permute_p.bind(
        *flat, permutation=permutation, by_ffi=by_ffi, axes=axes
    )
    return results


def _abstract_eval(*avals: Any, axes: Sequence[Axes], **params: Any) -> Any:
    del params
    return list(avals[: len(axes)])


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
    return varying_like(places, array)


def _take(array: jax.Array, positions: jax.Array, axes: Axes) -> jax.Array:
    """`w[positions]` for each weight vector w of an array, which may be split between devices."""
    w, at = (_leaves.to_rows(x, axes) for x in (array, positions))
    taken = jnp.take_along_axis(w, at.astype(jnp.int32), axis=-1, mode="promise_in_bounds")
    return _leaves.sharded_like(_leaves.from_rows(taken, array.shape, axes), array)


def _batching_rule(*args: jax.Array, axes: Sequence[Axes], **params: Any) -> Any:
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


def _lowering(
    placement: Placement,
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
        on_each = functools.partial(
            _permute_p.bind, permutation=permutation, by_ffi=by_ffi, axes=axes
        )
        return functools.partial(across_devices, on_each, placement.devices, axes)
    compile_for(permutation, axes, types)
    call = door(permutation, on_cpu, by_ffi)
    return functools.partial(call, permutation=permutation, axes=axes)


def _flat_in_jax(*flat: jax.Array, permutation: Permutation, axes: Sequence[Axes]) -> Any:
    return _in_jax(permutation, axes, *by_operand(flat, axes))


_permute_p = primitive(
    "permute_vectors",
    _abstract_eval,
    _batching_rule,
    _lowering,
    static=("permutation", "by_ffi", "axes"),
)
