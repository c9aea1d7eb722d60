"""The paper's algorithms on MNIST, beside Adam from the same initial weights.

    python examples/mnist.py EXPERIMENT --data-dir DIR [--seeds 5]

EXPERIMENT is one of

    laperm      784-500-300-10, normal weights; LAPerm over Adam 1e-3, k = 20; 3,000 mini-batches
    logistic    784-10, Section 5.1.1; SGPerm; 800 mini-batches
    sgperm      784-500-300-10, Section 5.1.2; SGPerm; 800 mini-batches

DIR (or the environment variable P2T_DATA_DIR) has the four files train-images-idx3-ubyte.gz, ...
as MNIST is published; Fashion-MNIST's will do. Mini-batches have 64 images.
"""

import argparse
import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import p2t_jax as p2t

BATCH = 64
CHUNK = 50  # mini-batches a compiled call, and between evaluations


def every_weight_and_bias(path, leaf):
    """Section 5.1 permutes biases, too: those of a layer are one weight vector."""
    return 0 if path[-1] == "bias" else p2t.flax_vectors(path, leaf)


def kaiming_uniform_bias(fan_in):
    limit = np.sqrt(6 / fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


class MLP(nn.Module):
    """Dense layers with ReLU at Kaiming's scale: normal without biases, or uniform with."""

    features: tuple[int, ...]
    uniform: bool

    @nn.compact
    def __call__(self, x):
        kernel_init = nn.initializers.he_uniform() if self.uniform else nn.initializers.he_normal()
        for i, features in enumerate(self.features):
            bias_init = kaiming_uniform_bias(x.shape[-1]) if self.uniform else nn.initializers.zeros
            x = nn.relu(x) if i else x
            x = nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init)(x)
        return x


class Experiment(NamedTuple):
    """A network, how to train it, for how long, and what its weight vectors are."""

    model: MLP
    optimizer: Callable[[int], Any]
    batches: int
    vectors: Any


def algorithm_1(seed, alpha_0, beta_1):
    """SGPerm with the hyperparameters that Sections 5.1.1 and 5.1.2 share."""
    beta_2 = 1 / 0.995
    return p2t.sgperm(
        seed,
        aggressiveness=optax.exponential_decay(beta_1 * alpha_0, 1, beta_1, end_value=0.005),
        partition_ratio=optax.exponential_decay(beta_2 * 0.05, 1, beta_2, end_value=0.1),
        vectors=every_weight_and_bias,
    )


EXPERIMENTS = {
    "laperm": Experiment(
        MLP((500, 300, 10), uniform=False),
        lambda seed: p2t.laperm(optax.adam(1e-3), sync_period=20),
        3000,
        p2t.flax_vectors,
    ),
    "logistic": Experiment(
        MLP((10,), uniform=True),
        lambda seed: algorithm_1(seed, alpha_0=0.15, beta_1=0.99),
        800,
        every_weight_and_bias,
    ),
    "sgperm": Experiment(
        MLP((500, 300, 10), uniform=True),
        lambda seed: algorithm_1(seed, alpha_0=0.07, beta_1=0.985),
        800,
        every_weight_and_bias,
    ),
}


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


def train(model, tx, batches, seed, train_data, test_data, bar):
    """Train; return (initial params, final params, test accuracy after every CHUNK batches)."""
    images, labels = train_data
    init_key, data_key = jax.random.split(jax.random.key(seed))
    params = initial_params = model.init(init_key, images[:1])
    state = tx.init(params)

    def step(carry, batch):
        params, state = carry

        def loss(params):
            logits = model.apply(params, images[batch])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def exact(params, state):
        permutes = optax.tree.get(state, "vectors") is not None
        return p2t.permuted_params(state, params) if permutes else params

    @jax.jit
    def run(params, state, batches):
        (params, state), _ = jax.lax.scan(step, (params, state), batches)
        predictions = model.apply(exact(params, state), test_data[0]).argmax(axis=-1)
        return params, state, (predictions == test_data[1]).mean()

    order = jax.random.choice(data_key, len(images), (batches, BATCH))
    curve = []
    for start in range(0, batches, CHUNK):
        params, state, accuracy = run(params, state, order[start : start + CHUNK])
        curve.append(float(accuracy))
        bar.update(len(order[start : start + CHUNK]))
    return initial_params, exact(params, state), curve


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("P2T_DATA_DIR"))
    parser.add_argument("--seeds", type=int, default=1, help="how many runs")
    options = parser.parse_args()
    if options.data_dir is None:
        parser.error("say where MNIST's files are: --data-dir or P2T_DATA_DIR")
    data = [load(Path(options.data_dir), part) for part in ("train", "t10k")]
    model, optimizer, batches, vectors = EXPERIMENTS[options.experiment]

    curves = {"permuting": [], "Adam 1e-3": []}
    for seed in range(options.seeds):
        for name, tx in (("permuting", optimizer(seed)), ("Adam 1e-3", optax.adam(1e-3))):
            start = time.perf_counter()
            with tqdm(total=batches, desc=f"seed {seed}, {name}", unit="batch") as bar:
                initial, final, curve = train(model, tx, batches, seed, *data, bar)
            exact = bool(p2t.is_permutation(final, initial, vectors=vectors))
            curves[name].append(curve)
            print(
                f"seed {seed}, {name}: {curve[-1]:.2%} test accuracy, "
                f"{time.perf_counter() - start:.0f} s; exactly a permutation: {exact}"
            )

    print(f"\nTest accuracy of {options.experiment}, mean (least - most) of {options.seeds}")
    print("batches  " + "".join(f"{name:^28}" for name in curves))
    for i in range(batches // CHUNK):
        if (i + 1) % max(1, batches // CHUNK // 16) == 0:
            at = [np.array(values)[:, i] for values in curves.values()]
            cells = [f"{a.mean():.2%} ({a.min():.2%} - {a.max():.2%})" for a in at]
            print(f"{(i + 1) * CHUNK:7}  " + "".join(f"{cell:^28}" for cell in cells))


if __name__ == "__main__":
    main()
