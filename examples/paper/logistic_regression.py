"""Section 5.1.1: logistic regression on MNIST by SGPerm, beside Adam (Figures 8 and 9).

    python examples/paper/logistic_regression.py --data-dir DIR [--seeds 5]

Measures also how sparse and how strong the first updates are.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models, training
from common.algorithm_1 import every_weight_and_bias, sgperm
from common.experiment import Experiment, mnist, parser
from p2t_jax import plots

HYPERPARAMETERS = {
    "aggressiveness": "max(0.99^t 0.15, 0.005)",
    "partition_ratio": "min(0.05 / 0.995^t, 0.1)",
    "batch_size": 64,
    "Adam": 1e-3,
}
PAPER = {"SGPerm": "about 87 %", "Adam": "above it, still rising (Figure 8)"}
FIRST = 50  # updates over which the paper compares sparsity and strength


def on_grid(key, params):
    """Where updates are exact, a weight that stays has an update of exactly zero."""
    return p2t.to_grid(params, vectors=every_weight_and_bias)


def changes(updates, state):
    """Of one update to the weights: how many change; their mean absolute and mean square change."""
    sparsity, size = p2t.update_statistics(updates)
    _, square = p2t.update_statistics(jax.tree.map(jnp.square, updates))
    return 1 - sparsity, size, square


def main():
    options = parser(__doc__, seeds=5).parse_args()
    steps, every = (50, 25) if options.short else (800, 5)
    experiment = Experiment("logistic_regression", options, **HYPERPARAMETERS)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    model = models.MLP((10,), models.he_uniform, models.uniform_bias)

    first_updates = {"SGPerm": [], "Adam": []}
    for seed in experiment.seeds:
        for name, tx in (
            ("SGPerm", sgperm(seed, alpha_0=0.15, beta_1=0.99)),
            ("Adam", optax.adam(1e-3)),
        ):
            start = training.initial_state(model, tx, mnist_data, seed, adapt=on_grid)
            run = experiment.fit(
                name, model, tx, mnist_data, seed,
                start=start, steps=steps, every=every, vectors=every_weight_and_bias,
            )  # fmt: skip
            if name == "SGPerm" and seed == experiment.seeds[0]:
                before, after = (
                    np.asarray(params["Dense_0"]["kernel"])
                    for params in (run.initial_params, run.params)
                )
            # The first updates again, looked at one by one.
            chunk = training.training_chunk(model, tx, mnist_data.prepare, changes)
            indices = training.mini_batches(len(mnist_data.train_images), 64, seed, 0, FIRST)
            _, (_, seen) = chunk(
                start, mnist_data.train_images, mnist_data.train_labels, indices,
                jax.random.key(seed),
            )  # fmt: skip
            first_updates[name].append([np.mean(x) for x in seen])

    figure, ax = plt.subplots(figsize=(6, 4))
    for name in first_updates:
        plots.learning_curve(*experiment.curves(name), label=name, ax=ax)
    ax.set(ylim=(0.5, 1), title="Logistic regression on MNIST")
    experiment.save_picture(figure, "accuracy")

    figure, axs = plt.subplots(2, 10, figsize=(15, 3.2), layout="constrained")
    for row, weights, when in zip(axs, (before, after), ("before", "after"), strict=True):
        row[0].set_ylabel(when)
        for ax, vector in zip(row, weights.T, strict=True):
            plots.weight_vector(vector, (28, 28), ax=ax)
    experiment.save_picture(figure, "weight-vectors")

    changed, size, square = np.transpose([np.mean(seen, axis=0) for seen in first_updates.values()])
    experiment.finish(
        PAPER,
        **{
            f"weights changed by each of the first {FIRST} updates": (
                f"SGPerm {changed[0]:.1%}, Adam {changed[1]:.1%}: "
                f"{changed[1] / changed[0]:.1f} times sparser (the paper: about 4)"
            ),
            "change of those, mean": (
                f"SGPerm {size[0]:.2g}, Adam {size[1]:.2g}: "
                f"{size[0] / size[1]:.0f} times stronger (the paper: about 80)"
            ),
            "change of those, mean square": (
                f"SGPerm {square[0]:.2g}, Adam {square[1]:.2g}: "
                f"{square[0] / square[1]:.0f} times stronger"
            ),
        },
    )


if __name__ == "__main__":
    main()
