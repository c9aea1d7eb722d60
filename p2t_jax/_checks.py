"""Validation of arguments: real numbers, random keys, trees that are not empty or that match."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2t_jax._vectors import path_names


def real_scalar(name: str, value: Any) -> float | None:
    """The value of a hyperparameter, or None as long as it is traced.

    Args:
        name: what the argument is called, for the error.
        value: an int, a float or a scalar array.

    Returns:
        The value as a float; None for a tracer, of which only type and shape show.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is an array of more than one.
    """
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    if is_array:
        real = jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    else:
        real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real:
        raise TypeError(f"{name}: expected a real number, got {value!r}.")
    if np.ndim(value):
        raise ValueError(f"{name}: expected a single number, got an array of shape {value.shape}.")
    return None if isinstance(value, jax.core.Tracer) else float(value)


def random_key(name: str, key: Any) -> jax.Array:
    """A typed key of `jax.random`, from anything that stands for one.

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


def not_empty(params: Any) -> None:
    """Refuses a tree of empty containers with a ValueError."""

    # Optax puts leafless nodes of its own in place of parameters (`MaskedNode`, the placeholder of
    # `optax.tree.map_params`): they stand for something, a tree of empty containers does not.
    def stands_for_something(node: Any) -> bool:
        return node is not None and type(node) not in (dict, list, tuple)

    if not jax.tree.leaves(params, is_leaf=stands_for_something):
        raise ValueError(f"params: there are no parameters in {params!r}.")


def matching_leaves(name: str, tree: Any, params: Any, *, dtypes: bool = False) -> list[Any]:
    """The leaves of a tree that mirrors `params`, in the order of `jax.tree.leaves(params)`.

    Args:
        name: the argument that `tree` came in, for the error.
        tree: a tree of the structure and shapes of `params`.
        params: the parameters.
        dtypes: whether the dtypes must be the same, too.

    Returns:
        As many leaves as `params` has.

    Raises:
        ValueError: If structure or shapes differ.
    """
    treedef: Any = jax.tree.structure(params)
    try:
        leaves: list[Any] = treedef.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(f"{name}: it belongs to other parameters: {error}") from None
    with_path = jax.tree_util.tree_leaves_with_path(params)
    for (key_path, leaf), other in zip(with_path, leaves, strict=True):
        if other is None:
            continue
        if np.shape(leaf) != np.shape(other) or (dtypes and leaf.dtype != other.dtype):
            raise other_parameters(name, path_names(key_path), other, leaf)
    return leaves


def other_parameters(name: str, path: tuple[str, ...], leaf: Any, param: Any) -> ValueError:
    """The error for a tree whose leaf does not fit the parameter at its place."""

    def show(x: Any) -> str:
        if x is None:
            return "nothing"
        # Not `result_type` alone, which says float32 of a float64 NumPy array.
        return f"{getattr(x, 'dtype', None) or jnp.result_type(x)}{list(np.shape(x))}"

    where = "/".join(path) or "the root of the tree"
    return ValueError(
        f"{name}: it belongs to other parameters: it has {show(leaf)} for {where}, where params "
        f"has {show(param)}."
    )
