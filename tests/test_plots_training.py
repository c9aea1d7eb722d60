"""Curves and animations of a training."""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

import p2t_jax as p2t

mpl.use("Agg")
from matplotlib.animation import AbstractMovieWriter
from matplotlib.colors import to_rgba

from p2t_jax import plots

pytestmark = pytest.mark.usefixtures("no_picture_shown")
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(6, 4)).astype(np.float32)

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
