"""Section 4.2: how much does the profile of the initial weights matter to LAPerm?

    python examples/paper/initial_profiles.py --data-dir DIR [--seeds 3]

784-500-300-10 on MNIST, LAPerm over Adam (1e-3, k = 20), 3,000 mini-batches, from profiles between
hesitant and confident, all at Kaiming's scale; from the profiles of a network that Adam has
trained; and from networks with only two or three different weights. All without error feedback,
which is the paper's LAPerm, and with it.
"""

import jax
import matplotlib.pyplot as plt
import optax

import p2t_jax as p2t
from common import data, figures, models, training
from common.experiment import Experiment, mnist, parser
from common.records import Record, spread, table

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
FEW = tuple(PROFILES)[-2:]
NORMAL, TRAINED = "normal, `kaiming(0.5)`", "profiles of a network trained by Adam"
ADAM = f"Adam from {NORMAL}"
NETWORK = models.MLP((500, 300, 10))
WAYS = {"LAPerm": 0.0, figures.FEEDBACK: 1.0}


def run_name(way, profile):
    return profile if way == "LAPerm" else f"{profile}, feedback"


def main():
    options = parser(__doc__, seeds=3).parse_args()
    evaluate_at = range(0, 41, 20) if options.short else range(0, 3001, 100)
    experiment = Experiment("initial_profiles", options, batch_size=64, sync_period=SYNC_PERIOD)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    adam = optax.adam(1e-3)
    laperms = {way: p2t.laperm(adam, SYNC_PERIOD, error_feedback=m) for way, m in WAYS.items()}

    for seed in experiment.seeds:

        def fit(name, tx, initializer, seed=seed):
            def draw(key, params):
                return p2t.reinitialize(key, params, initializer)

            start = training.initial_state(NETWORK, tx, mnist_data, seed, adapt=draw)
            return experiment.fit(
                name, NETWORK, tx, mnist_data, seed, start=start, evaluate_at=evaluate_at
            )

        trained = fit(ADAM, adam, PROFILES[NORMAL])
        profiles = p2t.profiles.weight_profiles(trained.params)
        of_adam = jax.tree.map(p2t.initializers.from_profile, profiles)
        for way, laperm in laperms.items():
            for name, initializer in {**PROFILES, TRAINED: of_adam}.items():
                fit(run_name(way, name), laperm, initializer)
    experiment.finish()


def tables(record: Record):
    rows = [
        [name, *(spread(record.last(run_name(way, name))) for way in WAYS)]
        for name in (*PROFILES, TRAINED)
    ]
    rows.append([ADAM, spread(record.last(ADAM)), ""])
    return {"initial_profiles": table(["initial weights", *WAYS], rows)}


def overview(record: Record):
    return [
        ["LAPerm (k = 20), MNIST, normal weights", "", record.last(NORMAL)],
        ["the same, profiles of a trained network", "", record.last(TRAINED)],
        ["the same, Adam from normal weights", "", record.last(ADAM)],
    ]


def draw(record: Record):
    """The accuracy at the end of each run, a row of dots for each profile and way."""
    figure, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    names = [*PROFILES, TRAINED]
    for way, below in ((figures.FEEDBACK, 0.18), ("LAPerm", -0.18)):
        for row, name in enumerate(names):
            if way == "LAPerm" and name in FEW:
                continue  # so low that all others would be one dot: see the table
            figures.dots(
                ax, record.last(run_name(way, name)), row + below, way, way if not row else None
            )
    figures.dots(ax, record.last(ADAM), len(names), "Adam", "Adam")
    ax.set_yticks(range(len(names) + 1), [name.replace("`", "") for name in (*names, ADAM)])
    ax.invert_yaxis()
    ax.set(xlabel="test accuracy after 3,000 mini-batches, seeds and mean")
    figure.legend(loc="outside upper center", ncols=3)
    ax.grid(axis="x", alpha=0.3)
    figures.percent(ax.xaxis, decimals=1)
    return {"accuracy": figure}


if __name__ == "__main__":
    main()
