"""Section 5.2.3 once more: weight vectors that are neurons or whole layers, and error feedback.

    python examples/paper/rewiring_layers.py --data-dir DIR [--seeds 5]

As rewiring.py, but for 16 epochs, with the learning rate falling in proportion, k = 10, and in four
ways: the weights of a neuron are permuted, as in the paper, or those of a whole layer (axes (0, 1)
of its kernel), so that zeros may move between neurons, which is a step towards Section 6.2; each
without and with error feedback.
"""

import matplotlib.pyplot as plt
import optax

import p2t_jax as p2t
from common import data, figures, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table
from rewiring import BATCH, KEEP, RANDOM, SWITCH, moved_zeros, pruned, zeros

SYNC_PERIOD, EPOCHS, RATE = 10, 16, 1e-3
LAYER = {"kernel": (0, 1), "bias": None}
VECTORS = {"neurons": "flax", "layers": {f"Dense_{i}": LAYER for i in range(3)}}
WAYS = {
    f"{what}{feedback}": (vectors, m)
    for what, vectors in VECTORS.items()
    for feedback, m in (("", 0.0), (", feedback", 1.0))
}


def phase_1_name(way):
    return f"LAPerm, {way}"


def reconnected_name(way):
    return f"Adam (reconnected, {way})"


def main():
    options = parser(__doc__, seeds=5)
    options.add_argument("--only", nargs="+", metavar="WAY", help="only these ways, and random")
    options = options.parse_args()
    images = mnist(data.load("mnist", options.data_dir))
    experiment = Experiment(
        "rewiring_layers", options, keep=KEEP, sync_period=SYNC_PERIOD, epochs=EPOCHS,
        switch=SWITCH, batch_size=BATCH, learning_rate=RATE,
    )  # fmt: skip
    measured = {}
    for seed in experiment.seeds:
        for way, moved in of_a_seed(experiment, images, seed).items():
            measured[f"zeros moved, {way}, seed {seed}"] = round(moved, 4)
    experiment.finish(measured)


def of_a_seed(experiment, images, seed):
    """Every way, and random connections; which fraction of the zeros moved in each way."""
    per_epoch = len(images.train_images) // BATCH
    switch, steps = (60, 120) if experiment.options.short else (SWITCH, EPOCHS * per_epoch)
    evaluate_at = [*range(0, switch + 1, switch // 3), *range(3 * switch, steps, switch), steps]
    rate = optax.piecewise_constant_schedule(
        RATE, {round(28 / 48 * steps): 0.1, round(38 / 48 * steps): 0.1}
    )
    model = models.MLP((500, 300, 10))
    fixed_zeros = optax.chain(optax.adam(rate), p2t.keep_zeros())

    def fit(name, tx, start, evaluate_at, vectors="flax"):
        return experiment.fit(
            name, model, tx, images, seed, start=start, evaluate_at=evaluate_at, vectors=vectors
        )

    moved = {}
    for way in experiment.options.only or WAYS:
        vectors, m = WAYS[way]
        tx = p2t.laperm(optax.adam(rate), SYNC_PERIOD, error_feedback=m, vectors=vectors)
        start = training.initial_state(model, tx, images, seed, adapt=pruned)
        phase_1 = fit(phase_1_name(way), tx, start, evaluate_at[:4], vectors)
        inherited = (phase_1.state.opt_state[0], fixed_zeros.init(phase_1.params)[1])
        state = phase_1.state._replace(params=phase_1.params, opt_state=inherited)
        phase_2 = fit(reconnected_name(way), fixed_zeros, state, evaluate_at[4:], vectors)
        assert zeros(start.params) == zeros(phase_1.params) == zeros(phase_2.params)
        assert moved_zeros(phase_1.params, phase_2.params) == 0
        moved[way] = moved_zeros(start.params, phase_1.params)
    start = training.initial_state(model, fixed_zeros, images, seed, adapt=pruned)
    fit(RANDOM, fixed_zeros, start, evaluate_at)
    return moved


def difference(record, way):
    """Reconnected minus random, in points, for the seeds that have both."""
    random = {run["seed"]: run["accuracy"][-1] for run in record.runs(RANDOM)}
    runs = record.runs(reconnected_name(way))
    return [
        100 * (run["accuracy"][-1] - random[run["seed"]]) for run in runs if run["seed"] in random
    ]


def tables(record: Record):
    rows = [
        [
            way,
            spread(record.last(phase_1_name(way))),
            spread(record.last(reconnected_name(way))),
            ", ".join(f"{points:+.2f}" for points in difference(record, way)),
        ]
        for way in WAYS
    ]
    rows.append(["random", "", spread(record.last(RANDOM)), ""])
    header = ["weight vectors", "LAPerm after 1,500 mini-batches", f"at the end ({EPOCHS} epochs)",
              "difference from random by seed, percentage points"]  # fmt: skip
    return {"rewiring_layers": table(header, rows)}


def overview(record: Record):
    return [
        [f"rewiring, {way} (k = {SYNC_PERIOD})", "", record.last(reconnected_name(way))]
        for way in WAYS
    ]


def draw(record: Record):
    """The difference from random connections, a dot for each seed."""
    figure, ax = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
    for row, way in enumerate(WAYS):
        color = figures.FEEDBACK if "feedback" in way else "LAPerm"
        figures.dots(ax, difference(record, way), row, color, color if row < 2 else None)
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(range(len(WAYS)), [way.split(",")[0] for way in WAYS])
    ax.invert_yaxis()
    ax.set_xlabel("difference from random connections at the end, percentage points")
    ax.legend()
    ax.grid(axis="x", alpha=0.3)
    return {"difference": figure}


if __name__ == "__main__":
    main()
