"""A search of hyperparameters with the same number of trials for every contender.

SGPerm has hyperparameters of its own. All others have Adam's, which LAPerm takes as its inner
optimizer; they are given the same trials as long as these are random.

The first trials are given or random, the others are near the best one so far. All have one seed;
the best are then repeated with more seeds, and the best mean wins.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common import data, training
from common.experiment import mnist, versions
from common.records import FOLDER, Record, spread, table

RANDOM_TRIALS, FINALISTS, FINAL_SEEDS = 9, 3, (0, 1, 2)

THE_PAPERS = {
    "alpha_0": 0.07, "alpha_min": 0.005, "beta_1": 0.985,
    "lambda_0": 0.05, "lambda_max": 0.1, "beta_2": 1 / 0.995,
    "momentum": 0.9, "lower": "mean",
}  # fmt: skip
# The best of an earlier search, for another rule of which cycles are found.
EARLIER = {
    "alpha_0": 0.064, "alpha_min": 0.0006, "beta_1": 0.9969,
    "lambda_0": 0.087, "lambda_max": 0.57, "beta_2": 1.0156,
    "momentum": 0.94, "lower": "mean",
}  # fmt: skip
ADAM = {"rate": 1e-3, "last_rate": 1e-3, "b1": 0.9}


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _between(rng: Any, low: float, high: float) -> float:
    """Evenly in the logarithm."""
    return _three_digits(np.exp(rng.uniform(np.log(low), np.log(high))))


def random_sgperm(rng: Any) -> dict[str, Any]:
    """Hyperparameters of SGPerm around the paper's."""
    lambda_0 = _between(rng, 0.01, 0.3)
    return {
        "lower": str(rng.choice(["mean", "smallest"])),
        "alpha_0": _between(rng, 0.03, 0.5),
        "alpha_min": _between(rng, 0.0005, 0.02),
        "beta_1": round(1 - _between(rng, 0.002, 0.05), 5),
        "lambda_0": lambda_0,
        "lambda_max": _three_digits(min(1.0, lambda_0 * _between(rng, 1, 10))),
        "beta_2": round(1 + _between(rng, 0.001, 0.02), 5),
        "momentum": round(1 - _between(rng, 0.01, 0.2), 4),
    }


def random_adam(rng: Any) -> dict[str, Any]:
    """A learning rate that falls exponentially, and b1."""
    rate = _between(rng, 3e-4, 1e-2)
    return {
        "rate": rate,
        "last_rate": _three_digits(rate * _between(rng, 0.01, 1)),
        "b1": round(1 - _between(rng, 0.02, 0.2), 4),
    }


def near(rng: Any, best: dict[str, Any]) -> dict[str, Any]:
    """Every number times a random factor, mostly from 0.7 to 1.4; near 1, its distance from 1."""
    trial = dict(best)
    for name, value in best.items():
        factor = float(np.exp(0.3 * rng.normal()))
        if name in ("beta_1", "beta_2", "momentum", "b1"):
            trial[name] = round(1 + (value - 1) * factor, 5)
        elif name != "lower":
            trial[name] = _three_digits(value * factor)
    if "rate" in trial:
        return trial | {"last_rate": min(trial["last_rate"], trial["rate"])}
    lambda_0 = min(1.0, trial["lambda_0"])
    return trial | {
        "lambda_0": lambda_0,
        "lambda_max": min(1.0, max(lambda_0, trial["lambda_max"])),
    }


BOTH = ("SGPerm", "Adam")


def trials(record: Record, optimizer: str) -> list[dict[str, Any]]:
    """Those of an optimizer, in the order in which they were made."""
    made = record.contents.get("trials", ())
    return [done for done in made if done["optimizer"] == optimizer]


def searched(name: str, folder: Path = FOLDER) -> Record:
    """The record of a search: that of a folder, or the project's if there is none."""
    record = Record.load(name, folder)
    return record if "trials" in record.contents else Record.load(name)


def finalists(record: Record, optimizer: str) -> list[dict[str, Any]]:
    """The best with the first seed."""
    ranked = sorted(trials(record, optimizer), key=lambda done: -done["accuracy"]["0"])
    return ranked[:FINALISTS]


def winner(record: Record, optimizer: str) -> dict[str, Any]:
    """The finalist with the best mean."""
    return max(finalists(record, optimizer), key=lambda done: np.mean([*done["accuracy"].values()]))


def propose(record: Record, optimizer: str) -> dict[str, Any]:
    """The hyperparameters of the next trial."""
    sgperm = optimizer == "SGPerm"
    made, given = len(trials(record, optimizer)), [THE_PAPERS, EARLIER] if sgperm else [ADAM]
    if made < len(given):
        return given[made]
    rng = np.random.default_rng([0, made - len(given) + 1])
    if made < RANDOM_TRIALS:
        return random_sgperm(rng) if sgperm else random_adam(rng)
    return near(rng, finalists(record, optimizer)[0]["hyperparameters"])


def search(
    record: Record,
    count: int,
    accuracy: Callable[[str, dict[str, Any], int], float],
    save: Callable[[], Any],
    optimizers: Iterable[str] = BOTH,
) -> None:
    """Make `count` trials of each optimizer, but for those that the record has; then the finals.

    Args:
        record: its `trials` have an accuracy for each seed, and are added to.
        count: trials of each optimizer.
        accuracy: of an optimizer, its hyperparameters and a seed, on validation images.
        save: called after each training.
        optimizers: the contenders, by name.
    """
    made = record.contents.setdefault("trials", [])
    for optimizer in optimizers:
        for _ in tqdm(range(len(trials(record, optimizer)), count), desc=optimizer):
            chosen = propose(record, optimizer)
            first = {"0": accuracy(optimizer, chosen, FINAL_SEEDS[0])}
            made.append({"optimizer": optimizer, "hyperparameters": chosen, "accuracy": first})
            save()
    for optimizer in optimizers:
        for done in finalists(record, optimizer):
            for seed in FINAL_SEEDS[1:]:
                if str(seed) not in done["accuracy"]:
                    found = accuracy(optimizer, done["hyperparameters"], seed)
                    done["accuracy"][str(seed)] = found
                    save()
        print(optimizer, winner(record, optimizer))


def held_back(name: str, options: Any) -> training.Data:
    """The training images of a data set, a sixth of them held back in place of the test images."""
    dataset = data.load(name, options.data_dir)
    return mnist(data.validation_split(dataset, len(dataset.train_images) // 6))


def search_mnist(
    name: str,
    options: Any,
    batches: int,
    prepared: Callable[..., tuple[Any, Any, training.State]],
    optimizers: Iterable[str] = BOTH,
) -> None:
    """`search` with held-back images of MNIST; `options.search` is the number of trials.

    Args:
        name: of the record.
        options: those of the script.
        batches: how long a training is.
        prepared: model, optimizer and initial state, of an optimizer's name, its hyperparameters,
            the images, and a seed.
        optimizers: the contenders, by name.
    """
    images = held_back("mnist", options)
    record = Record.load(name, options.output_dir)
    record.contents = {"experiment": name, "versions": versions()} | record.contents

    def accuracy(optimizer: str, hyperparameters: dict[str, Any], seed: int) -> float:
        model, tx, start = prepared(optimizer, hyperparameters, images, seed)
        at = [5 if options.short else batches]
        run = training.fit(model, tx, images, start, seed=seed, evaluate_at=at)
        return round(float(run.accuracy[-1]), 4)

    save = functools.partial(record.save, name, options.output_dir)
    search(record, options.search, accuracy, save, optimizers)


def search_table(record: Record, optimizers: Iterable[str], first: str) -> str:
    """How many trials there were, how good the first and the best, and the best's numbers."""
    rows = []
    for optimizer in optimizers:
        if made := trials(record, optimizer):
            best = winner(record, optimizer)
            rows.append(
                [
                    optimizer,
                    str(len(made)),
                    spread([*made[0]["accuracy"].values()]),
                    spread([*best["accuracy"].values()]),
                    ", ".join(f"{what} {n}" for what, n in best["hyperparameters"].items()),
                ]
            )
    return table(["", "trials", first, "the best", "its hyperparameters"], rows)
