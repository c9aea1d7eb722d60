"""Section 1.2: weight profiles before and after training, and how alike they are (Figures 1, 2).

    python examples/paper/weight_profiles.py --data-dir DIR

Adam trains the network of Section 5.1.2 for 10 epochs. The number is the part of the variance of
the weights that the layer's mean profile explains: 1 if all neurons have the same sorted weights.
Without sorting it is next to nothing: the information is in the order.
"""

import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import data, models
from common.experiment import Experiment, mnist, parser
from p2t_jax import plots

EPOCHS = 10


def main():
    options = parser(__doc__).parse_args()
    experiment = Experiment("weight_profiles", options, batch_size=64, epochs=EPOCHS, Adam=1e-3)
    mnist_data = mnist(data.load("mnist", options.data_dir))
    per_epoch = 30 if options.short else len(mnist_data.train_images) // 64
    steps = per_epoch if options.short else EPOCHS * per_epoch

    similarity = {"before": [], "after": [], "after, not sorted": []}
    for seed in experiment.seeds:
        run = experiment.fit(
            "Adam", models.MLP((500, 300, 10)), optax.adam(1e-3), mnist_data, seed,
            steps=steps, every=per_epoch,
        )  # fmt: skip
        similarity["before"].append(by_layer(run.initial_params, sort=True))
        similarity["after"].append(by_layer(run.params, sort=True))
        similarity["after, not sorted"].append(by_layer(run.params, sort=False))
        if seed == experiment.seeds[0]:
            draw(experiment, run)
    experiment.finish(
        {},
        **{
            f"similarity of the profiles of the three layers, {when}": ", ".join(
                f"{number:.4f}" for number in np.mean(values, axis=0)
            )
            for when, values in similarity.items()
        },
    )


def by_layer(params, sort):
    """The similarity of the profiles of every layer."""
    vectors = [np.transpose(layer["kernel"]) for layer in params.values()]
    return [float(p2t.profile_similarity(np.sort(w) if sort else w)) for w in vectors]


def draw(experiment, run):
    """The first two layers before and after training, as they are (1a) and sorted (1b)."""
    figure, axs = plt.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for row, name in zip(axs, ("Dense_0", "Dense_1"), strict=True):
        before, after = run.initial_params[name]["kernel"], run.params[name]["kernel"]
        for ax, (title, weights, sort) in zip(
            row,
            (
                ("before training, sorted", before, True),
                ("after training", after, False),
                ("after training, sorted", after, True),
            ),
            strict=True,
        ):
            plots.profile(weights, sort=sort, ax=ax)
            ax.set_title(f"{name}: {title}")
    experiment.save_picture(figure, "profiles")


if __name__ == "__main__":
    main()
