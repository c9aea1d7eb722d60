"""Permissible movements, and the chords of a permutation."""

import itertools

import helpers
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import p2t_jax as p2t

mpl.use("Agg")
from matplotlib.colors import to_rgba

from p2t_jax import plots

pytestmark = pytest.mark.usefixtures("no_picture_shown")
RNG = np.random.default_rng(0)


values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0]) | st.floats(-3, 3, width=32)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), n=st.integers(1, 12), alpha=st.floats(0.01, 1))
@pytest.mark.parametrize("lower", ["mean", "smallest"])
def test_permissible_movements_are_those_of_section_2_1(lower, data, n, alpha):
    w, r = (data.draw(st.lists(values, min_size=n, max_size=n)) for _ in range(2))
    subset = data.draw(st.lists(st.integers(0, n - 1), unique=True) | st.none())
    members = sorted(i for i in (range(n) if subset is None else subset) if r[i] != 0)
    expected = []
    if len(members) > 1:
        smallest = min(abs(w[x] - w[y]) for x, y in itertools.combinations(members, 2))
        whole = max(w) - min(w)
        u = (whole / len(members) if lower == "mean" else smallest) + alpha * whole
        for x, y in itertools.product(members, members):
            follows = w[x] > w[y] if r[x] > 0 else w[x] < w[y]
            if follows and abs(w[x] - w[y]) < u:
                expected.append([x, y])
    found = plots.permissible_movements(np.array(w), np.array(r), alpha, subset=subset, lower=lower)
    assert found.tolist() == expected
    assert found.shape == (len(expected), 2)


def sgperm_step(w, r, alpha):
    """One step on a single vector in one subset: where each weight comes from."""
    weights, updates = jnp.asarray(w, jnp.float32), -jnp.asarray(r, jnp.float32)
    tx = p2t.cycle_permutation(0, alpha, 1.0, vectors=0)
    _, state = tx.update(updates, tx.init(weights), weights)
    after = np.asarray(p2t.permuted_params(state, weights))
    return weights, np.array([np.flatnonzero(np.asarray(weights) == a)[0] for a in after])


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_what_sgperm_moves_is_permissible(alpha):
    w, r = RNG.uniform(-1, 1, 40), RNG.normal(size=40)
    weights, source = sgperm_step(w, r, alpha)
    moved = np.flatnonzero(source != np.arange(40))
    permissible = plots.permissible_movements(weights, r, alpha).tolist()
    assert moved.size
    assert all([x, source[x]] in permissible for x in moved)


def test_weights_that_are_not_finite_move_nowhere():
    assert plots.permissible_movements([0.0, np.inf, 1.0], [0.0] * 3, 0.5).shape == (0, 2)


def arrows(ax):
    """Each arrow's vertices, by the angle at which it starts and ends, and its colour."""
    found = []
    for patch in ax.patches:
        path = patch._path_original.vertices
        angles = np.arctan2(path[[0, -1], 1], path[[0, -1], 0]) % (2 * np.pi)
        found.append((*angles, patch.get_edgecolor()))
    return found


def rank_pairs(ax, n):
    return sorted(tuple(round(a * n / (2 * np.pi)) % n for a in arrow[:2]) for arrow in arrows(ax))


def test_vertices_go_counterclockwise_by_weight_coloured_by_recommendation(ax):
    w = np.array([0.4, -1.0, 0.0, 2.0, 0.1])
    r = np.array([1.0, -1.0, 0.0, 2.0, np.nan])
    (vertices,) = plots.chords(w, np.arange(5), recommendations=r, ax=ax).collections
    xy = np.array(helpers.points(vertices))
    np.testing.assert_allclose(np.hypot(*xy.T), 1)
    angle = np.arctan2(xy[:, 1], xy[:, 0]) % (2 * np.pi)
    assert np.argsort(angle).tolist() == np.argsort(w).tolist()
    np.testing.assert_allclose(np.diff(np.sort(angle)), 2 * np.pi / 5)
    expected = ["turquoise", "gold", "white", "turquoise", "white"]
    np.testing.assert_allclose(vertices.get_facecolor(), [to_rgba(name) for name in expected])
    assert not ax.patches
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["to get a smaller weight", "to get a larger weight", "to keep its weight"]


def test_every_cycle_has_arrows_of_its_own_colour(ax):
    # In ascending order, so that places are ranks: two cycles, and two weights that stay.
    source = np.array([2, 1, 4, 5, 0, 3, 6])
    plots.chords(jnp.arange(7.0), jnp.asarray(source), ax=ax)
    assert rank_pairs(ax, 7) == [(0, 2), (2, 4), (3, 5), (4, 0), (5, 3)]
    colors = {}
    for start, _, color in arrows(ax):
        colors.setdefault(round(start * 7 / (2 * np.pi)) in (0, 2, 4), set()).add(color)
    assert [len(found) for found in colors.values()] == [1, 1]
    assert colors[True] != colors[False]


def test_permissible_movements_in_no_cycle_are_light_grey(ax):
    permissible = [[0, 1], [1, 0], [1, 2], [3, 2]]
    plots.chords([0.0, 1.0, 2.0, 3.0], [1, 0, 2, 3], permissible=permissible, ax=ax)
    assert rank_pairs(ax, 4) == [(0, 1), (1, 0), (1, 2), (3, 2)]
    grey = [arrow for arrow in arrows(ax) if arrow[2] == to_rgba("lightgrey")]
    assert len(grey) == 2


def test_chords_of_a_subset(ax):
    w = np.array([5.0, 3.0, 4.0, 1.0, 2.0])
    source = np.array([1, 0, 2, 4, 3])
    plots.chords(w, source, subset=[3, 4, 2], permissible=[[2, 3]], ax=ax)
    assert len(helpers.points(ax.collections[0])) == 3
    assert rank_pairs(ax, 3) == [(0, 1), (1, 0), (2, 0)]


def test_chords_end_at_their_vertices_and_stay_in_the_circle(ax):
    n = 60
    plots.chords(np.arange(n), RNG.permutation(n), ax=ax)
    for patch in ax.patches:
        along = np.concatenate(
            [curve(np.linspace(0, 1, 20)) for curve, _ in patch._path_original.iter_bezier()]
        )
        radii = np.hypot(*along.T)
        assert radii[0] == pytest.approx(radii[-1])
        assert 0.95 < radii[0] < 1
        assert radii.max() <= radii[0] + 1e-9
    ax.figure.canvas.draw()
