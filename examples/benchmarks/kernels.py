"""The host kernels of both optimizers, in nanoseconds per weight and beside NumPy's sort.

    python examples/benchmarks/kernels.py [--short]

From parameters as they are in memory, (in, out), to permuted parameters: reading, sorting,
searching and writing, on one thread. Times are CPU time of that thread, the least of several rounds
in which the contenders alternate, so that other programs disturb them less.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from p2t_jax._host.kernels import cycles, radix

NETWORK = ((784, 500), (500, 300), (300, 10))  # 784-500-300-10
Blocks = tuple[np.ndarray, ...]


def make_blocks(n: int, m: int, lambda_: float = 0.05) -> Blocks:
    """Uniform weights, normal recommendations, 15% of them zero, hyperparameters, and a result."""
    rng = np.random.default_rng([n, m])
    position = np.uint16 if n <= 1 << 16 else np.uint32
    w = rng.uniform(-1, 1, (1, n, m)).astype(np.float32)
    r = rng.standard_normal(w.shape).astype(np.float32)
    r[rng.random(r.shape) < 0.15] = 0
    alpha, partition_ratio = (np.full((1, 1, m), x, np.float32) for x in (0.07, lambda_))
    seed = rng.integers(0, 2**32, (1, 1, m), dtype=np.uint32)
    return w, r, alpha, partition_ratio, seed, np.empty(w.shape, position)


def search(blocks: Blocks) -> None:
    cycles.search(*blocks, 0, blocks[0].shape[2])


def rank(blocks: Blocks) -> None:
    _, phi, *_, out = blocks
    radix.rank(phi, out, 0, phi.shape[2])


def argsort(blocks: Blocks) -> None:
    np.argsort(blocks[0], axis=1)


def nanoseconds(
    blocks: list[Blocks], repeats: int, *tasks: Callable[[Blocks], None]
) -> list[float]:
    least = [float("inf")] * len(tasks)
    for _ in range(repeats + 1):  # the first round compiles
        for k, task in enumerate(tasks):
            start = time.thread_time()
            for some in blocks:
                task(some)
            least[k] = min(least[k], time.thread_time() - start)
    return [1e9 * t / sum(some[0].size for some in blocks) for t in least]


def lengths_of_cycles() -> None:
    """How long the cycles of a step are, by the priority of movements (Section 2.2.1)."""
    w, *rest, out = make_blocks(784, 500)
    print(
        "\n784 x 500: share of the cycles with 2, 3, 4 and more weights, and of weights that move"
    )
    for priority in ("nearest", "farthest", "random"):
        cycles.search(w, *rest, out, 0, w.shape[2], priority=getattr(cycles, priority.upper()))
        source = out[0].astype(np.int64)
        length, ahead = np.ones_like(source), source.copy()
        places = np.arange(len(source))[:, None]
        while (open_ := ahead != places).any():
            length += open_
            ahead = np.where(open_, np.take_along_axis(source, ahead, axis=0), ahead)
        found = np.bincount(length.ravel()) / np.maximum(1, np.arange(length.max() + 1))
        found[1] = 0
        shares = [found[2], found[3], found[4:].sum()]
        text = "  ".join(f"{share / found.sum():6.1%}" for share in shares)
        print(f"  {priority:9} {text}   {np.mean(length > 1):6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer repeats and lengths")
    short = parser.parse_args().short
    repeats = 3 if short else 30

    network = [make_blocks(*shape) for shape in NETWORK]
    searched, ranked, sorted_ = nanoseconds(network, repeats, search, rank, argsort)
    larger = [make_blocks(*shape, lambda_=0.1) for shape in NETWORK]
    (searched_larger,) = nanoseconds(larger, repeats, search)
    print("784-500-300-10, float32, alpha 0.07: ns per weight")
    for lambda_, t in ((0.05, searched), (0.1, searched_larger)):
        print(f"  SGPerm's search   {t:6.1f}   {t / sorted_:5.2f} x np.argsort, lambda {lambda_}")
    print(f"  LAPerm's ranking  {ranked:6.1f}   {ranked / sorted_:5.2f} x np.argsort")
    print(f"  np.argsort        {sorted_:6.1f}")

    print("\nby length of the vector: ns per weight, and relative to 1,000")
    base: list[float] = []
    for n in (10**3, 10**6) if short else (10**3, 10**4, 10**5, 10**6):
        blocks = [make_blocks(n, max(1, 10**6 // n))]
        times = nanoseconds(blocks, max(2, repeats // 5), search, rank)
        base = base or times
        text = "   ".join(f"{t:6.1f} ({t / b:4.2f})" for t, b in zip(times, base, strict=True))
        print(f"  {n:>9,}  search, ranking  {text}")
    lengths_of_cycles()


if __name__ == "__main__":
    main()
