"""Records of the runs, in JSON: what the tables and figures of docs/results.md are made from."""

import base64
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "records"


class Record:
    """What one script measured.

    Attributes:
        contents: the JSON. `runs` has a dict for every run: `optimizer`, `seed`, `batches`,
            `accuracy` on the test images after each of these, and more. `measured` has other
            numbers by name, `arrays` what figures show besides curves.
    """

    def __init__(self, contents: dict[str, Any] | None = None):
        self.contents = dict(contents or {})
        for key, empty in (("measured", {}), ("arrays", {}), ("runs", [])):
            self.contents.setdefault(key, empty)

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> "Record":
        """The record `name` of a folder, or one without runs if there is none."""
        path = folder / f"{name}.json"
        return cls(json.loads(path.read_text()) if path.exists() else None)

    def runs(self, optimizer: str) -> list[dict[str, Any]]:
        """The runs of an optimizer, by seed."""
        runs = [run for run in self.contents["runs"] if run["optimizer"] == optimizer]
        return sorted(runs, key=lambda run: run["seed"])

    def curves(self, optimizer: str) -> tuple[np.ndarray, np.ndarray]:
        """Mini-batches, and the test accuracies of all runs of an optimizer, a row each."""
        runs = self.runs(optimizer)
        if not runs:
            return np.zeros(0), np.zeros((0, 0))
        return np.array(runs[0]["batches"]), np.array([run["accuracy"] for run in runs])

    def last(self, optimizer: str) -> np.ndarray:
        """The test accuracy at the end of every run of an optimizer."""
        return np.array([run["accuracy"][-1] for run in self.runs(optimizer)])

    def best(self, optimizer: str) -> np.ndarray:
        """The highest test accuracy of every run of an optimizer."""
        return np.array([max(run["accuracy"]) for run in self.runs(optimizer)])

    def measured(self, name: str) -> Any:
        """A number, or more, that was measured besides accuracy; None if it was not."""
        return self.contents["measured"].get(name)

    def array(self, name: str) -> np.ndarray:
        """One of the arrays."""
        return unpack_array(self.contents["arrays"][name])

    def merged(self, other: "Record") -> "Record":
        """This record and a newer one: where both have a run or a number, the newer one's."""
        new = {(run["optimizer"], run["seed"]) for run in other.contents["runs"]}
        kept = [r for r in self.contents["runs"] if (r["optimizer"], r["seed"]) not in new]
        joined = {key: self.contents[key] | other.contents[key] for key in ("measured", "arrays")}
        return Record(other.contents | joined | {"runs": kept + other.contents["runs"]})

    def save(self, name: str, folder: Path = FOLDER) -> Path:
        """Write the record in one go, a line for every entry of a list or dict."""
        path = folder / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(_lines(self.contents))
        new.replace(path)
        return path


def _lines(contents: dict[str, Any]) -> str:
    def entry(value: Any) -> str:
        if isinstance(value, dict) and value:
            items = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            return "{\n  " + ",\n  ".join(items) + "\n }"
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        return json.dumps(value)

    items = [f" {json.dumps(key)}: {entry(value)}" for key, value in contents.items()]
    return "{\n" + ",\n".join(items) + "\n}\n"


def pack_array(array: Any) -> dict[str, Any]:
    """An array for a record, as 16-bit parts of its largest entry; zeros, and only they, stay 0."""
    array = np.asarray(array, np.float64)
    scale = float(np.abs(array).max(initial=0)) or 1.0
    parts = np.rint(array / scale * 32767)
    parts = np.where((parts == 0) & (array != 0), np.sign(array), parts).astype("<i2")
    data = base64.b64encode(zlib.compress(parts.tobytes(), 9)).decode()
    return {"shape": list(array.shape), "scale": scale, "data": data}


def unpack_array(packed: dict[str, Any]) -> np.ndarray:
    """The array that `pack_array` packed."""
    parts = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), "<i2")
    return parts.reshape(packed["shape"]) / 32767 * packed["scale"]


def spread(accuracies: Any) -> str:
    """Accuracies by seed in a table: the mean, and the least and the greatest of several."""
    values = np.asarray(accuracies)
    if not values.size:
        return "not run"
    mean = f"{values.mean():.2%}"
    return mean if values.size == 1 else f"{mean} ({values.min():.2%}-{values.max():.2%})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
