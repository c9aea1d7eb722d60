"""Checks of arguments and colours that the pictures share."""

import colorsys
import math
from typing import Any, TypeAlias

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from p2t_jax import _checks, _leaves
from p2t_jax._vectors import AxesLike

Array: TypeAlias = npt.NDArray[Any]

# For weights beside blanks: blue below zero, orange above, dark near zero.
DARK_AT_ZERO = LinearSegmentedColormap.from_list(
    "dark_at_zero", ["#56B4E9", "#0072B2", "#202020", "#D55E00", "#E69F00"]
)
MARKED = "black"  # places of a subset: no colour of the map of signed weights


def axes_or_current(ax: Axes | None) -> Axes:
    """The Axes to draw on."""
    if not (ax is None or isinstance(ax, Axes)):
        raise TypeError(f"ax: expected Axes of Matplotlib, got {ax!r}.")
    return plt.gca() if ax is None else ax


def whole_number(name: str, value: Any) -> int:
    """A number such as 5 or 5.0, at least 0, as an int."""
    number = _checks.real_scalar(name, value)
    if number is None or not number.is_integer() or number < 0:
        raise ValueError(f"{name}: must be a whole number, at least 0, got {value}.")
    return int(value)


def real_array(name: str, value: Any) -> Array:
    """Real numbers as a NumPy array of a dtype that Matplotlib knows."""
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iub"):
        raise TypeError(
            f"{name}: expected an array of real numbers, got {array.dtype} ({value!r:.50})."
        )
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def real_vector(name: str, value: Any, size: int | None = None) -> Array:
    """Real numbers of shape (n,), or of shape (size,)."""
    array = real_array(name, value)
    if array.ndim != 1 or size not in (None, array.size):
        expected = "(n,)" if size is None else f"({size},)"
        raise ValueError(f"{name}: expected an array of shape {expected}, got {array.shape}.")
    return array


def places(name: str, value: Any, n: int) -> npt.NDArray[np.int64]:
    """Indices of n weights, of any shape."""
    array = np.asarray(value)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}.")
    if array.min() < 0 or array.max() >= n:
        raise ValueError(
            f"{name}: expected indices from 0 to {n - 1}, got {array.min()} to {array.max()}."
        )
    return array.astype(np.int64)


def subset_places(subset: Any, n: int) -> npt.NDArray[np.int64]:
    """The places that indices or a boolean mask name; all of n for None."""
    array = np.arange(n) if subset is None else np.asarray(subset)
    if array.dtype == bool and array.shape == (n,):
        return np.flatnonzero(array)
    if array.dtype == bool or array.ndim != 1:
        raise ValueError(
            f"subset: expected indices of shape (k,) or a boolean mask of shape ({n},), got "
            f"{array.dtype} of shape {array.shape}."
        )
    return places("subset", array, n)


def weight_matrix(weights: Any, vectors: AxesLike) -> Array:
    """The weight matrix of a parameter (Section 1.1): each column is a weight vector.

    Without a path no rule can decide, so None means all axes but the last, as in JAX's kernels.
    """
    array = real_array("weights", weights)
    default = 0 if array.ndim == 1 else tuple(range(array.ndim - 1))
    (leaf,) = _leaves.walk(array, default if vectors is None else vectors)
    assert leaf.axes is not None
    rows: Array = _leaves.to_rows(array, leaf.axes)
    return rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1]).T


def picture(name: str, vector: Array, shape: tuple[int, int]) -> Array:
    """A weight vector as rows and columns."""
    pair = [whole_number("shape", size) for size in shape] if np.shape(shape) == (2,) else []
    if not pair or math.prod(pair) != vector.size:
        raise ValueError(
            f"shape: expected rows and columns with a product of {vector.size}, the size of "
            f"{name}, got {shape}."
        )
    return vector.reshape(pair)


def signed_colors(weights: Array) -> dict[str, Any]:
    """Options for `imshow`: blue below zero, white at zero, red above; symmetric around zero."""
    finite = np.abs(weights[np.isfinite(weights)])
    limit = float(finite.max(initial=0.0)) or 1.0
    return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}


def random_colors(count: int, rng: np.random.Generator) -> Array:
    """Random colours, (count, 3): hues as far apart as they can be, in random order."""
    hues = (rng.permutation(count) + rng.random()) / max(count, 1)
    values = rng.uniform(0.55, 0.9, count)
    return np.array(
        [colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, np.full(count, 0.85), values, strict=True)]
    ).reshape(count, 3)
