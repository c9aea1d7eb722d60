"""The storage format in plain Python: no NumPy, no trees of counts, integers of any length."""

import json
import struct
import zlib
from itertools import groupby

WEIGHTS_A_BLOCK = 2**20


def pack(leaves, origin):
    """Leaves: dicts of path, dtype, shape, axes and either raw bytes, or initial and rows."""
    body = b""
    for leaf in leaves:
        if leaf["axes"] is None:
            body += leaf["raw"]
            continue
        for initial, rows in blocks(leaf["initial"], leaf["rows"]):
            words = encode(initial, rows)
            body += struct.pack("<II", checksum(initial, leaf["dtype"]), len(words))
            body += struct.pack(f"<{len(words)}I", *words)
    size = 17 + len(origin) + len(body) + 4
    data = struct.pack("<3sBQIB", b"P2T", 1, size, fingerprint(leaves), len(origin))
    data += origin.encode("ascii") + body
    return data + struct.pack("<I", zlib.crc32(data))


def unpack(data, leaves):
    """For each leaf, its raw bytes or its rows."""
    magic, version, size, tree, origin = struct.unpack("<3sBQIB", data[:17])
    assert (magic, version, size, tree) == (b"P2T", 1, len(data), fingerprint(leaves))
    assert struct.pack("<I", zlib.crc32(data[:-4])) == data[-4:]
    rest, contents = data[17 + origin : -4], []
    for leaf in leaves:
        if leaf["axes"] is None:
            content, rest = rest[: len(leaf["raw"])], rest[len(leaf["raw"]) :]
        else:
            content = []
            for (initial,) in blocks(leaf["initial"]):
                crc, size = struct.unpack("<II", rest[:8])
                words = struct.unpack(f"<{size}I", rest[8 : 8 + 4 * size])
                rest = rest[8 + 4 * size :]
                assert crc == checksum(initial, leaf["dtype"])
                content += decode(initial, words)
        contents.append(content)
    assert not rest
    return contents


def fingerprint(leaves):
    tree = [[leaf[key] for key in ("path", "dtype", "shape", "axes")] for leaf in leaves]
    return zlib.crc32(json.dumps(tree, separators=(",", ":")).encode("ascii"))


def checksum(initial, dtype):
    code = {"float16": "H", "bfloat16": "H", "float32": "I", "float64": "Q"}[dtype]
    weights = [weight for row in initial for weight in sorted(row)]
    return zlib.crc32(struct.pack(f"<{len(weights)}{code}", *weights))


def blocks(*arrays):
    if arrays[0] and arrays[0][0]:
        step = max(1, WEIGHTS_A_BLOCK // len(arrays[0][0]))
        for start in range(0, len(arrays[0]), step):
            yield [rows[start : start + step] for rows in arrays]


class Urn:
    """The weights that a vector has yet to place."""

    def __init__(self, row):
        runs = [(weight, len(list(run))) for weight, run in groupby(sorted(row))]
        self.singles = [weight for weight, count in runs if count == 1]
        self.ties = [[weight, count] for weight, count in runs if count > 1]

    def intervals(self):
        """What can be drawn, as (weight, start, count), one after the other from 0 to the total."""
        start = 0
        for weight in self.singles:
            yield weight, start, 1
            start += 1
        for weight, count in self.ties:
            yield weight, start, count
            start += count

    def draw(self, weight):
        if weight in self.singles:
            last = self.singles.pop()
            if last != weight:
                self.singles[self.singles.index(weight)] = last
        else:
            for tie in self.ties:
                tie[1] -= tie[0] == weight


def encode(initial, rows):
    low, width, scale = 0, 2**64 - 1, 0  # `low` is not cut: a carry runs through it by itself
    for first, row in zip(initial, rows, strict=True):
        urn = Urn(first)
        for total, weight in zip(range(len(row), 0, -1), row, strict=False):
            start, count = next((s, c) for w, s, c in urn.intervals() if c and w == weight)
            urn.draw(weight)
            part = width // total
            low, width = low + part * start, part * count
            if width < 2**32:
                low, width, scale = low << 32, width << 32, scale + 1
    code = -(-low // 2**32)  # rounded up: the lower half of the last 64 bits is not written
    return [(code >> (32 * (scale - i))) & (2**32 - 1) for i in range(scale + 1)]


def decode(initial, words):
    words = [*words, 0]
    value, width, used = words[0] << 32 | words[1], 2**64 - 1, 2
    rows = []
    for first in initial:
        urn = Urn(first)
        row = []
        for total in range(len(first), 0, -1):
            part = width // total
            place = value // part
            assert place < total
            weight, start, count = next(i for i in urn.intervals() if i[1] <= place < i[1] + i[2])
            urn.draw(weight)
            row.append(weight)
            value, width = value - part * start, part * count
            if width < 2**32:
                value, width, used = value << 32 | words[used], width << 32, used + 1
        rows.append(row)
    assert used == len(words)
    return rows
