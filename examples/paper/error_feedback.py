"""Beyond the paper: LAPerm with error feedback, beside the paper's LAPerm and Adam.

    python examples/paper/error_feedback.py --data-dir DIR --search TRIALS
    python examples/paper/error_feedback.py --data-dir DIR [--seeds 5]

784-500-300-10 on MNIST and Fashion-MNIST, 3,000 mini-batches. `--search` looks for the learning
rate, its last value and b1 of Adam, alone and inside of each LAPerm, with equally many trials, on
50,000 training images of MNIST, judged by the other 10,000. It does not look at test images.

The script then also measures why feedback works: how many weights a synchronization moves, and how
far they come, while the learning rate is divided by 10 twice (5.2.1).
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, figures, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table
from common.search import search_mnist, search_table, searched, winner
from p2t_jax import plots

BATCHES, EVERY = 3000, 100
SEARCH = "error_feedback_search"  # its record
SYNC_PERIODS = (1, 10, 100)
WAYS = {"LAPerm": 0.0, figures.FEEDBACK: 1.0}
LAPERMS = {f"{way}, k = {k}": (k, m) for k in SYNC_PERIODS for way, m in WAYS.items()}
CONTENDERS = ("Adam", *LAPERMS)
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
NETWORK = models.MLP((500, 300, 10))
DROPS, SAMPLE = (0.4, 0.7), 20  # where the learning rate of `numbness` is divided by 10


def optimizer(name, rate, last_rate, b1):
    """Adam whose learning rate falls exponentially to its last, alone or inside of LAPerm."""
    adam = optax.adam(optax.exponential_decay(rate, BATCHES, last_rate / rate), b1=b1)
    if name == "Adam":
        return adam
    k, m = LAPERMS[name]
    return p2t.laperm(adam, k, error_feedback=m)


def prepared(name, hyperparameters, images, seed):
    """Network, optimizer, and the state that training starts from."""
    tx = optimizer(name, **hyperparameters)
    return NETWORK, tx, training.initial_state(NETWORK, tx, images, seed)


def main():
    options = parser(__doc__, seeds=5)
    options.add_argument("--search", type=int, metavar="TRIALS", help="search hyperparameters")
    options.add_argument("--only", nargs="+", metavar="NAME", help="only these contenders")
    options = options.parse_args()
    if options.search:
        return search_mnist(SEARCH, options, BATCHES, prepared, CONTENDERS)
    evaluate_at = range(0, 41, 20) if options.short else range(0, BATCHES + 1, EVERY)
    made = searched(SEARCH, options.output_dir)
    runs = {name: winner(made, name)["hyperparameters"] for name in CONTENDERS}
    experiment = Experiment("error_feedback", options, batch_size=64, runs=runs)
    for dataset, title in DATA.items():
        images = mnist(data.load(dataset, options.data_dir))
        for seed in experiment.seeds:
            for name in options.only or CONTENDERS:
                experiment.fit(
                    f"{title}, {name}", NETWORK, optimizer(name, **runs[name]), images, seed,
                    evaluate_at=evaluate_at,
                )  # fmt: skip
    images = mnist(data.load("mnist", options.data_dir))
    experiment.finish({way: numbness(images, m, evaluate_at[-1]) for way, m in WAYS.items()})


def numbness(images, m, batches):
    """What synchronizations move, with k = 1: every `SAMPLE` mini-batches.

    Which fraction of the weights the synchronization moves; how far in rank all have come since the
    learning rate fell last (or since the start); and the accuracy.
    """
    drops = [int(at * batches) for at in DROPS]
    rate = optax.piecewise_constant_schedule(1e-3, dict.fromkeys(drops, 0.1))
    tx = p2t.laperm(optax.adam(rate), 1, error_feedback=m)
    state, key = training.initial_state(NETWORK, tx, images, 0), jax.random.key(0)
    chunk = training.training_chunk(NETWORK, tx, images.prepare)
    accuracy_of = training.evaluation(NETWORK, images.prepare)
    indices = training.mini_batches(len(images.train_images), 64, 0, 0, batches)

    def train(state, first, last):
        part = images.train_images, images.train_labels, indices[first:last], key
        state, _ = chunk(state, *part)
        return state, training.exact(state.params, state.opt_state)

    found = {"moved": [], "distance": [], "accuracy": []}
    now = reference = training.exact(state.params, state.opt_state)
    for done in range(0, batches, SAMPLE):
        if done in drops:
            reference = now
        state, before = train(state, done, done + SAMPLE - 1)
        state, now = train(state, done + SAMPLE - 1, done + SAMPLE)
        moved = p2t.metrics.movement(now, before)["moved"]
        distance = p2t.metrics.movement(now, reference)["rank_distance"]
        accuracy = accuracy_of(state, images.test_images, images.test_labels)
        for what, value in zip(found, (moved, distance, accuracy), strict=True):
            found[what].append(round(value, 5))
    return found


def tables(record: Record):
    rows = [
        [name, *(spread(record.last(f"{title}, {name}")) for title in DATA.values()),
         *(versus_adam(record, title, name) for title in DATA.values())]
        for name in CONTENDERS
    ]  # fmt: skip
    header = [f"after {BATCHES:,} mini-batches", *DATA.values(),
              *(f"{title}, minus Adam" for title in DATA.values())]  # fmt: skip
    return {
        "error_feedback": table(header, rows),
        "error_feedback-search": search_table(
            Record.load(SEARCH), CONTENDERS, "default hyperparameters"
        ),
    }


def versus_adam(record, title, name):
    """The difference of the means, in points."""
    ours, adams = (record.last(f"{title}, {which}") for which in (name, "Adam"))
    if name == "Adam" or not len(ours) or not len(adams):
        return ""
    return f"{100 * (ours.mean() - adams.mean()):+.2f}"


def overview(record: Record):
    return [
        [f"fully connected, {title}, {name}", "", record.last(f"{title}, {name}")]
        for title in DATA.values()
        for name in CONTENDERS
    ]


def draw(record: Record):
    return {"accuracy": draw_curves(record), "numbness": draw_numbness(record)}


def draw_curves(record):
    """Test errors of every contender on both data sets."""
    figure, axs = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    limits = {"MNIST": (0.015, 0.2), "Fashion-MNIST": (0.1, 0.5)}
    for ax, letter, title in zip(axs, "ab", DATA.values(), strict=True):
        for way in WAYS:
            for k, line in zip(SYNC_PERIODS, (":", "-", "--"), strict=True):
                name = f"{way}, k = {k}"
                figures.curve(ax, record, f"{title}, {name}", way, name, error=True, linestyle=line)
        figures.curve(ax, record, f"{title}, Adam", "Adam", "Adam", error=True)
        figures.error_axis(ax, *limits[title])
        ax.set(title=f"({letter}) {title}", xlim=(0, BATCHES))
    axs[0].get_legend().remove()
    axs[1].legend(loc="upper right", fontsize="small")
    return figure


def draw_numbness(record):
    """5.2.1's "reacted numbly", explained: what moves, how far it gets, and the errors."""
    figure, axs = plt.subplots(3, 1, figsize=(9, 8), layout="constrained", sharex=True)
    for way in WAYS:
        found = record.measured(way)
        if found is None:
            continue
        at = SAMPLE * np.arange(1, len(found["moved"]) + 1)
        values = found["moved"], found["distance"], 1 - np.array(found["accuracy"])
        for ax, curve in zip(axs, values, strict=True):
            ax.plot(at, curve, color=plots.COLORS[way], label=way)
    for ax in axs:
        for drop in DROPS:
            ax.axvline(drop * BATCHES, color="0.6", linewidth=0.8)
    axs[0].set(ylabel="weights moved by\na synchronization")
    axs[0].set_title("784-500-300-10 on MNIST, k = 1; the learning rate falls at the grey lines")
    axs[1].set(ylabel="distance in rank since\nthe rate fell last, share of n")
    axs[2].set(xlabel="mini-batches", ylabel="test error", xlim=(0, BATCHES))
    for ax in axs:
        if ax.dataLim.ymax > 0:  # in a short run nothing may have moved, or no error be left
            ax.set_yscale("log")
    if axs[2].get_yscale() == "log":
        figures.error_axis(axs[2], 0.015, 0.2)
    axs[0].legend()
    return figure


if __name__ == "__main__":
    main()
