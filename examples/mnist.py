"""LAPerm on MNIST: 784-500-300-10, Adam 1e-3 inside, k = 20, 3,000 mini-batches of 64.

    python examples/mnist.py --data-dir DIR [--seeds 5] [--sync-period 20] [--batches 3000]

DIR (or the environment variable P2T_DATA_DIR) has the four files train-images-idx3-ubyte.gz, ...
as MNIST is published; Fashion-MNIST's will do.
"""

import argparse
import gzip
import os
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import p2t_jax as p2t

BATCH = 64
CHUNK = 100  # mini-batches a compiled call


def read_idx(path):
    """One file of MNIST: two zero bytes, dtype (8: uint8), rank, sizes (big-endian), values."""
    with gzip.open(path) as file:
        data = file.read()
    rank = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(
        np.frombuffer(data, ">u4", rank, offset=4)
    )


def load(data_dir, part):
    images = read_idx(data_dir / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(data_dir / f"{part}-labels-idx1-ubyte.gz")
    return jnp.asarray(images.reshape(len(images), -1) / np.float32(255)), jnp.asarray(labels)


class MLP(nn.Module):
    """784-500-300-10 with ReLU; normal weights at Kaiming's scale, zero biases."""

    @nn.compact
    def __call__(self, x):
        for features in (500, 300):
            x = nn.relu(nn.Dense(features, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(10, kernel_init=nn.initializers.he_normal())(x)


def train(tx, seed, batches, train_data, test_data):
    """Train; return test accuracy and whether every weight vector is a permutation of its start."""
    images, labels = train_data
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = initial_params = MLP().init(init_key, images[:1])
    state = tx.init(params)

    def step(carry, batch):
        params, state = carry

        def loss(params):
            logits = MLP().apply(params, images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0])
    order = jax.random.choice(data_key, len(images), (batches, BATCH))
    with tqdm(total=batches, desc=f"seed {seed}", unit="batch") as bar:
        for start in range(0, batches, CHUNK):
            params, state = jax.block_until_ready(
                run((params, state), order[start : start + CHUNK])
            )
            bar.update(min(CHUNK, batches - start))
    final = p2t.permuted_params(state, params)
    predictions = MLP().apply(final, test_data[0]).argmax(axis=-1)
    return float((predictions == test_data[1]).mean()), p2t.is_permutation(final, initial_params)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("P2T_DATA_DIR"))
    parser.add_argument("--seeds", type=int, default=1, help="how many runs")
    parser.add_argument("--sync-period", type=int, default=20)
    parser.add_argument("--batches", type=int, default=3000)
    options = parser.parse_args()
    if options.data_dir is None:
        parser.error("say where MNIST's files are: --data-dir or P2T_DATA_DIR")
    train_data, test_data = (load(Path(options.data_dir), part) for part in ("train", "t10k"))

    tx = p2t.laperm(optax.adam(1e-3), options.sync_period)
    accuracies = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        accuracy, exact = train(tx, seed, options.batches, train_data, test_data)
        accuracies.append(accuracy)
        print(
            f"seed {seed}: {accuracy:.2%} test accuracy after {options.batches} mini-batches, "
            f"{time.perf_counter() - start:.0f} s; exactly a permutation: {bool(exact)}"
        )
    print(f"mean {np.mean(accuracies):.2%}, least {min(accuracies):.2%} of {options.seeds}")


if __name__ == "__main__":
    main()
