"""The authors' follow-up, "Train by Reconnect" (NeurIPS 2020), Section 5.5: one weight for all.

    python examples/paper/weight_agnostic.py --data-dir DIR [--seeds 5]
    python examples/paper/weight_agnostic.py --data-dir DIR --search TRIALS

Every weight is zero or one shared value, so all that LAPerm can learn is where the connections are.
F1 is 784-10 with {0, 0.08}, of which 4/7 are connections; F2 is 784-128-64-10 with {0, 0.03}, of
which 1/15, 1/7 and 1/3 are. No biases.

Each is trained with the follow-up's hyperparameters, and with others that were chosen on 10,000
images held back from training. The follow-up looks ahead for k = 250 mini-batches, far away from
two-valued weights, and synchronization undoes most of that. Here k = 1: a connection moves as soon
as gradients averaged over about a hundred mini-batches (b1 = 0.99) request it strongly enough. And
the logits are multiplied before the softmax: with such small weights they are nearly equal, so the
gradient hardly depends on whether the answer is right.

With error feedback Adam keeps its usual b1. Its learning rate, decay and k are the best of `TRIALS`
random ones on the same held-back images (`--search`), without and with multiplied logits.
"""

from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, figures, models, records, training
from common.experiment import Experiment, mnist, parser, versions
from common.records import Record, spread, table
from common.search import held_back, searched, trials, winner

BATCH, EVERY = 128, 250


class Network(NamedTuple):
    """A network with one weight: its layers, and which fraction of each is connected."""

    features: tuple[int, ...]
    weight: float
    keep: tuple[float, ...]
    epochs: int


class Training(NamedTuple):
    """Hyperparameters."""

    sync_period: int
    learning_rate: float
    decay: float  # of the learning rate, per epoch
    b1: float = 0.9
    l2: tuple[float, ...] = (0.0,)  # of each layer
    logit_scale: float = 1.0
    error_feedback: float = 0.0


F1 = Network((10,), 0.08, (4 / 7,), 10)
F2 = Network((128, 64, 10), 0.03, (1 / 15, 1 / 7, 1 / 3), 25)
RUNS = {
    "F1, k = 250": (F1, Training(250, 1e-3, 0.95)),
    "F1, k = 1": (F1, Training(1, 0.3, 0.8, b1=0.99, logit_scale=8.0)),
    "F2, k = 250": (F2, Training(250, 1e-3, 0.95, l2=(1e-4, 1e-4, 0.0))),
    "F2, k = 1": (F2, Training(1, 0.3, 0.8, b1=0.99, logit_scale=1000.0)),
}
FEEDBACK, MULTIPLIED = "feedback", "feedback, logits multiplied"
NETWORKS = {
    f"{name}, {what}": (network, scale if what == MULTIPLIED else 1.0)
    for what in (FEEDBACK, MULTIPLIED)
    for name, network, scale in (("F1", F1, 8.0), ("F2", F2, 1000.0))
}
SEARCH = "weight_agnostic_search"  # its record
PUBLISHED = {"F1": 0.8546, "F2": 0.7814}  # the best moment of one run, with k = 250


def layers(values):
    """A tree of a value for each layer's kernel."""
    return {f"Dense_{i}": {"kernel": value} for i, value in enumerate(values)}


def optimizer(how, per_epoch):
    """LAPerm over Adam, with the follow-up's L2 and schedule."""
    rate = optax.exponential_decay(how.learning_rate, per_epoch, how.decay, staircase=True)
    adam = optax.adam(rate, b1=how.b1)
    if any(how.l2):
        # Keras adds l2 * w^2 to the loss, whose gradient is 2 * l2 * w.
        decay = {2 * l2: optax.add_decayed_weights(2 * l2) for l2 in set(how.l2)}
        adam = optax.chain(optax.partition(decay, layers(2 * l2 for l2 in how.l2)), adam)
    return p2t.laperm(adam, how.sync_period, error_feedback=how.error_feedback)


def prepared(network, how, images, seed):
    """The model, the optimizer, and the state that training starts from."""
    model = models.MLP(network.features, use_bias=False, logit_scale=how.logit_scale)
    tx = optimizer(how, len(images.train_images) // BATCH)

    def shared(key, params):
        params = p2t.reinitialize(key, params, p2t.initializers.from_profile([network.weight]))
        return p2t.prune(jax.random.fold_in(key, 0), params, layers(network.keep))

    return model, tx, training.initial_state(model, tx, images, seed, adapt=shared)


def random_training(rng, logit_scale):
    """Plain Adam with error feedback; with multiplied logits k = 1, better in first tries."""
    k = int(rng.choice([1, 3, 10, 30]))
    low = 0.7 if logit_scale == 1 else 0.4
    return Training(
        sync_period=k if logit_scale == 1 else 1,
        learning_rate=float(f"{10 ** rng.uniform(-4, -1.5):.3g}"),
        decay=round(float(rng.uniform(low, 1.0)), 3),
        error_feedback=1.0,
        logit_scale=logit_scale,
    )


def search(options):
    """Random hyperparameters, the same for both networks, a sixth of the images held back."""
    images = held_back("mnist", options)
    record = Record.load(SEARCH, options.output_dir)
    record.contents = {"experiment": SEARCH, "versions": versions(), "trials": []} | record.contents
    for name, (network, logit_scale) in NETWORKS.items():
        for number in range(len(trials(record, name)), options.search):
            how = random_training(np.random.default_rng([1, number]), logit_scale)
            model, tx, start = prepared(network, how, images, 0)
            epochs = network.epochs * (len(images.train_images) // BATCH)
            run = training.fit(
                model, tx, images, start,
                seed=0, batch_size=BATCH, evaluate_at=[5 if options.short else epochs],
            )  # fmt: skip
            accuracy = {"0": round(float(run.accuracy[-1]), 4)}
            found = {"optimizer": name, "hyperparameters": how._asdict(), "accuracy": accuracy}
            record.contents["trials"].append(found)
            record.save(SEARCH, options.output_dir)
            print(found, flush=True)


def with_feedback(folder=records.FOLDER):
    """The runs with error feedback, if they have been searched for."""
    record = searched(SEARCH, folder)
    return {
        name: (network, Training(**winner(record, name)["hyperparameters"]))
        for name, (network, _) in NETWORKS.items()
        if trials(record, name)
    }


def main():
    options = parser(__doc__, seeds=5)
    options.add_argument("--search", type=int, metavar="TRIALS", help="search hyperparameters")
    options.add_argument("--only", nargs="+", metavar="NAME", help="only these runs, by name")
    options = options.parse_args()
    if options.search:
        return search(options)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    per_epoch = len(mnist_data.train_images) // BATCH
    runs = RUNS | with_feedback(options.output_dir)
    hyperparameters = {
        # What a run does not use is left out, as in records that are older than it.
        name: (n._asdict(), {k: v for k, v in t._asdict().items() if k != "error_feedback" or v})
        for name, (n, t) in runs.items()
    }
    experiment = Experiment("weight_agnostic", options, batch_size=BATCH, runs=hyperparameters)

    for name in options.only or runs:
        network, how = runs[name]
        steps = 2 * EVERY if options.short else network.epochs * per_epoch
        for seed in experiment.seeds:
            model, tx, start = prepared(network, how, mnist_data, seed)
            run = experiment.fit(
                name, model, tx, mnist_data, seed,
                start=start, batch_size=BATCH, evaluate_at=[*range(0, steps, EVERY), steps],
            )  # fmt: skip
            kernels = jax.tree.leaves(run.params)
            found = np.unique(np.concatenate([np.ravel(kernel) for kernel in kernels]))
            assert found.tolist() == [0, np.float32(network.weight)], found
    experiment.finish()


def tables(record: Record):
    rows = []
    for name, (network, how) in (RUNS | with_feedback()).items():
        runs = record.runs(name)
        bits = [run["bits per weight, stored"] for run in runs]
        published = f"{PUBLISHED[name[:2]]:.2%}" if "250" in name else ""
        rows.append(
            [
                f"{name[:2]}, {'-'.join(map(str, (784, *network.features)))}",
                str(how.sync_period) + f",{name.partition(',')[2]}" * bool(how.error_feedback),
                spread(record.last(name)),
                spread(record.best(name)),
                published,
                f"{np.mean(bits):.2f}" if bits else "",
            ]
        )
    header = ["network", "k", "at the end", "best moment", "follow-up (best moment)",
              "bits per weight, stored"]  # fmt: skip
    return {"weight_agnostic": table(header, rows)}


def overview(record: Record):
    return [
        [
            f"one weight for all, {name}" + (" (the follow-up's)" if "250" in name else ""),
            f"{PUBLISHED[name[:2]]:.2%} (best)" if "250" in name else "",
            record.last(name),
        ]
        for name in (*RUNS, *with_feedback())
    ]


def draw(record: Record):
    """Test errors of both networks, beside what was published."""
    figure, axs = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for ax, letter, (name, network) in zip(axs, "ab", {"F1": F1, "F2": F2}.items(), strict=True):
        for k, line in ((250, "--"), (1, "-")):
            label = f"LAPerm, k = {k}" + (" (the follow-up's)" if k == 250 else "")
            figures.curve(
                ax, record, f"{name}, k = {k}", "LAPerm", label, error=True, linestyle=line
            )
        for what, line in ((FEEDBACK, "--"), (MULTIPLIED, "-")):
            label = figures.FEEDBACK + what.removeprefix(FEEDBACK)
            figures.curve(
                ax, record, f"{name}, {what}", figures.FEEDBACK, label, error=True, linestyle=line
            )
        figures.paper_line(ax, 1 - PUBLISHED[name], "published, best moment")
        ax.label_outer()
        layers = "-".join(map(str, (784, *network.features)))
        ax.set_title(f"({letter}) {name}: {layers}, weights from {{0, {network.weight}}}")
        figures.error_axis(ax, 0.07, 1)
    axs[1].get_legend().remove()
    axs[0].legend(loc="upper right")
    return {"accuracy": figure}


if __name__ == "__main__":
    main()
