"""The paper's pictures, on Matplotlib's Axes: `pip install 'p2t_jax[plots]'`.

Every function takes the Axes to draw on, `plt.gca()` by default, and returns it. None shows a
figure or changes a setting of Matplotlib. Weights may be NumPy or JAX arrays.
"""

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from p2t_jax import _checks
from p2t_jax._vectors import VectorSpec, named_leaves, vector_axes
from p2t_jax.permutations import cycle_labels

try:
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection, PatchCollection
    from matplotlib.patches import FancyArrowPatch, Rectangle
    from matplotlib.path import Path
except ImportError as error:
    raise ImportError("p2t_jax.plots needs Matplotlib: pip install 'p2t_jax[plots]'.") from error

_Array = npt.NDArray[Any]
_SUBSET = "red"
_UNUSED = "lightgrey"


def profile(
    weights: Any,
    *,
    vectors: VectorSpec = "flax",
    sort: bool = True,
    subset: Any = None,
    max_points: int = 100_000,
    seed: int = 0,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws the weight vectors of one parameter on top of one another, sorted: their profiles.

    A dot for each weight, a random colour for each weight vector. Sorted, a point is (rank,
    weight); vectors that are alike but for their order then cover each other (Section 1.2, Figure
    1b). Unsorted, it is (place, weight), and looks like noise (Figure 1a).

    Args:
        weights: a parameter of any rank, or a single weight vector.
        vectors: where the weight vectors lie: a rule or axes. An array of rank 1 is one vector.
        sort: whether to sort each vector.
        subset: of a single vector, places to mark in red, such as a random partition (Figure 4,
            right): indices, or a boolean mask.
        max_points: of a larger parameter, this many weights are drawn, chosen at random.
        seed: of the colours and of that choice.
        ax: where to draw.
        **options: for `Axes.scatter`.

    Returns:
        The Axes.

    Raises:
        TypeError: If `weights` is not an array of real numbers.
        ValueError: If `vectors` does not tell where the vectors lie; if `subset` is given for more
            than one vector, or names other places.

    Example:
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> kernel = jax.random.normal(jax.random.key(0), (64, 10))
        >>> ax = p2t.plots.profile(kernel)
        >>> ax.collections[-1].get_offsets().shape
        (640, 2)
    """
    matrix = _matrix(weights, vectors)
    n, m = matrix.shape
    marked = None if subset is None else _subset(subset, n)
    if marked is not None and m != 1:
        raise ValueError(
            f"subset: it marks places of a single weight vector, and weights has {m}, from shape "
            f"{np.shape(weights)}. Give one of them."
        )
    if sort:
        if marked is not None:
            marked = np.flatnonzero(np.isin(np.argsort(matrix[:, 0], kind="stable"), marked))
        matrix = np.sort(matrix, axis=0)

    rng = np.random.default_rng(seed)
    point = np.arange(matrix.size)
    if matrix.size > max_points:
        point = np.sort(rng.choice(matrix.size, max_points, replace=False, shuffle=False))
    vector, place = np.divmod(point, max(n, 1))
    colors = _random_colors(m, rng)[vector] if marked is None else "0.6"

    ax = _axes(ax)
    style: dict[str, Any] = {"s": 4, "linewidths": 0, "rasterized": True, "c": colors} | options
    ax.scatter(place, matrix[place, vector], **style)
    if marked is not None:
        ax.scatter(marked, matrix[marked, 0], **style | {"s": 4 * style["s"], "c": _SUBSET})
    ax.set(xlabel="rank" if sort else "place", ylabel="weight")
    return ax


def profiles(
    params: Any,
    *,
    vectors: VectorSpec = "flax",
    axs: Sequence[Axes] | _Array | None = None,
    **options: Any,
) -> _Array:
    """Draws the profiles of every parameter of a tree that has weight vectors (Figure 2).

    Args:
        params: the parameters.
        vectors: where the weight vectors lie: a rule or a (prefix) tree of axes.
        axs: as many Axes as there are such parameters, or None for a new figure of them.
        **options: for `profile`.

    Returns:
        The Axes, in an array of rank 1. Each has the path of its parameter for a title.

    Raises:
        TypeError: see `profile`.
        ValueError: If no parameter has weight vectors, or `axs` has another number of Axes.

    Example:
        >>> import jax.numpy as jnp, matplotlib.pyplot as plt, p2t_jax as p2t, p2t_jax.plots
        >>> params = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}}
        >>> [ax.get_title() for ax in p2t.plots.profiles(params, axs=[plt.gca()])]
        ['dense/kernel']
    """
    axes = vector_axes(vectors, params)
    leaves = [
        ("/".join(path), leaf, leaf_axes)
        for (path, leaf), leaf_axes in zip(named_leaves(params), axes, strict=True)
        if leaf_axes is not None
    ]
    if not leaves:
        raise ValueError(
            f"params: none of its {len(axes)} parameters has weight vectors. Say in vectors where "
            "they lie."
        )
    if axs is None:
        columns = math.ceil(math.sqrt(len(leaves)))
        rows = math.ceil(len(leaves) / columns)
        size = (3 * columns, 2.5 * rows)
        figure, grid = plt.subplots(
            rows, columns, squeeze=False, figsize=size, layout="constrained"
        )
        for ax in grid.flat[len(leaves) :]:
            figure.delaxes(ax)
        axs = grid.flat[: len(leaves)]
    found = np.ravel(np.asarray(axs, dtype=object))
    if len(found) != len(leaves):
        raise ValueError(
            f"axs: give {len(leaves)} Axes, for {', '.join(path for path, _, _ in leaves)}; there "
            f"are {len(found)}."
        )
    for ax, (path, leaf, leaf_axes) in zip(found, leaves, strict=True):
        profile(leaf, vectors=leaf_axes, ax=ax, **options).set_title(path, fontsize="small")
    return found


def weight_vector(
    vector: Any,
    shape: tuple[int, int],
    *,
    subset: Any = None,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws a weight vector as a heat map, in the shape of what it looks at (Figure 9).

    From darker to brighter, weights go from -a to a, with a the largest absolute weight. A
    permutation leaves a as it is, so pictures from before and after training compare.

    Args:
        vector: n weights; any rank, taken in row-major order. NaN is left blank.
        shape: rows and columns of the picture, n in all: (28, 28) for images of MNIST.
        subset: places to mark by red boxes, such as a random partition (Figure 4, left): indices,
            or a boolean mask.
        ax: where to draw.
        **options: for `Axes.imshow`: `cmap`, `vmin`, `vmax`.

    Returns:
        The Axes; its last image is the heat map.

    Raises:
        TypeError: If `vector` is not an array of real numbers.
        ValueError: If `shape` has not as many places as `vector`, or `subset` names others.

    Example:
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> kernel = jax.random.uniform(jax.random.key(0), (784, 10), minval=-1)
        >>> ax = p2t.plots.weight_vector(kernel[:, 3], (28, 28))
        >>> ax.images[-1].get_array().shape
        (28, 28)
    """
    image = _image("vector", _array("vector", vector).ravel(), shape)
    marked = np.empty(0, np.int64) if subset is None else _subset(subset, image.size)
    ax = _axes(ax)
    ax.imshow(image, **{"interpolation": "nearest"} | _colors_of(image) | options)
    ax.set(xticks=[], yticks=[])
    if marked.size:
        ys, xs = np.divmod(marked, image.shape[1])
        boxes = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in zip(xs, ys, strict=True)]
        ax.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=_SUBSET))
    return ax


def connections(
    weights: Any,
    *,
    rows: slice = slice(None),
    columns: slice = slice(None),
    vectors: VectorSpec = "flax",
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws a weight matrix as a heat map, zeros left blank: its connection pattern (Figure 13).

    Each column is a weight vector, each row a place in them (Section 1.1). Colours are those of
    the whole matrix even where only a window of it is drawn (Figure 14).

    Args:
        weights: a parameter of any rank.
        rows: the window's rows, such as `slice(100, 200)`.
        columns: the window's columns.
        vectors: where the weight vectors lie: a rule or axes.
        ax: where to draw.
        **options: for `Axes.imshow`: `cmap`, `vmin`, `vmax`.

    Returns:
        The Axes; its last image is the heat map, a masked array.

    Raises:
        TypeError: If `weights` is not an array of real numbers, or `rows` or `columns` no slice.
        ValueError: If `vectors` does not tell where the vectors lie; if the window is empty or its
            slices have a step.

    Example:
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> kernel = jax.random.normal(jax.random.key(0), (784, 500))
        >>> pruned = kernel * jax.random.bernoulli(jax.random.key(1), 0.1, kernel.shape)
        >>> ax = p2t.plots.connections(pruned, rows=slice(100, 200), columns=slice(100, 300))
        >>> ax.images[-1].get_array().shape
        (100, 200)
    """
    matrix = _matrix(weights, vectors)
    top, bottom = _window("rows", rows, matrix.shape[0])
    left, right = _window("columns", columns, matrix.shape[1])
    image = np.ma.masked_equal(matrix[top:bottom, left:right], 0)
    ax = _axes(ax)
    defaults = {
        "extent": (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5),
        "aspect": "auto",
        # A matrix has more entries than a picture has pixels. To average the weights below a pixel
        # would invent some; to average their colours shows how dense the connections are.
        "interpolation_stage": "rgba",
    }
    ax.imshow(image, **defaults | _colors_of(matrix) | options)
    ax.set(xlabel="neuron", ylabel="input")
    return ax


def permissible_movements(
    weights: Any, recommendations: Any, aggressiveness: float, *, subset: Any = None
) -> npt.NDArray[np.int64]:
    r"""Lists the permissible movements within a subset of a weight vector (Section 2.1).

    A movement (x, y) gives parameter x the weight of parameter y. It is permissible if

    .. math:: r_x (w_x - w_y) \ge 0 \quad \text{and} \quad \ell < |w_x - w_y| < \ell + \alpha A,

    with :math:`\ell` the smallest difference between two weights of the subset and A the range of
    the whole vector. For pictures: SGPerm itself never lists them.

    Args:
        weights: w, of shape (n,).
        recommendations: r, of shape (n,).
        aggressiveness: :math:`\alpha \in (0, 1]`.
        subset: indices or a boolean mask; all by default.

    Returns:
        An array of shape (k, 2), a row for each movement (x, y), in ascending order. It is empty if
        a weight is not finite.

    Raises:
        TypeError: If one of the arrays, or `aggressiveness`, is not of real numbers.
        ValueError: If shapes differ, `aggressiveness` is outside (0, 1], or `subset` names other
            places.

    Example:
        >>> from p2t_jax.plots import permissible_movements
        >>> permissible_movements([0.0, 0.5, 0.6, 1.0], [-1.0, 1.0, 0.0, -1.0], 0.45).tolist()
        [[0, 1], [1, 0], [2, 3]]
    """
    w = _vector("weights", weights).astype(np.float64)
    r = _like_weights("recommendations", recommendations, w)
    alpha = _checks.real_scalar("aggressiveness", aggressiveness)
    if alpha is None or not 0 < alpha <= 1:
        raise ValueError(f"aggressiveness: it must be in (0, 1], and is {aggressiveness}.")
    members = np.arange(w.size) if subset is None else np.unique(_subset(subset, w.size))
    if members.size < 2 or not np.isfinite(w).all():
        return np.empty((0, 2), np.int64)
    difference = w[members, None] - w[members]
    distance = np.abs(difference)
    lower = distance[~np.eye(members.size, dtype=bool)].min()
    upper = lower + alpha * np.ptp(w)
    permissible = np.sign(r[members, None]) * np.sign(difference) >= 0
    x, y = np.nonzero(permissible & (lower < distance) & (distance < upper))
    return np.column_stack([members[x], members[y]])


def chords(
    weights: Any,
    source: Any,
    *,
    recommendations: Any = None,
    permissible: Any = None,
    subset: Any = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draws the cycles of a permutation as chords of a circle (Figures 5 and 6).

    The vertices are the parameters of a weight vector, counterclockwise in ascending order of their
    weights, from the right. An arrow from x to y is the movement (x, y): x gets the weight of y.
    The arrows of a cycle have one random colour; permissible movements in no cycle are light grey.
    Parameters that keep their weight have no arrow.

    Args:
        weights: the weight vector before the permutation, of shape (n,).
        source: where each weight comes from, of shape (n,): the weights become
            `weights[source]`. A row of a leaf of `p2t_jax.permutation_of`.
        recommendations: if given, of shape (n,): vertices are turquoise where it is positive, gold
            where it is negative and white where it is neither. Otherwise they are dark grey.
        permissible: if given, the permissible movements: an array of shape (k, 2), see
            `permissible_movements`.
        subset: the only places to draw, if not all: indices or a boolean mask. Weights must not
            move in or out of it.
        seed: of the colours.
        ax: where to draw.

    Returns:
        The Axes, without an axis; its patches are the arrows.

    Raises:
        TypeError: If an array is not of real numbers, or indices are no integers.
        ValueError: If shapes differ; if `source` is no permutation, or moves weights in or out of
            `subset`; if `permissible` names other places.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t, p2t_jax.plots
        >>> ax = p2t.plots.chords(jnp.array([0.3, 0.1, 0.2, 0.4]), [1, 2, 0, 3])
        >>> len(ax.patches)
        3
    """
    w = _vector("weights", weights)
    source = _indices("source", source, w.size)
    if source.shape != w.shape or len(np.unique(source)) < w.size:
        raise ValueError(
            f"source: it must have each of 0, ..., {w.size - 1} once, a place for every weight; it "
            f"has shape {source.shape} and {len(np.unique(source))} distinct places."
        )
    members = np.arange(w.size) if subset is None else np.unique(_subset(subset, w.size))
    if not np.isin(source[members], members).all():
        raise ValueError("subset: the permutation moves weights in or out of it.")
    pairs: _Array = np.empty((0, 2), np.int64)
    if permissible is not None and np.size(permissible):
        pairs = _indices("permissible", permissible, w.size)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isin(pairs, members).all():
            raise ValueError(
                "permissible: give movements (x, y) between vertices, an array of shape (k, 2); "
                f"its shape is {pairs.shape}."
            )
    vertices: Any = "0.25"
    if recommendations is not None:
        r = _like_weights("recommendations", recommendations, w)[members]
        vertices = np.where(r > 0, "turquoise", np.where(r < 0, "gold", "white"))

    ax = _axes(ax)
    at = np.empty((w.size, 2))
    step = 2 * np.pi / max(members.size, 1)
    angles = step * np.arange(members.size)
    by_weight = members[np.argsort(w[members], kind="stable")]
    at[by_weight] = np.column_stack([np.cos(angles), np.sin(angles)])
    radius = min(0.03, 0.35 * step)
    head = float(np.clip(600 / max(members.size, 1), 3, 8))  # points

    def arrow(x: int, y: int, color: Any, width: float, zorder: int) -> None:
        path = _chord(at[x], at[y], 1 - radius)
        ax.add_patch(
            FancyArrowPatch(
                path=path,
                arrowstyle="-|>",
                mutation_scale=head,
                color=color,
                linewidth=width,
                zorder=zorder,
            )
        )

    for x, y in pairs[source[pairs[:, 0]] != pairs[:, 1]]:
        arrow(x, y, _UNUSED, 0.5, 1)
    moved = members[source[members] != members]
    cycles, cycle = np.unique(np.asarray(cycle_labels(source))[moved], return_inverse=True)
    colors = _random_colors(len(cycles), np.random.default_rng(seed))[cycle]
    for x, color in zip(moved, colors, strict=True):
        arrow(x, source[x], color, 1.2, 2)
    size = [2 * radius]
    ax.add_collection(
        EllipseCollection(
            size,
            size,
            [0],
            units="xy",
            offsets=at[members],
            offset_transform=ax.transData,
            facecolors=vertices,
            edgecolors="0.25",
            linewidths=0.5,
            zorder=3,
        )
    )
    ax.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    ax.set_axis_off()
    return ax


def learning_curve(
    batches: Any,
    accuracy: Any,
    *,
    label: str | None = None,
    phases: Mapping[str, float] | None = None,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws accuracy against mini-batches, of one run or of several (Figures 8, 10 and 15).

    Several runs are their mean, on a band from the least to the greatest. Phases of training have
    a colour and a label each: Figure 15 has `{"LAPerm": 0, "Adam (LAPerm reconnected)": 1500}`.

    Args:
        batches: mini-batches before each evaluation, ascending, of shape (t,).
        accuracy: of shape (t,), or (runs, t).
        label: the curve's name in the legend.
        phases: instead of `label`, the phases' names, each with the mini-batch it begins at,
            ascending. The first begins no later than the curve.
        ax: where to draw.
        **options: for `Axes.plot`.

    Returns:
        The Axes; it has a line, and with several runs a band, for each phase.

    Raises:
        TypeError: If one of the arrays is not of real numbers.
        ValueError: If shapes do not fit; if `batches` or the phases are not ascending, or begin
            after the curve; if both `label` and `phases` are given.

    Example:
        >>> import p2t_jax as p2t, p2t_jax.plots
        >>> ax = p2t.plots.learning_curve(
        ...     [0, 100, 200], [0.1, 0.6, 0.9], phases={"LAPerm": 0, "Adam": 100}
        ... )
        >>> ax.lines[-1].get_label(), ax.lines[-1].get_xdata().tolist()
        ('Adam', [100.0, 200.0])
    """
    x = _vector("batches", batches).astype(np.float64)
    y = np.atleast_2d(_array("accuracy", accuracy))
    if y.ndim != 2 or y.shape[1] != x.size or 0 in y.shape:
        raise ValueError(
            f"accuracy: give {x.size} numbers for the {x.size} of batches, or a row of them for "
            f"each run; its shape is {np.shape(accuracy)}."
        )
    if not (np.diff(x) > 0).all():
        raise ValueError("batches: they must ascend, and do not.")
    if phases is not None and label is not None:
        raise ValueError("label: the phases have labels of their own; give one or the other.")
    named = {label: x[0]} if phases is None else phases
    starts = np.array([*named.values(), np.inf], np.float64)
    if not ((np.diff(starts) > 0).all() and starts[0] <= x[0]):
        raise ValueError(
            "phases: they must begin one after the other, and the first no later than the curve, "
            f"at {x[0]:g}; they begin at {starts[:-1].tolist()}."
        )
    # A curve goes on unbroken where the phases meet, even between two evaluations.
    for border in starts[(starts > x[0]) & (starts < x[-1]) & ~np.isin(starts, x)]:
        i = np.searchsorted(x, border)
        share = (border - x[i - 1]) / (x[i] - x[i - 1])
        y = np.insert(y, i, (1 - share) * y[:, i - 1] + share * y[:, i], axis=1)
        x = np.insert(x, i, border)

    ax = _axes(ax)
    for name, start, end in zip(named, starts[:-1], starts[1:], strict=True):
        inside = (start <= x) & (x <= end)
        runs = y[:, inside]
        (line,) = ax.plot(x[inside], runs.mean(axis=0), **{"label": name} | options)
        if len(runs) > 1:
            band: dict[str, Any] = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
            ax.fill_between(x[inside], runs.min(axis=0), runs.max(axis=0), **band)
    ax.set(xlabel="mini-batches", ylabel="validation accuracy")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def animate(
    frames: Any,
    shape: tuple[int, int],
    *,
    batches: Any = None,
    interval: float = 100,
    ax: Axes | None = None,
    **options: Any,
) -> FuncAnimation:
    """Draws a weight vector that moves as training goes: `weight_vector`, frame by frame.

    Keep what is returned, and save it: `animation.save("weights.gif", writer="pillow")`.

    Args:
        frames: the weight vector at several times, of shape (frames, n).
        shape: rows and columns of the picture.
        batches: if given, the mini-batches before each frame, for the title.
        interval: milliseconds a frame.
        ax: where to draw.
        **options: for `weight_vector`.

    Returns:
        The animation.

    Raises:
        TypeError: If one of the arrays is not of real numbers.
        ValueError: If shapes do not fit, or there are no frames.

    Example:
        >>> import tempfile
        >>> import jax, p2t_jax as p2t, p2t_jax.plots
        >>> frames = [jax.random.permutation(jax.random.key(i), 64) for i in range(3)]
        >>> animation = p2t.plots.animate(frames, (8, 8), batches=[0, 10, 20])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     animation.save(f"{folder}/weights.gif", writer="pillow")
    """
    history = _array("frames", frames)
    if history.ndim < 2 or not len(history):
        raise ValueError(
            "frames: give a weight vector for each of one or more frames, an array of shape "
            f"(frames, n); its shape is {history.shape}."
        )
    history = history.reshape(len(history), -1)
    images = [_image("frames", vector, shape) for vector in history]
    titles = None if batches is None else _vector("batches", batches)
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"batches: give a number for each of the {len(images)} frames; there are {len(titles)}."
        )
    ax = weight_vector(images[0], shape, ax=_axes(ax), **_colors_of(history) | options)
    image = ax.images[-1]

    def draw(i: int) -> Iterable[Any]:
        image.set_data(images[i])
        if titles is not None:
            ax.set_title(f"{titles[i]:g} mini-batches")
        return (image,)

    draw(0)
    return FuncAnimation(ax.figure.canvas.figure, draw, frames=len(images), interval=interval)


def _axes(ax: Axes | None) -> Axes:
    if not (ax is None or isinstance(ax, Axes)):
        raise TypeError(f"ax: give Axes of Matplotlib, not {ax!r}.")
    return plt.gca() if ax is None else ax


def _array(name: str, value: Any) -> _Array:
    """Real numbers as a NumPy array of a dtype that Matplotlib knows."""
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iub"):
        raise TypeError(f"{name}: give one array of real numbers, not {array.dtype} ({value!r}).")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _vector(name: str, value: Any) -> _Array:
    array = _array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: give an array of shape (n,); its shape is {array.shape}.")
    return array


def _like_weights(name: str, value: Any, weights: _Array) -> _Array:
    array = _vector(name, value)
    if array.shape != weights.shape:
        raise ValueError(f"{name}: give one for each of {weights.size} weights, not {array.size}.")
    return array


def _indices(name: str, value: Any, n: int) -> _Array:
    array = np.asarray(value)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: give integers, not {array.dtype}.")
    if array.min() < 0 or array.max() >= n:
        raise ValueError(
            f"{name}: the places of {n} weights are 0 to {n - 1}; it has {array.min()} to "
            f"{array.max()}."
        )
    return array.astype(np.int64)


def _subset(subset: Any, n: int) -> _Array:
    """The places that indices or a boolean mask name."""
    array = np.asarray(subset)
    if array.dtype == bool and array.shape == (n,):
        return np.flatnonzero(array)
    if array.dtype == bool or array.ndim != 1:
        raise ValueError(
            f"subset: give indices of shape (k,), or a boolean mask of shape ({n},); its shape is "
            f"{array.shape}."
        )
    return _indices("subset", array, n)


def _matrix(weights: Any, vectors: VectorSpec) -> _Array:
    """The weight matrix of a parameter (Section 1.1): each column is a weight vector."""
    array = _array("weights", weights)
    (axes,) = ((0,),) if array.ndim == 1 else vector_axes(vectors, array)
    if axes is None:
        raise ValueError(
            f"vectors: it says that weights, of shape {array.shape}, has no weight vectors. Give "
            "the axes along which they run."
        )
    first = np.moveaxis(array, axes, range(len(axes)))
    n = math.prod(first.shape[: len(axes)])
    return first.reshape(n, math.prod(first.shape[len(axes) :]))


def _image(name: str, vector: _Array, shape: tuple[int, int]) -> _Array:
    if np.shape(shape) != (2,) or math.prod(shape) != vector.size:
        raise ValueError(
            f"shape: give rows and columns of a picture of {vector.size} weights, the size of "
            f"{name}, not {shape}."
        )
    return vector.reshape(shape)


def _window(name: str, window: Any, size: int) -> tuple[int, int]:
    if not isinstance(window, slice):
        raise TypeError(f"{name}: give a slice, such as slice(100, 200), not {window!r}.")
    start, stop, step = window.indices(size)
    if step != 1 or start >= stop:
        raise ValueError(f"{name}: give a slice without a step that has some of {size}: {window}.")
    return start, stop


def _colors_of(weights: _Array) -> dict[str, Any]:
    """Dark to bright, symmetric around zero."""
    finite = np.abs(weights[np.isfinite(weights)])
    limit = float(finite.max(initial=0.0)) or 1.0
    return {"cmap": "viridis", "vmin": -limit, "vmax": limit}


def _random_colors(count: int, rng: np.random.Generator) -> _Array:
    """Random colours of shape (count, 3): hues as far apart as they can be, in random order."""
    hues = (rng.permutation(count) + rng.random()) / max(count, 1)
    values = rng.uniform(0.55, 0.9, count)
    return np.array(
        [colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, np.full(count, 0.85), values, strict=True)]
    ).reshape(count, 3)


def _chord(p: _Array, q: _Array, radius: float) -> Path:
    """An arc between two points of the unit circle that meets it at right angles.

    Even neighbours are then joined by an arc that shows. The ends are drawn in to the given radius.
    """
    angle = math.acos(np.clip(p @ q, -1, 1))
    # How far a cubic's control points are along the tangents, of an arc of pi - angle and of radius
    # tan(angle / 2).
    pull = 4 / 3 * math.tan((math.pi - angle) / 4) * math.tan(angle / 2)
    points = radius * np.array([p, (1 - pull) * p, (1 - pull) * q, q])
    return Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
