"""Pictures of training: learning curves (Figures 8, 10 and 15), and weights that move."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes

from p2t_jax.plots import _inputs
from p2t_jax.plots._inputs import Array
from p2t_jax.plots._weights import weight_vector

# Okabe and Ito's palette, without its yellow, which is hard to see as a line.
COLORS = {
    "Adam": "#0072B2",
    "LAPerm": "#D55E00",
    "LAPerm with error feedback": "#CC79A7",
    "SGPerm": "#009E73",
}
_OTHER_COLORS = ("#56B4E9", "#E69F00", "#000000")


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

    Several runs are drawn as their mean, on a band from the lowest to the highest. Phases of
    training have a colour and a label each: Figure 15 has
    `{"LAPerm": 0, "Adam (LAPerm reconnected)": 1500}`. Labels in `COLORS` have their colour from
    there.

    Args:
        batches: mini-batches before each evaluation, ascending, of shape (t,).
        accuracy: of shape (t,), or (runs, t).
        label: the curve's name in the legend.
        phases: instead of `label`, the names of the phases and the mini-batch at which each begins,
            ascending. The first begins no later than the curve.
        ax: where to draw.
        **options: for `Axes.plot`.

    Returns:
        The Axes; it has a line, and for several runs a band, for each phase.

    Raises:
        TypeError: If one of the arrays is not of real numbers.
        ValueError: If shapes do not fit; if `batches` or the phases are not ascending, or the first
            phase begins after the curve; if both `label` and `phases` are given.

    Example:
        >>> import p2t_jax as p2t, p2t_jax.plots
        >>> ax = p2t.plots.learning_curve(
        ...     [0, 100, 200], [0.1, 0.6, 0.9], phases={"LAPerm": 0, "Adam": 100}
        ... )
        >>> ax.lines[-1].get_label(), ax.lines[-1].get_xdata().tolist()
        ('Adam', [100.0, 200.0])
    """
    x = _inputs.real_vector("batches", batches).astype(np.float64)
    y = np.atleast_2d(_inputs.real_array("accuracy", accuracy))
    if y.ndim != 2 or y.shape[1] != x.size or 0 in y.shape:
        raise ValueError(
            f"accuracy: expected shape ({x.size},) or (runs, {x.size}), as batches has {x.size} "
            f"entries, got {np.shape(accuracy)}."
        )
    if not (np.diff(x) > 0).all():
        raise ValueError("batches: must be ascending.")
    if phases is not None and label is not None:
        raise ValueError("label: must be None if phases are given, which have their own labels.")
    named = {label: x[0]} if phases is None else phases
    starts = np.array([*named.values(), np.inf], np.float64)
    if not ((np.diff(starts) > 0).all() and starts[0] <= x[0]):
        raise ValueError(
            f"phases: must be ascending and begin no later than the curve, at {x[0]:g}, got "
            f"{starts[:-1].tolist()}."
        )
    x, y = _joined(x, y, starts)

    ax = _inputs.axes_or_current(ax)
    for name, start, end in zip(named, starts[:-1], starts[1:], strict=True):
        inside = (start <= x) & (x <= end)
        runs = y[:, inside]
        style = {"label": name, "color": COLORS.get(name or "", _next_color(ax))} | options
        (line,) = ax.plot(x[inside], runs.mean(axis=0), **style)
        if len(runs) > 1:
            band: dict[str, Any] = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
            ax.fill_between(x[inside], runs.min(axis=0), runs.max(axis=0), **band)
    ax.set(xlabel="mini-batches", ylabel="accuracy")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right", fontsize="small")
    return ax


def _next_color(ax: Axes) -> str:
    used = {line.get_color() for line in ax.lines}
    return next((color for color in _OTHER_COLORS if color not in used), f"C{len(ax.lines)}")


def _joined(x: Array, y: Array, starts: Array) -> tuple[Array, Array]:
    """The curve with a point where phases meet, so that it does not break between evaluations."""
    for border in starts[(starts > x[0]) & (starts < x[-1]) & ~np.isin(starts, x)]:
        i = np.searchsorted(x, border)
        share = (border - x[i - 1]) / (x[i] - x[i - 1])
        y = np.insert(y, i, (1 - share) * y[:, i - 1] + share * y[:, i], axis=1)
        x = np.insert(x, i, border)
    return x, y


def movement(
    batches: Any,
    history: Sequence[Mapping[str, Any]],
    *,
    what: str = "correlation",
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws how far the weights have moved, against mini-batches: a line for each parameter.

    The mean over all weights is a thicker, black line.

    Args:
        batches: mini-batches before each entry of `history`, of shape (t,).
        history: what `p2t.metrics.movement` returned at these times.
        what: which of its numbers: "moved", "change", "correlation" or "rank_distance".
        ax: where to draw.
        **options: for `Axes.plot`.

    Returns:
        The Axes; it has a line for each parameter, and then one for all.

    Raises:
        TypeError: If `batches` or a number in `history` is not a real number.
        ValueError: If shapes do not fit, or `history` has no such number.

    Example:
        >>> import jax, p2t_jax as p2t
        >>> start = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}
        >>> end = {"kernel": start["kernel"][::-1]}
        >>> history = [p2t.metrics.movement(params, start) for params in (start, end)]
        >>> ax = p2t.plots.movement([0, 100], history)
        >>> [line.get_label() for line in ax.lines[-2:]]
        ['kernel', 'all weights']
    """
    x = _inputs.real_vector("batches", batches, len(history))
    names = [key for key in history[0] if key.endswith(f"/{what}")] if history else []
    if not names or any(key not in entry for entry in history for key in (*names, what)):
        raise ValueError(
            f"what: expected a number that all of history has, for every parameter, got {what!r}."
        )
    ax = _inputs.axes_or_current(ax)
    for name in names:
        y = _inputs.real_vector("history", [float(entry[name]) for entry in history])
        ax.plot(x, y, **{"label": name.removesuffix(f"/{what}")} | options)
    y = _inputs.real_vector("history", [float(entry[what]) for entry in history])
    of_all: dict[str, Any] = {"label": "all weights", "color": "black", "linewidth": 2.5}
    ax.plot(x, y, **of_all | options)
    ax.set(xlabel="mini-batches", ylabel=what.replace("_", " "))
    ax.legend(fontsize="small")
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
    """Draws a weight vector that changes during training: `weight_vector`, frame by frame.

    Keep the result and save it: `animation.save("weights.gif", writer="pillow")`.

    Args:
        frames: the weight vector at several times, of shape (frames, n).
        shape: rows and columns of the picture.
        batches: if given, the mini-batches before each frame, for the title.
        interval: milliseconds per frame.
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
    history = _inputs.real_array("frames", frames)
    if history.ndim < 2 or not len(history):
        raise ValueError(
            f"frames: expected one or more weight vectors, (frames, n), got shape {history.shape}."
        )
    history = history.reshape(len(history), -1)
    images = [_inputs.picture("a frame", vector, shape) for vector in history]
    titles = None if batches is None else _inputs.real_vector("batches", batches, len(images))
    ax = _inputs.axes_or_current(ax)
    ax = weight_vector(images[0], shape, ax=ax, **_inputs.signed_colors(history) | options)
    image = ax.images[-1]

    def draw(i: int) -> Iterable[Any]:
        image.set_data(images[i])
        if titles is not None:
            ax.set_title(f"{titles[i]:g} mini-batches")
        return (image,)

    draw(0)
    return FuncAnimation(ax.figure.canvas.figure, draw, frames=len(images), interval=interval)
