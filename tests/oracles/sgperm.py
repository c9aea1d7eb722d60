"""SGPerm as Sections 2.1 and 2.2 word it and its authors run it: slow, literal, plain Python.

An explicit graph with adjacency lists, searched depth first from the largest |r|. Only a cycle
through the root closes; if there is none, only the root is memorized. What the paper and the
authors' code leave open (equal weights, random numbers) is marked "Ours".
"""

import math

WORD = 2**64


def random_bits(state, k):
    """Ours: number k of a stream of 64 random bits each, splitmix64."""
    z = (state + k * 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def below(random, n):
    """Ours: the lower half h of a random number as floor(h n / 2^32) < n."""
    return random % 2**32 * n >> 32


def number_of_subsets(n, partition_ratio):
    """2.1.4: floor(1 / lambda), but never fewer than ten weights each."""
    # Ours: up to a rounding error, so that the float32 0.1 means ten subsets.
    return max(1, min(math.floor(1 / partition_ratio * (1 + 2**-22)), n // 10))


def partition(n, subsets, state):
    """2.1.4: "we randomly partition V_j into floor(1 / lambda) disjoint subsets"."""
    # Ours: the first n of the cards 0, 1, ..., subsets - 1, 0, 1, ... shuffled by Fisher-Yates.
    cards = []
    for x in range(n):
        y = below(random_bits(state, x // 2 + 1) >> 32 * (x % 2), x + 1)
        cards.append(x % subsets)
        cards[x], cards[y] = cards[y], cards[x]
    return [[x for x in range(n) if cards[x] == p] for p in range(subsets)]


def reach(w, subset, alpha, lower):
    """u of 2.1.3 and 2.1.4, for the weights of the subset that take part."""
    # A_j: "the absolute difference between its largest and its smallest weight values".
    value_range = max(w) - min(w)
    if lower == "mean":  # The authors' code; "A_j / (lambda |V_j|) on average".
        least = value_range / len(subset)
    else:  # l_jp: the least |weight_x - weight_y| of any two x, y in V_jp.
        least = min(abs(w[x] - w[y]) for x in subset for y in subset if x != y)
    # u_j - l_j = alpha A_j.
    return least + alpha * value_range


def adjacency_list(x, root, there, w, r, u, priority, draw):
    """2.1.1 to 2.1.3 and 2.2.1: adj_x, the permissible movements (x, y) in order of priority.

    Ours: a movement to any of several equal weights has the same effect, so the list has only one
    of them, the foremost of those still there.
    """

    def before_its_equals(y):
        wants_the_opposite = (r[y] > 0) != (r[x] > 0)
        place = y if r[y] > 0 else -y
        return (not wants_the_opposite, y != root, place)

    permissible = {}
    for y in sorted(there, key=before_its_equals):
        # 2.1.2: a movement increases or decreases the weight, as the recommendation says.
        # 2.1.3: |weight_x - weight_y| < u_j.
        if (w[x] - w[y]) * math.copysign(1, r[x]) > 0 and abs(w[x] - w[y]) < u:
            permissible.setdefault(w[y], y)
    targets = sorted(permissible.values(), key=lambda y: abs(w[x] - w[y]))
    if priority == "nearest":  # "We prioritize those weights that are closer".
        return targets
    targets.reverse()  # "Other options include prioritizing the farther weights",
    if priority == "random" and targets:  # "or randomly selected weights".
        # Ours: all of them, in a ring, from a random one on.
        nearest_first = targets[::-1]
        first = (draw(x, len(targets)) + len(targets) - 1) % len(targets)
        return [nearest_first[(first - i) % len(targets)] for i in range(len(targets))]
    return targets


def find_cycle(root, adjacency):
    """2.2: from the root "following the directed edges in order, with backtracking"."""
    visited, path = {root}, []

    def walk(x):
        path.append(x)
        for y in adjacency(x):
            if y == root:  # "As soon as a cycle is found".
                return True
            if y not in visited:  # "The foremost unvisited vertex in the adjacency list of x".
                visited.add(y)
                if walk(y):
                    return True
        path.pop()
        return False

    return list(path) if walk(root) else None


def find_cycles(subset, w, r, u, priority, draw):
    """2.2: all disjoint cycles, in the order in which they are found."""
    cycles, there = [], set(subset)
    while there:
        # "The next parameter associated with the largest absolute recommendation that has not been
        # memorized yet". Ours: the first by place among equals.
        root = min(there, key=lambda x: (-abs(r[x]), x))
        lists = {x: adjacency_list(x, root, there, w, r, u, priority, draw) for x in there}
        cycle = find_cycle(root, lists.get)
        if cycle:
            cycles.append(cycle)
        # "We memorize those vertices that are included in this cycle", or "only this vertex".
        there -= set(cycle or [root])
    return cycles


def search(w, r, alpha, partition_ratio, seed, lower="mean", priority="nearest"):
    """Algorithm 1 for one weight vector: where each weight comes from."""
    w, r, n = [float(x) for x in w], [float(x) for x in r], len(w)
    source = list(range(n))
    if n == 0 or not all(map(math.isfinite, w)) or not math.isfinite(max(w) - min(w)):
        return source  # Ours: no range, no reach, no permutation.
    state = random_bits(int(seed), 1)
    start = 0
    for subset in partition(n, number_of_subsets(n, partition_ratio), state):
        # Weights without a recommendation take no part.
        subset = [x for x in subset if r[x] != 0 and not math.isnan(r[x])]
        slots = sorted(subset, key=lambda x: (w[x], r[x] < 0, x))
        fresh = random_bits(state, n + start)
        start += len(subset)
        if len(subset) < 2:
            continue
        u = reach(w, subset, alpha, lower)

        def draw(x, size, slots=slots, fresh=fresh):
            return below(random_bits(fresh, slots.index(x)), size)

        for cycle in find_cycles(subset, w, r, u, priority, draw):
            # 2.1.1: (x, y) assigns the weight from parameter y to parameter x.
            for x, y in zip(cycle, cycle[1:] + cycle[:1], strict=True):
                source[x] = y
    return source
