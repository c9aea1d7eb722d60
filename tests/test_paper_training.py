"""The experiments' scripts: they resume where they were interrupted, and run to their end."""

import importlib
import re
import sys

import chex
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import p2t_jax as p2t
import transformer
from common import data, models, search, training
from common.records import Record

pytestmark = pytest.mark.slow
MODEL = models.MLP((12, 10))


def dataset(images, size=28, channels=1):
    """Images of a class are alike, so that there is something to learn."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 256, (10, size, size, channels), np.uint8)

    def part(count):
        labels = np.arange(count, dtype=np.int32) % 10
        noise = rng.integers(0, 256, (count, size, size, channels), np.uint8)
        return classes[labels] // 2 + noise // 2, labels

    return data.Dataset(*part(images), *part(100))


@pytest.fixture(scope="module")
def images():
    return training.Data(*map(jnp.asarray, dataset(320)), lambda key, x: x / jnp.float32(255))


@pytest.mark.parametrize(
    "tx", [p2t.laperm(optax.adam(1e-3), 3), p2t.sgperm(0), optax.adam(1e-3)],
    ids=["laperm", "sgperm", "adam"],
)  # fmt: skip
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, images, tx):
    def fit(steps, checkpoints):
        start = training.initial_state(MODEL, tx, images, 0)
        return training.fit(
            MODEL, tx, images, start,
            evaluate_at=range(0, steps + 1, 4), seed=0, checkpoints=checkpoints,
        )  # fmt: skip

    def checkpoints():
        return training.Checkpoints(tmp_path, {"k": 3}, every_s=0)

    whole = fit(12, None)
    fit(8, checkpoints())
    resumed = fit(12, checkpoints())
    assert resumed.batches.tolist() == [0, 4, 8, 12]
    np.testing.assert_array_equal(resumed.accuracy, whole.accuracy)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    chex.assert_trees_all_equal(resumed.state, whole.state)


def test_evaluation_is_of_the_whole_test_set(images, monkeypatch):
    """Also where it is no multiple of what is evaluated in one call."""
    monkeypatch.setattr(training, "EVALUATION_BATCH", 32)
    tx = p2t.laperm(optax.adam(1e-3), 3)
    state = training.initial_state(MODEL, tx, images, 0)
    variables = {"params": p2t.permuted_params(state.opt_state, state.params)}
    logits = MODEL.apply(variables, images.prepare(None, images.test_images))
    right = (logits.argmax(-1) == images.test_labels).mean()
    accuracy = training.evaluation(MODEL, images.prepare)
    assert accuracy(state, images.test_images, images.test_labels) == pytest.approx(float(right))


def test_a_run_with_other_hyperparameters_starts_anew(tmp_path, images):
    tx = optax.adam(1e-3)
    start = training.initial_state(MODEL, tx, images, 0)
    training.Checkpoints(tmp_path, {"k": 3}).save(start, {"batches": []}, now=True)
    assert training.Checkpoints(tmp_path, {"k": 3}).restore(start) is not None
    assert training.Checkpoints(tmp_path, {"k": 4}).restore(start) is None
    assert training.Checkpoints(tmp_path, {"k": 3}).restore(start) is None


def test_every_epoch_sees_every_image_once_whatever_it_is_resumed_from():
    whole = training.mini_batches(96, 32, 7, 0, 9)
    for epoch in range(3):
        assert sorted(whole[3 * epoch : 3 * epoch + 3].ravel()) == list(range(96))
    assert not np.array_equal(whole[:3], whole[3:6])
    for first, last in ((0, 2), (2, 5), (4, 9), (3, 6)):
        part = training.mini_batches(96, 32, 7, first, last)
        np.testing.assert_array_equal(part, whole[first:last])


def test_calls_for_each_mini_batch_are_one_call_for_all(images):
    tx = p2t.laperm(optax.adam(1e-3), 3)
    indices = training.mini_batches(320, 64, 0, 0, 5)
    results = []
    for one_call in (True, False):
        chunk = training.training_chunk(
            MODEL, tx, images.prepare, lambda updates, state: state.step, one_call
        )
        start = training.initial_state(MODEL, tx, images, 0)
        results.append(
            chunk(start, images.train_images, images.train_labels, indices, jax.random.key(0))
        )
    (one, (losses, steps)), (many, (same_losses, same_steps)) = results
    assert same_steps.tolist() == steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(same_losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), many.params, one.params)


SCRIPTS = {
    "logistic_regression": ["SGPerm", "SGPerm, smallest", "Adam"],
    "fully_connected": [
        f"{name}, {optimizer}"
        for name in ("MNIST", "Fashion-MNIST")
        for optimizer in (
            "SGPerm",
            "SGPerm, smallest",
            "SGPerm, searched",
            "Adam",
            "Adam, searched",
        )
    ],
    "rewiring": [
        "LAPerm, k = 30",
        "Adam (reconnected, k = 30)",
        "LAPerm, k = 300",
        "Adam (reconnected, k = 300)",
        "Adam (random)",
    ],
    "rewiring_layers": [
        "LAPerm, layers, feedback",
        "Adam (reconnected, layers, feedback)",
        "Adam (random)",
    ],
    "weight_agnostic": ["F1, k = 250", "F2, feedback"],
    "weight_profiles": ["Adam"],
    "initial_profiles": [
        "Adam from normal, `kaiming(0.5)`",
        *(
            f"{profile}{feedback}"
            for feedback in ("", ", feedback")
            for profile in (
                "uniform, `kaiming(0)`",
                "between, `kaiming(0.25)`",
                "normal, `kaiming(0.5)`",
                "more confident, `kaiming(0.75)`",
                "double exponential, `kaiming(1)`",
                "two values, `kaiming(values=2)`",
                "three values, `kaiming(values=3)`",
                "profiles of a network trained by Adam",
            )
        ),
    ],
    "vgg": ["LAPerm, k = 2 to 4"],
    "resnet20": ["LAPerm, k = 2"],
    "local_laperm": [
        f"{what} averaged, k = 20{feedback}"
        for feedback in ("", ", feedback")
        for what in ("weights", "gradients")
    ],
    "error_feedback": [
        f"{name}, {optimizer}"
        for name in ("MNIST", "Fashion-MNIST")
        for optimizer in ("Adam", "LAPerm with error feedback, k = 10")
    ],
    "few_values": ["MNIST, LAPerm, 3 values", "MNIST, Adam, ternary"],
    "transformer": ["SGPerm, searched", "LAPerm with error feedback", "Adam, searched"],
}
CIFAR = {
    "vgg": ["--epochs", "2", "--sync-period", "2-4", "--only", "LAPerm, k = 2 to 4"],
    "resnet20": ["--epochs", "2", "--sync-period", "2", "9", "--only", "LAPerm, k = 2"],
}
OPTIONS = (
    CIFAR
    | {name: ["--only", *SCRIPTS[name]] for name in ("transformer", "weight_agnostic")}
    | {
        "error_feedback": ["--only", "Adam", "LAPerm with error feedback, k = 10"],
        "local_laperm": ["--only", "20"],
        "rewiring_layers": ["--only", "layers, feedback"],
        "few_values": ["--on", "MNIST", "--only", "LAPerm, 3 values", "Adam, ternary"],
    }
)


def run(monkeypatch, folder, script, *options):
    sizes = (32, 3) if script in CIFAR else (28, 1)
    monkeypatch.setattr(data, "load", lambda name, folder: dataset(640, *sizes))
    arguments = [script, "--short", "--seeds", "1", "--output-dir", str(folder), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    importlib.import_module(script).main()
    return Record.load(script, folder)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_to_its_end_and_its_record_can_be_drawn(
    tmp_path, monkeypatch, capsys, script
):
    record = run(monkeypatch, tmp_path, script, *OPTIONS.get(script, []))
    assert record.contents["short"]
    runs = record.contents["runs"]
    assert [run["optimizer"] for run in runs] == SCRIPTS[script]
    for entry in runs:
        assert len(entry["accuracy"]) == len(entry["batches"]) > 0
        by_adam = re.search("(^|, )Adam", entry["optimizer"])
        assert entry["exactly a permutation"] == (not by_adam)
    assert not list(tmp_path.glob("*-checkpoints"))
    assert "accuracy" in capsys.readouterr().out

    module = importlib.import_module(script)
    assert all(text.startswith("| ") for text in module.tables(record).values())
    figures = module.draw(record)
    assert figures or script == "local_laperm"  # which has a table alone
    for what, figure in figures.items():
        figure.savefig(tmp_path / f"{what}.png")
        plt.close(figure)


def test_communication_is_counted_where_it_happens():
    """In each step the gradients, or else in a synchronization the weights: 4 bytes for each."""
    images = training.Data(*map(jnp.asarray, dataset(128)), lambda key, x: x / jnp.float32(255))
    script = importlib.import_module("local_laperm")
    start = training.initial_state(script.NETWORK, optax.identity(), images, 0)
    size = 4 * sum(w.size for w in jax.tree.leaves(start.params))
    for axis_name, expected in ((None, (size, 0)), ("batch", (0, size))):
        tx = p2t.laperm(optax.adam(1e-3), 20, average_over=axis_name)
        assert script.size_of_step(tx, axis_name, dataset(128), images) == expected


def test_scripts_called_for_some_runs_add_to_one_record(tmp_path, monkeypatch):
    options = ["--epochs", "1", "--sync-period", "2"]
    for only in ("Adam", "LAPerm, k = 2"):
        record = run(monkeypatch, tmp_path, "vgg", *options, "--only", only)
    assert {run["optimizer"] for run in record.contents["runs"]} == {"Adam", "LAPerm, k = 2"}
    with pytest.raises(SystemExit, match="record of other hyperparameters"):
        run(monkeypatch, tmp_path, "vgg", "--epochs", "2", "--only", "Adam")


def test_a_search_repeats_no_trial_of_its_record(tmp_path, monkeypatch):
    def search(trials):
        run(monkeypatch, tmp_path, "fully_connected", "--search", str(trials))
        return Record.load("fully_connected_search", tmp_path)

    record = search(1)
    record.contents["trials"][0]["accuracy"]["0"] = 0.1234
    record.save("fully_connected_search", tmp_path)
    trials = search(2).contents["trials"]
    assert trials[0]["accuracy"]["0"] == 0.1234
    assert [done["optimizer"] for done in trials] == ["SGPerm", "Adam", "SGPerm", "Adam"]
    assert all(len(done["accuracy"]) == 3 for done in trials)


def test_the_trials_of_the_transformer_are_added_to_one_record(tmp_path, monkeypatch):
    for only in ("Adam", "SGPerm", "Adam"):
        monkeypatch.setattr(transformer, "TRIALS", {only: transformer.TRIALS[only][:1]})
        run(monkeypatch, tmp_path, "transformer", "--search", "--only", only)
        monkeypatch.undo()
    made = Record.load(transformer.SEARCH, tmp_path).contents["trials"]
    assert [trial["optimizer"] for trial in made] == ["Adam", "SGPerm"]
    for trial in made:
        assert trial["hyperparameters"] == transformer.TRIALS[trial["optimizer"]][0]
        assert 0 <= trial["accuracy"]["0"] <= 1


def test_a_search_interrupted_anywhere_finds_the_same():
    def accuracy(optimizer, hyperparameters, seed):
        values = [value for value in hyperparameters.values() if not isinstance(value, str)]
        return float(np.exp(-np.square(values).sum() - seed))

    def trials_of(*counts):
        record = Record()
        for count in counts:
            search.search(record, count, accuracy, lambda: None)
        return {name: search.trials(record, name) for name in search.BOTH}, record

    (whole, record), (parts, _) = trials_of(14), trials_of(1, 5, 9, 14)
    for name, made in whole.items():
        assert [done["hyperparameters"] for done in parts[name]] == [
            done["hyperparameters"] for done in made
        ]
        best = max(made, key=lambda done: done["accuracy"]["0"])
        assert search.winner(record, name) == best
        for done in made[search.RANDOM_TRIALS :]:
            chosen = done["hyperparameters"]
            if name == "SGPerm":
                assert 0 < chosen["lambda_0"] <= chosen["lambda_max"] <= 1
                assert 0 < chosen["beta_1"] < 1 < chosen["beta_2"]
            else:
                assert 0 < chosen["last_rate"] <= chosen["rate"]
