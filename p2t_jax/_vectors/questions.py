"""The one error that lists all parameters whose weight vectors are not known."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from p2t_jax._vectors.paths import Path, show


class Unknown(NamedTuple):
    """A parameter whose weight vectors are not known, and the reason."""

    path: Path
    shape: tuple[int, ...]
    why: str


class UnknownVectorsError(ValueError):
    """The error of a rule that does not know a leaf."""

    def __init__(self, rule: str, path: Path, leaf: Any, why: str):
        self.rule = rule
        self.unknown = Unknown(path, tuple(np.shape(leaf)), why)
        super().__init__(
            question(f"{rule} does not know", [self.unknown], f'"{rule.removesuffix("_vectors")}"')
        )


def question(who: str, unknown: Sequence[Unknown], otherwise: str | None) -> str:
    """The message: the parameters by name and rank, with reasons, and a table to fill in."""
    groups = _groups(unknown)
    lines = []
    for name, members in groups.items():
        first = members[0]
        example = "" if show(first.path) == name else f" at {show(first.path)}"
        count = f"{len(members)} parameters, for example" if len(members) > 1 else "one,"
        lines.append(f'    "{name}": ...,  # {count} {first.shape}{example}')
    reasons: dict[str, list[str]] = {}
    for name, members in groups.items():
        for why in dict.fromkeys(member.why for member in members):
            reasons.setdefault(why, []).append(name or show(()))
    because = [f"- {', '.join(names)}: {why}" for why, names in reasons.items()]
    table = [
        "vectors = p2t_jax.named_vectors({",
        *lines,
        f"}}, otherwise={otherwise})" if otherwise else "})",
    ]
    if not unknown[0].path:  # The parameters are a single array.
        table = [f"vectors = ...  # {unknown[0].shape}"]
    number = f"{len(unknown)} parameters" if len(unknown) > 1 else show(unknown[0].path)
    return "\n".join(
        [
            f"vectors: {who} which axes of {number} are the incoming weights of one neuron:",
            "",
            *because,
            "",
            *_HELP[otherwise is None],
            "",
            *table,
        ]
    )


_HELP = {
    False: [
        "p2t_jax.infer_vectors(fn, params, *inputs) reads the axes off the network. Or fill in",
        'this table: for each an axis or axes, None for "not permuted", or a rule such as',
        'p2t_jax.stacked("flax"):',
    ],
    True: [
        'Fill in this table, for each an axis or axes, or None for "not permuted", and pass it as',
        "infer_vectors(..., otherwise=vectors):",
    ],
}


def _groups(unknown: Sequence[Unknown]) -> dict[str, list[Unknown]]:
    """The parameters by the end of their path, which is as long as needed to separate ranks."""
    groups: dict[str, list[Unknown]] = {}
    pending = [(1, list(unknown))]
    while pending:
        length, members = pending.pop(0)
        by_name: dict[str, list[Unknown]] = {}
        for member in members:
            by_name.setdefault(_end(member.path, length), []).append(member)
        for name, those in by_name.items():
            ndims = {len(member.shape) for member in those}
            if len(ndims) > 1 and any(length < len(_parts(m.path)) for m in those):
                pending.append((length + 1, those))
            else:
                groups[name] = groups.get(name, []) + those
    return groups


def _parts(path: Path) -> list[str]:
    return "/".join(path).split("/")


def _end(path: Path, length: int) -> str:
    """The last names of a path, a `*` for numbers: layers of the same kind are one group."""
    parts = [re.sub(r"(^|(?<=_))\d+$", "*", part) for part in _parts(path)]
    names = [i for i, part in enumerate(parts) if part != "*"]
    wanted = names[-1 - length :][:1] or [0]
    return "/".join(parts[wanted[0] :])
