"""Section 2.2 as the paper words it, depth first, for the priorities without a closed form.

What a permissible movement is, and what equal weights mean, is in `cycles`.
"""

from typing import Any

import numpy as np

from p2t_jax._host.kernels.cache import jit
from p2t_jax._host.kernels.subsets import Members, below, random_bits


@jit
def search_depth_first(
    begin: Any,
    size: Any,
    members: Members,
    reach: float,
    at_random: Any,
    state: np.uint64,
    scratch: Any,
    source: Any,
) -> None:
    """Section 2.2 as the paper words it, for the priorities without a closed form.

    A *step* is a value that remaining weights have; a weight has one target in each. The targets
    within reach of a weight are those in the next `count` steps in its direction.
    """
    _, place, heavier, root, _ = members
    gone, visited, step, lighter_target, heavier_target, path, count, tried = scratch
    gone[:size] = 0
    for k in range(size):
        s = root[begin + k]
        if gone[s]:
            continue
        _lay_steps(begin, size, members, gone, s, step, lighter_target, heavier_target)
        visited[:size] = gone[:size]
        depth = 0
        x = y = s
        while True:
            if y == s and depth > 0:  # a cycle
                for i in range(depth):
                    x, y = path[i], path[i + 1] if i + 1 < depth else s
                    gone[x] = 1
                    source[place[begin + x]] = place[begin + y]
                break
            if y == s or not visited[y]:
                x = path[depth] = y
                depth += 1
                visited[x], tried[x] = 1, 0
                count[x] = _within_reach(begin, size, members, x, reach, gone, step)
            while depth > 0 and tried[path[depth - 1]] == count[path[depth - 1]]:
                depth -= 1
            if depth == 0:
                gone[s] = 1
                break
            x = path[depth - 1]
            i = count[x] - 1 - tried[x]
            if at_random:
                i = (below(random_bits(state, x), count[x]) + i) % count[x]
            tried[x] += 1
            if heavier[begin + x]:
                y = heavier_target[step[x] + 1 + i]
            else:
                y = lighter_target[step[x] - 1 - i]


@jit
def _lay_steps(
    begin: Any,
    size: Any,
    members: Members,
    gone: Any,
    root: Any,
    step: Any,
    lighter_target: Any,
    heavier_target: Any,
) -> None:
    """Number the distinct values of the remaining weights, and find the target in each.

    The target of those that want to be lighter is the last that wants to be heavier, or else the
    first that wants to be lighter; and the reverse. The root goes before those equal to it.
    """
    weight, _, heavier, _, _ = members
    steps = -1
    value = np.nan
    for x in range(size):
        if gone[x]:
            continue
        if weight[begin + x] != value:
            value = weight[begin + x]
            steps += 1
            lighter_target[steps] = heavier_target[steps] = -1
        step[x] = steps
        if heavier[begin + x]:
            lighter_target[steps] = x
        elif heavier_target[steps] < 0:
            heavier_target[steps] = x
    at = step[root]
    if heavier[begin + root]:
        lighter_target[at] = root
    else:
        heavier_target[at] = root
    for k in range(steps + 1):
        if lighter_target[k] < 0:
            lighter_target[k] = heavier_target[k]
        elif heavier_target[k] < 0:
            heavier_target[k] = lighter_target[k]


@jit
def _within_reach(
    begin: Any, size: Any, members: Members, x: Any, reach: float, gone: Any, step: Any
) -> Any:
    """How many steps away the farthest permissible target of x is."""
    weight, heavier = members.weight, members.heavier
    way = 1 if heavier[begin + x] else -1
    farthest = step[x]
    y = x + way
    while 0 <= y < size and abs(weight[begin + y] - weight[begin + x]) < reach:
        if not gone[y]:
            farthest = step[y]
        y += way
    return abs(farthest - step[x])
