"""Initial weights (Section 4): since permuting keeps every weight, they are hyperparameters."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2t_jax import _checks, _leaves
from p2t_jax._jax_internals import is_traced
from p2t_jax._leaves import Leaf
from p2t_jax._vectors import Path, VectorSpec, is_bias, match_prefix

Initializer: TypeAlias = Callable[..., jax.Array]  # (key, shape, dtype), as jax.nn.initializers


def kaiming(
    confidence: float = 0.5, *, gain: float = math.sqrt(2), values: int | None = None
) -> Initializer:
    r"""Random weights at Kaiming's scale, from hesitant to confident profiles (Section 4.2).

    Weights have the generalized normal distribution. Its density is proportional to

    .. math:: \exp(-|w / a|^{1 / confidence}),

    where `a` is such that the standard deviation is :math:`gain / \sqrt{n}` for n incoming weights.
    A `confidence` of 0 is uniform (hesitant: many inputs have similar weights), 0.5 normal, 1
    double exponential (confident: few inputs have large weights).

    With `values=v` a neuron has v different weights only: the middles of v equally probable parts
    of that distribution, its quantiles (i + 1/2) / v, scaled to the same mean square. Each occurs
    equally often in the weight vector, or once more than another, in random order. So 2 values are
    :math:`\pm gain / \sqrt{n}` for any `confidence`; an odd number of values has a zero.

    Args:
        confidence: the profile, in [0, 1]. May be traced.
        gain: :math:`\sqrt 2` is the gain of He et al. (2015), for ReLU. May be traced.
        values: how many different weights a neuron has, at least 2; None for as many as are drawn.

    Returns:
        An initializer `(key, shape, dtype) -> array` like those of `jax.nn.initializers`, for
        `reinitialize` or Flax's `kernel_init`. n is the product of all axes but the last. With
        `confidence=0` it is `he_uniform()`, with 0.5 `he_normal()` without truncation.

    Raises:
        TypeError: If an argument is not a real number, or `values` not an integer.
        ValueError: If `confidence` is outside [0, 1], `gain` is not positive or `values` is below
            2; in the initializer, if `shape` has fewer than two axes or n < `values`.

    Example:
        >>> import jax, p2t_jax as p2t
        >>> init = p2t.initializers.kaiming(confidence=0)
        >>> w = init(jax.random.key(0), (600, 50))  # limit: sqrt(6 / 600)
        >>> f"{abs(w).max():.3f}"
        '0.100'
        >>> init = p2t.initializers.kaiming(gain=1.0, values=3)
        >>> jax.numpy.unique(init(jax.random.key(0), (6, 50)))  # two of each in every column
        Array([-0.5,  0. ,  0.5], dtype=float32)
    """
    concrete = _checks.real_scalar("confidence", confidence)
    if concrete is not None and not 0 <= concrete <= 1:
        raise ValueError(f"confidence: must be in [0, 1], got {confidence}.")
    _check_gain(gain)
    if values is not None:
        if not isinstance(values, int | np.integer) or isinstance(values, bool):
            raise TypeError(f"values: expected an integer or None, got {values!r}.")
        if values < 2:
            raise ValueError(f"values: must be at least 2, got {values}.")

    def init(key: Any, shape: Any, dtype: Any = None) -> jax.Array:
        key, dtype = _checks.random_key("key", key), _default_float(dtype)
        n = _fan_in(shape)
        wide = _leaves.wide(dtype)
        if values is not None:
            given = confidence if concrete is None else concrete
            row = _few_values(jnp.asarray(given, wide), values, n, shape)
            return _shuffled(key, _scaled(row[None], gain).astype(dtype), shape)
        if concrete == 0:
            unit = jax.random.uniform(key, shape, wide, -math.sqrt(3), math.sqrt(3))
        elif concrete == 0.5:
            unit = jax.random.normal(key, shape, wide)
        elif concrete == 1:
            unit = jax.random.laplace(key, shape, wide) / math.sqrt(2)
        else:
            unit = _generalized_normal(key, jnp.asarray(confidence, wide), shape)
        return (unit * (jnp.asarray(gain, wide) / math.sqrt(n))).astype(dtype)

    return init


def _generalized_normal(key: jax.Array, confidence: jax.Array, shape: Any) -> jax.Array:
    """Of unit variance. `jax.random.generalized_normal` underflows where it is nearly uniform."""
    c = jnp.maximum(confidence, 1e-6)
    size_key, sign_key = jax.random.split(key)
    log_size = c * jax.random.loggamma(size_key, c, shape, c.dtype)
    log_deviation = (jax.lax.lgamma(3 * c) - jax.lax.lgamma(c)) / 2
    # Not `jax.random.rademacher`, which draws other signs in x64.
    positive = jax.random.bernoulli(sign_key, jnp.asarray(0.5, c.dtype), shape)
    return jnp.where(positive, 1, -1) * jnp.exp(log_size - log_deviation)


def _few_values(confidence: jax.Array, values: int, n: int, shape: Any) -> jax.Array:
    """A sorted weight vector: every value as often as another, or once more."""
    if n < values:
        raise ValueError(
            f"values: expected at least {values} incoming weights, one for each value, but a "
            f"neuron of an array of shape {tuple(shape)} has {n}. Ask for fewer values there."
        )
    half = values // 2
    # P(|w| <= q) for the middles of the upper half, by which the lower half is symmetric.
    shares = (2 * np.arange(values - half, values) + 1) / values - 1
    above = _size_quantiles(confidence, jnp.asarray(shares, confidence.dtype))
    zero = jnp.zeros(values % 2, above.dtype)
    different = jnp.concatenate([-above[::-1], zero, above])
    row: jax.Array = different[(2 * np.arange(n) + 1) * values // (2 * n)]
    return row


@functools.partial(jax.jit, inline=True)  # or else the loop would be compiled in every call
def _size_quantiles(confidence: jax.Array, shares: jax.Array) -> jax.Array:
    """Quantiles of y = |w / a|, whose power y^(1/c) has the gamma distribution of shape c."""
    c = jnp.maximum(confidence, 1e-6)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        y: jax.Array = (low + high) / 2
        x = y ** (1 / c)
        # The limit for small x, which underflows where the distribution is nearly uniform.
        limit = y * jnp.exp(-jax.lax.lgamma(c + 1))
        share = jnp.where(x < 1e-20, limit, jax.lax.igamma(jnp.broadcast_to(c, x.shape), x))
        return jnp.where(share < shares, y, low), jnp.where(share < shares, high, y)

    # The gamma distribution of a shape c <= 1 has smaller quantiles than that of shape 1.
    bounds = (jnp.zeros_like(shares), jnp.maximum(1, -jnp.log1p(-shares)))
    steps: int = jnp.finfo(shares.dtype).nmant + 4
    low, high = jax.lax.fori_loop(0, steps, halve, bounds)
    middles: jax.Array = (low + high) / 2
    return middles


def from_profile(profile: jax.typing.ArrayLike, *, gain: float | None = None) -> Initializer:
    r"""Given weights in random order: every weight vector is a permutation of a profile.

    Args:
        profile: real numbers in any order: (k,) for all neurons, or (..., k), such as a leaf of
            `weight_profiles`, with one profile for each neuron. A neuron with n != k incoming
            weights gets n quantiles of them, by linear interpolation. A profile of one number is
            one weight that all connections share.
        gain: None uses the weights unchanged. A number scales those of each neuron to the root mean
            square :math:`gain / \sqrt n`, as in `kaiming`.

    Returns:
        An initializer, see `kaiming`. The last axis enumerates the neurons.

    Raises:
        TypeError: If `profile` is not an array of real numbers, or `gain` not a real number.
        ValueError: If `profile` is empty or a scalar, or all zeros although `gain` is given; if
            `gain` is not positive; in the initializer, if the numbers of neurons and of profiles
            differ.

    Example:
        >>> import jax, jax.numpy as jnp, p2t_jax as p2t
        >>> init = p2t.initializers.from_profile(jnp.array([1.0, 2.0, 4.0]))
        >>> jnp.sort(init(jax.random.key(0), (3, 2)), axis=0)
        Array([[1., 1.],
               [2., 2.],
               [4., 4.]], dtype=float32)
    """
    if _leaves.too_wide(profile) and np.issubdtype(profile.dtype, np.integer):  # type: ignore[union-attr]
        profile = np.asarray(profile, np.float64)  # JAX would cut off the upper half of the bits
    given = _leaves.in_jax(profile)
    if not (jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)):
        raise TypeError(f"profile: expected an array of real numbers, got {given.dtype}.")
    if given.ndim == 0 or given.size == 0:
        raise ValueError(
            f"profile: expected shape (k,), or (..., k) with a profile for each neuron, got "
            f"{given.shape}."
        )
    if gain is not None:
        _check_gain(gain)
        if not is_traced(given) and not given.any(axis=-1).all():
            raise ValueError("profile: must not be all zeros if it is scaled by a gain.")
    rows = jnp.sort(given.reshape(-1, given.shape[-1]), axis=-1)

    def init(key: Any, shape: Any, dtype: Any = None) -> jax.Array:
        key, dtype = _checks.random_key("key", key), _default_float(dtype)
        n, m = _fan_in(shape), shape[-1]
        if len(rows) not in (1, m):
            raise ValueError(
                f"profile: has weights of {len(rows)} neurons, but an array of shape "
                f"{tuple(shape)} has {m} neurons. Pass a single profile, for instance the mean."
            )
        weights = rows if n == rows.shape[1] else _quantiles(rows, n)
        if gain is not None:
            weights = _scaled(weights, gain)
        return _shuffled(key, weights.astype(dtype), shape)

    return init


def _shuffled(key: jax.Array, rows: jax.Array, shape: Any) -> jax.Array:
    """An array of this shape with the weights of a row in every neuron, in random order."""
    rows = jnp.broadcast_to(rows, (shape[-1], rows.shape[1]))
    sharding: Any = jax.typeof(rows).sharding
    out_sharding = sharding if any(sharding.spec) else None  # explicit mesh axes
    shuffled: jax.Array = jax.random.permutation(
        key, rows, axis=1, independent=True, out_sharding=out_sharding
    )
    return shuffled.T.reshape(shape)


def _quantiles(rows: jax.Array, n: int) -> jax.Array:
    """Sorted rows of k numbers as rows of n: both are the middles of equal shares."""
    k = rows.shape[1]
    wide = rows.astype(_leaves.wide(rows.dtype))
    at, known = ((jnp.arange(count, dtype=wide.dtype) + 0.5) / count for count in (n, k))
    return jax.vmap(lambda row: jnp.interp(at, known, row))(wide)


def _scaled(rows: jax.Array, gain: Any) -> jax.Array:
    """Rows with a root mean square of gain / sqrt(n)."""
    wide = rows.astype(_leaves.wide(rows.dtype))
    mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
    return wide * (jnp.asarray(gain, wide.dtype) / jnp.sqrt(rows.shape[-1] * mean_square))


def reinitialize(
    key: Any, params: optax.Params, initializer: Any, *, vectors: VectorSpec = "flax"
) -> optax.Params:
    r"""Draws all weight vectors of a tree again, for any framework.

    The initializer sees the weight vectors of a parameter as the columns of an (n, m) array: n
    incoming weights of each of m neurons, whichever axes they run along.

    A *bias* that `vectors` declares a weight vector is drawn like one more weight of its neuron,
    with the n of the weights of its layer (Section 5.1). A bias is a parameter with such a name, or
    an unnamed one of rank 1. A bias of a layer without weights (normalization) is unchanged, as are
    all other parameters.

    Args:
        key: a key of `jax.random`, or an integer seed.
        params: the parameters. Only structure, shapes and dtypes of weight vectors matter.
        initializer: `kaiming(...)`, `from_profile(...)` or any of `jax.nn.initializers` (`constant`
            is one shared weight); or a tree of initializers that is a prefix of `params`, with None
            for parameters that stay unchanged.
        vectors: which axes form weight vectors, see `laperm`.

    Returns:
        A tree like `params` with new weight vectors of the same shapes, dtypes and shardings. Its
        arrays are JAX arrays, and copies where nothing was drawn.

    Raises:
        TypeError: If `key` is not a key, an initializer is not callable, or a weight vector is not
            of a floating dtype.
        ValueError: If the tree is empty or the tree of initializers does not match it; if a rule
            does not know a leaf; if a bias belongs to weights that differ in n; if the initializer
            refuses a parameter.

    Example:
        >>> import jax, jax.numpy as jnp, p2t_jax as p2t
        >>> params = {"kernel": jnp.zeros((8, 2)), "bias": jnp.zeros(2)}
        >>> params = p2t.reinitialize(0, params, p2t.initializers.kaiming(confidence=0))
        >>> bool(params["kernel"].all()), params["bias"]
        (True, Array([0., 0.], dtype=float32))
    """
    _leaves.not_empty(params)
    key = _checks.random_key("key", key)
    leaves = _leaves.walk(params, vectors)
    initializers = [init for *_, init in match_prefix(initializer, params, "initializer")]
    fan_ins: dict[Path, set[int]] = {}  # of the weights in each layer
    for leaf in leaves:
        if leaf.axes is not None and not is_bias(leaf.path, leaf.array):
            n = _leaves.vector_length(leaf.array.shape, leaf.axes)
            fan_ins.setdefault(leaf.path[:-1], set()).add(n)

    new = []
    for i, (leaf, init) in enumerate(zip(leaves, initializers, strict=True)):
        drawn = leaf.axes is not None and init is not None
        if drawn and not callable(init):
            raise TypeError(
                f"initializer: expected an initializer such as p2t_jax.initializers.kaiming() or "
                f"None for {leaf.name}, got {init!r}."
            )
        fan_in = fan_ins.get(leaf.path[:-1], set())
        if not drawn or (is_bias(leaf.path, leaf.array) and not fan_in):
            new.append(_leaves.copied(leaf.array))
            continue
        try:
            weights = _drawn(jax.random.fold_in(key, i), leaf, init, fan_in)
        except ValueError as error:  # which knows the shape only
            raise ValueError(f"{error} The parameter is {leaf.name}.") from error
        new.append(_leaves.placed_like(leaf.array, weights))
    return jax.tree.unflatten(jax.tree.structure(params), new)


def _drawn(key: jax.Array, leaf: Leaf, init: Initializer, fan_in: set[int]) -> Any:
    """A parameter's new weights, or a bias's: a row of a matrix with as many rows as weights."""
    assert leaf.axes is not None
    shape = leaf.array.shape
    size, dtype = math.prod(shape), jax.dtypes.canonicalize_dtype(leaf.array.dtype)
    if not is_bias(leaf.path, leaf.array):
        n = _leaves.vector_length(shape, leaf.axes)
        columns = init(key, (n, size // max(n, 1)), dtype)
        return _leaves.from_rows(columns.T, shape, leaf.axes)
    if len(fan_in) > 1:
        raise ValueError(
            f"vectors: {leaf.name} is a bias of neurons with {sorted(fan_in)} weights, so its "
            "scale is ambiguous. Give it None, and initialize it yourself."
        )
    return init(key, (*fan_in, size), dtype)[0].reshape(shape)


def to_grid(params: optax.Params, *, vectors: VectorSpec = "flax") -> optax.Params:
    r"""Rounds weights so that adding an update moves them exactly.

    In floating-point arithmetic p + (w - p) is not always w. It is if both are multiples of a power
    of two g, and g is large enough for their difference to be representable. With
    :math:`|w| \le 2^e` for all weights of a parameter and a dtype with P bits of precision (24 for
    float32, 11 for float16, 8 for bfloat16), this g is

    .. math:: g = 2^{e + 1 - P}.

    With SGPerm, `params + updates` then *is* the permutation. With LAPerm only `permuted_params`
    is, because its parameters leave the grid between synchronizations.

    Args:
        params: the initial parameters.
        vectors: which axes form weight vectors, see `laperm`.

    Returns:
        A tree like `params`. Each weight has changed by at most g / 2, and -0.0 has become 0.0. A
        parameter has at most :math:`2^P + 1` different weights: in bfloat16 many are equal. Arrays
        are JAX arrays, and copies.

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
        >>> w = p2t.initializers.to_grid(w, vectors=0)
        >>> bool((added(w) == w[::-1]).all())
        True
    """
    _leaves.not_empty(params)
    new = [
        _leaves.copied(leaf.array) if leaf.axes is None else _on_grid(jnp.asarray(leaf.array))
        for leaf in _leaves.walk(params, vectors)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def _on_grid(w: jax.Array) -> jax.Array:
    info: Any = jnp.finfo(w.dtype)
    wide = w.astype(_leaves.wide(w.dtype))
    smallest = jnp.asarray(info.smallest_normal, wide.dtype)
    largest = jnp.max(jnp.abs(wide), initial=0, where=jnp.isfinite(wide))
    mantissa, e = jnp.frexp(largest)  # mantissa < 1
    e = jnp.where(mantissa == 0.5, e - 1, e)
    # Differences below the smallest normal number would be flushed to zero on some devices.
    g = jnp.maximum(jnp.ldexp(jnp.ones((), wide.dtype), e - info.nmant), smallest)
    rounded = jnp.round(wide / g) * g
    return jnp.where(rounded == 0, 0, rounded).astype(w.dtype)


def _default_float(dtype: Any) -> Any:
    return jnp.result_type(float if dtype is None else dtype)


def _fan_in(shape: Any) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"shape: expected at least two axes, inputs and neurons, got {tuple(shape)}."
        )
    n: int = math.prod(shape[:-1])
    return max(1, n)


def _check_gain(gain: Any) -> None:
    value = _checks.real_scalar("gain", gain)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"gain: must be positive and finite, got {gain}.")
