"""Train a small network on handwritten digits, with Adam, LAPerm and SGPerm.

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
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import p2t_jax as p2t
from p2t_jax import plots

BATCH = 64
EVALUATE_EVERY = 20


def make_optimizers(vectors):
    return {
        "Adam": optax.adam(1e-3),
        "LAPerm": p2t.laperm(optax.adam(1e-3), sync_period=10, error_feedback=1.0, vectors=vectors),
        # The default, "mean", suits longer weight vectors: here it would let no movement get small.
        "SGPerm": p2t.sgperm(key=0, lower="smallest", vectors=vectors),
    }


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
def accuracy(params, images, labels):
    return (MLP().apply(params, images).argmax(axis=-1) == labels).mean()


def final_params(name, state):
    """The parameters to evaluate: with LAPerm and SGPerm, the exact permutation."""
    return state.params if name == "Adam" else p2t.permuted_params(state.opt_state, state.params)


def train(name, tx, params, data, steps):
    """Train; return the final parameters, [(step, test accuracy)] and milliseconds per step."""
    train_images, test_images, train_labels, test_labels = data
    state = TrainState.create(apply_fn=MLP().apply, params=params, tx=tx)
    jax.block_until_ready(train_step(state, train_images[:BATCH], train_labels[:BATCH]))  # compile
    rng = np.random.default_rng(0)
    curve, seconds = [(0, float(accuracy(params, test_images, test_labels)))], 0.0
    for step in range(1, steps + 1):
        batch = rng.integers(len(train_images), size=BATCH)
        start = time.perf_counter()
        state = jax.block_until_ready(train_step(state, train_images[batch], train_labels[batch]))
        seconds += time.perf_counter() - start
        if step % EVALUATE_EVERY == 0 or step == steps:
            evaluated = final_params(name, state)
            curve.append((step, float(accuracy(evaluated, test_images, test_labels))))
    return final_params(name, state), curve, 1e3 * seconds / steps


def weights(params):
    """All weights, without biases, in one array."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim > 1])


def draw(results, initial_params, path):
    """Learning curves, and the sorted weights of one neuron before and after training."""

    def profile(params):
        return np.sort(params["params"]["Dense_1"]["kernel"][:, 0])

    figure, axs = plt.subplot_mosaic(
        [["curves", *results]], figsize=(13, 3.8), width_ratios=[2.2, 1, 1, 1], layout="constrained"
    )
    curves, *profiles = axs.values()
    for name, (_, curve, _) in results.items():
        steps, accuracies = np.transpose(curve)
        curves.plot(steps, 1 - accuracies, label=name, color=plots.COLORS[name])
    ticks = FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    curves.set(
        title="(a) learning curves", xlabel="mini-batches", ylabel="test error", yscale="log"
    )
    curves.yaxis.set_major_locator(ticks)
    curves.yaxis.set_minor_locator(NullLocator())
    curves.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    curves.grid(axis="y", alpha=0.3)
    curves.legend()

    for ax, letter, (name, (params, _, _)) in zip(profiles, "bcd", results.items(), strict=True):
        ax.plot(profile(params), ".", color=plots.COLORS[name], label=f"after {name}")
        ax.plot(profile(initial_params), "k-", linewidth=1, label="before training")
        ax.set(title=f"({letter}) {name}", xlabel="rank")
        ax.sharey(profiles[0])
        ax.legend(loc="upper left", fontsize="small")
    profiles[0].set_ylabel("one neuron's sorted weights")
    for ax in profiles[1:]:
        ax.tick_params(labelleft=False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("quickstart.png"))
    options = parser.parse_args()
    steps = 60 if options.short else 1500

    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    data = train_test_split(images, digits.target, test_size=0.25, random_state=0)
    initial_params = MLP().init(jax.random.key(0), images[:1])

    # Which axes form weight vectors, read off the network itself.
    vectors = p2t.infer_vectors(MLP().apply, initial_params, images[:1])

    results = {}
    for name, tx in make_optimizers(vectors).items():
        print(f"{steps:,} mini-batches with {name} ...", flush=True)
        results[name] = train(name, tx, initial_params, data, steps)

    before = weights(initial_params)
    print(
        f"\n{before.size:,} weights, {np.unique(before).size:,} distinct values before training\n"
    )
    print("        test accuracy   distinct values   of these from before   ms per step")
    for name, (params, curve, ms) in results.items():
        after = np.unique(weights(params))
        kept = np.isin(after, before).sum()
        print(f"{name:>6}  {curve[-1][1]:13.1%}   {after.size:15,}   {kept:20,}   {ms:11.2f}")
    print()
    for name, (params, _, _) in results.items():
        exact = bool(p2t.is_permutation(params, initial_params, vectors=vectors))
        print(f"{name}: every weight vector is exactly a permutation of its initial one: {exact}")

    draw(results, initial_params, options.output)
    print(f"Learning curves and a weight profile: {options.output}")


if __name__ == "__main__":
    main()
