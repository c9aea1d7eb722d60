"""Validation of scalar arguments: real numbers, ratios, random keys and names of axes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax._jax_internals import is_traced


def real_scalar(name: str, value: Any, *, schedule: bool = False) -> float | None:
    """The value of an int, a float or a scalar array; None if it is traced.

    `name` is what the argument is called, and `schedule` whether it may be one, for the error.

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


def whole(name: str, value: Any) -> None:
    """Refuses a fraction. Arrays of JAX may be one: `optax.inject_hyperparams` makes floats."""
    number = float(value) if isinstance(value, float | np.generic | np.ndarray) else 0.0
    if math.isfinite(number) and not number.is_integer():
        raise ValueError(f"{name}: must be a whole number, got {value}.")


def hyperparameter(check: Callable[[Any], None], value: Any) -> None:
    """Checks a hyperparameter, or the result of a schedule as far as possible without computing.

    JAX may not have been set up yet: a process may still join others.
    """
    if callable(value):
        step = jax.ShapeDtypeStruct((), jnp.int32)
        jax.eval_shape(lambda step: check(value(step)), step)
    else:
        check(value)


def ratio(name: str, value: Any) -> None:
    """Refuses what is not a real number in (0, 1], as far as it is known."""
    number = real_scalar(name, value, schedule=True)
    if number is not None and not 0 < number <= 1:
        raise ValueError(f"{name}: must be in (0, 1], got {value}.")


def device_index(name: str, axis_name: Any) -> jax.Array:
    """This device's position on an axis of a `pmap`, `shard_map` or `vmap`, if it is bound."""
    try:
        return jax.lax.axis_index(axis_name)
    except NameError:
        raise ValueError(
            f"{name}: no axis {axis_name!r} is bound here. Call `update` inside the pmap or "
            f"shard_map that has it, or leave {name} out."
        ) from None


def random_key(name: str, key: Any) -> jax.Array:
    """A typed key of `jax.random`, as a scalar array.

    It is made of such a key, of the raw data of one (uint32, as `jax.random.PRNGKey` returns) or of
    an integer seed; each may be traced. Anything else is a TypeError.
    """
    check_key(name, key)
    if _is_typed(key):
        return jnp.asarray(key)
    if not np.shape(key):
        return jax.random.key(key)
    try:
        wrapped: jax.Array = jax.random.wrap_key_data(jnp.asarray(key))
    except (TypeError, ValueError):  # not of the length of a key
        raise _no_key(name, key) from None
    return wrapped


def check_key(name: str, key: Any) -> None:
    """Raises the error of `random_key`, but computes nothing."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    if _is_typed(key):
        is_key = not shape
    elif shape:
        is_key = dtype == jnp.uint32 and shape in ((2,), (4,))
    elif dtype is None:
        is_key = isinstance(key, int) and not isinstance(key, bool)
    else:
        is_key = jnp.issubdtype(dtype, jnp.integer)
    if not is_key:
        raise _no_key(name, key)


def _is_typed(key: Any) -> bool:
    dtype = getattr(key, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _no_key(name: str, key: Any) -> TypeError:
    dtype = getattr(key, "dtype", None)
    given = repr(key) if dtype is None else f"{dtype}{list(np.shape(key))}"
    return TypeError(f"{name}: expected a key of jax.random or an integer seed, got {given}.")
