"""SGPerm's search as the paper words it: slow, literal, plain Python. The oracle of test_cycles.py.

Sections 2.1 and 2.2 of "Permute to Train" (Qiu & Suda, 2020), with explicit adjacency lists. What
the paper leaves open (ties, rounding, random numbers) is marked "Ours".
"""

import math

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    """Ours: the mixer of splitmix64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def row_state(seed, row_id):
    """Ours: a stream of random numbers for every row, from a hash of the words and the row's id."""
    state = 0
    for word in [*seed, row_id]:
        state = mix((state + GOLDEN) % WORD ^ int(word) % WORD)
    return state


def draw(state, k, n):
    """Ours: the k-th number of a stream (its upper half, h), as floor(h n / 2^32) < n."""
    return (mix((state + k * GOLDEN) % WORD) >> 32) * n >> 32


def partition(n, subsets, state):
    """2.1.4: "we randomly partition V_j into floor(1 / lambda) disjoint subsets"."""
    # Ours: the first of n cards 0, 1, ..., subsets - 1, 0, 1, ... shuffled by Fisher-Yates.
    cards = []
    for x in range(n):
        y = draw(state, x + 1, x + 1)
        cards.append(x % subsets)
        cards[x], cards[y] = cards[y], cards[x]
    return [[x for x in range(n) if cards[x] == p] for p in range(subsets)]


def bounds(w, subset, alpha):
    """2.1.3 and 2.1.4: l_jp and u_jp."""
    # A_j: "the absolute difference between its largest and its smallest weight values".
    value_range = max(w) - min(w)
    # l_jp: the least |weight_x - weight_y| of any two x, y in V_jp.
    lower = min(abs(w[x] - w[y]) for x in subset for y in subset if x != y)
    # u_j - l_j = alpha A_j.
    return lower, lower + alpha * value_range


def sign(value):
    return (value > 0) - (value < 0)


def adjacency_list(x, w, r, subset, lower, upper, priority, number):
    """2.1.1 to 2.1.3 and 2.2.1: adj_x, the permissible movements (x, y) in order of priority."""
    permissible = [
        y
        for y in subset
        if y != x
        # 2.1.2: r_x (weight_x - weight_y) >= 0. Ours: by signs, for a product can underflow.
        and sign(r[x]) * sign(w[x] - w[y]) >= 0
        # 2.1.3: l_j < |weight_x - weight_y| < u_j.
        and lower < abs(w[x] - w[y]) < upper
    ]
    place = {y: k for k, y in enumerate(sorted(subset, key=lambda y: (w[y], y)))}

    def distance(y):
        return abs(w[x] - w[y])

    if priority == "nearest":
        # "We prioritize those weights that are closer". Ours: the lighter first among equally
        # close ones, and equal weights as they come, going away from x by (weight, index).
        return sorted(
            permissible, key=lambda y: (distance(y), w[y] > w[x], abs(place[y] - place[x]))
        )
    if priority == "farthest":
        # "Prioritizing the farther weights". Ours: the same, equal weights coming towards x.
        return sorted(
            permissible, key=lambda y: (-distance(y), w[y] > w[x], -abs(place[y] - place[x]))
        )
    # "Or randomly selected weights". Ours: all of them, in a ring, from a random one on.
    ring = sorted(permissible, key=lambda y: (w[y], y))
    first = number(x, len(ring))
    return ring[first:] + ring[:first]


def find_cycle(start, adjacency, memorized):
    """2.2: from start "following the directed edges in order, with backtracking"."""
    path, visited = [], set()

    def walk(x):
        visited.add(x)
        path.append(x)
        for y in adjacency[x]:
            if y in memorized:
                continue
            if y in path:  # "As soon as a cycle is found".
                return path[path.index(y) :]
            if y not in visited:  # "The foremost unvisited vertex in the adjacency list of x".
                cycle = walk(y)
                if cycle:
                    return cycle
        path.pop()
        return None

    return walk(start)


def find_cycles(subset, adjacency, r):
    """2.2: all disjoint cycles, in the order in which they are found."""
    cycles = []
    # Ours: a NaN is no recommendation; its weight stays where it is.
    memorized = {x for x in subset if math.isnan(r[x])}
    while len(memorized) < len(subset):
        # "The next parameter associated with the largest absolute recommendation that has not been
        # memorized yet". Ours: the one of lowest index among equals.
        start = min((x for x in subset if x not in memorized), key=lambda x: (-abs(r[x]), x))
        cycle = find_cycle(start, adjacency, memorized)
        if cycle:
            # "We memorize those vertices that are included in this cycle".
            memorized.update(cycle)
            cycles.append(cycle)
        else:
            # "Otherwise [...] we only memorize this vertex".
            memorized.add(start)
    return cycles


def search(w, r, alpha, subsets, seed, row_id, priority):
    """Algorithm 1 for one weight vector: where each weight comes from."""
    w, r, n = [float(x) for x in w], [float(x) for x in r], len(w)
    source = list(range(n))
    if n == 0 or not math.isfinite(max(w) - min(w)) or any(map(math.isnan, w)):
        return source  # Ours: no range, no bounds, no permutation.
    state = row_state(seed, row_id)

    parts = partition(n, min(subsets, n), state)
    numbered = [x for subset in parts for x in subset]

    def number(x, size):
        return draw(state, n + 1 + numbered.index(x), size)

    for subset in parts:
        if len(subset) < 2:
            continue
        lower, upper = bounds(w, subset, alpha)
        adjacency = {
            x: adjacency_list(x, w, r, subset, lower, upper, priority, number) for x in subset
        }
        for cycle in find_cycles(subset, adjacency, r):
            # 2.1.1: (x, y) assigns the weight from parameter y to parameter x.
            for x, y in zip(cycle, cycle[1:] + cycle[:1], strict=True):
                source[x] = y
    return source
