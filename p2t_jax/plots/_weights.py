"""Pictures of weights: profiles and heat maps (Figures 1, 2, 4, 9, 13 and 14)."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from p2t_jax import _leaves
from p2t_jax._vectors import AxesLike, VectorSpec
from p2t_jax.plots import _inputs
from p2t_jax.plots._inputs import Array


def profile(
    weights: Any,
    *,
    vectors: AxesLike = None,
    sort: bool = True,
    subset: Any = None,
    max_points: int = 100_000,
    seed: int = 0,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws all weight vectors of one parameter on top of each other, sorted: their profiles.

    Each weight is a dot, and each weight vector has a random colour. Sorted, a dot is at (rank,
    weight), so vectors that differ only in order cover each other (Section 1.2, Figure 1b).
    Unsorted, it is at (place, weight) and looks like noise (Figure 1a).

    Args:
        weights: a parameter of any rank, or a single weight vector.
        vectors: the axis or axes along which weight vectors run; by default all but the last, as in
            dense and convolutional kernels of Flax and Haiku.
        sort: whether to sort each vector.
        subset: places of a single vector to mark in black, such as a random partition (Figure 4,
            right): indices, or a boolean mask.
        max_points: of a larger parameter, this many weights are drawn, chosen at random.
        seed: seed of the colours and of this choice.
        ax: where to draw.
        **options: for `Axes.scatter`.

    Returns:
        The Axes.

    Raises:
        TypeError: If `weights` is not an array of real numbers.
        ValueError: If `weights` does not have the axes; if `subset` is given for more than one
            vector, or is out of range.

    Example:
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> kernel = jax.random.normal(jax.random.key(0), (64, 10))
        >>> ax = p2t.plots.profile(kernel)
        >>> ax.collections[-1].get_offsets().shape
        (640, 2)
    """
    matrix = _inputs.weight_matrix(weights, vectors)
    n, m = matrix.shape
    marked = None if subset is None else _inputs.subset_places(subset, n)
    if marked is not None and m != 1:
        raise ValueError(
            f"subset: expected a single weight vector, got {m} in weights of shape "
            f"{np.shape(weights)}."
        )
    seed = _inputs.whole_number("seed", seed)
    max_points = _inputs.whole_number("max_points", max_points)
    if sort:
        if marked is not None:
            marked = np.flatnonzero(np.isin(np.argsort(matrix[:, 0], kind="stable"), marked))
        matrix = np.sort(matrix, axis=0)

    rng = np.random.default_rng(seed)
    point = np.arange(matrix.size)
    if matrix.size > max_points:
        point = np.sort(rng.choice(matrix.size, max_points, replace=False, shuffle=False))
    vector, place = np.divmod(point, max(n, 1))
    colors = _inputs.random_colors(m, rng)[vector] if marked is None else "0.6"

    ax = _inputs.axes_or_current(ax)
    # Few weights get large dots, many vectors translucent ones.
    style: dict[str, Any] = {"s": np.clip(400 / max(n, 1), 4, 25), "linewidths": 0, "c": colors}
    style |= {"alpha": np.clip(20 / max(m, 1), 0.15, 1), "rasterized": True} | options
    ax.scatter(place, matrix[place, vector], **style)
    if marked is not None:
        style |= {"s": 4 * style["s"], "c": _inputs.MARKED}
        ax.scatter(marked, matrix[marked, 0], **style)
    ax.set(xlabel="rank" if sort else "place", ylabel="weight")
    return ax


def profiles(
    params: Any,
    *,
    vectors: VectorSpec = "flax",
    axs: Sequence[Axes] | Array | None = None,
    **options: Any,
) -> Array:
    """Draws the profiles of every parameter of a tree that has weight vectors (Figure 2).

    Args:
        params: the parameters.
        vectors: which axes form weight vectors: a rule or a (prefix) tree of axes.
        axs: as many Axes as there are such parameters, or None for a new figure.
        **options: for `profile`.

    Returns:
        The Axes, in an array of rank 1. Each has the path of its parameter as title.

    Raises:
        TypeError: See `profile`.
        ValueError: If no parameter has weight vectors, or `axs` has another number of Axes.

    Example:
        >>> import jax.numpy as jnp, matplotlib.pyplot as plt, p2t_jax as p2t, p2t_jax.plots
        >>> params = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}}
        >>> [ax.get_title() for ax in p2t.plots.profiles(params, axs=[plt.gca()])]
        ['dense/kernel']
    """
    leaves = [leaf for leaf in _leaves.walk(params, vectors) if leaf.axes is not None]
    if not leaves:
        raise ValueError("params: expected a parameter with weight vectors, got none.")
    found = np.ravel(np.asarray(_grid(len(leaves)) if axs is None else axs, dtype=object))
    if len(found) != len(leaves):
        raise ValueError(
            f"axs: expected {len(leaves)} Axes, for {', '.join(leaf.name for leaf in leaves)}, got "
            f"{len(found)}."
        )
    for ax, leaf in zip(found, leaves, strict=True):
        profile(leaf.array, vectors=leaf.axes, ax=ax, **options)
        ax.set_title(leaf.name, fontsize="small")
        if axs is None:  # names of the axes only along the edges of the figure
            place = ax.get_subplotspec()
            below = place.rowspan.stop * place.get_gridspec().ncols + place.colspan.start
            ax.set_xlabel(ax.get_xlabel() if below >= len(leaves) else "")
            ax.set_ylabel(ax.get_ylabel() if place.is_first_col() else "")
    return found


def _grid(count: int) -> Array:
    """Axes in a new figure, about as many rows as columns."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure, grid = plt.subplots(
        rows, columns, squeeze=False, figsize=(3 * columns, 2.5 * rows), layout="constrained"
    )
    for ax in grid.flat[count:]:
        figure.delaxes(ax)
    axs: Array = grid.ravel()[:count]
    return axs


def weight_vector(
    vector: Any,
    shape: tuple[int, int],
    *,
    subset: Any = None,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws a weight vector as a heat map, in the shape of its inputs (Figure 9).

    Negative weights are blue and positive ones red, on a scale from -a to a with a the largest
    absolute weight. A permutation keeps a, so pictures before and after training compare.

    Args:
        vector: n weights, of any rank, in row-major order. NaN is left blank.
        shape: rows and columns of the picture, with product n: (28, 28) for images of MNIST.
        subset: places to mark with black boxes, such as a random partition (Figure 4, left):
            indices, or a boolean mask.
        ax: where to draw.
        **options: for `Axes.imshow`: `cmap`, `vmin`, `vmax`.

    Returns:
        The Axes; its last image is the heat map, for `plt.colorbar`.

    Raises:
        TypeError: If `vector` is not an array of real numbers.
        ValueError: If `shape` does not fit `vector`, or `subset` is out of range.

    Example:
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> kernel = jax.random.uniform(jax.random.key(0), (784, 10), minval=-1)
        >>> ax = p2t.plots.weight_vector(kernel[:, 3], (28, 28))
        >>> ax.images[-1].get_array().shape
        (28, 28)
    """
    image = _inputs.picture("vector", _inputs.real_array("vector", vector).ravel(), shape)
    marked = np.empty(0, np.int64) if subset is None else _inputs.subset_places(subset, image.size)
    ax = _inputs.axes_or_current(ax)
    ax.imshow(image, **{"interpolation": "nearest"} | _inputs.signed_colors(image) | options)
    ax.set(xticks=[], yticks=[])
    if marked.size:
        ys, xs = np.divmod(marked, image.shape[1])
        boxes = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in zip(xs, ys, strict=True)]
        ax.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=_inputs.MARKED))
    return ax


def connections(
    weights: Any, *, vectors: AxesLike = None, ax: Axes | None = None, **options: Any
) -> Axes:
    """Draws a weight matrix as a heat map with zeros left blank: its connections (Figure 13).

    Each column is a weight vector, each row an input (Section 1.1). Negative weights are blue,
    positive ones orange, and small ones dark, to be told from zeros. For a closer look at some
    (Figure 14), limit the axes, for instance `ax.set(xlim=(50, 150), ylim=(400, 300))`.

    Args:
        weights: a parameter of any rank.
        vectors: the axis or axes along which weight vectors run; by default all but the last, as in
            dense and convolutional kernels of Flax and Haiku.
        ax: where to draw.
        **options: for `Axes.imshow`: `cmap`, `vmin`, `vmax`.

    Returns:
        The Axes; its last image is the heat map, a masked array, for `plt.colorbar`.

    Raises:
        TypeError: If `weights` is not an array of real numbers.
        ValueError: If `weights` does not have the axes.

    Example:
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> kernel = jax.random.normal(jax.random.key(0), (784, 500))
        >>> pruned = p2t.prune(0, {"kernel": kernel}, keep=0.1)["kernel"]
        >>> ax = p2t.plots.connections(pruned)
        >>> int(ax.images[-1].get_array().count())  # connections
        39200
    """
    matrix = _inputs.weight_matrix(weights, vectors)
    ax = _inputs.axes_or_current(ax)
    # A matrix has more entries than a picture has pixels. Averaging the weights under a pixel would
    # invent some; averaging their colours shows how dense the connections are.
    defaults = _inputs.signed_colors(matrix) | {"cmap": _inputs.DARK_AT_ZERO}
    defaults |= {"aspect": "auto", "interpolation_stage": "rgba"}
    ax.imshow(np.ma.masked_equal(matrix, 0), **defaults | options)
    ax.set(xlabel="neuron", ylabel="input")
    return ax
