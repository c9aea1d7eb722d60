"""Validation of scalar arguments: real numbers, ratios and random keys."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax._host.internals import is_traced


def real_scalar(name: str, value: Any, *, schedule: bool = False) -> float | None:
    """The value of a hyperparameter, or None if it is traced.

    Args:
        name: what the argument is called, for the error.
        value: an int, a float or a scalar array.
        schedule: whether the argument may also be a schedule, for the error.

    Returns:
        The value as a float; None if it is traced, when only its type and shape are known.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is not a scalar.
    """
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    if is_array:
        real = jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    else:
        real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real:
        expected = "a real number or a schedule" if schedule else "a real number"
        raise TypeError(f"{name}: expected {expected}, got {value!r}.")
    if np.ndim(value):
        raise ValueError(f"{name}: expected a single number, got an array of shape {value.shape}.")
    return None if is_traced(value) else float(value)


def ratio(name: str, value: Any) -> None:
    """Refuses a number outside (0, 1], unless it is traced.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is outside (0, 1], or not a scalar.
    """
    number = real_scalar(name, value, schedule=True)
    if number is not None and not 0 < number <= 1:
        raise ValueError(f"{name}: must be in (0, 1], got {value}.")


def random_key(name: str, key: Any) -> jax.Array:
    """A typed key of `jax.random`, from a key of either kind or a seed.

    Args:
        name: what the argument is called, for the error.
        key: a typed key, the raw data of one (uint32, as `jax.random.PRNGKey` returns) or an
            integer seed; each may be traced.

    Returns:
        A scalar array of keys.

    Raises:
        TypeError: If it is none of these.
    """
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if not shape:
            return jnp.asarray(key)
    elif not shape and (
        isinstance(key, int) if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    ):
        if not isinstance(key, bool):
            return jax.random.key(key)
    elif dtype == jnp.uint32 and len(shape) == 1:
        with contextlib.suppress(TypeError, ValueError):  # not of the length of a key
            wrapped: jax.Array = jax.random.wrap_key_data(jnp.asarray(key))
            return wrapped
    given = repr(key) if dtype is None else f"{dtype}{list(shape)}"
    raise TypeError(f"{name}: expected a key of jax.random or an integer seed, got {given}.")
