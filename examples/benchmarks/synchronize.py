"""What LAPerm's synchronization costs, as ratios from one run.

    python examples/benchmarks/synchronize.py [--short]

Every figure is the median of rounds in which the peers take turns, so that a busy moment of the
machine meets all of them alike; beside each ratio stand the lowest and highest of the rounds.
"""

import argparse
import functools
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import p2t_jax as p2t

LAYERS = [(784, 500), (500, 300), (300, 10)]
BATCH, STEPS = 64, 100


def normal_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(LAYERS))
    return [
        {
            "kernel": jax.random.normal(key, shape) * np.sqrt(2 / shape[0]),
            "bias": jnp.zeros(shape[1]),
        }
        for key, shape in zip(keys, LAYERS, strict=True)
    ]


def compare(peers, rounds):
    """Seconds of each callable in each round, as a dict of arrays."""
    for run in peers.values():
        jax.block_until_ready(run())  # compile
    seconds = {name: [] for name in peers}
    for _ in range(rounds):
        for name, run in peers.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def show(what, numerator, denominator):
    ratios = numerator / denominator
    print(f"    {what}: {np.median(ratios):.2f}  ({ratios.min():.2f} - {ratios.max():.2f})")


def synchronization(rounds):
    tx = p2t.synchronize(20)
    params = normal_params()
    state = tx.init(params)
    moved = normal_params(seed=1)
    rows = [np.ascontiguousarray(layer["kernel"].T) for layer in moved]
    device_rows = [jnp.asarray(w) for w in rows]
    permuted = jax.jit(p2t.permuted_params)
    two_sorts = jax.jit(lambda rows: [jnp.argsort(jnp.argsort(w)) for w in rows])
    seconds = compare(
        {
            "synchronize": lambda: permuted(state, moved),
            "jnp": lambda: two_sorts(device_rows),
            "numpy": lambda: [np.argsort(w, axis=-1) for w in rows],
        },
        rounds,
    )
    print("Synchronization of 784-500-300-10 (545,000 float32 weights), callback and all")
    for name, values in seconds.items():
        print(f"    {name:>12}: {1e3 * np.median(values):7.2f} ms")
    show("jnp.argsort(jnp.argsort(rows)) / synchronize", seconds["jnp"], seconds["synchronize"])
    show("np.argsort(rows), one thread / synchronize", seconds["numpy"], seconds["synchronize"])


def loss(params, images, labels):
    x = images
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(tx):
    """STEPS training steps in one compiled call, from and to (params, state)."""
    images = jax.random.uniform(jax.random.key(2), (STEPS, BATCH, 784))
    labels = jax.random.randint(jax.random.key(3), (STEPS, BATCH), 0, 10)

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return lambda carry: jax.lax.scan(step, carry, (images, labels))[0]


def training_step(rounds):
    params = normal_params()
    peers = {}
    for name, tx in (("adam", optax.adam(1e-3)), ("laperm", p2t.laperm(optax.adam(1e-3), 20))):
        peers[name] = functools.partial(jax.jit(train(tx)), (params, tx.init(params)))
    seconds = compare(peers, rounds)
    print(f"A training step of that network, batches of {BATCH}, k = 20")
    for name, values in seconds.items():
        print(f"    {name:>12}: {1e3 * np.median(values) / STEPS:7.2f} ms")
    show("laperm(adam) / adam", seconds["laperm"], seconds["adam"])


def ensemble(rounds, members=4):
    params = jax.vmap(normal_params)(jnp.arange(members))
    peers = {}
    for name, tx in (("adam", optax.adam(1e-3)), ("laperm", p2t.laperm(optax.adam(1e-3), 20))):
        state = jax.vmap(tx.init)(params)
        peers[name] = functools.partial(jax.jit(jax.vmap(train(tx))), (params, state))
    seconds = compare(peers, rounds)
    print(f"The same for a vmapped ensemble of {members}")
    for name, values in seconds.items():
        print(f"    {name:>12}: {1e3 * np.median(values) / STEPS:7.2f} ms")
    show("laperm(adam) / adam", seconds["laperm"], seconds["adam"])


def growth(sizes):
    print("Growth: one synchronization of m vectors of n float32 weights, each in a new process")
    print("    weights      n          m   s (first)  s (next)  ns a weight  np.sort  peak/weights")
    for m, n in sizes:
        subprocess.run([sys.executable, __file__, "--one", str(m), str(n)], check=True)


def one(m, n):
    """One size; peak memory above that of the idle process, in units of the weights' own bytes."""
    jax.block_until_ready(jax.jit(p2t.permuted_params)(*_small()))  # import Numba, load the kernel
    idle = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    # Made in NumPy: XLA's random numbers would need more memory than the synchronization.
    params = jnp.asarray(np.random.default_rng(0).standard_normal((n, m), np.float32))
    tx = p2t.synchronize(1)
    update = jax.jit(tx.update, donate_argnums=(0, 1))
    state, seconds = tx.init(params), []
    for _ in range(3):
        updates = jnp.asarray(np.random.default_rng(1).standard_normal((n, m), np.float32))
        start = time.perf_counter()
        updates, state = jax.block_until_ready(update(updates, state, params))
        seconds.append(time.perf_counter() - start)
        del updates
    peak = memory("VmHWM")
    first, best = seconds[0], min(seconds[1:])
    rows = np.random.default_rng(2).standard_normal((m, n), np.float32)
    start = time.perf_counter()
    np.sort(rows, axis=-1, kind="stable")
    numpy_sort = time.perf_counter() - start
    print(
        f"{m * n:11,} {n:6.0e} {m:10,} {first:11.3f} {best:9.3f} {1e9 * best / (m * n):12.1f} "
        f"{numpy_sort / best:7.1f}x {(peak - idle) / (4 * m * n):13.1f}",
        flush=True,
    )


def memory(field):
    """Bytes of resident memory of this process, now (VmRSS) or at most (VmHWM); Linux only."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def _small():
    params = jnp.ones((2, 2))
    return p2t.synchronize(1).init(params), params


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(*options.one)
    print(f"JAX {jax.__version__}, NumPy {np.__version__}, {jax.devices()[0]}")
    rounds = 3 if options.short else 25
    synchronization(rounds)
    training_step(3 if options.short else 15)
    ensemble(2 if options.short else 7)
    sizes = [(10**4, 100), (1000, 1000)]
    if not options.short:
        sizes += [(10**6, 9), (10, 10**5), (1, 10**6), (10**4, 1000), (10**5, 1000), (100, 10**6)]
        sizes += [(1, 10**7), (1, 10**8)]
    growth(sizes)


if __name__ == "__main__":
    main()
