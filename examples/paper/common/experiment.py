"""What the scripts share besides training: options, runs that resume, the record at the end."""

import argparse
import importlib.metadata
import json
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import p2t_jax as p2t
from common import data, records, training
from common.records import Record


def parser(doc: str, seeds: int = 1) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", help="where the data sets are; default: $P2T_DATA_DIR, else downloaded"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--seeds", type=int, default=seeds, help="number of runs per optimizer")
    parser.add_argument(
        "--output-dir", type=Path, default=records.FOLDER, help="where the record is written"
    )
    parser.add_argument(
        "--short", action="store_true", help="a few steps, to see that it works; no record is kept"
    )
    return parser


def mnist(dataset: data.Dataset) -> training.Data:
    """MNIST or Fashion-MNIST on the device, to be prepared to [0, 1]."""
    return training.Data(*map(jnp.asarray, dataset), lambda key, images: images / jnp.float32(255))


class Experiment:
    """The runs of one script.

    An interrupted run resumes from its last checkpoint when the script is called again with the
    same options, and a finished one is not repeated. Each is added to the record of the same
    hyperparameters, if there is one. `finish` deletes the checkpoints.
    """

    def __init__(self, name: str, options: argparse.Namespace, **hyperparameters: Any):
        self.name, self.options = name, options
        self.hyperparameters = json.loads(json.dumps(hyperparameters, default=str))
        self.folder = options.output_dir
        if options.short and self.folder == records.FOLDER:
            self.folder = Path(tempfile.mkdtemp(prefix="p2t-"))
        self.seeds = range(options.seed, options.seed + options.seeds)
        self.finished: list[Path] = []
        self.record = Record(
            {
                "experiment": name,
                "short": options.short,
                "hyperparameters": self.hyperparameters,
                "versions": versions(),
            }
        )
        self._earlier()  # refuses to start if the record could not be added to

    def _earlier(self) -> Record:
        earlier = Record.load(self.name, self.folder)
        same = self._agrees_with(earlier.contents.get("hyperparameters", self.hyperparameters))
        if not same or earlier.contents.get("short", self.options.short) != self.options.short:
            raise SystemExit(
                f"{self.folder / self.name}.json is a record of other hyperparameters. Remove it, "
                "or choose another --output-dir."
            )
        return earlier

    def _agrees_with(self, hyperparameters: dict[str, Any]) -> bool:
        """Whether these are the same, but for runs that only one of both has."""
        ours, theirs = self.hyperparameters, hyperparameters
        of_runs = [each.get("runs", {}) for each in (ours, theirs)]
        common = of_runs[0].keys() & of_runs[1].keys()
        return all(of_runs[0][name] == of_runs[1][name] for name in common) and {
            **ours, "runs": None} == {**theirs, "runs": None}  # fmt: skip

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
        name = description.replace(" ", "-").replace(",", "").replace("/", "-")
        folder = self.folder / f"{self.name}-checkpoints" / name
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
        self.finished.append(folder)
        self.note(optimizer, seed, run, vectors)
        return run

    def note(self, optimizer: str, seed: int, run: training.Run, vectors: Any) -> None:
        """Add a finished run to the record; checks that a P2T optimizer has only permuted."""
        permutation = bool(p2t.is_permutation(run.params, run.initial_params, vectors=vectors))
        if training.is_p2t(run.state.opt_state) and not permutation:
            raise AssertionError(f"{optimizer}, seed {seed}: the weights are not a permutation")
        stored = {"bits per weight, stored": bits_per_weight(run, vectors)} if permutation else {}
        self.record.contents["runs"].append(
            {
                "optimizer": optimizer,
                "seed": seed,
                "seconds": round(run.seconds, 1),
                "exactly a permutation": permutation,
                **stored,
                "batches": run.batches.tolist(),
                "accuracy": [round(float(accuracy), 5) for accuracy in run.accuracy],
            }
        )
        self._save()

    def _save(self) -> Path:
        return self._earlier().merged(self.record).save(self.name, self.folder)

    def finish(
        self, measured: dict[str, Any] | None = None, arrays: dict[str, Any] | None = None
    ) -> Record:
        """Add to the record what was measured besides accuracy; print the accuracies."""
        self.record.contents["measured"] = measured or {}
        self.record.contents["arrays"] = {
            name: records.pack_array(array) for name, array in (arrays or {}).items()
        }
        path = self._save()
        for folder in self.finished:
            shutil.rmtree(folder, ignore_errors=True)
        if (parent := self.folder / f"{self.name}-checkpoints").exists() and not any(
            parent.iterdir()
        ):
            parent.rmdir()

        print(f"\n{self.name}: test accuracy, mean (min-max) of {len(self.seeds)} seeds")
        for optimizer in dict.fromkeys(run["optimizer"] for run in self.record.contents["runs"]):
            end, best = self.record.last(optimizer), self.record.best(optimizer)
            print(f"{optimizer:40}{records.spread(end):28}best {records.spread(best)}")
        for what, value in self.record.contents["measured"].items():
            print(f"{what}: {value}")
        print(f"record: {path}; examples/paper/results.py draws what it shows")
        return self.record


def bits_per_weight(run: training.Run, vectors: Any) -> float:
    """Store the trained network, check that it is restored bit for bit, and return its size."""
    packed = p2t.pack(run.params, run.initial_params, vectors=vectors)
    again = p2t.unpack(packed, run.initial_params, vectors=vectors)
    jax.tree.map(np.testing.assert_array_equal, again, run.params)
    return round(8 * len(packed) / sum(leaf.size for leaf in jax.tree.leaves(run.params)), 4)


def versions() -> dict[str, str]:
    """What a result may depend on."""
    packages = ("p2t_jax", "jax", "jaxlib", "optax", "flax", "numpy", "numba")
    return {
        "python": platform.python_version(),
        "device": str(jax.devices()[0]),
        **{package: importlib.metadata.version(package) for package in packages},
    }
