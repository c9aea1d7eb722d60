"""The experiments' scripts: they resume where they were interrupted, and run to their end."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import p2t_jax as p2t
from common import data, models, training

pytestmark = pytest.mark.usefixtures("compile_fast")
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


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
    "tx", [p2t.laperm(optax.adam(1e-3), 3), p2t.sgperm(0), optax.adam(1e-3)],
    ids=["laperm", "sgperm", "adam"],
)  # fmt: skip
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, images, tx):
    def fit(steps, checkpoints):
        start = training.initial_state(MODEL, tx, images, 0)
        return training.fit(
            MODEL, tx, images, start, steps=steps, every=4, seed=0, checkpoints=checkpoints
        )

    def checkpoints():
        return training.Checkpoints(tmp_path, {"k": 3}, every_s=0)

    whole = fit(12, None)
    fit(8, checkpoints())
    resumed = fit(12, checkpoints())
    assert resumed.batches.tolist() == [4, 8, 12]
    np.testing.assert_array_equal(resumed.accuracy, whole.accuracy)
    assert_same(resumed.params, whole.params)
    assert_same(resumed.state, whole.state)


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
    "logistic_regression": ["SGPerm", "Adam"],
    "fully_connected": [
        f"{name}, {optimizer}"
        for name in ("MNIST", "Fashion-MNIST")
        for optimizer in ("SGPerm", "SGPerm, searched", "Adam")
    ],
    "rewiring": [
        "LAPerm, k = 30",
        "Adam (reconnected, k = 30)",
        "LAPerm, k = 300",
        "Adam (reconnected, k = 300)",
        "Adam (random)",
    ],
    "weight_agnostic": ["F1", "F1, k = 1", "F2", "F2, k = 1"],
    "weight_profiles": ["Adam"],
    "initial_profiles": [
        "Adam, normal",
        "uniform",
        "between",
        "normal",
        "more confident",
        "double exponential",
        "two weights, -c and c",
        "three, -c, 0 and c",
        "those of a trained network",
    ],
    "vgg": ["LAPerm, k = 2"],
    "resnet20": ["LAPerm, k = 2"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_to_its_end(tmp_path, monkeypatch, capsys, script):
    cifar = script in ("vgg", "resnet20")
    sizes = (32, 3) if cifar else (28, 1)
    monkeypatch.setattr(data, "load", lambda name, folder: dataset(640, *sizes))
    options = ["--short", "--seeds", "1", "--output-dir", str(tmp_path)]
    options += ["--sync-period", "2", "--no-adam"] if cifar else []
    monkeypatch.setattr(sys, "argv", [script, *options])
    importlib.import_module(script).main()

    record = json.loads((tmp_path / f"{script}.json").read_text())
    assert record["short"]
    assert [run["optimizer"] for run in record["runs"]] == SCRIPTS[script]
    for run in record["runs"]:
        assert len(run["accuracy"]) == len(run["batches"]) > 0
        assert run["exactly a permutation"] == ("Adam" not in run["optimizer"])
    assert list(tmp_path.glob("*.png"))
    assert not list(tmp_path.glob("*-checkpoints"))
    assert "accuracy" in capsys.readouterr().out
