"""Section 5.2.3: rewiring a network of which 90% is pruned (Figures 13 to 15).

    python examples/paper/rewiring.py --data-dir DIR [--seeds 3]

Experiment 1 trains it by LAPerm over Adam for 1,500 mini-batches, which moves connections, and
continues with Adam, which inherits all inner states, the zeros fixed. Experiment 2 trains the same
weights by Adam alone, the zeros fixed. The paper's k is 30; a k of 300 is tried as well.
"""

import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap

import p2t_jax as p2t
from common import data, figures, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table
from p2t_jax import plots

KEEP, SYNC_PERIODS, BATCH = 0.1, (30, 300), 64
EPOCHS, SWITCH, EARLY = 48, 1500, 2700  # EARLY: the mini-batches that Figure 15 (b) shows
RANDOM = "Adam (random)"
WINDOW = {"rows": slice(100, 200), "columns": slice(100, 300)}  # Figure 14's


def laperm_name(k):
    return f"LAPerm, k = {k}"


def reconnected_name(k):
    return f"Adam (reconnected, k = {k})"


def zeros(params):
    """How many weights are zero, in each layer."""
    return {name: int((layer["kernel"] == 0).sum()) for name, layer in params.items()}


def moved_zeros(before, after):
    """The fraction of the zeros that is in another place than before."""
    pairs = [(before[name]["kernel"] == 0, after[name]["kernel"] == 0) for name in before]
    return float(sum((b & ~a).sum() for b, a in pairs) / sum(b.sum() for b, _ in pairs))


def main():
    options = parser(__doc__, seeds=3).parse_args()
    images = mnist(data.load("mnist", options.data_dir))
    experiment = Experiment(
        "rewiring", options, keep=KEEP, sync_periods=SYNC_PERIODS, epochs=EPOCHS, switch=SWITCH,
        batch_size=BATCH, learning_rate="1e-3, divided by 10 at epochs 28 and 38",
    )  # fmt: skip
    rows, columns = WINDOW.values()
    measured = {}
    for seed in experiment.seeds:
        moved, weights = both_experiments(experiment, images, seed)
        measured |= {f"zeros moved, k = {k}, seed {seed}": round(moved[k], 4) for k in moved}
        windows = {what: w["Dense_0"]["kernel"][rows, columns] for what, w in weights.items()}
    experiment.finish(measured, windows)


def both_experiments(experiment, images, seed):
    """Both, for each k; which fraction of the zeros moved, and the weights to be shown."""
    per_epoch = len(images.train_images) // BATCH
    switch, early, steps, every = SWITCH, EARLY, EPOCHS * per_epoch, 50
    if experiment.options.short:
        switch, early, steps, every = 60, 90, 120, 30
    evaluate_at = [*range(0, early, every), *range(early, steps, 5 * every), steps]
    rate = optax.piecewise_constant_schedule(1e-3, {28 * per_epoch: 0.1, 38 * per_epoch: 0.1})
    model = models.MLP((500, 300, 10))
    fixed_zeros = optax.chain(optax.adam(rate), p2t.keep_zeros())

    def fit(name, tx, start, evaluate_at):
        return experiment.fit(name, model, tx, images, seed, start=start, evaluate_at=evaluate_at)

    moved, weights = {}, {}
    for k in SYNC_PERIODS:
        laperm = p2t.laperm(optax.adam(rate), k)
        start = training.initial_state(model, laperm, images, seed, adapt=pruned)
        phase_1 = fit(laperm_name(k), laperm, start, range(0, switch + 1, every))
        # All inner states: the momenta, and the count that the learning rate depends on.
        inherited = (phase_1.state.opt_state[0], fixed_zeros.init(phase_1.params)[1])
        state = phase_1.state._replace(params=phase_1.params, opt_state=inherited)
        later = [at for at in evaluate_at if at > switch]
        phase_2 = fit(reconnected_name(k), fixed_zeros, state, later)
        assert zeros(start.params) == zeros(phase_1.params) == zeros(phase_2.params)
        assert moved_zeros(phase_1.params, phase_2.params) == 0
        moved[k] = moved_zeros(start.params, phase_1.params)
        weights[f"LAPerm (k = {k}), then Adam"] = phase_2.params

    start = start._replace(opt_state=fixed_zeros.init(start.params))
    random = fit(RANDOM, fixed_zeros, start, evaluate_at)
    assert moved_zeros(start.params, random.params) == 0
    return moved, {"random weights": start.params, **weights, "Adam alone": random.params}


def pruned(key, params):
    return p2t.prune(key, params, KEEP)


def complete(record):
    """The seeds that all runs have: the last of a seed is Adam's alone."""
    seeds = {run["seed"] for run in record.runs(RANDOM)}
    runs = [run for run in record.contents["runs"] if run["seed"] in seeds]
    return Record(record.contents | {"runs": runs})


def difference(record, k):
    """Reconnected minus random, seed by seed, in points."""
    points = 100 * (record.last(reconnected_name(k)) - record.last(RANDOM))
    return ", ".join(f"{point:+.2f}" for point in points)


def moved_on_average(record, k):
    found = [
        value
        for name, value in record.contents["measured"].items()
        if name.startswith(f"zeros moved, k = {k}, ")
    ]
    return f"{np.mean(found):.1%}" if found else ""


def tables(record: Record):
    record = complete(record)
    header = ["", "LAPerm after 1,500 mini-batches", "zeros it moved", "at the end (48 epochs)",
              "minus random, by seed, points"]  # fmt: skip
    rows = [
        [
            f"reconnected, k = {k}",
            spread(record.last(laperm_name(k))),
            moved_on_average(record, k),
            spread(record.last(reconnected_name(k))),
            difference(record, k),
        ]
        for k in SYNC_PERIODS
    ]
    rows.append(["random", "", "", spread(record.last(RANDOM)), ""])
    return {"rewiring": table(header, rows)}


def overview(record: Record):
    record = complete(record)
    return [
        [
            "rewiring, reconnected (k = 30)",
            "above the random one",
            record.last(reconnected_name(30)),
        ],
        ["the same, k = 300", "", record.last(reconnected_name(300))],
        ["rewiring, random", "", record.last(RANDOM)],
    ]


def draw(record: Record):
    return {"accuracy": draw_curves(complete(record)), "connections-zoom": draw_weights(record)}


def draw_curves(record):
    """Figure 15: the whole training, and its beginning."""
    figure, (whole, beginning) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for ax, error in ((whole, True), (beginning, False)):
        for k, line in zip(SYNC_PERIODS, ("--", "-"), strict=True):
            label = f"LAPerm (k = {k}), then Adam"
            phases = [record.curves(laperm_name(k)), record.curves(reconnected_name(k))]
            curve = [np.concatenate(part, axis=-1) for part in zip(*phases, strict=True)]
            figures.band(ax, *curve, "LAPerm", label, error=error, linestyle=line)
        figures.curve(ax, record, RANDOM, "Adam", "Adam alone", error=error)
        ax.axvline(SWITCH, color="0.6", linewidth=0.8)
    figures.error_axis(whole, 0.017, 0.1)
    whole.set_title("(a) the whole training")
    figures.paper_line(beginning, 0.6, "the paper's LAPerm, about 60%")
    beginning.set(
        xlim=(0, EARLY), ylim=(0, 1), title=f"(b) the first {EARLY:,} mini-batches: accuracy"
    )
    figures.percent(beginning.yaxis)
    whole.legend()
    beginning.legend(loc="lower right")
    return figure


def draw_weights(record):
    """Figure 14: the first layer's connection pattern, zoomed in."""
    names = list(record.contents["arrays"])
    figure, axs = plt.subplots(1, len(names), figsize=(15, 3.6), layout="constrained", sharey=True)
    initial = record.array(names[0])
    limit = float(np.abs(initial).max())
    # Not white in the middle: small weights must differ from zeros, which are blank.
    colors = LinearSegmentedColormap.from_list("sign", ["#0072B2", "0.7", "#D55E00"])
    rows, columns = WINDOW.values()
    for ax, letter, name in zip(axs, "abcd", names, strict=True):
        plots.connections(
            record.array(name), vectors=0, ax=ax, cmap=colors, vmin=-limit, vmax=limit,
            extent=(columns.start, columns.stop, rows.stop, rows.start),
        )  # fmt: skip
        ax.set(title=f"({letter}) {name}", ylabel="")
    axs[0].set_ylabel("input")
    figure.colorbar(axs[-1].images[-1], ax=axs, label="weight", extend="both", pad=0.01)
    return figure


if __name__ == "__main__":
    main()
