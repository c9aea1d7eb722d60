"""Ordering weights by rank (Section 3.1), with the same bits on the host and in plain JAX.

Ties are ranked by position. -0.0 equals 0.0, and all NaNs are equal and above every number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from p2t_jax._host.host_choice import HostCallback
from p2t_jax._host.permutation import Permutation
from p2t_jax._host.permute import permute_vectors
from p2t_jax._leaves import Axes


def sort_vectors(
    axes: Sequence[Axes], w: Sequence[jax.Array], *, host_callback: HostCallback | None = None
) -> list[jax.Array]:
    """Sorts weight vectors: theta_sorted of Algorithm 2.

    Args:
        axes: for each array, the ascending axes along which its vectors run.
        w: arrays of weight vectors.
        host_callback: the user's choice; None for that of the process.

    Returns:
        Arrays of the same shapes and dtypes, each vector ascending.
    """
    return permute_vectors(_Sort(), axes, w, w, host_callback=host_callback)


def reorder_like(
    axes: Sequence[Axes],
    theta_sorted: Sequence[jax.Array],
    phi: Sequence[jax.Array],
    *,
    host_callback: HostCallback | None = None,
) -> list[jax.Array]:
    r"""Gives sorted weights the ranking of a reference: \theta = \theta_{sorted}[R(\phi)].

    Args:
        axes: for each array, the ascending axes along which its vectors run.
        theta_sorted: arrays of weight vectors, each ascending.
        phi: the references, of the same shapes.
        host_callback: the user's choice; None for that of the process.

    Returns:
        Arrays of the same shapes and dtypes, each vector a permutation of that of `theta_sorted`.
    """
    return permute_vectors(_Rank(), axes, theta_sorted, phi, host_callback=host_callback)


@dataclasses.dataclass(frozen=True)
class _Sort(Permutation):
    """Into ascending order of the operand."""

    name = "sort"

    def on_host(self, *blocks: Any) -> None:
        from p2t_jax._host.kernels import radix  # `import p2t_jax` does not wait for Numba

        radix.order(*blocks)

    def in_jax(self, values: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.sort((float_key(w), values), num_keys=1, is_stable=True)[1]


@dataclasses.dataclass(frozen=True)
class _Rank(Permutation):
    """To the ranking R of the operand: `values[R]`."""

    name = "rank"

    def on_host(self, *blocks: Any) -> None:
        from p2t_jax._host.kernels import radix

        radix.rank(*blocks)

    def in_jax(self, values: jax.Array, phi: jax.Array) -> jax.Array:
        def one(values: jax.Array, key: jax.Array) -> jax.Array:
            order = jnp.argsort(key, stable=True)
            return values.at[order].set(values, unique_indices=True)

        for _ in range(phi.ndim - 1):
            one = jax.vmap(one)
        return one(values, float_key(phi))


def float_key(w: jax.Array) -> jax.Array:
    """The bits of floats as unsigned integers of the same order; -0.0 is 0.0, NaN is last.

    Devices disagree on comparing floats: on CPUs, XLA takes subnormal numbers for zeros. They agree
    on integers.
    """
    size = 8 * w.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(w, f"uint{size}")
    infinity = jax.lax.bitcast_convert_type(jnp.array(jnp.inf, w.dtype), bits.dtype)
    sign = jnp.array(1 << (size - 1), bits.dtype)
    magnitude = bits & ~sign
    key = jnp.where(bits >= sign, ~bits, bits | sign)
    key = jnp.where(magnitude > infinity, ~jnp.zeros((), bits.dtype), key)
    return jnp.where(magnitude == 0, sign, key)
