"""The pictures show what they are given, on the Axes they are given."""

import itertools
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import p2t_jax as p2t

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.animation import AbstractMovieWriter
from matplotlib.colors import to_rgba

from p2t_jax import plots

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(6, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def well_behaved(monkeypatch):
    """No picture is shown by itself, and no setting changes."""
    before = dict(mpl.rcParams)
    plt.close("all")  # what other tests left, the docstrings' examples for one
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")


@pytest.fixture
def ax():
    _, (ax, _) = plt.subplots(1, 2)  # plt.gca() is the other one
    return ax


def points(collection):
    return np.ma.getdata(collection.get_offsets()).tolist()


DRAWERS = {
    "profile": lambda **kw: plots.profile(KERNEL, **kw),
    "weight_vector": lambda **kw: plots.weight_vector(KERNEL, (6, 4), **kw),
    "connections": lambda **kw: plots.connections(KERNEL, **kw),
    "chords": lambda **kw: plots.chords(KERNEL[:, 0], [1, 0, 2, 3, 4, 5], **kw),
    "learning_curve": lambda **kw: plots.learning_curve([0, 10], [0.1, 0.9], **kw),
}


@pytest.mark.parametrize("draw", DRAWERS.values(), ids=DRAWERS)
def test_a_picture_is_drawn_on_the_axes_it_is_given_and_returns_them(draw, ax):
    assert draw(ax=ax) is ax
    assert ax.has_data()
    assert not plt.gca().has_data()
    assert draw() is plt.gca()
    assert plt.gca().has_data()
    plt.gcf().canvas.draw()


@pytest.mark.parametrize("draw", DRAWERS.values(), ids=DRAWERS)
def test_what_is_no_axes_is_refused(draw):
    with pytest.raises(TypeError, match="ax: "):
        draw(ax=plt.figure())


# Profiles


def test_a_profile_is_every_weight_vector_sorted(ax):
    dots = plots.profile(jnp.asarray(KERNEL), ax=ax).collections[0]
    expected = [[i, w] for j in range(4) for i, w in enumerate(sorted(KERNEL[:, j].tolist()))]
    np.testing.assert_allclose(points(dots), expected)
    assert ax.get_xlabel() == "rank"


def test_unsorted_weights_stay_at_their_places(ax):
    dots = plots.profile(KERNEL, sort=False, ax=ax).collections[0]
    expected = [[i, KERNEL[i, j]] for j in range(4) for i in range(6)]
    np.testing.assert_allclose(points(dots), expected)


def test_each_weight_vector_has_its_own_colour(ax):
    colors = plots.profile(KERNEL, ax=ax).collections[0].get_facecolor().reshape(4, 6, 4)
    assert (colors == colors[:, :1]).all()
    assert len(np.unique(colors[:, 0], axis=0)) == 4


@pytest.mark.parametrize(
    ("shape", "axes", "n"),
    [((3, 3, 2, 5), (0, 1, 2), 18), ((5, 7), 1, 7), ((9,), 0, 9), ((2, 3, 4), None, 6)],
)
def test_the_vectors_lie_where_the_spec_says(shape, axes, n, ax):
    weights = RNG.normal(size=shape)
    dots = plots.profile(weights, vectors=axes, ax=ax).collections[0]
    columns = np.array(points(dots))[:, 1].reshape(-1, n)
    axes = np.atleast_1d((0, 1) if axes is None else axes)
    rows = np.moveaxis(weights, axes, range(-len(axes), 0)).reshape(-1, n)
    np.testing.assert_allclose(columns, np.sort(rows, axis=1))


def test_of_many_weights_a_random_sample_is_drawn(ax):
    weights = RNG.normal(size=(50, 40))
    dots = plots.profile(weights, max_points=300, ax=ax).collections[0]
    drawn = {tuple(point) for point in points(dots)}
    every = {(i, w) for column in np.sort(weights, axis=0).T for i, w in enumerate(column)}
    assert len(drawn) == 300
    assert drawn <= every
    other = plots.profile(weights, max_points=300, seed=1, ax=ax).collections[1]
    assert points(other) != points(dots)


@pytest.mark.parametrize("subset", [[4, 0, 2], np.array([True, False, True, False, True, False])])
def test_a_subset_is_marked_at_its_ranks(subset, ax):
    vector = np.array([0.3, 0.1, 0.2, 0.6, 0.5, 0.4])
    _, marks = plots.profile(vector, subset=subset, ax=ax).collections
    assert points(marks) == [[1, 0.2], [2, 0.3], [4, 0.5]]
    assert to_rgba("black") in map(tuple, marks.get_facecolor())
    marks = plots.profile(vector, subset=subset, sort=False, ax=ax).collections[-1]
    assert sorted(points(marks)) == [[0, 0.3], [2, 0.2], [4, 0.5]]


def test_the_profiles_of_a_tree():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.ones(5)},
        "dense": {"kernel": jnp.ones((7, 2), jnp.bfloat16)},
    }
    axs = plots.profiles(params)
    assert [ax.get_title() for ax in axs] == ["conv/kernel", "dense/kernel"]
    assert [len(points(ax.collections[0])) for ax in axs] == [90, 14]
    assert axs[0].figure.axes == list(axs)


def test_the_profiles_of_a_tree_on_given_axes(ax):
    rest = ax.figure.axes[1]
    assert plots.profiles([KERNEL, KERNEL], vectors=0, axs=[rest, ax], sort=False).tolist() == [
        rest,
        ax,
    ]
    assert rest.get_title() == "0"
    assert rest.get_xlabel() == "place"


@pytest.mark.parametrize("count", range(1, 8))
def test_a_new_figure_has_as_many_axes_as_parameters(count):
    assert len(plots.profiles([KERNEL] * count, vectors=0)[0].figure.axes) == count


# Heat maps


def test_a_heat_map_shows_the_vector_in_its_shape_around_zero(ax):
    image = plots.weight_vector(jnp.asarray(KERNEL).ravel(), (3, 8), ax=ax).images[0]
    np.testing.assert_array_equal(image.get_array(), KERNEL.reshape(3, 8))
    limit = np.abs(KERNEL).max()
    assert image.get_clim() == (-limit, limit)


def test_the_sign_of_a_weight_is_its_hue_and_its_size_the_darkness(ax):
    image = plots.weight_vector([-1.0, -0.5, 0.0, 0.5, 1.0], (1, 5), ax=ax).images[0]
    colors = image.to_rgba(image.get_array())[0]
    assert (np.sign(colors[:, 0] - colors[:, 2]) == [-1, -1, 0, 1, 1])[[0, 1, 3, 4]].all()
    brightness = colors[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.sign(np.diff(brightness)) == [1, 1, -1, -1]).all()


def test_heat_maps_before_and_after_a_permutation_have_the_same_colours(ax):
    before = plots.weight_vector(KERNEL[:, 0], (2, 3), ax=ax).images[0]
    after = plots.weight_vector(RNG.permutation(KERNEL[:, 0]), (2, 3), ax=ax).images[1]
    assert before.get_clim() == after.get_clim()


def test_weights_that_are_all_zero_or_not_finite_are_drawn(ax):
    for vector in (np.zeros(4), np.full(4, np.nan), [np.inf, 1.0, -2.0, np.nan]):
        plots.weight_vector(vector, (2, 2), ax=ax)
        plots.profile(np.array(vector), ax=ax)
    assert ax.images[-1].get_clim() == (-2, 2)
    ax.figure.canvas.draw()


def test_a_subset_is_boxed(ax):
    plots.weight_vector(KERNEL, (6, 4), subset=[0, 5, 23], ax=ax)
    (boxes,) = ax.collections
    corners = [path.vertices[:4].mean(axis=0).tolist() for path in boxes.get_paths()]
    assert corners == [[0, 0], [1, 1], [3, 5]]  # (column, row)
    assert to_rgba("black") in map(tuple, boxes.get_edgecolor())
    assert not boxes.get_facecolor().size


def test_options_go_to_matplotlib(ax):
    image = plots.weight_vector(KERNEL, (6, 4), cmap="gray", vmax=2.0, ax=ax).images[0]
    assert image.get_cmap().name == "gray"
    assert image.get_clim()[1] == 2
    assert plots.connections(KERNEL, cmap="gray", ax=ax).images[1].get_cmap().name == "gray"
    (line,) = plots.learning_curve([0, 1], [0, 1], linestyle="--", ax=ax).lines
    assert line.get_linestyle() == "--"


def test_connections_leave_zeros_blank_and_draw_all_else(ax):
    pruned = KERNEL * (RNG.random(KERNEL.shape) < 0.4)
    image = plots.connections(jnp.asarray(pruned), ax=ax).images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(image), pruned == 0)
    np.testing.assert_array_equal(image.filled(0), pruned)


def test_a_small_weight_is_told_from_none(ax):
    image = plots.connections(np.array([[1e-6, 0.0], [-1e-6, 1.0]]), ax=ax).images[0]
    small = image.to_rgba(image.get_array())[:, 0]
    assert (small[:, :3] < 0.2).all()
    assert image.to_rgba(image.get_array())[0, 1, 3] == 0


def test_the_scale_of_signed_weights_is_symmetric(ax):
    weights = RNG.normal(size=(30, 20))
    plots.connections(weights, ax=ax).set(xlim=(10, 15), ylim=(20, 10))  # a closer look
    limit = np.abs(weights).max()
    assert ax.images[0].get_clim() == (-limit, limit)
    assert list(ax.images[0].get_extent()) == [-0.5, 19.5, 29.5, -0.5]


def test_a_column_of_connections_is_a_weight_vector(ax):
    image = plots.connections(KERNEL, vectors=1, ax=ax).images[0].get_array()
    np.testing.assert_array_equal(image, KERNEL.T)
    conv = RNG.normal(size=(3, 3, 2, 5))
    image = plots.connections(conv, vectors=(0, 1, 2), ax=ax).images[1].get_array()
    np.testing.assert_array_equal(image[:, 4], conv[..., 4].ravel())


# Permissible movements and chords


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
    xy = np.array(points(vertices))
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
    assert len(points(ax.collections[0])) == 3
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


# Learning curves


def test_a_curve_of_one_run(ax):
    plots.learning_curve([0, 10, 20], jnp.array([0.25, 0.5, 0.75]), label="Adam", ax=ax)
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[0, 0.25], [10, 0.5], [20, 0.75]]
    assert not ax.collections
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Adam"]


def test_a_curve_without_a_label_has_no_legend(ax):
    assert plots.learning_curve([0, 10], [0.25, 0.5], ax=ax).get_legend() is None


def test_several_runs_are_their_mean_on_a_band(ax):
    runs = [[0.0, 0.5], [0.25, 0.75], [0.5, 1.0]]
    plots.learning_curve([0, 10], runs, ax=ax)
    assert ax.lines[0].get_ydata().tolist() == [0.25, 0.75]
    (band,) = ax.collections
    corners = {tuple(v) for v in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0, 0), (0, 0.5), (10, 0.5), (10, 1)}
    assert tuple(band.get_facecolor()[0][:3]) == to_rgba(ax.lines[0].get_color())[:3]


def test_phases_have_their_own_colours_and_meet(ax):
    phases = {"LAPerm": 0, "Adam (LAPerm reconnected)": 10}
    plots.learning_curve([0, 10, 20, 30], [0.0, 0.5, 0.6, 0.7], phases=phases, ax=ax)
    first, second = ax.lines
    assert first.get_xydata().tolist() == [[0, 0], [10, 0.5]]
    assert second.get_xydata().tolist() == [[10, 0.5], [20, 0.6], [30, 0.7]]
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(phases)


def test_a_phase_may_begin_between_two_evaluations(ax):
    phases = {"one": 0, "two": 12.5, "three": 100}
    plots.learning_curve([0, 10, 20], [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]], phases=phases, ax=ax)
    first, second, third = ax.lines
    assert first.get_xydata().tolist() == [[0, 0], [10, 0.25], [12.5, 0.3125]]
    assert second.get_xydata().tolist() == [[12.5, 0.3125], [20, 0.5]]
    assert third.get_xydata().tolist() == []


def test_every_optimizer_has_its_colour_wherever_it_is_drawn(ax):
    for label in ("another", "SGPerm", "Adam", "LAPerm with error feedback"):
        plots.learning_curve([0, 10], [0, 1], label=label, ax=ax)
    plots.learning_curve([0, 10], [0, 1], phases={"LAPerm": 0, "rest": 5}, ax=ax)
    colors = {line.get_label(): line.get_color() for line in ax.lines}
    assert {name: colors[name] for name in plots.COLORS} == plots.COLORS
    assert len(set(colors.values())) == 6
    plots.learning_curve([0, 10], [0, 1], label="Adam", color="red", ax=ax)
    assert ax.lines[-1].get_color() == "red"


def test_curves_drawn_one_after_the_other_share_axes(ax):
    plots.learning_curve([0, 10], [0, 1], label="SGPerm", ax=ax)
    plots.learning_curve([0, 10], [0, 1], label="Adam", ax=ax)
    assert len({line.get_color() for line in ax.lines}) == 2
    assert len(ax.get_legend().get_texts()) == 2


# Animation


class Recorder(AbstractMovieWriter):
    """Keeps what is on the Axes in each frame."""

    def __init__(self, ax):
        super().__init__()
        self.ax, self.frames, self.titles = ax, [], []

    def setup(self, fig, outfile, dpi=None):
        super().setup(fig, outfile, dpi)

    def grab_frame(self, **_):
        self.frames.append(np.array(self.ax.images[0].get_array()))
        self.titles.append(self.ax.get_title())

    def finish(self):
        pass


def test_an_animation_shows_each_frame_in_the_same_colours(ax, tmp_path):
    frames = [RNG.permutation(np.arange(-8.0, 8)) * scale for scale in (0.5, 0.25, 1, 0.5)]
    recorder = Recorder(ax)
    animation = plots.animate(frames, (2, 8), batches=[0, 5, 10, 20], ax=ax)
    animation.save(tmp_path / "unused", writer=recorder)
    np.testing.assert_array_equal(recorder.frames, np.reshape(frames, (4, 2, 8)))
    assert recorder.titles == [f"{batch} mini-batches" for batch in (0, 5, 10, 20)]
    assert ax.images[0].get_clim() == (-8, 8)


def test_an_animation_is_saved_as_a_gif(ax, tmp_path):
    frames = jax.random.normal(jax.random.key(0), (3, 4, 4))
    plots.animate(frames, (4, 4), interval=50, ax=ax).save(tmp_path / "w.gif", writer="pillow")
    with Image.open(tmp_path / "w.gif") as gif:
        assert gif.n_frames == 3


def test_whole_numbers_may_be_floats(ax):
    assert len(plots.profile(KERNEL, max_points=1e1, ax=ax).collections[0].get_offsets()) == 10
    assert plots.weight_vector(KERNEL, (6.0, 4.0), ax=ax).images[0].get_array().shape == (6, 4)


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.profile({"kernel": KERNEL}), TypeError, "weights: "),
        (lambda: plots.profile(KERNEL.astype(complex)), TypeError, "weights: "),
        (lambda: plots.profile(1.0), ValueError, "vectors: "),
        (lambda: plots.profile(KERNEL, vectors=2), ValueError, "vectors: "),
        (lambda: plots.profile(KERNEL, subset=[0]), ValueError, "subset: .* got 4"),
        (lambda: plots.profile(KERNEL[:, 0], subset=[6]), ValueError, "subset: .*0 to 5"),
        (lambda: plots.profile(KERNEL[:, 0], subset=[-1]), ValueError, "subset: "),
        (lambda: plots.profile(KERNEL[:, 0], subset=[True]), ValueError, "subset: "),
        (lambda: plots.profile(KERNEL[:, 0], subset=[0.5]), TypeError, "subset: "),
        (lambda: plots.profile(KERNEL, max_points=9.5), ValueError, "max_points: .* got 9.5"),
        (lambda: plots.profile(KERNEL, max_points="9"), TypeError, "max_points: "),
        (lambda: plots.profile(KERNEL, seed=0.5), ValueError, "seed: must be a whole number"),
        (lambda: plots.chords([1, 2], [1, 0], seed=0.5), ValueError, "seed: must be a whole"),
        (lambda: plots.weight_vector(KERNEL, (2.5, 9.6)), ValueError, "shape: must be a whole"),
        (lambda: plots.profiles({"bias": np.ones(3)}), ValueError, "params: "),
        (
            lambda: plots.profiles([KERNEL, KERNEL], vectors=0, axs=[plt.gca()]),
            ValueError,
            "axs: expected 2 .* got 1",
        ),
        (lambda: plots.weight_vector(KERNEL, (5, 5)), ValueError, "shape: .* 24, "),
        (lambda: plots.weight_vector(KERNEL, 24), ValueError, "shape: "),
        (lambda: plots.weight_vector(KERNEL, (6, 4), subset=[24]), ValueError, "subset: "),
        (lambda: plots.connections(KERNEL, vectors=2), ValueError, "vectors: "),
        (lambda: plots.permissible_movements(KERNEL, [0], 0.5), ValueError, "weights: "),
        (lambda: plots.permissible_movements([1, 2], [0], 0.5), ValueError, "recommendations: "),
        (lambda: plots.permissible_movements([1], [0], 0.0), ValueError, "aggressiveness: "),
        (lambda: plots.permissible_movements([1], [0], "a"), TypeError, "aggressiveness: "),
        (lambda: plots.permissible_movements([1], [0], 0.5, lower="x"), ValueError, "lower: .*'x'"),
        (lambda: plots.chords(KERNEL, [0]), ValueError, "weights: "),
        (lambda: plots.chords([1, 2, 3], [0, 1]), ValueError, "source: "),
        (lambda: plots.chords([1, 2, 3], [0, 1, 1]), ValueError, "source: "),
        (lambda: plots.chords([1, 2, 3], [0, 1, 3]), ValueError, "source: "),
        (lambda: plots.chords([1, 2, 3], [0, 1, -1]), ValueError, "source: "),
        (lambda: plots.chords([1, 2], [0.0, 1.0]), TypeError, "source: "),
        (lambda: plots.chords([1, 2], [1, 0], subset=[0]), ValueError, "subset: "),
        (lambda: plots.chords([1, 2], [1, 0], recommendations=[1]), ValueError, "recommendations"),
        (lambda: plots.chords([1, 2], [1, 0], permissible=[0, 1]), ValueError, "permissible: "),
        (lambda: plots.chords([1, 2], [1, 0], permissible=[[0, 2]]), ValueError, "permissible: "),
        (lambda: plots.learning_curve([0, 1], [0.5]), ValueError, "accuracy: "),
        (lambda: plots.learning_curve([[0, 1]], [0, 1]), ValueError, "batches: "),
        (lambda: plots.learning_curve([1, 1], [0, 1]), ValueError, "batches: "),
        (lambda: plots.learning_curve([], []), ValueError, "accuracy: "),
        (
            lambda: plots.learning_curve([0, 1], [0, 1], label="a", phases={"b": 0}),
            ValueError,
            "label: ",
        ),
        (lambda: plots.learning_curve([0, 1], [0, 1], phases={"b": 1}), ValueError, "phases: "),
        (
            lambda: plots.learning_curve([0, 1], [0, 1], phases={"a": 0, "b": 0}),
            ValueError,
            "phases: ",
        ),
        (lambda: plots.learning_curve([0, 1], [0, 1], phases={}), ValueError, "phases: "),
        (lambda: plots.animate(np.ones(4), (2, 2)), ValueError, "frames: "),
        (lambda: plots.animate(np.ones((0, 4)), (2, 2)), ValueError, "frames: "),
        (lambda: plots.animate(np.ones((3, 4)), (3, 2)), ValueError, "shape: "),
        (lambda: plots.animate(np.ones((3, 4)), (2, 2), batches=[0]), ValueError, "batches: "),
    ],
)
def test_bad_input_is_refused_by_name_and_draws_nothing(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert not any(ax.has_data() for number in plt.get_fignums() for ax in plt.figure(number).axes)


def test_without_matplotlib_only_the_pictures_are_missing():
    code = """
import sys
sys.modules["matplotlib"] = None
import p2t_jax
try:
    import p2t_jax.plots
except ImportError as error:
    assert "matplotlib" in str(error), error
else:
    raise AssertionError("p2t_jax.plots came without Matplotlib")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Movement


def movement_history():
    start = {"a": {"kernel": KERNEL}, "b": {"kernel": -KERNEL}}
    steps = (start, {"a": {"kernel": KERNEL[::-1]}, "b": {"kernel": -KERNEL}})
    return [p2t.metrics.movement(step, start) for step in steps]


def test_movement_has_a_line_for_each_parameter_and_one_for_all(ax):
    history = movement_history()
    assert plots.movement([0, 20], history, what="moved", ax=ax) is ax
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert lines == {"a/kernel": [0, 1], "b/kernel": [0, 0], "all weights": [0, 0.5]}
    assert ax.get_ylabel() == "moved"


@pytest.mark.parametrize("change", [{"what": "bias"}, {"history": []}, {"batches": [0]}])
def test_movement_refuses_what_does_not_fit(change):
    arguments = {"batches": [0, 20], "history": movement_history(), "what": "moved"} | change
    with pytest.raises(ValueError, match=r"what: |batches: "):
        plots.movement(**arguments)


def test_plots_are_imported_when_they_are_first_used():
    code = (
        "import sys, p2t_jax as p2t\n"
        "assert 'matplotlib' not in sys.modules\n"
        "print(p2t.plots.COLORS['Adam'])"
    )
    assert helpers.in_a_new_process(code) == plots.COLORS["Adam"]
    with pytest.raises(AttributeError, match="plotz"):
        _ = p2t.plotz
