"""Pictures of permutations: movements and cycles (Figures 5 and 6)."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from p2t_jax import _checks
from p2t_jax.permutations import cycle_labels
from p2t_jax.plots import _inputs
from p2t_jax.plots._inputs import Array

_UNUSED = "lightgrey"  # permissible movements in no cycle
_VERTICES = {  # by the sign of the recommendation
    1: ("turquoise", "to get a smaller weight"),
    -1: ("gold", "to get a larger weight"),
    0: ("white", "to keep its weight"),
}


def permissible_movements(
    weights: Any,
    recommendations: Any,
    aggressiveness: float,
    *,
    subset: Any = None,
    lower: str = "mean",
) -> npt.NDArray[np.int64]:
    r"""Lists the permissible movements within a subset of a weight vector (Section 2.1).

    A movement (x, y) gives place x the weight of place y. It is permissible if it follows the
    recommendation of x and is short enough:

    .. math:: r_x (w_x - w_y) > 0 \quad \text{and} \quad |w_x - w_y| < u = \ell + \alpha A,

    with A the range of the whole vector. Weights with a recommendation of 0 take no part. This is
    for pictures: SGPerm itself never lists movements.

    Args:
        weights: w, of shape (n,).
        recommendations: r, of shape (n,).
        aggressiveness: :math:`\alpha \in (0, 1]`.
        subset: indices or a boolean mask; all by default.
        lower: what :math:`\ell` is. With "mean" it is A / m for the m weights of the subset that
            take part, with "smallest" the smallest distance between two of them.

    Returns:
        An array of shape (k, 2) with a row for each movement (x, y), in ascending order. It is
        empty if a weight is not finite.

    Raises:
        TypeError: If one of the arrays, or `aggressiveness`, is not of real numbers.
        ValueError: If shapes differ, `aggressiveness` is outside (0, 1], `subset` is out of range,
            or `lower` is neither "mean" nor "smallest".

    Example:
        >>> from p2t_jax.plots import permissible_movements
        >>> permissible_movements([0.0, 0.5, 0.6, 1.0], [-1.0, 1.0, 0.0, 1.0], 0.2).tolist()
        [[0, 1], [1, 0], [3, 1]]
    """
    w = _inputs.real_vector("weights", weights).astype(np.float64)
    r = _inputs.real_vector("recommendations", recommendations, w.size)
    alpha = _checks.real_scalar("aggressiveness", aggressiveness)
    if alpha is None or not 0 < alpha <= 1:
        raise ValueError(f"aggressiveness: must be in (0, 1], got {aggressiveness}.")
    if lower not in ("mean", "smallest"):
        raise ValueError(f"lower: must be 'mean' or 'smallest', got {lower!r}.")
    members = np.unique(_inputs.subset_places(subset, w.size))
    members = members[np.abs(r[members]) > 0]
    if members.size < 2 or not np.isfinite(w).all():
        return np.empty((0, 2), np.int64)
    difference = w[members, None] - w[members]
    distance = np.abs(difference)
    smallest = distance[~np.eye(members.size, dtype=bool)].min()
    u = (np.ptp(w) / members.size if lower == "mean" else smallest) + alpha * np.ptp(w)
    x, y = np.nonzero((np.sign(r[members, None]) * difference > 0) & (distance < u))
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

    The vertices are the places of a weight vector, counterclockwise by ascending weight from the
    right. An arrow from x to y is the movement (x, y): x gets the weight of y. The arrows of a
    cycle have the same random colour; permissible movements in no cycle are light grey. Places that
    keep their weight have no coloured arrow. `ax.legend()` explains the colours.

    Args:
        weights: the weight vector before the permutation, of shape (n,).
        source: where each weight comes from, of shape (n,): the weights become
            `weights[source]`. A row of a leaf of `p2t_jax.permutations.permutation_of`.
        recommendations: if given, of shape (n,): vertices are turquoise where it is positive, gold
            where it is negative and white elsewhere. Otherwise they are dark grey.
        permissible: if given, the permissible movements: an array of shape (k, 2), see
            `permissible_movements`.
        subset: the places to draw: indices or a boolean mask; all by default. Weights must not move
            in or out of it.
        seed: seed of the colours.
        ax: where to draw.

    Returns:
        The Axes, with its axis off; its patches are the arrows.

    Raises:
        TypeError: If an array is not of real numbers, or indices are not integers.
        ValueError: If shapes differ; if `source` is not a permutation, or moves weights in or out
            of `subset`; if `permissible` has places outside of it.

    Example:
        >>> import jax.numpy as jnp, p2t_jax as p2t, p2t_jax.plots
        >>> ax = p2t.plots.chords(jnp.array([0.3, 0.1, 0.2, 0.4]), [1, 2, 0, 3])
        >>> len(ax.patches)
        3
    """
    w = _inputs.real_vector("weights", weights)
    members = np.unique(_inputs.subset_places(subset, w.size))
    source = _checked_source(source, w.size, members)
    pairs = _checked_pairs(permissible, w.size, members)
    seed = _inputs.whole_number("seed", seed)
    signs = None
    if recommendations is not None:
        r = _inputs.real_vector("recommendations", recommendations, w.size)[members]
        signs = np.where(r > 0, 1, np.where(r < 0, -1, 0))

    ax = _inputs.axes_or_current(ax)
    at = _circle(w, members)
    step = 2 * np.pi / max(members.size, 1)
    radius = min(0.03, 0.35 * step)
    head = float(np.clip(600 / max(members.size, 1), 3, 8))  # points

    def arrow(x: int, y: int, **style: Any) -> None:
        path = _chord(at[x], at[y], 1 - radius)
        ax.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=head, **style))

    for x, y in pairs[source[pairs[:, 0]] != pairs[:, 1]]:
        arrow(x, y, color=_UNUSED, linewidth=0.5, zorder=1)
    moved = members[source[members] != members]
    cycles, cycle = np.unique(np.asarray(cycle_labels(source))[moved], return_inverse=True)
    colors = _inputs.random_colors(len(cycles), np.random.default_rng(seed))[cycle]
    for x, color in zip(moved, colors, strict=True):
        arrow(x, source[x], color=color, linewidth=1.2, zorder=2)
    _draw_vertices(ax, at[members], radius, signs)
    if pairs.size:
        ax.plot([], [], color=_UNUSED, label="permissible")
    ax.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    ax.set_axis_off()
    return ax


def _checked_source(value: Any, n: int, members: Array) -> Array:
    source = _inputs.places("source", value, n)
    if source.shape != (n,) or len(np.unique(source)) < n:
        raise ValueError(
            f"source: expected a permutation of 0 to {n - 1}, got shape {source.shape} with "
            f"{len(np.unique(source))} distinct places."
        )
    if not np.isin(source[members], members).all():
        raise ValueError("subset: the permutation moves weights into it or out of it.")
    return source


def _checked_pairs(permissible: Any, n: int, members: Array) -> Array:
    if permissible is None or not np.size(permissible):
        return np.empty((0, 2), np.int64)
    pairs = _inputs.places("permissible", permissible, n)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isin(pairs, members).all():
        raise ValueError(
            "permissible: expected movements (x, y) within the subset, of shape (k, 2), got shape "
            f"{pairs.shape}."
        )
    return pairs


def _circle(w: Array, members: Array) -> Array:
    """Points of the unit circle for the members, by ascending weight; others have none."""
    at = np.full((w.size, 2), np.nan)
    angles = 2 * np.pi / max(members.size, 1) * np.arange(members.size)
    by_weight = members[np.argsort(w[members], kind="stable")]
    at[by_weight] = np.column_stack([np.cos(angles), np.sin(angles)])
    return at


def _draw_vertices(ax: Axes, at: Array, radius: float, signs: Array | None) -> None:
    """Circles in the colours of the recommendations, each with an entry for the legend."""
    colors: Any = "0.25" if signs is None else [_VERTICES[sign][0] for sign in signs]
    ax.add_collection(
        EllipseCollection(
            *([2 * radius], [2 * radius], [0]),
            units="xy",
            offsets=at,
            offset_transform=ax.transData,
            facecolors=colors,
            edgecolors="0.25",
            linewidths=0.5,
            zorder=3,
        )
    )
    for sign, (color, label) in _VERTICES.items():
        if signs is not None and sign in signs:
            style: dict[str, Any] = {"markeredgecolor": "0.25", "linestyle": "none"}
            ax.plot([], [], "o", color=color, label=label, **style)


def _chord(p: Array, q: Array, radius: float) -> Path:
    """An arc between two points of the unit circle that meets it at right angles.

    Even neighbours are then joined by an arc that shows. The ends are drawn in to the given radius.
    """
    angle = math.acos(np.clip(p @ q, -1, 1))
    # How far a cubic's control points are along the tangents, of an arc of pi - angle and of radius
    # tan(angle / 2).
    pull = 4 / 3 * math.tan((math.pi - angle) / 4) * math.tan(angle / 2)
    points = radius * np.array([p, (1 - pull) * p, (1 - pull) * q, q])
    return Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
