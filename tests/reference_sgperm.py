"""Sections 2.1 and 2.2 of the paper, transcribed literally: explicit graphs, slow and obvious."""

import math


def adjacency_lists(w, r, alpha, subset, priority):
    """The permissibility subgraph of one subset of the weight vector w (2.1), in order (2.2.1).

    (x, y) is the assignment of the weight of y to x. What the paper leaves open: among targets
    equally far the lighter come first, and equal weights are in the order of their indices.
    """
    value_range = float(max(w)) - float(min(w))
    distances = [abs(float(w[x]) - float(w[y])) for x in subset for y in subset if x < y]
    lower = min(distances)
    upper = lower + alpha * value_range
    adjacent = {}
    for x in subset:
        adjacent[x] = [
            y
            for y in subset
            if y != x
            and not math.isnan(r[y])
            and r[x] * (float(w[x]) - float(w[y])) >= 0
            and lower < abs(float(w[x]) - float(w[y])) < upper
        ]

        def away_from_x(y, x=x):
            heavier = w[y] > w[x]
            return abs(float(w[x]) - float(w[y])), heavier, y if heavier else -y

        def towards_x(y, x=x):
            heavier = w[y] > w[x]
            return -abs(float(w[x]) - float(w[y])), heavier, -y if heavier else y

        adjacent[x].sort(key=away_from_x if priority == "nearest" else towards_x)
    return adjacent


def find_cycle(x, adjacent, memorized, visited, path):
    """Depth-first search from x, in order, with backtracking; stops as soon as a cycle is found."""
    visited.add(x)
    path.append(x)
    for y in adjacent[x]:
        if y in memorized:
            continue
        if y in path:
            return path[path.index(y) :]
        if y not in visited:
            cycle = find_cycle(y, adjacent, memorized, visited, path)
            if cycle:
                return cycle
    path.pop()
    return None


def permutation(w, r, alpha, subsets, priority="nearest"):
    """`source` of a weight vector: new w[x] = w[source[x]]."""
    source = list(range(len(w)))
    for subset in subsets:
        if len(subset) < 2:
            continue
        adjacent = adjacency_lists(w, r, alpha, subset, priority)
        memorized = {x for x in subset if math.isnan(r[x])}
        while len(memorized) < len(subset):
            rest = [x for x in subset if x not in memorized]
            root = max(rest, key=lambda x: (abs(r[x]), -x))
            cycle = find_cycle(root, adjacent, memorized, set(), [])
            if cycle:
                # Each vertex takes the weight of the next: (x, y) assigns the weight of y to x.
                for x, y in zip(cycle, cycle[1:] + cycle[:1], strict=True):
                    source[x] = y
                memorized.update(cycle)
            else:
                memorized.add(root)
    return source
