"""Train a small network on handwritten digits, by Adam and by permuting its initial weights.

    python examples/quickstart.py [--short] [--output quickstart.png]

The digits come with scikit-learn; nothing is downloaded.
"""

import argparse
import time
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import p2t_jax as p2t

BATCH = 64
EVALUATE_EVERY = 20


class MLP(nn.Module):
    """64 pixels, two hidden layers, ten digits; normal weights at Kaiming's scale."""

    @nn.compact
    def __call__(self, x):
        for features in (256, 128):
            x = nn.relu(nn.Dense(features, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(10, kernel_init=nn.initializers.he_normal())(x)


@jax.jit
def train_step(state, images, labels):
    def loss(params):
        logits = state.apply_fn(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


@jax.jit
def accuracy(state, images, labels):
    return (state.apply_fn(final_params(state), images).argmax(axis=-1) == labels).mean()


def final_params(state):
    """Of a network that was permuted, the exact permutation is what counts."""
    permutes = optax.tree.get(state.opt_state, "vectors") is not None
    return p2t.permuted_params(state.opt_state, state.params) if permutes else state.params


def train(name, tx, params, data, steps):
    """Train; return the final parameters, [(step, test accuracy)] and milliseconds a step."""
    train_images, test_images, train_labels, test_labels = data
    state = TrainState.create(apply_fn=MLP().apply, params=params, tx=tx)
    jax.block_until_ready(train_step(state, train_images[:BATCH], train_labels[:BATCH]))  # compile
    rng = np.random.default_rng(0)
    curve, seconds = [(0, float(accuracy(state, test_images, test_labels)))], 0.0
    for step in tqdm(range(1, steps + 1), desc=f"{name:>6}", unit="step"):
        batch = rng.integers(len(train_images), size=BATCH)
        start = time.perf_counter()
        state = jax.block_until_ready(train_step(state, train_images[batch], train_labels[batch]))
        seconds += time.perf_counter() - start
        if step % EVALUATE_EVERY == 0 or step == steps:
            curve.append((step, float(accuracy(state, test_images, test_labels))))
    return final_params(state), curve, 1e3 * seconds / steps


def weights(params):
    """All weights, biases left out, in one array."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1])


def draw(results, initial_params, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, (_, curve, _) in results.items():
        left.plot(*zip(*curve, strict=True), label=name)
    left.set(title="Learning curves", xlabel="mini-batches", ylabel="test accuracy")
    left.legend()

    def profile(params):
        return np.sort(params["params"]["Dense_1"]["kernel"][:, 0])

    for size, (name, (params, _, _)) in zip((5, 11, 5), results.items(), strict=True):
        right.plot(profile(params), ".", label=f"after {name}", markersize=size)
    right.plot(profile(initial_params), "k-", linewidth=1, label="before training")
    right.set(
        title="A weight profile (one neuron's sorted weights)", xlabel="rank", ylabel="weight"
    )
    right.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("quickstart.png"))
    options = parser.parse_args()
    steps = 60 if options.short else 1500

    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    data = train_test_split(images, digits.target, test_size=0.25, random_state=0)
    initial_params = MLP().init(jax.random.key(0), images[:1])

    optimizers = {
        "Adam": optax.adam(1e-3),
        "LAPerm": p2t.laperm(optax.adam(1e-3), sync_period=20),
        "SGPerm": p2t.sgperm(key=0),
    }
    results = {
        name: train(name, tx, initial_params, data, steps) for name, tx in optimizers.items()
    }

    before = weights(initial_params)
    print(
        f"\n{len(before):,} weights, {len(np.unique(before)):,} distinct values before training\n"
    )
    print("        test accuracy   distinct values   of these from before   ms a step")
    for name, (params, curve, ms) in results.items():
        after = np.unique(weights(params))
        kept = np.isin(after, before).sum()
        print(f"{name:>6}  {curve[-1][1]:13.1%}   {len(after):15,}   {kept:20,}   {ms:9.2f}")
    print()
    for name, (params, _, _) in results.items():
        exact = bool(p2t.is_permutation(params, initial_params))
        print(f"{name}: every weight vector is exactly a permutation of its initial one: {exact}")

    draw(results, initial_params, options.output)
    print(f"Learning curves and a weight profile: {options.output}")


if __name__ == "__main__":
    main()
