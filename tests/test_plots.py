"""The pictures show what they are given, on the Axes they are given."""

import subprocess
import sys

import helpers
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import p2t_jax as p2t

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgba

from p2t_jax import plots

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(6, 4)).astype(np.float32)


pytestmark = pytest.mark.usefixtures("no_picture_shown")


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
    np.testing.assert_allclose(helpers.points(dots), expected)
    assert ax.get_xlabel() == "rank"


def test_unsorted_weights_stay_at_their_places(ax):
    dots = plots.profile(KERNEL, sort=False, ax=ax).collections[0]
    expected = [[i, KERNEL[i, j]] for j in range(4) for i in range(6)]
    np.testing.assert_allclose(helpers.points(dots), expected)


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
    columns = np.array(helpers.points(dots))[:, 1].reshape(-1, n)
    axes = np.atleast_1d((0, 1) if axes is None else axes)
    rows = np.moveaxis(weights, axes, range(-len(axes), 0)).reshape(-1, n)
    np.testing.assert_allclose(columns, np.sort(rows, axis=1))


def test_of_many_weights_a_random_sample_is_drawn(ax):
    weights = RNG.normal(size=(50, 40))
    dots = plots.profile(weights, max_points=300, ax=ax).collections[0]
    drawn = {tuple(point) for point in helpers.points(dots)}
    every = {(i, w) for column in np.sort(weights, axis=0).T for i, w in enumerate(column)}
    assert len(drawn) == 300
    assert drawn <= every
    other = plots.profile(weights, max_points=300, seed=1, ax=ax).collections[1]
    assert helpers.points(other) != helpers.points(dots)


@pytest.mark.parametrize("subset", [[4, 0, 2], np.array([True, False, True, False, True, False])])
def test_a_subset_is_marked_at_its_ranks(subset, ax):
    vector = np.array([0.3, 0.1, 0.2, 0.6, 0.5, 0.4])
    _, marks = plots.profile(vector, subset=subset, ax=ax).collections
    assert helpers.points(marks) == [[1, 0.2], [2, 0.3], [4, 0.5]]
    assert to_rgba("black") in map(tuple, marks.get_facecolor())
    marks = plots.profile(vector, subset=subset, sort=False, ax=ax).collections[-1]
    assert sorted(helpers.points(marks)) == [[0, 0.3], [2, 0.2], [4, 0.5]]


def test_the_profiles_of_a_tree():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.ones(5)},
        "dense": {"kernel": jnp.ones((7, 2), jnp.bfloat16)},
    }
    axs = plots.profiles(params)
    assert [ax.get_title() for ax in axs] == ["conv/kernel", "dense/kernel"]
    assert [len(helpers.points(ax.collections[0])) for ax in axs] == [90, 14]
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


def test_plots_are_imported_when_they_are_first_used():
    code = (
        "import sys, p2t_jax as p2t\n"
        "assert 'matplotlib' not in sys.modules\n"
        "print(p2t.plots.COLORS['Adam'])"
    )
    assert helpers.in_a_new_process(code) == plots.COLORS["Adam"]
    with pytest.raises(AttributeError, match="plotz"):
        _ = p2t.plotz
