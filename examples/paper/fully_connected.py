"""Section 5.1.2: one network, the same initial weights, trained on MNIST and on Fashion-MNIST.

    python examples/paper/fully_connected.py --data-dir DIR [--seeds 5]
    python examples/paper/fully_connected.py --data-dir DIR --search TRIALS

SGPerm and Adam, each with the paper's hyperparameters and with searched ones (Figure 10).
`--search` is that search: as many trials for Adam as for SGPerm, on 50,000 training images of
MNIST, judged by the other 10,000; it does not look at test images. Trials in its record are not
repeated.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import p2t_jax as p2t
from common import data, figures, models, training
from common.algorithm_1 import VECTORS, sgperm
from common.experiment import Experiment, mnist, parser, versions
from common.records import Record, spread, table

BATCHES, EVERY = 800, 25
SEARCH = "fully_connected_search"  # its record
FINALISTS, FINAL_SEEDS = 3, (0, 1, 2)
THE_PAPERS = {
    "alpha_0": 0.07, "alpha_min": 0.005, "beta_1": 0.985,
    "lambda_0": 0.05, "lambda_max": 0.1, "beta_2": 1 / 0.995,
    "momentum": 0.9, "lower": "mean",
}  # fmt: skip
# The best of an earlier search, for another rule of which cycles are found.
EARLIER = {
    "alpha_0": 0.064, "alpha_min": 0.0006, "beta_1": 0.9969,
    "lambda_0": 0.087, "lambda_max": 0.57, "beta_2": 1.0156,
    "momentum": 0.94, "lower": "mean",
}  # fmt: skip
ADAM = {"rate": 1e-3, "last_rate": 1e-3, "b1": 0.9}
CYCLES_AT = [1, 10, 100, 800]  # the mini-batches whose permutations are looked at
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


def network():
    return models.MLP((500, 300, 10), models.he_uniform, models.uniform_bias)


def adam(seed, rate, last_rate, b1):
    """Adam whose learning rate falls exponentially to its last."""
    return optax.adam(optax.exponential_decay(rate, BATCHES, last_rate / rate), b1=b1)


OPTIMIZERS = {"SGPerm": sgperm, "Adam": adam}


def between(rng, low, high):
    """Evenly in the logarithm, to three digits."""
    return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")


def random_sgperm(rng):
    lambda_0 = between(rng, 0.01, 0.3)
    return {
        "lower": str(rng.choice(["mean", "smallest"])),
        "alpha_0": between(rng, 0.03, 0.5),
        "alpha_min": between(rng, 0.0005, 0.02),
        "beta_1": round(1 - between(rng, 0.002, 0.05), 5),
        "lambda_0": lambda_0,
        "lambda_max": float(f"{min(1.0, lambda_0 * between(rng, 1, 10)):.3g}"),
        "beta_2": round(1 + between(rng, 0.001, 0.02), 5),
        "momentum": round(1 - between(rng, 0.01, 0.2), 4),
    }


def random_adam(rng):
    rate = between(rng, 3e-4, 1e-2)
    return {
        "rate": rate,
        "last_rate": float(f"{rate * between(rng, 0.01, 1):.3g}"),
        "b1": round(1 - between(rng, 0.02, 0.2), 4),
    }


def trials_of(optimizer, count):
    """The paper's hyperparameters, then random ones; a longer list begins as a shorter one does."""
    first = {"SGPerm": [THE_PAPERS, EARLIER], "Adam": [ADAM]}[optimizer]
    draw = {"SGPerm": random_sgperm, "Adam": random_adam}[optimizer]
    return [*first, *(draw(np.random.default_rng([0, i])) for i in range(1, count))][:count]


def search(options):
    """Random search: all trials with one seed, then the best with more; the best mean wins."""
    dataset = data.load("mnist", options.data_dir)
    held_back = mnist(data.validation_split(dataset, len(dataset.train_images) // 6))
    record = Record.load(SEARCH, options.output_dir)
    record.contents |= {"experiment": SEARCH, "versions": versions()}
    known = record.contents.setdefault("trials", [])
    finals = FINAL_SEEDS[1:] if not options.short else ()

    def accuracy(optimizer, hyperparameters, seed):
        tx = OPTIMIZERS[optimizer](seed, **hyperparameters)
        start = training.initial_state(network(), tx, held_back, seed)
        at = [20 if options.short else BATCHES]
        run = training.fit(network(), tx, held_back, start, seed=seed, evaluate_at=at)
        return round(float(run.accuracy[-1]), 4)

    def trial(optimizer, hyperparameters):
        for done in known:
            if (done["optimizer"], done["hyperparameters"]) == (optimizer, hyperparameters):
                return done
        known.append({"optimizer": optimizer, "hyperparameters": hyperparameters, "accuracy": {}})
        return known[-1]

    def judge(done, seeds):
        for seed in map(str, seeds):  # keys of JSON
            if seed not in done["accuracy"]:
                hyperparameters = done["hyperparameters"]
                done["accuracy"][seed] = accuracy(done["optimizer"], hyperparameters, int(seed))
                record.save(SEARCH, options.output_dir)

    for optimizer in OPTIMIZERS:
        for hyperparameters in tqdm(trials_of(optimizer, options.search), desc=optimizer):
            judge(trial(optimizer, hyperparameters), FINAL_SEEDS[:1])
    for optimizer in OPTIMIZERS:
        for done in ranking(record, optimizer)[:FINALISTS]:
            judge(done, finals)
        print(optimizer, winner(record, optimizer))


def ranking(record, optimizer):
    """The trials of an optimizer, the best with the first seed first."""
    trials = [done for done in record.contents["trials"] if done["optimizer"] == optimizer]
    return sorted(trials, key=lambda done: -done["accuracy"].get("0", 0))


def winner(record, optimizer):
    """The finalist with the best mean."""
    finalists = ranking(record, optimizer)[:FINALISTS]
    return max(finalists, key=lambda done: np.mean([*done["accuracy"].values()]))


def runs():
    """Every optimizer, by name."""
    searched = Record.load(SEARCH)
    of = {name: winner(searched, name)["hyperparameters"] for name in OPTIMIZERS}
    return {
        "SGPerm": ("SGPerm", THE_PAPERS),
        "SGPerm, smallest": ("SGPerm", THE_PAPERS | {"lower": "smallest"}),
        "SGPerm, searched": ("SGPerm", of["SGPerm"]),
        "Adam": ("Adam", ADAM),
        "Adam, searched": ("Adam", of["Adam"]),
    }


def main():
    options = parser(__doc__, seeds=5)
    options.add_argument("--search", type=int, metavar="TRIALS", help="search hyperparameters")
    options = options.parse_args()
    if options.search:
        return search(options)
    evaluate_at = range(0, 51, 25) if options.short else range(0, BATCHES + 1, EVERY)
    experiment = Experiment("fully_connected", options, batch_size=64, runs=runs())
    for name, title in DATA.items():
        images = mnist(data.load(name, options.data_dir))
        for seed in experiment.seeds:
            # The same seed, hence the same initial weights, for both data sets.
            for run, (optimizer, hyperparameters) in runs().items():
                tx = OPTIMIZERS[optimizer](seed, **hyperparameters)
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
        "fully_connected-search": search_table(Record.load(SEARCH)),
        "fully_connected-cycles": cycle_table(record),
    }


def accuracy_table(record):
    rows = [
        [run, *(spread(record.last(f"{title}, {run}")) for title in DATA.values())]
        for run in record.contents["hyperparameters"]["runs"]
    ]
    return table(["after 800 mini-batches", *DATA.values()], rows)


def search_table(record):
    rows = []
    for optimizer in OPTIMIZERS:
        trials = [done for done in record.contents["trials"] if done["optimizer"] == optimizer]
        best = winner(record, optimizer)
        rows.append(
            [
                optimizer,
                str(len(trials)),
                spread([*trials[0]["accuracy"].values()]),
                spread([*best["accuracy"].values()]),
                ", ".join(f"{what} {value}" for what, value in best["hyperparameters"].items()),
            ]
        )
    header = ["", "trials", "the paper's", "the best", "its hyperparameters"]
    return table(header, rows)


def cycle_table(record):
    rows = []
    for step, found in record.measured("cycles").items():
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
        for run in record.contents["hyperparameters"]["runs"]
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
