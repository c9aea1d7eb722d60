"""What the CIFAR-10 experiments of Section 5.2 share: options, augmented data, runs and figures."""

import argparse
import resource
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import p2t_jax as p2t
from common import augment, data, figures, training
from common.experiment import Experiment, parser
from common.records import Record, spread, table

BATCH, RATE = 64, 1e-3


def arguments(doc: str, epochs: int) -> argparse.Namespace:
    """Those of all scripts; length of the training, sync periods, and which runs."""
    options = parser(doc)
    options.add_argument("--epochs", type=int, default=epochs)
    options.add_argument(
        "--sync-period", type=period, nargs="*", default=[(10, 10)], metavar="K",
        help="a run of LAPerm for each: a number, or two, as in 10-1000, from the beginning to the "
        "end of which it grows exponentially",
    )  # fmt: skip
    options.add_argument("--only", nargs="+", metavar="NAME", help="only these runs, by name")
    return options.parse_args()


def period(text: str) -> tuple[int, int]:
    """The sync period at the beginning and at the end of training: "10" or "10-1000"."""
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def laperm_runs(
    options: argparse.Namespace, inner: optax.GradientTransformation, steps: int
) -> dict[str, optax.GradientTransformation]:
    """LAPerm with each sync period, without and with error feedback, by name."""
    runs = {}
    for name, m in (("LAPerm", 0.0), (figures.FEEDBACK, 1.0)):
        for first, last in options.sync_period:
            k: Any = first
            if last != first:
                k = optax.exponential_decay(first, steps, last / first)
            period = f"k = {first}" + (f" to {last}" if last != first else "")
            runs[f"{name}, {period}"] = p2t.laperm(inner, k, error_feedback=m)
    return runs


def load(options: argparse.Namespace) -> training.Data:
    """CIFAR-10 on the device, z-score normalized and augmented when it is trained on."""
    dataset = data.load("cifar10", options.data_dir)
    if options.short:
        dataset = data.Dataset(
            *(array[: 2 * BATCH] for array in dataset[:2]), *(array[:100] for array in dataset[2:])
        )
    mean, deviation = data.channel_statistics(dataset.train_images)

    def prepare(key: Any, images: jax.Array) -> jax.Array:
        images = data.standardize(images, mean, deviation)
        return images if key is None else augment.augment(key, images)

    return training.Data(*map(jnp.asarray, dataset), prepare)


def steps_of(options: argparse.Namespace, cifar: training.Data) -> int:
    """The mini-batches of the whole training."""
    return options.epochs * (len(cifar.train_images) // BATCH)


def divided_by_10(fractions: Sequence[float], steps: int) -> optax.Schedule:
    """Adam's learning rate: divided by 10 after fractions of the training."""
    return optax.piecewise_constant_schedule(
        RATE, {round(fraction * steps): 0.1 for fraction in fractions}
    )


def l2(factor: float) -> optax.GradientTransformation:
    """L2 regularization of the kernels: the gradient of `factor * sum(w^2)`."""

    def kernels(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.add_decayed_weights(2 * factor, kernels)


def train(experiment: Experiment, cifar: training.Data, runs: dict[str, Any]) -> Record:
    """Train each (model, optimizer) of a dict by name with every seed."""
    options = experiment.options
    per_epoch = len(cifar.train_images) // BATCH
    if unknown := set(options.only or ()) - set(runs):
        raise SystemExit(f"--only: there is no run {unknown}; there are {list(runs)}.")
    # XLA compiles the gradients of convolutions in a loop to something 20 times slower on a CPU:
    # https://github.com/jax-ml/jax/issues/12868
    one_call = jax.default_backend() != "cpu"
    measured = {}
    for name in options.only or runs:
        model, tx = runs[name]
        seconds = []
        for seed in experiment.seeds:
            run = experiment.fit(
                name, model, tx, cifar, seed,
                evaluate_at=range(0, steps_of(options, cifar) + 1, per_epoch),
                batch_size=BATCH, one_call=one_call,
            )  # fmt: skip
            seconds.append(run.seconds)
        rate = steps_of(options, cifar) / np.mean(seconds)
        measured[f"{name}: mini-batches per second"] = round(float(rate), 1)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    # A CPU reports none: then the process's own peak, in KiB on Linux.
    memory = memory or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return experiment.finish(measured | {"peak memory, MiB": round(memory / 2**20)})


def names(record: Record) -> list[str]:
    """The optimizers of a record: those with LAPerm first."""
    found = dict.fromkeys(run["optimizer"] for run in record.contents["runs"])
    return sorted(found, key=lambda name: (not name.startswith("LAPerm"), name))


def overview(record: Record, network: str, paper: dict[str, str]) -> list[list[Any]]:
    """A row for every run of the paper's or of ours."""
    epochs = record.contents.get("hyperparameters", {}).get("epochs")
    ours = f" ({epochs} epochs)" if epochs else ""
    return [
        [f"{network}, CIFAR-10, {run}{ours}", paper.get(run, ""), record.last(run)]
        for run in dict.fromkeys([*paper, *names(record)])
    ]


def tables(record: Record, name: str, paper: dict[str, str]) -> dict[str, str]:
    """At the end and at best, beside the paper's numbers, which are of more epochs."""
    epochs = record.contents.get("hyperparameters", {}).get("epochs")
    rows = [
        [
            run,
            paper.get(run, ""),
            spread(record.last(run)),
            spread(record.best(run)) if len(record.last(run)) else "",
        ]
        for run in dict.fromkeys([*paper, *names(record)])
    ]
    header = ["", "the paper", f"at the end ({epochs} epochs)" if epochs else "at the end", "best"]
    return {name: table(header, rows)}


def draw(record: Record, title: str, paper: dict[str, tuple[str, float]]) -> dict[str, Any]:
    """Test errors against epochs, beside the paper's numbers."""
    figure, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    styles = {color: iter(["-", "--", "-.", ":"]) for color in ("LAPerm", figures.FEEDBACK, "Adam")}
    for name in names(record):
        color = name.split(",")[0]
        batches, accuracy = record.curves(name)
        epochs = batches / batches[1]
        style = next(styles[color])
        figures.band(ax, epochs, accuracy, color, name, error=True, linestyle=style)
    for label, (color, value) in paper.items():
        figures.paper_line(ax, 1 - value, label, color)
    figures.error_axis(ax, 0.07, 1.0)
    ax.set(xlabel="epochs", title=title)
    ax.get_legend().remove()
    figure.legend(loc="outside right upper")
    return {"accuracy": figure}
