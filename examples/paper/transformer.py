"""Beyond the paper: a small vision transformer on Fashion-MNIST.

    python examples/paper/transformer.py --data-dir DIR [--seeds 3]
    python examples/paper/transformer.py --data-dir DIR --search [--only LAPerm]

LAPerm, without and with error feedback, SGPerm and Adam, each with the usual hyperparameters and
with the best of `TRIALS`, initial weights included: four of each, and ten of Adam and of LAPerm
with error feedback, which are compared. The blocks are one stack of parameters, in which
`infer_vectors` finds the weight vectors. `--search` makes these trials on 50,000 training images,
and judges them by the other 10,000; it does not look at test images.
"""

import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import algorithm_1, data, figures, models, records, training
from common.experiment import Experiment, mnist, parser, versions
from common.records import Record, spread, table
from common.search import THE_PAPERS, held_back, searched, trials, winner
from p2t_jax import plots

BATCHES, EVERY, BATCH = 1000, 100, 128
SEARCH = "transformer_search"  # its record
NETWORK = models.ViT(blocks=2)
# Weights as Flax draws them, but for the tails: normal, of variance 1 / fan_in.
FLAX = {"gain": 1.0, "confidence": 0.5}
# Searched for 784-500-300-10 (fully_connected.py).
SGPERM = {"lower": "smallest", "alpha_0": 0.156, "alpha_min": 0.00271, "beta_1": 0.99544,
          "lambda_0": 0.258, "lambda_max": 0.902, "beta_2": 1.00403, "momentum": 0.9}  # fmt: skip
ADAM = {"rate": 3e-3, "last_rate": 3e-4, "warmup": 100, "b2": 0.99}
# Chosen by hand, one after the other, but for the drawn ones. The first of each are the usual ones.
TRIALS = {
    "LAPerm": [
        {"rate": 1e-3, "last_rate": 1e-3, "warmup": 0, "b2": 0.999,
         "first_k": 20, "last_k": 20, **FLAX},
        {**ADAM, "first_k": 10, "last_k": 100, "gain": 1.4, "confidence": 0.5},
        {**ADAM, "first_k": 50, "last_k": 200, "gain": 1.4, "confidence": 1.0},
        {**ADAM, "first_k": 100, "last_k": 100, **FLAX},
    ],
    "SGPerm": [
        {"rate": 1e-3, **THE_PAPERS, **FLAX},
        {"rate": 3e-3, **SGPERM, "gain": 1.4, "confidence": 0.0},
        {"rate": 3e-3, **SGPERM, "alpha_0": 0.2, "beta_1": 0.996, "momentum": 0.97,
         "gain": 1.4, "confidence": 0.0},
        {"rate": 3e-3, **SGPERM, "gain": 1.4, "confidence": 0.5},
    ],
    "Adam": [
        {"rate": 1e-3, "last_rate": 1e-3, "warmup": 0, "b2": 0.999, **FLAX},
        {**ADAM, **FLAX},
        {**ADAM, "rate": 5e-3, "last_rate": 1e-4, **FLAX},
        {**ADAM, "last_rate": 3e-5, "gain": 0.7, "confidence": 0.5},
    ],
}  # fmt: skip


def drawn(number):
    """A random trial: of Adam's, and of the sync period and the initial weights."""
    rng = np.random.default_rng([2, number])

    def between(low, high):
        return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")

    rate = between(1e-3, 6e-3)
    adam = {"rate": rate, "last_rate": float(f"{rate * between(0.01, 0.3):.3g}"), "warmup": 100,
            "b2": float(rng.choice([0.99, 0.999])), "gain": between(0.7, 1.4),
            "confidence": float(rng.choice([0.0, 0.5, 1.0]))}  # fmt: skip
    first = int(rng.choice([5, 10, 20, 50]))
    return adam, {"first_k": first, "last_k": first}


# The four trials of Adam's, six random ones, and the same inner Adam in LAPerm.
TRIALS["Adam"] += [drawn(number)[0] for number in range(6)]
TRIALS[figures.FEEDBACK] = [
    trial | {"first_k": 20, "last_k": 20} for trial in TRIALS["Adam"][:4]
] + [adam | k for adam, k in map(drawn, range(6))]


@functools.cache
def vectors():
    """Where the weight vectors are, found by tracing the network; nothing is computed."""
    images = jax.ShapeDtypeStruct((2, 28, 28, 1), "float32")
    params = jax.eval_shape(NETWORK.init, jax.random.key(0), images)["params"]
    return p2t.infer_vectors(
        lambda params, images: NETWORK.apply({"params": params}, images), params, images
    )


def adam(seed, rate, last_rate, warmup, b2):
    """Adam whose learning rate rises for `warmup` mini-batches, then falls as a cosine does."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else rate, rate, int(warmup), BATCHES, last_rate
    )
    return optax.adam(schedule, b2=b2)


def laperm(seed, first_k, last_k, error_feedback=0.0, **inner):
    """LAPerm over that Adam; k goes exponentially from its first value to its last."""
    k = optax.exponential_decay(first_k, BATCHES, last_k / first_k)
    return p2t.laperm(adam(seed, **inner), k, error_feedback=error_feedback, vectors=vectors())


def sgperm(seed, rate, **hyperparameters):
    """SGPerm; Adam trains the parameters that have no weight vectors."""
    groups = jax.tree.map(
        lambda axes: "free" if axes is None else "permuted",
        vectors(), is_leaf=lambda node: node is None or isinstance(node, tuple),
    )  # fmt: skip
    permuted = algorithm_1.sgperm(seed, vectors=vectors(), **hyperparameters)
    return optax.partition({"permuted": permuted, "free": optax.adam(rate)}, groups)


OPTIMIZERS = {
    "LAPerm": laperm,
    figures.FEEDBACK: functools.partial(laperm, error_feedback=1.0),
    "SGPerm": sgperm,
    "Adam": adam,
}


def start_of(optimizer, images, seed, gain, confidence, **hyperparameters):
    """An optimizer, and the state that its training starts from."""
    tx = OPTIMIZERS[optimizer](seed, **hyperparameters)
    initializer = p2t.initializers.kaiming(confidence, gain=gain)

    def draw_weights(key, params):
        return p2t.reinitialize(key, params, initializer, vectors=vectors())

    return tx, training.initial_state(NETWORK, tx, images, seed, adapt=draw_weights)


def search(options):
    """Train with those of `TRIALS` that are not in the record, a sixth of the images held back."""
    images = held_back("fashion_mnist", options)
    for optimizer in options.only or TRIALS:
        for hyperparameters in TRIALS[optimizer]:
            # Loaded anew, since other processes may add to the same record.
            record = Record.load(SEARCH, options.output_dir)
            record.contents.setdefault("trials", [])
            if hyperparameters in (trial["hyperparameters"] for trial in trials(record, optimizer)):
                continue
            tx, start = start_of(optimizer, images, 0, **hyperparameters)
            run = training.fit(
                NETWORK, tx, images, start,
                seed=0, batch_size=BATCH, evaluate_at=[3 if options.short else BATCHES],
            )  # fmt: skip
            accuracy = {"0": round(float(run.accuracy[-1]), 4)}
            record = Record.load(SEARCH, options.output_dir)
            done = record.contents.setdefault("trials", [])
            done.append({"optimizer": optimizer, "hyperparameters": hyperparameters,
                         "accuracy": accuracy})  # fmt: skip
            record.contents = {"experiment": SEARCH, "versions": versions()} | record.contents
            record.save(SEARCH, options.output_dir)
            print(optimizer, hyperparameters, accuracy, flush=True)


def runs(folder=records.FOLDER):
    """The hyperparameters of all runs, by name."""
    record = searched(SEARCH, folder)
    return {
        name: hyperparameters
        for optimizer in TRIALS
        if trials(record, optimizer)
        for name, hyperparameters in (
            (optimizer, TRIALS[optimizer][0]),
            (f"{optimizer}, searched", winner(record, optimizer)["hyperparameters"]),
        )
    }


def main():
    options = parser(__doc__, seeds=3)
    options.add_argument("--search", action="store_true", help="search hyperparameters")
    options.add_argument("--only", nargs="+", metavar="NAME", help="only these optimizers or runs")
    options = options.parse_args()
    if options.search:
        return search(options)
    evaluate_at = range(0, 7, 3) if options.short else range(0, BATCHES + 1, EVERY)
    chosen = runs(options.output_dir)
    experiment = Experiment("transformer", options, batch_size=BATCH, runs=chosen)
    images = mnist(data.load("fashion_mnist", options.data_dir))
    for name in options.only or chosen:
        for seed in experiment.seeds:
            tx, start = start_of(name.split(",")[0], images, seed, **chosen[name])
            experiment.fit(
                name, NETWORK, tx, images, seed,
                start=start, evaluate_at=evaluate_at, batch_size=BATCH, vectors=vectors(),
            )  # fmt: skip
    experiment.finish()


def tables(record: Record):
    rows = [
        [name, spread(record.last(name)), spread(record.last(f"{name}, searched"))]
        for name in TRIALS
    ]
    header = [f"test accuracy after {BATCHES:,} mini-batches", "the usual", "searched"]
    record = Record.load(SEARCH)
    made = [
        [
            name, spread([*trial["accuracy"].values()]),
            ", ".join(f"{what} {value}" for what, value in trial["hyperparameters"].items()),
        ]
        for name in TRIALS
        for trial in trials(record, name)
    ]  # fmt: skip
    return {
        "transformer": table(header, rows),
        "transformer-search": table(["", "validation accuracy", "hyperparameters"], made),
    }


def overview(record: Record):
    return [
        [f"vision transformer, Fashion-MNIST, {name}{which}", "", record.last(name + which)]
        for name in TRIALS
        for which in ("", ", searched")
    ]


def draw(record: Record):
    """Test errors; and the validation errors of all trials."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.2), width_ratios=[1.6, 1], layout="constrained"
    )
    for name in TRIALS:
        for which, line in ((", searched", "-"), ("", "--")):
            label = f"{name} ({which[2:] or 'usual'})"
            figures.curve(left, record, name + which, name, label, error=True, linestyle=line)
    figures.error_axis(left, 0.12, 1.0)
    left.set(title="(a) test images, three seeds", xlim=(0, BATCHES))
    left.legend(loc="upper right")

    record = Record.load(SEARCH)
    for name in TRIALS:
        errors = [1 - done["accuracy"]["0"] for done in trials(record, name)]
        style = {"color": plots.COLORS[name], "linewidth": 0.6, "label": name}
        right.plot(range(1, len(errors) + 1), errors, "o-", **style)
    figures.error_axis(right, 0.12, 0.5)
    right.set(title="(b) validation images, all trials", xlabel="trial", ylabel="validation error")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="upper right")
    return {"accuracy": figure}


if __name__ == "__main__":
    main()
