"""What the scripts share besides training: options, the record of the runs, a table at the end."""

import argparse
import importlib.metadata
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

import p2t_jax as p2t
from common import data, training

mpl.use("agg")  # pictures are files here


def parser(doc: str, seeds: int = 1) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", help="where the data sets are; default: $P2T_DATA_DIR, else fetched"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many runs of each optimizer")
    parser.add_argument("--output-dir", type=Path, default=Path("results"), help="pictures, record")
    parser.add_argument("--short", action="store_true", help="only see that it works")
    return parser


def mnist(dataset: data.Dataset) -> training.Data:
    """MNIST or Fashion-MNIST on the device, to be prepared to [0, 1]."""
    return training.Data(*map(jnp.asarray, dataset), lambda key, images: images / jnp.float32(255))


class Experiment:
    """The runs of one script.

    A run that was interrupted goes on where it was saved when the script is called again with the
    same options; one that was finished is not repeated. `finish` clears what that took.
    """

    def __init__(self, name: str, options: argparse.Namespace, **hyperparameters: Any):
        self.name, self.options, self.hyperparameters = name, options, hyperparameters
        self.folder = options.output_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = self.folder / f"{name}-checkpoints"
        self.seeds = range(options.seed, options.seed + options.seeds)
        self.runs: list[dict[str, Any]] = []

    def fit(
        self,
        optimizer: str,
        model: Any,
        tx: Any,
        data: training.Data,
        seed: int,
        *,
        start: training.State | None = None,
        vectors: Any = p2t.flax_vectors,
        **options: Any,
    ) -> training.Run:
        """`training.fit`, resumed where it was interrupted, and noted in the record."""
        if start is None:
            start = training.initial_state(model, tx, data, seed)
        description = f"{optimizer}, seed {seed}"
        folder = self.checkpoints / description.replace(" ", "-").replace(",", "").replace("/", "-")
        run = training.fit(
            model,
            tx,
            data,
            start,
            seed=seed,
            description=description,
            checkpoints=training.Checkpoints(folder, self.hyperparameters | options),
            **options,
        )
        permutation = bool(p2t.is_permutation(run.params, run.initial_params, vectors=vectors))
        if training.is_p2t(run.state.opt_state) and not permutation:
            raise AssertionError(f"{description}: the weights are no permutation of the first ones")
        stored = {"bits a weight, stored": bits_a_weight(run, vectors)} if permutation else {}
        self.runs.append(
            {
                "optimizer": optimizer,
                "seed": seed,
                "batches": run.batches.tolist(),
                "accuracy": [round(float(accuracy), 6) for accuracy in run.accuracy],
                "seconds": round(run.seconds, 1),
                "exactly a permutation": permutation,
                **stored,
            }
        )
        return run

    def curves(self, optimizer: str) -> tuple[np.ndarray, np.ndarray]:
        """Mini-batches, and the accuracies of all runs of an optimizer, a row each."""
        runs = [run for run in self.runs if run["optimizer"] == optimizer]
        return np.array(runs[0]["batches"]), np.array([run["accuracy"] for run in runs])

    def save_picture(self, figure: Any, what: str) -> None:
        """Write a picture beside the record."""
        figure.savefig(self.folder / f"{self.name}-{what}.png", dpi=110, bbox_inches="tight")

    def finish(self, paper: dict[str, str], **measured: Any) -> None:
        """Write the record; print each optimizer's accuracy beside the paper's number."""
        record = {
            "experiment": self.name,
            "paper": paper,
            "short": self.options.short,
            "hyperparameters": self.hyperparameters,
            "measured": measured,
            "versions": versions(),
            "runs": self.runs,
        }
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=1, default=str) + "\n")
        shutil.rmtree(self.checkpoints, ignore_errors=True)

        print(f"\n{self.name}: test accuracy, mean (least - most) of {len(self.seeds)}")
        print(f"{'':30}{'batches':>9}  {'at the end':26}{'best':26}the paper")
        for optimizer in dict.fromkeys(run["optimizer"] for run in self.runs):
            batches, accuracy = self.curves(optimizer)
            print(
                f"{optimizer:30}{batches[-1]:9}  {spread(accuracy[:, -1]):26}"
                f"{spread(accuracy.max(axis=1)):26}{paper.get(optimizer, '')}"
            )
        for what, value in measured.items():
            print(f"{what}: {value}")
        print(f"record: {path}")


def bits_a_weight(run: training.Run, vectors: Any) -> float:
    """Store the trained network, see that it comes back bit for bit, and say what it takes."""
    packed = p2t.pack(run.params, run.initial_params, vectors=vectors)
    again = p2t.unpack(packed, run.initial_params, vectors=vectors)
    jax.tree.map(np.testing.assert_array_equal, again, run.params)
    return round(8 * len(packed) / sum(leaf.size for leaf in jax.tree.leaves(run.params)), 4)


def spread(values: Any) -> str:
    """Mean, least and most of accuracies."""
    values = np.asarray(values)
    mean = f"{values.mean():.2%}"
    return mean if values.size == 1 else f"{mean} ({values.min():.2%} - {values.max():.2%})"


def versions() -> dict[str, str]:
    """What a result may depend on."""
    packages = ("p2t_jax", "jax", "jaxlib", "optax", "flax", "numpy", "numba")
    return {
        "python": platform.python_version(),
        "device": str(jax.devices()[0]),
        **{package: importlib.metadata.version(package) for package in packages},
    }
