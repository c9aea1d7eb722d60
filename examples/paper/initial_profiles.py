"""Section 4.2: how much does the profile of the initial weights matter to LAPerm?

    python examples/paper/initial_profiles.py --data-dir DIR [--seeds 3]

784-500-300-10 on MNIST, LAPerm over Adam (1e-3, k = 20), 3,000 mini-batches, from profiles between
hesitant and confident, all at Kaiming's scale; from the profiles of a network that Adam has
trained; and from networks with only two or three different weights.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models, training
from common.experiment import Experiment, mnist, parser
from p2t_jax import plots

SYNC_PERIOD = 20
PROFILES = {
    "uniform": p2t.kaiming(0),
    "between": p2t.kaiming(0.25),
    "normal": p2t.kaiming(0.5),
    "more confident": p2t.kaiming(0.75),
    "double exponential": p2t.kaiming(1),
    "two weights, -c and c": p2t.from_profile([-1.0, 1.0], gain=2**0.5),
    "three, -c, 0 and c": p2t.from_profile([-1.0, 0.0, 1.0], gain=2**0.5),
}
NETWORK = models.MLP((500, 300, 10))


def main():
    options = parser(__doc__, seeds=3).parse_args()
    steps, every = (40, 20) if options.short else (3000, 100)
    experiment = Experiment("initial_profiles", options, batch_size=64, sync_period=SYNC_PERIOD)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    laperm, adam = p2t.laperm(optax.adam(1e-3), SYNC_PERIOD), optax.adam(1e-3)

    for seed in experiment.seeds:

        def fit(name, tx, initializer, seed=seed):
            def draw(key, params):
                return p2t.reinitialize(key, params, initializer)

            start = training.initial_state(NETWORK, tx, mnist_data, seed, adapt=draw)
            return experiment.fit(
                name, NETWORK, tx, mnist_data, seed, start=start, steps=steps, every=every
            )

        trained = fit("Adam, normal", adam, PROFILES["normal"])
        for name, initializer in PROFILES.items():
            fit(name, laperm, initializer)
        profiles = p2t.weight_profiles(trained.params)
        fit("those of a trained network", laperm, jax.tree.map(p2t.from_profile, profiles))

    names = [*PROFILES, "those of a trained network"]
    figure, ax = plt.subplots(figsize=(7, 4.5))
    for name in names:
        batches, accuracy = experiment.curves(name)
        plots.learning_curve(batches, accuracy.mean(axis=0), label=name, ax=ax)
    ax.set(ylim=(0.9, 0.985), title="LAPerm from different profiles")
    experiment.save_picture(figure, "accuracy")
    finals = [experiment.curves(name)[1][:, -1].mean() for name in names]
    experiment.finish({}, **{"best minus worst profile": f"{100 * np.ptp(finals):.2f} %"})


if __name__ == "__main__":
    main()
