"""Section 5.1.2: one network, the same initial weights, trained on MNIST and on Fashion-MNIST.

    python examples/paper/fully_connected.py --data-dir DIR [--seeds 5]
    python examples/paper/fully_connected.py --data-dir DIR --search TRIALS

SGPerm and Adam, each with the paper's hyperparameters and with searched ones (Figure 10).
`--search` is that search (common/search.py): as many trials for Adam as for SGPerm, on 50,000
training images of MNIST, judged by the other 10,000; it does not look at test images. Trials in its
record are not repeated.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, figures, models, training
from common.algorithm_1 import VECTORS, sgperm
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table
from common.search import ADAM, BOTH, THE_PAPERS, search_mnist, search_table, winner

BATCHES, EVERY = 800, 25
SEARCH = "fully_connected_search"  # its record
CYCLES_AT = [1, 10, 100, 800]  # the mini-batches whose permutations are looked at
RUNS = ("SGPerm", "SGPerm, smallest", "SGPerm, searched", "Adam", "Adam, searched")
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


def network():
    return models.MLP((500, 300, 10), models.he_uniform, models.uniform_bias)


def adam(seed, rate, last_rate, b1):
    """Adam whose learning rate falls exponentially to its last."""
    return optax.adam(optax.exponential_decay(rate, BATCHES, last_rate / rate), b1=b1)


OPTIMIZERS = {"SGPerm": sgperm, "Adam": adam}


def prepared(optimizer, hyperparameters, images, seed):
    """Network, optimizer, and the state that training starts from."""
    model, tx = network(), OPTIMIZERS[optimizer](seed, **hyperparameters)
    return model, tx, training.initial_state(model, tx, images, seed)


def runs():
    """The hyperparameters of `RUNS`."""
    searched = Record.load(SEARCH)
    of = {name: winner(searched, name)["hyperparameters"] for name in OPTIMIZERS}
    smallest = THE_PAPERS | {"lower": "smallest"}
    settings = (THE_PAPERS, smallest, of["SGPerm"], ADAM, of["Adam"])
    return dict(zip(RUNS, settings, strict=True))


def main():
    options = parser(__doc__, seeds=5)
    options.add_argument("--search", type=int, metavar="TRIALS", help="search hyperparameters")
    options = options.parse_args()
    if options.search:
        return search_mnist(SEARCH, options, BATCHES, prepared)
    evaluate_at = range(0, 51, 25) if options.short else range(0, BATCHES + 1, EVERY)
    experiment = Experiment("fully_connected", options, batch_size=64, runs=runs())
    for name, title in DATA.items():
        images = mnist(data.load(name, options.data_dir))
        for seed in experiment.seeds:
            # The same seed, hence the same initial weights, for both data sets.
            for run, hyperparameters in runs().items():
                tx = OPTIMIZERS[run.split(",")[0]](seed, **hyperparameters)
                experiment.fit(
                    f"{title}, {run}", network(), tx, images, seed,
                    evaluate_at=evaluate_at, vectors=VECTORS,
                )  # fmt: skip
    images = mnist(data.load("mnist", options.data_dir))
    experiment.finish({"cycles": cycles(images, [1, 10] if options.short else CYCLES_AT)})


def cycles(images, steps):
    """How many cycles of each length a step finds: of the paper's SGPerm on MNIST, all layers."""
    tx = sgperm(0, **THE_PAPERS)
    chunk = training.training_chunk(network(), tx, images.prepare)
    state, found = training.initial_state(network(), tx, images, 0), {}
    batches = training.mini_batches(len(images.train_images), 64, 0, 0, steps[-1])
    for done, step in zip([0, *steps], steps, strict=False):
        for part in (batches[done : step - 1], batches[step - 1 : step]):
            before = training.exact(state.params, state.opt_state)
            if len(part):
                args = (images.train_images, images.train_labels, part, jax.random.key(0))
                state, _ = chunk(state, *args)
        after = training.exact(state.params, state.opt_state)
        sources = p2t.permutations.permutation_of(after, before, vectors=VECTORS)
        lengths = [
            np.ravel(p2t.permutations.cycle_lengths(source)) for source in jax.tree.leaves(sources)
        ]
        weights = np.bincount(np.concatenate(lengths))  # by the length of their cycle; 0, 1: none
        counts = weights[2:] // np.arange(2, len(weights))
        found[str(step)] = {"weights moved": round(1 - weights[1] / weights.sum(), 4),
                            "cycles by length, from 2": counts.tolist()}  # fmt: skip
    return found


def tables(record: Record):
    return {
        "fully_connected": accuracy_table(record),
        "fully_connected-search": search_table(Record.load(SEARCH), BOTH, "the paper's"),
        "fully_connected-cycles": cycle_table(record),
    }


def accuracy_table(record):
    rows = []
    for run in RUNS:
        cells = [
            (spread(record.last(f"{title}, {run}")), ahead(record, title, run))
            for title in DATA.values()
        ]
        rows.append([run, *cells[0], *cells[1]])
    header = [part for title in DATA.values() for part in (title, "ahead of Adam")]
    return table([f"after {BATCHES} mini-batches", *header], rows)


def ahead(record, title, run):
    """At how many evaluations the mean accuracy is above Adam's with the paper's learning rate."""
    (_, ours), (_, adams) = (record.curves(f"{title}, {name}") for name in (run, "Adam"))
    if run == "Adam" or not len(ours) or not len(adams):
        return ""
    lead = (ours.mean(axis=0) - adams.mean(axis=0))[1:]  # without the one before training
    return f"at {np.count_nonzero(lead > 0)} of {lead.size}"


def cycle_table(record):
    rows = []
    for step, found in (record.measured("cycles") or {}).items():
        counts = np.array(found["cycles by length, from 2"])
        share = [*counts[:4], counts[4:].sum()] / counts.sum()
        rows.append(
            [step, f"{found['weights moved']:.1%}", f"{counts.sum():,}"]
            + [f"{part:.1%}" for part in share]
            + [str(len(counts) + 1)]
        )
    header = ["mini-batch", "weights moved", "cycles", "of 2 weights", "3", "4", "5", "6 or more",
              "longest"]  # fmt: skip
    return table(header, rows)


def overview(record: Record):
    paper = {"SGPerm": "slightly above Adam"}
    return [
        [f"fully connected, {title}, {run}", paper.get(run, ""), record.last(f"{title}, {run}")]
        for title in DATA.values()
        for run in RUNS
    ]


def draw(record: Record):
    """Figure 10: test errors."""
    figure, axs = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    styles = {
        "SGPerm": ("--", "SGPerm (the paper's hyperparameters)"),
        "SGPerm, smallest": (":", "SGPerm (the same, lower = smallest)"),
        "SGPerm, searched": ("-", "SGPerm (searched)"),
        "Adam": ("--", "Adam (1e-3)"),
        "Adam, searched": ("-", "Adam (searched)"),
    }
    limits = {"MNIST": (0.02, 0.2), "Fashion-MNIST": (0.12, 0.4)}
    for ax, letter, title in zip(axs, "ab", DATA.values(), strict=True):
        for run, (line, label) in styles.items():
            optimizer = run.split(",")[0]
            figures.curve(
                ax, record, f"{title}, {run}", optimizer, label, error=True, linestyle=line
            )
        figures.error_axis(ax, *limits[title])
        ax.set(title=f"({letter}) {title}", xlim=(0, BATCHES))
        ax.legend(loc="upper right")
    return {"accuracy": figure}


if __name__ == "__main__":
    main()
