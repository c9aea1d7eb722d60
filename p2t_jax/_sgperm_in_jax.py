"""SGPerm's search in plain JAX: all subsets of all weight vectors at once, a root of each per turn.

`p2t_jax._host.kernels.cycles` explains the closed form, and why it finds what Section 2.2 finds.
Here a turn is a few scans along the sorted weights, so the work is quadratic in the size of a
subset. This is for accelerators and for programs without callbacks; on a CPU it is slow.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from p2t_jax import _leaves
from p2t_jax._ranking import float_key

LEAST_SUBSET = 10  # weights, as in the authors' code


class _Sorted(NamedTuple):
    """Rows of weights, subset by subset, ascending in each; (m, n) arrays.

    Positions count along a sorted row. `begin` and `end` are those of the subset's first and last
    weight, `level_begin` and `level_end` those of the weights equal to one; `place` is where the
    weight is in the vector. `root` has the positions of the roots, subset by subset, largest |r|
    first.
    """

    w: jax.Array
    heavier: jax.Array
    reach: jax.Array
    place: jax.Array
    begin: jax.Array
    end: jax.Array
    level_begin: jax.Array
    level_end: jax.Array
    root: jax.Array


# Compiled as a whole where it is not part of a compiled step: the loop in it would otherwise be
# compiled in every step, as it is another function each time.
@functools.partial(jax.jit, static_argnames="mean", inline=True)
def search(
    theta: jax.Array,
    r: jax.Array,
    alpha: jax.Array,
    partition_ratio: jax.Array,
    seed: jax.Array,
    *,
    mean: bool,
) -> jax.Array:
    """Permutes rows of weights: one step of Algorithm 1, with priority "nearest".

    Args:
        theta: (..., n) weights.
        r: (..., n) recommendations.
        alpha: (..., 1), the aggressiveness; 0 lets nothing move.
        partition_ratio: (..., 1), lambda.
        seed: (..., 1) uint32.
        mean: whether l is the mean distance; if not, it is the smallest.

    Returns:
        (..., n), each row a permutation. Distances are compared in float32, unless JAX has 64 bits.
    """
    shape = theta.shape
    if theta.size == 0:
        return theta
    rows = [x.reshape(-1, x.shape[-1]) for x in (theta, r, alpha, partition_ratio, seed)]
    laid_out, taking_part = _lay_out(*map(jax.lax.stop_gradient, rows), mean=mean)
    source = _find_cycles(laid_out, taking_part)
    theta = rows[0]
    moved = _take(theta, _take(laid_out.place, source))
    return _put(theta, laid_out.place, moved).reshape(shape)


def subset_count(n: int, partition_ratio: jax.Array) -> jax.Array:
    r"""The number of subsets: :math:`\lfloor 1/\lambda \rfloor`, but ten weights in each."""
    quotient = 1 / partition_ratio
    nearest = jnp.rint(quotient)
    # The float32 nearest to 0.1 is above 0.1 and still means ten subsets.
    rounded = jnp.where(jnp.abs(quotient - nearest) <= 2.0**-22 * quotient, nearest, quotient)
    return jnp.clip(rounded, 1, max(1, n // LEAST_SUBSET)).astype(jnp.int32)


def _lay_out(
    theta: jax.Array,
    r: jax.Array,
    alpha: jax.Array,
    partition_ratio: jax.Array,
    seed: jax.Array,
    *,
    mean: bool,
) -> tuple[_Sorted, jax.Array]:
    """Draws the subsets, and sorts the weights that take part; those come before all others."""
    n = theta.shape[-1]
    place = _leaves.sharded_like(jnp.broadcast_to(jnp.arange(n), theta.shape), theta)
    subsets = subset_count(n, partition_ratio)
    random = jax.vmap(lambda s: jax.random.bits(jax.random.key(s[0]), (n,), jnp.uint32))(seed)
    drawn = jnp.argsort(jnp.argsort(random, axis=-1, stable=True), axis=-1)
    takes_part = (jnp.abs(r) > 0) & (alpha > 0) & jnp.isfinite(theta).all(axis=-1, keepdims=True)
    label = jnp.where(takes_part, drawn % subsets, n)
    keys = (label, float_key(theta), r < 0, place)
    label_of, level, heavier, by_weight = jax.lax.sort(keys, num_keys=3, is_stable=True)
    size = ~float_key(jnp.abs(r))
    by_size = jax.lax.sort((label, size, place), num_keys=2, is_stable=True)[2]
    position = _put(jnp.zeros_like(place), by_weight, place)

    begin, end = _ends(_changes(label_of))
    level_begin, level_end = _ends(_changes(label_of) | _changes(level))
    wide = theta.astype(_leaves.compute_dtype(theta.dtype))
    w = _take(wide, by_weight)
    value_range = wide.max(axis=-1, keepdims=True) - wide.min(axis=-1, keepdims=True)
    if mean:
        least = value_range / (end - begin + 1)
    else:
        gap = jnp.where(place > begin, w - jnp.roll(w, 1, axis=-1), jnp.inf)
        least = _least_of_subset(gap, label_of)
    reach = least + alpha.astype(wide.dtype) * value_range
    root = _take(position, by_size)
    laid_out = _Sorted(w, heavier, reach, by_weight, begin, end, level_begin, level_end, root)
    return laid_out, label_of < n


def _find_cycles(x: _Sorted, taking_part: jax.Array) -> jax.Array:
    """The positions that weights come from, (m, n)."""
    here = jnp.broadcast_to(jnp.arange(x.w.shape[-1]), x.w.shape)
    turns = jnp.max(jnp.where(taking_part, x.end - x.begin + 1, 0))

    def turn(carry: Any) -> Any:
        t, there, come_from = carry
        root = _take(x.root, jnp.minimum(x.begin + t, x.end))  # that of the subset of each weight
        up = _take(x.heavier, root)
        is_root = here == root
        alive = _take(there, root) & (x.begin + t <= x.end)

        last_heavier = jax.lax.cummax(jnp.where(there & x.heavier, here, -1), axis=1)
        next_lighter = _next(there & ~x.heavier, here)
        z = jnp.where(up, _take(next_lighter, root), _take(last_heavier, root))
        inside = (x.begin <= z) & (z <= x.end)
        z = jnp.clip(z, x.begin, x.end)
        found = alive & inside & (jnp.abs(_take(x.w, z) - _take(x.w, root)) < x.reach)

        # Of equal weights between z and the root only one moves, and none that equals the root.
        of_same = there & (x.heavier == up)
        before = _shifted(jax.lax.cummax(jnp.where(there & ~x.heavier, here, -1), axis=1), 1, -1)
        after = _shifted(_next(there & x.heavier, here), -1, here.shape[1])
        foremost = jnp.where(up, after > x.level_end, before < x.level_begin)
        between = jnp.where(up, (root < here) & (here < z), (z < here) & (here < root))
        between &= foremost & (x.w != _take(x.w, root))
        member = found & ((of_same & between) | is_root | (here == z))

        below = _shifted(jax.lax.cummax(jnp.where(member, here, -1), axis=1), 1, -1)
        above = _shifted(_next(member, here), -1, here.shape[1])
        towards_z = jnp.where(here == z, root, jnp.where(up, above, below))
        come_from = jnp.where(member, towards_z, come_from)
        return t + 1, there & ~member & ~(is_root & ~found), come_from

    start = (jnp.zeros_like(turns), taking_part, here + jnp.zeros_like(x.root))
    source: jax.Array = jax.lax.while_loop(lambda carry: carry[0] < turns, turn, start)[2]
    return source


def _take(array: jax.Array, at: jax.Array) -> jax.Array:
    taken: jax.Array = jnp.take_along_axis(array, at, axis=-1)
    return taken


def _put(array: jax.Array, at: jax.Array, values: jax.Array) -> jax.Array:
    put: jax.Array = jax.vmap(lambda a, i, v: a.at[i].set(v, unique_indices=True))(
        array, at, values
    )
    return put


def _shifted(array: jax.Array, by: int, fill: int) -> jax.Array:
    n = array.shape[-1]
    widths = [(0, 0)] * (array.ndim - 1) + [(max(by, 0), max(-by, 0))]
    padded = jnp.pad(array, widths, constant_values=fill)
    return padded[..., :n] if by > 0 else padded[..., -n:]


def _next(mask: jax.Array, here: jax.Array) -> jax.Array:
    """The first position from each on where the mask is set; n if there is none."""
    return jax.lax.cummin(jnp.where(mask, here, here.shape[1]), axis=1, reverse=True)


def _changes(array: jax.Array) -> jax.Array:
    """Whether each element differs from the one before; the first does."""
    first = jnp.ones_like(array[..., :1], bool)
    return jnp.concatenate([first, array[..., 1:] != array[..., :-1]], axis=-1)


def _ends(begins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the last position of the run that each element is in."""
    here = jnp.broadcast_to(jnp.arange(begins.shape[-1]), begins.shape)
    n = begins.shape[-1]
    first = jax.lax.cummax(jnp.where(begins, here, 0), axis=1)
    return first, _shifted(_next(begins, here), -1, n) - 1


def _least_of_subset(gap: jax.Array, label: jax.Array) -> jax.Array:
    """The least gap in the subset of each weight."""
    n = gap.shape[-1]

    def of_row(gap: jax.Array, label: jax.Array) -> jax.Array:
        return jnp.full((n + 1,), jnp.inf, gap.dtype).at[label].min(gap)[label]

    return jax.vmap(of_row)(gap, label)
