"""What the CIFAR-10 experiments of Section 5.2 share: options, augmented data, the comparison."""

import argparse
import resource
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from common import augment, data, training
from common.experiment import Experiment
from p2t_jax import plots

BATCH = 64


def add_options(parser: argparse.ArgumentParser, epochs: int) -> None:
    """Length of the training, sync periods, and how much of the data is used."""
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--sync-period", type=int, nargs="+", default=[10], help="one run for each")
    parser.add_argument("--train-images", type=int, default=50_000, help="the first so many")
    parser.add_argument("--no-adam", action="store_true", help="leave out Adam alone")


def load(options: argparse.Namespace) -> training.Data:
    """CIFAR-10 on the device, z-score normalized and augmented when it is trained on."""
    dataset = data.load("cifar10", options.data_dir)
    train_images = 2 * BATCH if options.short else options.train_images
    dataset = dataset._replace(
        train_images=dataset.train_images[:train_images],
        train_labels=dataset.train_labels[:train_images],
    )
    if options.short:
        dataset = dataset._replace(
            test_images=dataset.test_images[:100], test_labels=dataset.test_labels[:100]
        )
    mean, deviation = data.channel_statistics(dataset.train_images)

    def prepare(key: Any, images: jax.Array) -> jax.Array:
        images = data.standardize(images, mean, deviation)
        return images if key is None else augment.augment(key, images)

    return training.Data(*map(jnp.asarray, dataset), prepare)


def divided_by_10_at(epochs: list[int], per_epoch: int) -> optax.Schedule:
    """Adam's learning rate: 1e-3, divided by 10 at the given epochs."""
    return optax.piecewise_constant_schedule(1e-3, {epoch * per_epoch: 0.1 for epoch in epochs})


def l2(factor: float) -> optax.GradientTransformation:
    """L2 regularization of the kernels: the gradient of `factor * sum(w^2)`."""

    def kernels(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.add_decayed_weights(2 * factor, kernels)


def compare(
    experiment: Experiment,
    cifar: training.Data,
    optimizers: dict[str, Any],
    paper: dict[str, str],
) -> None:
    """Train each (model, optimizer) of a dict by name with every seed; draw the curves."""
    per_epoch = len(cifar.train_images) // BATCH
    epochs = 2 if experiment.options.short else experiment.options.epochs
    # XLA compiles the gradients of convolutions in a loop to something 20 times slower on a CPU:
    # https://github.com/jax-ml/jax/issues/12868
    one_call = jax.default_backend() != "cpu"
    figure, ax = plt.subplots(figsize=(7, 4.5))
    for name, (model, tx) in optimizers.items():
        for seed in experiment.seeds:
            experiment.fit(
                name, model, tx, cifar, seed,
                steps=epochs * per_epoch, every=per_epoch, batch_size=BATCH, one_call=one_call,
            )  # fmt: skip
        batches, accuracy = experiment.curves(name)
        plots.learning_curve(batches / per_epoch, accuracy, label=name, ax=ax)
    ax.set(xlabel="epochs", title=f"{experiment.name} on {len(cifar.train_images):,} images")
    experiment.save_picture(figure, "accuracy")
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    # A CPU reports none: then it is all that the process has had, in KiB on Linux.
    memory = memory or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = [run["seconds"] for run in experiment.runs]
    experiment.finish(
        paper,
        **{
            "mini-batches a second": f"{epochs * per_epoch / np.mean(seconds):.1f}",
            "peak memory": f"{memory / 2**20:.0f} MiB",
        },
    )
