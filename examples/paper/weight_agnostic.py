"""The authors' follow-up, "Train by Reconnect" (NeurIPS 2020), Section 5.5: one weight for all.

    python examples/paper/weight_agnostic.py --data-dir DIR [--seeds 5]

Every weight is zero or one shared value, so all that LAPerm can learn is where the connections are.
F1 is 784-10 with {0, 0.08}, of which 4/7 are connections; F2 is 784-128-64-10 with {0, 0.03}, of
which 1/15, 1/7 and 1/3 are. No biases.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models, training
from common.experiment import Experiment, mnist, parser
from p2t_jax import plots

BATCH, SYNC_PERIOD = 128, 250
# Layers, the shared weight, the part of each layer that is connected, epochs, L2 of the layers.
NETWORKS = {
    "F1": ((10,), 0.08, (4 / 7,), 10, (0.0,)),
    "F2": ((128, 64, 10), 0.03, (1 / 15, 1 / 7, 1 / 3), 25, (1e-4, 1e-4, 0.0)),
}
PAPER = {"F1": "85.46 % (best)", "F2": "78.14 % (best)"}


def layers(values):
    """A tree of a value for each layer's kernel."""
    return {f"Dense_{i}": {"kernel": value} for i, value in enumerate(values)}


def main():
    options = parser(__doc__, seeds=5).parse_args()
    mnist_data = mnist(data.load("mnist", options.data_dir))
    per_epoch = len(mnist_data.train_images) // BATCH
    experiment = Experiment(
        "weight_agnostic", options, batch_size=BATCH, sync_period=SYNC_PERIOD,
        learning_rate="1e-3 * 0.95^epoch", networks=NETWORKS,
    )  # fmt: skip

    figure, axs = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    values = {}
    for ax, (name, (features, weight, keep, epochs, l2)) in zip(axs, NETWORKS.items(), strict=True):
        model = models.MLP(features, use_bias=False)
        learning_rate = optax.exponential_decay(1e-3, per_epoch, 0.95, staircase=True)
        # Keras adds l2 * w^2 to the loss, whose gradient is 2 * l2 * w.
        decay = optax.partition(
            {factor: optax.add_decayed_weights(2 * factor) for factor in set(l2)}, layers(l2)
        )
        adam = (
            optax.chain(decay, optax.adam(learning_rate)) if any(l2) else optax.adam(learning_rate)
        )
        tx = p2t.laperm(adam, SYNC_PERIOD)

        def shared(key, params, weight=weight, keep=keep):
            params = p2t.reinitialize(key, params, jax.nn.initializers.constant(weight))
            return p2t.prune(jax.random.fold_in(key, 0), params, layers(keep))

        steps = 2 * SYNC_PERIOD if options.short else epochs * per_epoch
        for seed in experiment.seeds:
            start = training.initial_state(model, tx, mnist_data, seed, adapt=shared)
            run = experiment.fit(
                name, model, tx, mnist_data, seed,
                start=start, steps=steps, every=SYNC_PERIOD, batch_size=BATCH,
            )  # fmt: skip
            kernels = jax.tree.leaves(run.params)
            found = np.unique(np.concatenate([np.ravel(kernel) for kernel in kernels]))
            assert found.tolist() == [0, np.float32(weight)], found
        values[f"the weights of {name}"] = f"0 and {found[1]:.2f}, nothing else"
        plots.learning_curve(*experiment.curves(name), label=name, ax=ax)
        ax.set(title=f"{name}: weights from {{0, {weight}}}", ylim=(0, 1))
    experiment.save_picture(figure, "accuracy")
    experiment.finish(PAPER, **values)


if __name__ == "__main__":
    main()
