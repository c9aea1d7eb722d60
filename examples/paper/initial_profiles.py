"""Section 4.2: how much does the profile of the initial weights matter to LAPerm?

    python examples/paper/initial_profiles.py --data-dir DIR [--seeds 3]

784-500-300-10 on MNIST, LAPerm over Adam (1e-3, k = 20), 3,000 mini-batches, from profiles between
hesitant and confident, all at Kaiming's scale; from the profiles of a network that Adam has
trained; and from networks with only two or three different weights.
"""

import jax
import matplotlib.pyplot as plt
import optax

import p2t_jax as p2t
from common import data, figures, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table
from p2t_jax import plots

SYNC_PERIOD = 20
PROFILES = {
    "uniform, `kaiming(0)`": p2t.initializers.kaiming(0),
    "between, `kaiming(0.25)`": p2t.initializers.kaiming(0.25),
    "normal, `kaiming(0.5)`": p2t.initializers.kaiming(0.5),
    "more confident, `kaiming(0.75)`": p2t.initializers.kaiming(0.75),
    "double exponential, `kaiming(1)`": p2t.initializers.kaiming(1),
    "two values, `kaiming(values=2)`": p2t.initializers.kaiming(values=2),
    "three values, `kaiming(values=3)`": p2t.initializers.kaiming(values=3),
}
NORMAL, TRAINED = "normal, `kaiming(0.5)`", "profiles of a network trained by Adam"
ADAM = f"Adam from {NORMAL}"
NETWORK = models.MLP((500, 300, 10))


def main():
    options = parser(__doc__, seeds=3).parse_args()
    evaluate_at = range(0, 41, 20) if options.short else range(0, 3001, 100)
    experiment = Experiment("initial_profiles", options, batch_size=64, sync_period=SYNC_PERIOD)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    laperm, adam = p2t.laperm(optax.adam(1e-3), SYNC_PERIOD), optax.adam(1e-3)

    for seed in experiment.seeds:

        def fit(name, tx, initializer, seed=seed):
            def draw(key, params):
                return p2t.reinitialize(key, params, initializer)

            start = training.initial_state(NETWORK, tx, mnist_data, seed, adapt=draw)
            return experiment.fit(
                name, NETWORK, tx, mnist_data, seed, start=start, evaluate_at=evaluate_at
            )

        trained = fit(ADAM, adam, PROFILES[NORMAL])
        for name, initializer in PROFILES.items():
            fit(name, laperm, initializer)
        profiles = p2t.profiles.weight_profiles(trained.params)
        fit(TRAINED, laperm, jax.tree.map(p2t.initializers.from_profile, profiles))
    experiment.finish()


def tables(record: Record):
    rows = [[name, spread(record.last(name))] for name in (*PROFILES, TRAINED, ADAM)]
    return {"initial_profiles": table(["initial weights", "test accuracy"], rows)}


def overview(record: Record):
    return [
        ["LAPerm (k = 20), MNIST, normal weights", "", record.last(NORMAL)],
        ["the same, profiles of a trained network", "", record.last(TRAINED)],
        ["the same, Adam from normal weights", "", record.last(ADAM)],
    ]


def draw(record: Record):
    """The accuracy at the end of each run, a row of dots for each profile."""
    figure, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    names = [*PROFILES, TRAINED, ADAM]
    for row, name in enumerate(names):
        optimizer = "Adam" if name == ADAM else "LAPerm"
        color, accuracy = plots.COLORS[optimizer], record.last(name)
        label = f"{optimizer}, seeds and mean" if name in (NORMAL, ADAM) else None
        style = {"color": color, "alpha": 0.6, "markersize": 5, "label": label}
        ax.plot(accuracy, [row] * len(accuracy), "o", **style)
        ax.plot([accuracy.mean()] * 2, [row - 0.3, row + 0.3], color=color, linewidth=2)
    ax.set_yticks(range(len(names)), [name.replace("`", "") for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="test accuracy after 3,000 mini-batches", title="LAPerm from eight profiles")
    ax.legend(loc="center left")
    ax.grid(axis="x", alpha=0.3)
    figures.percent(ax.xaxis, decimals=1)
    return {"accuracy": figure}


if __name__ == "__main__":
    main()
