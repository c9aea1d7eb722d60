"""Initial weights (Section 4): permuting keeps every weight, so these are the hyperparameters."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks
from p2t_jax._vectors import Path, VectorSpec, pair, vector_axes

Initializer: TypeAlias = Callable[..., jax.Array]  # (key, shape, dtype), as Flax calls one

# What frameworks call a bias. A flat tree's b1 and a layer's bias_hh are some, too.
_BIAS = re.compile(r".*bias.*|b_?\d*")


def kaiming(confidence: float = 0.5, *, gain: float = math.sqrt(2)) -> Initializer:
    r"""Random weights of Kaiming's scale, of any profile from hesitant to confident (Section 4.2).

    Weights have the generalized normal distribution, whose density is proportional to

    .. math:: \exp(-|w / a|^{1 / confidence}),

    with `a` such that the standard deviation is :math:`gain / \sqrt{n}` for n incoming weights,
    whatever the profile. A `confidence` of 0 is uniform (hesitant: many inputs count alike), 0.5
    normal, 1 double exponential (confident: few inputs count).

    Args:
        confidence: the profile, from 0 to 1.
        gain: :math:`\sqrt 2` is that of He et al. (2015), for ReLU.

    Returns:
        An initializer `(key, shape, dtype) -> array`, as those of `jax.nn.initializers`: for
        `reinitialize`, or Flax's `kernel_init`. n is the product of all axes but the last. At 0 it
        is `he_uniform()`, at 0.5 `he_normal()` without the truncation.

    Raises:
        TypeError: If an argument is no real number.
        ValueError: If `confidence` is outside [0, 1] or `gain` is not positive; in the initializer,
            if `shape` has fewer than two axes.

    Example:
        >>> import jax, p2t_jax as p2t
        >>> w = p2t.kaiming(confidence=0)(jax.random.key(0), (600, 50))  # limit: sqrt(6 / 600)
        >>> f"{abs(w).max():.3f}"
        '0.100'
    """
    concrete = _checks.real_scalar("confidence", confidence)
    if concrete is not None and not 0 <= concrete <= 1:
        raise ValueError(
            f"confidence: it must be from 0 (uniform) to 1 (double exponential), not {confidence}."
        )
    _check_gain(gain)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        n = _fan_in(shape)
        wide = jnp.promote_types(dtype, jnp.float32)
        if concrete == 0:
            unit = jax.random.uniform(key, shape, wide, -math.sqrt(3), math.sqrt(3))
        elif concrete == 0.5:
            unit = jax.random.normal(key, shape, wide)
        elif concrete == 1:
            unit = jax.random.laplace(key, shape, wide) / math.sqrt(2)
        else:
            unit = _generalized_normal(key, jnp.asarray(confidence, wide), shape)
        return (unit * (gain / math.sqrt(n))).astype(dtype)

    return init


def _generalized_normal(key: jax.Array, confidence: jax.Array, shape: Any) -> jax.Array:
    """Of unit variance. `jax.random.generalized_normal` underflows where it is nearly uniform."""
    c = jnp.maximum(confidence, 1e-6)
    size_key, sign_key = jax.random.split(key)
    log_size = c * jax.random.loggamma(size_key, c, shape, c.dtype)
    log_deviation = (jax.lax.lgamma(3 * c) - jax.lax.lgamma(c)) / 2
    return jax.random.rademacher(sign_key, shape, c.dtype) * jnp.exp(log_size - log_deviation)


def from_profile(profile: jax.typing.ArrayLike, *, gain: float | None = None) -> Initializer:
    r"""Given weights in random order: every weight vector is a permutation of a profile.

    Args:
        profile: real numbers, (k,), in any order. Where a neuron has n incoming weights, n != k, it
            gets n quantiles of them, by linear interpolation. (..., k), such as a leaf of
            `weight_profiles`, is a profile for each neuron. A profile of one number is one weight
            that all connections share.
        gain: None to take the weights as they are. A number scales those of each neuron to the root
            mean square :math:`gain / \sqrt n`, as in `kaiming`.

    Returns:
        An initializer, see `kaiming`. Its last axis enumerates the neurons.

    Raises:
        TypeError: If `profile` is not of real numbers, or `gain` no real number.
        ValueError: If `profile` is empty or a scalar, or all zeros and to be scaled; if `gain` is
            not positive; in the initializer, if there are not as many neurons as profiles.

    Example:
        >>> import jax, jax.numpy as jnp, p2t_jax as p2t
        >>> init = p2t.from_profile(jnp.array([1.0, 2.0, 4.0]))
        >>> jnp.sort(init(jax.random.key(0), (3, 2)), axis=0)
        Array([[1., 1.],
               [2., 2.],
               [4., 4.]], dtype=float32)
    """
    given = jnp.asarray(profile)
    if not (jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)):
        raise TypeError(f"profile: give real numbers, not an array of {given.dtype}.")
    if given.ndim == 0 or given.size == 0:
        raise ValueError(
            f"profile: it has shape {given.shape}. Give one or more weights, (k,), or some for "
            "each neuron, (..., k)."
        )
    if gain is not None:
        _check_gain(gain)
        if not isinstance(given, jax.core.Tracer) and not given.any(axis=-1).all():
            raise ValueError("profile: it is all zeros, which no gain can scale.")
    rows = jnp.sort(given.reshape(-1, given.shape[-1]), axis=-1)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        n, m = _fan_in(shape), shape[-1]
        if len(rows) not in (1, m):
            raise ValueError(
                f"profile: it has the weights of {len(rows)} neurons, and there are {m} in an "
                f"array of shape {tuple(shape)}. Give a single profile, for instance their mean."
            )
        values = rows if n == rows.shape[1] else _quantiles(rows, n)
        if gain is not None:
            wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
            mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
            values = wide * (gain / jnp.sqrt(n * mean_square))
        values = jnp.broadcast_to(values.astype(dtype), (m, n))
        sharding: Any = jax.typeof(values).sharding
        out_sharding = sharding if any(sharding.spec) else None  # explicit mesh axes
        shuffled = jax.random.permutation(
            key, values, axis=1, independent=True, out_sharding=out_sharding
        )
        return shuffled.T.reshape(shape)

    return init


def _quantiles(rows: jax.Array, n: int) -> jax.Array:
    """Sorted rows of k numbers as rows of n: both are the middles of equal shares."""
    k = rows.shape[1]
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    at, known = (jnp.arange(n) + 0.5) / n, (jnp.arange(k) + 0.5) / k
    return jax.vmap(lambda row: jnp.interp(at, known, row))(wide)


def reinitialize(
    key: jax.Array, params: optax.Params, initializer: Any, *, vectors: VectorSpec = "flax"
) -> optax.Params:
    r"""Draws all weight vectors anew, in a tree of any framework.

    The initializer sees the weight vectors of a parameter as the columns of an (n, m) array: n
    incoming weights of each of m neurons, whatever axes they lie along. A *bias* that `vectors`
    declares a weight vector (a parameter with such a name, or an unnamed one of rank 1) is drawn as
    one more weight of its neuron, hence at its layer's scale (Section 5.1): n is that of the
    weights beside it. It stays as it is where there are none beside it, as in normalization. So
    does all that is no weight vector.

    Args:
        key: a key of `jax.random`.
        params: the parameters: whatever has their structure, shapes and dtypes.
        initializer: `kaiming(...)`, `from_profile(...)` or any of `jax.nn.initializers` (`constant`
            is one shared weight); or a tree of initializers for parts of `params`, matched as
            `vectors` is, with None for what stays as it is.
        vectors: where the weight vectors lie, see `laperm`.

    Returns:
        A tree like `params`, its weight vectors new, with their dtypes and shardings.

    Raises:
        TypeError: If an initializer is none, or a weight vector is not of a floating dtype.
        ValueError: If the tree is empty or that of the initializers does not match it; if a rule
            does not know a leaf; if the weights beside a bias differ in n.

    Example:
        >>> import jax, jax.numpy as jnp, p2t_jax as p2t
        >>> params = {"kernel": jnp.zeros((8, 2)), "bias": jnp.zeros(2)}
        >>> params = p2t.reinitialize(jax.random.key(0), params, p2t.kaiming(confidence=0))
        >>> bool(params["kernel"].all()), params["bias"]
        (True, Array([0., 0.], dtype=float32))
    """
    _checks.not_empty(params)
    axes = vector_axes(vectors, params)
    entries = leaf_by_leaf("initializer", initializer, params)
    sizes = [
        None if leaf_axes is None else math.prod(leaf.shape[axis] for axis in leaf_axes)
        for (_, leaf, _), leaf_axes in zip(entries, axes, strict=True)
    ]
    beside: dict[Path, set[int]] = {}
    for (path, leaf, _), n in zip(entries, sizes, strict=True):
        if n is not None and not _is_bias(path, leaf):
            beside.setdefault(path[:-1], set()).add(n)

    leaves = []
    for i, (path, leaf, init) in enumerate(entries):
        n, leaf_axes = sizes[i], axes[i]
        is_bias = _is_bias(path, leaf)
        if n is None or leaf_axes is None or init is None:
            leaves.append(leaf)
            continue
        if not callable(init):
            raise TypeError(
                f"initializer: give an initializer such as p2t_jax.kaiming() or None for "
                f"{'/'.join(path) or 'the root of the tree'}, not {init!r}."
            )
        leaf_key = jax.random.fold_in(key, i)
        if not is_bias:
            new = init(leaf_key, (n, math.prod(leaf.shape) // max(n, 1)), leaf.dtype)
            new = _from_columns(new, leaf.shape, leaf_axes)
        elif path[:-1] in beside:
            fan_in = _the_one(beside[path[:-1]], path)
            new = init(leaf_key, (fan_in, math.prod(leaf.shape)), leaf.dtype)[0].reshape(leaf.shape)
        else:
            new = leaf
        leaves.append(placed_like(leaf, new))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _is_bias(path: Path, leaf: Any) -> bool:
    name = path[-1].lower() if path else ""
    return bool(_BIAS.fullmatch(name)) or (name.isdigit() and np.ndim(leaf) == 1)


def _the_one(sizes: set[int], path: Path) -> int:
    if len(sizes) > 1:
        raise ValueError(
            f"vectors: {'/'.join(path)} is a bias of neurons with {sorted(sizes)} weights, so its "
            "scale is not clear. Give it None here, and set it by hand."
        )
    return next(iter(sizes))


def _from_columns(columns: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """An (n, m) array of weight vectors as the parameter of which `axes` are those of a vector."""
    others = tuple(axis for axis in range(len(shape)) if axis not in axes)
    order = (*axes, *others)
    moved = columns.reshape([shape[axis] for axis in order])
    return jnp.moveaxis(moved, range(len(order)), order)


def to_grid(params: optax.Params, *, vectors: VectorSpec = "flax") -> optax.Params:
    r"""Rounds weights so that adding an update moves them exactly.

    In floating-point arithmetic p + (w - p) is not always w. It is if both are multiples of a power
    of two g that are not too large for the difference to be represented, too. With
    :math:`|w| \le 2^e` for all weights of a parameter, and a dtype of P bits of precision (24 for
    float32, 11 for float16, 8 for bfloat16), that is

    .. math:: g = 2^{e + 1 - P}.

    SGPerm's `params + updates` then *is* the permutation. With LAPerm only `permuted_params` is:
    its parameters leave the grid between synchronizations.

    Args:
        params: the initial parameters.
        vectors: where the weight vectors lie, see `laperm`.

    Returns:
        A tree like `params`, each weight moved by at most g / 2, and -0.0 to 0.0. There are at most
        :math:`2^P + 1` different weights in a parameter: in bfloat16 many are equal.

    Raises:
        TypeError: If a weight vector is not of a floating dtype.
        ValueError: If the tree is empty or a rule does not know a leaf.

    Example:
        >>> import jax, optax, p2t_jax as p2t
        >>> w = jax.random.normal(jax.random.key(0), (1000, 1))
        >>> def added(w):
        ...     return optax.apply_updates(w, w[::-1] - w)
        >>> bool((added(w) == w[::-1]).all())
        False
        >>> w = p2t.to_grid(w)
        >>> bool((added(w) == w[::-1]).all())
        True
    """
    _checks.not_empty(params)
    leaves, treedef = jax.tree.flatten(params)
    for i, leaf_axes in enumerate(vector_axes(vectors, params)):
        if leaf_axes is not None:
            leaves[i] = _on_grid(jnp.asarray(leaves[i]))
    return jax.tree.unflatten(treedef, leaves)


def _on_grid(w: jax.Array) -> jax.Array:
    info: Any = jnp.finfo(w.dtype)
    wide = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(wide), initial=0, where=jnp.isfinite(wide))
    mantissa, e = jnp.frexp(largest)  # mantissa < 1
    e = jnp.where(mantissa == 0.5, e - 1, e)
    # Differences below the smallest normal number would be flushed to zero on some devices.
    g = jnp.maximum(jnp.ldexp(jnp.ones((), wide.dtype), e - info.nmant), info.smallest_normal)
    rounded = jnp.round(wide / g) * g
    return jnp.where(rounded == 0, 0, rounded).astype(w.dtype)


def leaf_by_leaf(name: str, spec: Any, params: optax.Params) -> list[tuple[Path, Any, Any]]:
    """The path of each leaf of `params`, the leaf, and what a (prefix) tree has for it."""
    try:
        return list(pair(spec, params))
    except ValueError as error:
        raise ValueError(f"{name}: it is matched as a tree of axes is. {error}") from None


def placed_like(leaf: Any, new: Any) -> Any:
    """`new` on the devices that `leaf` is on, and sharded alike."""
    if isinstance(leaf, jax.core.Tracer):
        sharding: Any = jax.typeof(leaf).sharding
        return jax.reshard(new, sharding) if any(sharding.spec) else new
    if isinstance(leaf, jax.Array) and leaf.committed:
        return jax.device_put(new, leaf.sharding)
    return new


def _fan_in(shape: Any) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"shape: {tuple(shape)} has no axis of inputs before the last one, of neurons."
        )
    n: int = math.prod(shape[:-1])
    return max(1, n)


def _check_gain(gain: Any) -> None:
    value = _checks.real_scalar("gain", gain)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"gain: it must be a positive number, not {gain}.")
