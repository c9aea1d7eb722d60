"""SGPerm's cycle search beside a sort of the same rows and beside a search of explicit graphs.

    python examples/benchmarks/cycles.py [--short]

All ratios come from this one run. Every time is the least of several, taken in turns, and is CPU
time of the one thread, so that other programs disturb it less; only one thread and two are compared
by the clock on the wall, and so are the parts of a whole training step. Besides the kernel
(`p2t_jax._host.kernels.cycles`) there are two yardsticks:

- `np.argsort` of the same rows: the least that a search which orders its weights must cost;
- Section 2.4 taken by its word, in Numba as well: adjacency lists built and sorted for every
  subset, and a depth-first search that starts afresh after every cycle.
"""

import argparse
import functools
import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import jax
import numba
import numpy as np
import optax
import scipy.special
from synchronize import BATCH, STEPS, normal_params, train

import p2t_jax as p2t
from p2t_jax._host.kernels import cycles

SEED = np.array([0, 1], np.uint32)
NETWORK = ((500, 784), (300, 500), (10, 300))  # Weight vectors of 784-500-300-10, as rows.

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@numba.njit(nogil=True, cache=True)
def _explicit_subset(w, r, subset, alpha, source):
    m = subset.size
    lower = np.inf
    for a in range(m):
        for b in range(a):
            lower = min(lower, abs(np.float64(w[subset[a]]) - w[subset[b]]))
    upper = lower + alpha * (np.float64(w.max()) - np.float64(w.min()))
    # Section 2.4: "allocating a 2d array (vertex x adjacency list)".
    adjacency, degree = np.empty((m, m), np.int32), np.zeros(m, np.int32)
    distance = np.empty(m)
    for a in range(m):
        x = subset[a]
        for b in range(m):
            step = np.float64(w[x]) - w[subset[b]]
            if a == b or r[x] * step < 0 or not lower < abs(step) < upper:
                continue
            k = degree[a]  # Nearest first: insert.
            while k > 0 and distance[k - 1] > abs(step):
                distance[k], adjacency[a, k] = distance[k - 1], adjacency[a, k - 1]
                k -= 1
            distance[k], adjacency[a, k] = abs(step), b
            degree[a] += 1
    order = np.argsort(-np.abs(r[subset]), kind="mergesort")
    memorized, visited = np.zeros(m, np.bool_), np.full(m, -1)
    depth, path, edge = np.full(m, -1), np.empty(m, np.int64), np.empty(m, np.int64)
    searches = first = 0
    while first < m:
        start = order[first]
        if memorized[start]:
            first += 1
            continue
        path[0], edge[0], depth[start], visited[start] = start, 0, 0, searches
        top, found = 0, -1
        while top >= 0 and found < 0:
            a = path[top]
            if edge[top] == degree[a]:
                depth[a] = -1
                top -= 1
                continue
            b = adjacency[a, edge[top]]
            edge[top] += 1
            if memorized[b]:
                continue
            if depth[b] >= 0:
                found = depth[b]
            elif visited[b] != searches:
                top += 1
                path[top], edge[top], depth[b], visited[b] = b, 0, top, searches
        if found < 0:
            memorized[start] = True
        for k in range(top + 1):
            depth[path[k]] = -1
            if found >= 0 and k >= found:
                memorized[path[k]] = True
                source[subset[path[k]]] = subset[path[k + 1 if k < top else found]]
        searches += 1


@numba.njit(nogil=True, cache=True)
def explicit_search(weights, recommendations, alpha, subsets, seed, row_ids, source):
    """Sections 2.1, 2.2 and 2.4 with stored graphs: the permutations of `cycles.search_rows`."""
    n = weights.shape[1]
    label = np.empty(n, np.int32)
    for row in range(weights.shape[0]):
        source[row] = np.arange(n)
        cycles.partition(seed, row_ids[row], subsets, label)
        for p in range(subsets):
            subset = np.flatnonzero(label == p)
            if subset.size > 1:
                w, r = weights[row], recommendations[row]
                _explicit_subset(w, r, subset, alpha, source[row])


def make_rows(rows: int, n: int) -> Rows:
    """Normal weights and recommendations, 15 % of the latter zero, and room for the result."""
    rng = np.random.default_rng([rows, n])
    w, r = rng.standard_normal((2, rows, n)).astype(np.float32)
    r[rng.random(r.shape) < 0.15] = 0
    return w, r, np.empty(w.shape, np.int32)


def search(rows: Rows, partition_ratio: float = 0.05, alpha: float = 0.07, first: int = 0) -> None:
    w, r, source = rows
    ids = np.arange(first, first + len(w))
    subsets = cycles.subset_count(partition_ratio)
    cycles.search_rows(w, r, alpha, subsets, SEED, ids, cycles.NEAREST, source)


def least_times(
    repeats: int, *tasks: Callable[[], object], clock: Callable[[], float] = time.thread_time
) -> list[float]:
    for task in tasks:
        task()
    least = [float("inf")] * len(tasks)
    for _ in range(repeats):
        for k, task in enumerate(tasks):
            start = clock()
            task()
            least[k] = min(least[k], clock() - start)
    return least


def lengths_of_cycles() -> None:
    """How many of the cycles are swaps, by the priority of movements (Section 2.2.1)."""
    w, r, source = make_rows(*NETWORK[0])
    print("\ncycles that are swaps, lambda 0.05, alpha 0.07, 500 vectors of 784")
    for weights, how in ((w, "normal"), (scipy.special.ndtr(w).astype(np.float32), "uniform")):
        for priority in ("nearest", "farthest", "random"):
            number = getattr(cycles, priority.upper())
            cycles.search_rows(weights, r, 0.07, 20, SEED, np.arange(len(w)), number, source)
            lengths, counts = np.unique(p2t.permutations.cycle_lengths(source), return_counts=True)
            found = counts[lengths > 1] / lengths[lengths > 1]
            share = counts[lengths == 2].sum() / 2 / found.sum()
            print(f"  {how:8} {priority:9} {share:6.1%}")


def where_a_step_goes(repeats: int) -> None:
    """A training step without the search, with a callback that only copies, and whole."""

    def copy(theta, r, alpha, lambda_, bits, out):
        out[:] = theta

    def steps(tx):
        params = normal_params()
        run = functools.partial(jax.jit(train(tx)), (params, tx.init(params)))
        jax.block_until_ready(run())  # compile, with the kernel that there is now
        return lambda: jax.block_until_ready(run())

    momentum = steps(optax.sgd(1e-3, momentum=0.9))
    kernels = importlib.import_module("p2t_jax._sgperm")._KERNELS  # p2t_jax.sgperm is the function
    with mock.patch.dict(kernels, nearest=copy):
        copying = steps(p2t.sgperm(key=0))
    whole = steps(p2t.sgperm(key=0))
    total = 0.0
    print(f"\na training step of 784-500-300-10, batches of {BATCH}, on all cores")
    times = least_times(repeats, momentum, copying, whole, clock=time.perf_counter)
    for part, until in zip(
        ("gradient and momentum", "callback and copies", "partition, search, permute"),
        (1e3 * t / STEPS for t in times),
        strict=True,
    ):
        share = (until - total) * STEPS / (1e3 * times[-1])
        print(f"  {part:26} {until - total:6.2f} ms  {share:5.1%}")
        total = until


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer repeats and lengths")
    short = parser.parse_args().short
    repeats = 5 if short else 25

    layers = [make_rows(*shape) for shape in NETWORK]
    size = sum(w.size for w, _, _ in layers)

    def search_network() -> None:
        for rows in layers:
            search(rows)

    def sort_network() -> None:
        for w, _, _ in layers:
            np.argsort(w, axis=-1)

    pool = ThreadPoolExecutor(2)

    def search_network_on_two_threads() -> None:
        blocks = []
        for rows in layers:
            half = len(rows[0]) // 2
            blocks.append(pool.submit(search, tuple(a[:half] for a in rows)))
            blocks.append(pool.submit(search, tuple(a[half:] for a in rows), first=half))
        for block in blocks:
            block.result()

    searched, ranked = least_times(repeats, search_network, sort_network)
    one, two = least_times(
        repeats, search_network, search_network_on_two_threads, clock=time.perf_counter
    )
    print(f"784-500-300-10: {size:,} weights, lambda 0.05, alpha 0.07, nearest first")
    print(f"  np.argsort     {ranked / size * 1e9:6.1f} ns a weight")
    print(f"  search         {searched / size * 1e9:6.1f} ns a weight", end="")
    print(f"  {searched / ranked:6.2f} x np.argsort (at most 3)")
    print(f"  wall clock     one thread {one * 1e3:.1f} ms, two {two * 1e3:.1f} ms", end="")
    print(f"  {one / two:6.2f} x as fast")

    print("\nby length of the vector, lambda 0.05, alpha 0.07 (at most 4 x that at 1,000)")
    thousand = 0.0
    for n in (10**3, 10**6) if short else (10**3, 10**4, 10**5, 10**6):
        rows = make_rows(max(1, 200_000 // n), n)
        one = least_times(max(3, repeats // 3), lambda rows=rows: search(rows))[0]
        one /= rows[0].size
        thousand = thousand or one
        print(f"  {n:>9,}  {one * 1e9:6.1f} ns a weight  {one / thousand:5.2f} x that at 1,000")

    print(
        "\nexplicit graphs, by length of the vector, lambda 0.1, alpha 0.15 (at least 20 x at 784)"
    )
    for n in (784, 1568) if short else (784, 1568, 3136, 6272):
        rows = make_rows(max(1, 784 * 16 // n), n)
        w, r, source = rows
        graphs, ids = np.empty_like(source), np.arange(len(w))
        kernel, explicit = least_times(
            max(3, repeats // 3),
            lambda rows=rows: search(rows, 0.1, 0.15),
            lambda w=w, r=r, ids=ids, graphs=graphs: explicit_search(
                w, r, 0.15, cycles.subset_count(0.1), SEED, ids, graphs
            ),
        )
        same = "the same permutations" if np.array_equal(source, graphs) else "OTHER PERMUTATIONS"
        print(f"  {n:>9,}  {kernel / w.size * 1e9:6.1f} ns a weight", end="")
        print(f"  {explicit / w.size * 1e9:8.0f} ns  {explicit / kernel:7.1f} x, {same}")

    lengths_of_cycles()
    where_a_step_goes(2 if short else 7)


if __name__ == "__main__":
    main()
