"""How small a permuted network gets, and how fast: bits and ratios from one run.

    python examples/benchmarks/storage.py [--short]

Sizes are of the kernels of 784-500-300-10, trained on scikit-learn's digits, enlarged to 28 x 28.
Speeds are of NumPy arrays in one block, hence on one thread, in CPU time of that thread, so that
other work on the machine counts little. The contenders alternate. Each median is followed by the
lowest and the highest of the rounds.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import p2t_jax as p2t

try:
    import zstandard
except ImportError:
    raise SystemExit("The peer is missing: pip install zstandard") from None

LAYERS = [(784, 500), (500, 300), (300, 10)]
BATCH = 64


def he_normal(pruned=0.0, seed=0):
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(0, np.sqrt(2 / n), (n, m)).astype(np.float32) for n, m in LAYERS]
    for kernel in kernels:
        kernel[rng.random(kernel.shape) < pruned] = 0
    return [{"kernel": jnp.asarray(k), "bias": jnp.zeros(k.shape[1])} for k in kernels]


def logits(params, images):
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["kernel"] + layer["bias"])
    return images @ params[-1]["kernel"] + params[-1]["bias"]


def train(params, tx, epochs):
    """The last parameters and state, after epochs over three quarters of the digits."""
    images, labels = digits("train")

    def loss(params, images, labels):
        scores = logits(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = tx.update(jax.grad(loss)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(labels)), len(labels) // BATCH):
            params, state = step(params, state, images[batch], labels[batch])
    return params, state


def digits(part):
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8), np.ones((4, 4)))[:, 2:30, 2:30] / 16
    chosen = (np.arange(len(labels)) % 4 == 0) == (part == "test")
    return images.reshape(-1, 784)[chosen].astype(np.float32), labels[chosen]


def accuracy(params):
    images, labels = digits("test")
    return 100 * float((logits(params, images).argmax(1) == labels).mean())


def kernels(params):
    return [np.asarray(layer["kernel"]) for layer in params]


def limit(params):
    """Bits: log2 of the number of orders of the weights of every vector."""
    nats = 0.0
    for kernel in kernels(params):
        for row in kernel.T:
            _, counts = np.unique(row, return_counts=True)
            nats += math.lgamma(len(row) + 1) - sum(math.lgamma(c + 1) for c in counts)
    return nats / math.log(2)


def zstd(arrays):
    return 8 * len(zstandard.compress(b"".join(a.tobytes() for a in arrays), level=19))


def planes(arrays):
    """All first bytes of the weights, then all second ones, and so on."""
    flat = np.concatenate([a.ravel() for a in arrays])
    return [np.ascontiguousarray(flat.view(np.uint8).reshape(-1, 4).T)]


def ranks(initial, params):
    """The uint16 positions, among the sorted initial weights, of the weights of every vector."""
    found = []
    for first, now in zip(kernels(initial), kernels(params), strict=True):
        by_weight = np.argsort(now.T, axis=1, kind="stable")
        rank = np.empty(by_weight.shape, np.uint16)
        np.put_along_axis(rank, by_weight, np.arange(len(first), dtype=np.uint16)[None], 1)
        found.append(rank)
    return found


def sizes(epochs):
    print("Bits per weight; zstandard runs at level 19")
    print("    network            accuracy    limit     pack  above it   ranks  float32  in planes")
    for name, pruned in (("LAPerm", 0.0), ("LAPerm, 90% zeros", 0.9), ("Adam", 0.0)):
        initial = he_normal(pruned)
        laperm = name.startswith("LAPerm")
        tx = p2t.laperm(optax.adam(1e-3), 20) if laperm else optax.adam(1e-3)
        params, state = train(initial, tx, epochs)
        weights = sum(kernel.size for kernel in kernels(initial))
        columns = ["       -", "       -", "       - ", "     -"]
        if laperm:
            params = p2t.permuted_params(state, params)
            packed = 8 * len(p2t.pack(kernels(params), kernels(initial), vectors=0))
            best = limit(initial)
            columns = [
                f"{best / weights:8.4f}",
                f"{packed / weights:8.4f}",
                f"{packed / best - 1:9.3%}",
                f"{zstd(ranks(initial, params)) / weights:7.3f}",
            ]
        columns += [f"{zstd(f(kernels(params))) / weights:8.3f}" for f in (list, planes)]
        print(f"    {name:18} {accuracy(params):7.1f}% ", " ".join(columns), flush=True)


def compare(peers, rounds):
    """Seconds of each callable in each round, as a dict of arrays."""
    for run in peers.values():
        run()  # compile
    seconds = {name: [] for name in peers}
    for _ in range(rounds):
        for name, run in peers.items():
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def speed(dtype, pruned, lengths, rounds, weights=10**6):
    print(f"Million weights per second, {np.dtype(dtype)}, {pruned:.0%} zeros, one thread")
    print("         n              pack              unpack   np.argsort  zstd -3  unzstd")
    rng = np.random.default_rng(0)
    for n in lengths:
        rows = rng.normal(size=(max(1, weights // n), n))
        rows[rng.random(rows.shape) < pruned] = 0
        rows = rows.astype(dtype)
        initial = np.ascontiguousarray(rows.T)
        params = np.ascontiguousarray(rng.permuted(rows, axis=1).T)
        data = p2t.pack(params, initial, vectors=0)
        raw = params.tobytes()
        compressed = zstandard.compress(raw, level=3)
        peers = {
            "pack": lambda params=params, initial=initial: p2t.pack(params, initial, vectors=0),
            "unpack": lambda data=data, initial=initial: p2t.unpack(data, initial, vectors=0),
            "argsort": lambda rows=rows: np.argsort(rows, axis=1),
            "zstd": lambda raw=raw: zstandard.compress(raw, level=3),
            "unzstd": lambda compressed=compressed: zstandard.decompress(compressed),
        }
        rates = {k: 1e-6 * rows.size / s for k, s in compare(peers, rounds).items()}
        ours = [
            f"{np.median(rates[k]):5.1f} ({rates[k].min():5.1f} - {rates[k].max():5.1f})"
            for k in ("pack", "unpack")
        ]
        theirs = [f"{np.median(rates[k]):9.1f}" for k in ("argsort", "zstd", "unzstd")]
        print(f"{n:10,}", *ours, *theirs, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    print(f"NumPy {np.__version__}, zstandard {zstandard.__version__}, JAX {jax.__version__}")
    sizes(epochs=2 if short else 30)
    lengths = [10, 1000] if short else [10, 100, 1000, 10**4, 10**5, 10**6]
    rounds = 3 if short else 11
    speed(np.float32, 0.0, lengths, rounds)
    speed(np.float32, 0.9, lengths[-2:] if short else [100, 1000, 10**6], rounds)
    speed(jnp.bfloat16, 0.0, [1000] if short else [100, 1000, 10**6], rounds)


if __name__ == "__main__":
    main()
