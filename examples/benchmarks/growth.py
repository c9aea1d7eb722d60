"""LAPerm's synchronization for ever more weights: time and peak memory. Linux only.

    python examples/benchmarks/growth.py [--short]

Each line is one synchronization of m vectors of n float32 weights, in a process of its own. Peak
memory is that above the idle process, in units of the weights: parameters, sorted weights, updates
in and out, and what the host works on.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import p2t_jax as p2t


def one(m, n):
    small = jnp.ones((2, 2))  # import Numba, load the kernel
    jax.block_until_ready(
        jax.jit(p2t.permuted_params)(p2t.synchronize(1, vectors=0).init(small), small)
    )
    idle = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    # Made in NumPy: XLA's random numbers would need more memory than the synchronization.
    params = jnp.asarray(np.random.default_rng(0).standard_normal((n, m), np.float32))
    tx = p2t.synchronize(1, vectors=0)
    update = jax.jit(tx.update, donate_argnums=(0, 1))
    others = jax.jit(lambda w: -jnp.roll(w, 1))  # needs no memory but that of its result
    state, seconds = tx.init(params), []
    for _ in range(3):
        updates = jax.block_until_ready(others(params))
        start = time.perf_counter()
        updates, state = jax.block_until_ready(update(updates, state, params))
        seconds.append(time.perf_counter() - start)
        del updates
    best, peak = min(seconds[1:]), memory("VmHWM") - idle
    print(
        f"{m * n:11,} {n:12,} {m:10,} {best:9.3f} {1e9 * best / (m * n):12.1f} "
        f"{peak / (4 * m * n):13.1f}",
        flush=True,
    )


def memory(field):
    """Bytes of resident memory of this process, now (VmRSS) or at most (VmHWM)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(*options.one)
    sizes = [(10**4, 100), (1000, 1000)]
    if not options.short:
        sizes += [(10**6, 9), (1, 10**6), (10**4, 1000), (10**5, 1000), (100, 10**6), (1, 10**8)]
    print("    weights            n          m         s ns per weight  peak/weights", flush=True)
    for m, n in sizes:
        subprocess.run([sys.executable, __file__, "--one", str(m), str(n)], check=True)


if __name__ == "__main__":
    main()
