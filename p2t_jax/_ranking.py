"""Reordering by rank (Section 3.1), on the host and on a device, alike to the bit.

Ties are ranked by position, -0.0 equals 0.0, and every NaN is the same largest number.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from p2t_jax._host import per_row as host


def sort(axes: Sequence[host.LeafAxes], w: Sequence[jax.Array]) -> list[jax.Array]:
    """Sort weight vectors: theta_sorted of Algorithm 2.

    Args:
        axes: for each array, the ascending axes along which its vectors run.
        w: arrays of weight vectors.

    Returns:
        Arrays alike, each vector ascending.
    """
    return host.per_row(_sort_kernel, _sort, axes, w)


def synchronize(
    axes: Sequence[host.LeafAxes], phi: Sequence[jax.Array], theta_sorted: Sequence[jax.Array]
) -> list[jax.Array]:
    r"""Give the sorted weights the ranking of the reference: \theta = \theta_{sorted}[R(\phi)].

    Args:
        axes: for each array, the ascending axes along which its vectors run.
        phi: the references.
        theta_sorted: arrays of the shapes and dtypes of `phi`, each vector ascending.

    Returns:
        Arrays alike, each vector a permutation of that of `theta_sorted`.
    """
    return host.per_row(_synchronize_kernel, _synchronize, axes, phi, theta_sorted)


def _sort_kernel(*rows: Any) -> None:
    from p2t_jax._host.kernels import radix as rank  # `import p2t_jax` does not wait for Numba

    rank.sort_rows(*rows)


def _synchronize_kernel(*rows: Any) -> None:
    from p2t_jax._host.kernels import radix as rank

    rank.synchronize_rows(*rows)


def _key(w: jax.Array) -> jax.Array:
    """The bits of floats as unsigned integers of the same order; -0.0 is 0.0, NaN is last.

    Devices do not agree on comparing floats: XLA takes denormal ones for zeros on CPUs. On integers
    all agree.
    """
    size = 8 * w.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(w, f"uint{size}")
    infinity = jax.lax.bitcast_convert_type(jnp.array(jnp.inf, w.dtype), bits.dtype)
    sign = jnp.array(1 << (size - 1), bits.dtype)
    magnitude = bits & ~sign
    key = jnp.where(bits >= sign, ~bits, bits | sign)
    key = jnp.where(magnitude > infinity, ~jnp.zeros((), bits.dtype), key)
    return jnp.where(magnitude == 0, sign, key)


def _sort(w: jax.Array) -> jax.Array:
    return jax.lax.sort((_key(w), w), num_keys=1, is_stable=True)[1]


def _synchronize(phi: jax.Array, theta_sorted: jax.Array) -> jax.Array:
    def one(key: jax.Array, theta_sorted: jax.Array) -> jax.Array:
        order = jnp.argsort(key, stable=True)
        return theta_sorted.at[order].set(theta_sorted, unique_indices=True)

    for _ in range(phi.ndim - 1):
        one = jax.vmap(one)
    return one(_key(phi), theta_sorted)
