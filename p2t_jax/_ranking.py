"""Ordering weights by rank (Section 3.1), with the same bits on the host and in plain JAX.

Ties are ranked by position. -0.0 equals 0.0, and all NaNs are equal and above every number.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from p2t_jax._host import per_row
from p2t_jax._leaves import Axes


def sort(
    axes: Sequence[Axes], w: Sequence[jax.Array], *, host_callback: bool = True
) -> list[jax.Array]:
    """Sorts weight vectors: theta_sorted of Algorithm 2.

    Args:
        axes: for each array, the ascending axes along which its vectors run.
        w: arrays of weight vectors.
        host_callback: whether the host may sort, where that is faster.

    Returns:
        Arrays of the same shapes and dtypes, each vector ascending.
    """
    if not host_callback:
        return per_row.in_jax(_sorted_rows, axes, w, w)
    return per_row.permute_vectors(_order_on_host, _sorted_rows, axes, w, w)


def give_ranking(
    axes: Sequence[Axes],
    theta_sorted: Sequence[jax.Array],
    phi: Sequence[jax.Array],
    *,
    host_callback: bool = True,
) -> list[jax.Array]:
    r"""Gives sorted weights the ranking of a reference: \theta = \theta_{sorted}[R(\phi)].

    Args:
        axes: for each array, the ascending axes along which its vectors run.
        theta_sorted: arrays of weight vectors, each ascending.
        phi: the references, of the same shapes and dtypes.
        host_callback: whether the host may rank, where that is faster.

    Returns:
        Arrays of the same shapes and dtypes, each vector a permutation of that of `theta_sorted`.
    """
    if not host_callback:
        return per_row.in_jax(_ranked_rows, axes, theta_sorted, phi)
    return per_row.permute_vectors(_rank_on_host, _ranked_rows, axes, theta_sorted, phi)


def _order_on_host(*blocks: Any) -> None:
    from p2t_jax._host.kernels import radix  # `import p2t_jax` does not wait for Numba

    radix.order(*blocks)


def _rank_on_host(*blocks: Any) -> None:
    from p2t_jax._host.kernels import radix

    radix.rank(*blocks)


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


def _sorted_rows(w: jax.Array, phi: jax.Array) -> jax.Array:
    return jax.lax.sort((float_key(phi), w), num_keys=1, is_stable=True)[1]


def _ranked_rows(theta_sorted: jax.Array, phi: jax.Array) -> jax.Array:
    def one(theta_sorted: jax.Array, key: jax.Array) -> jax.Array:
        order = jnp.argsort(key, stable=True)
        return theta_sorted.at[order].set(theta_sorted, unique_indices=True)

    for _ in range(phi.ndim - 1):
        one = jax.vmap(one)
    return one(theta_sorted, float_key(phi))
