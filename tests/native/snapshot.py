"""The bytes of a saved index, taken apart and put together again with a right sum."""

from dataclasses import dataclass, field

import numpy as np

HEAD = np.dtype(
    [
        ("magic", "S8"),
        ("generations", "<u4"),
        ("decay", "<f8"),
        ("cap_bytes", "<u8"),
        ("shared", "u1"),
        ("levels", "<u4"),
        ("discount", "<f8"),
        ("epoch", "<u8"),
        ("stood", "<f8", 180),
        ("tried", "<f8", 180),
    ]
)
STATE = np.dtype([(name, "<u4") for name in ("length", "link", "count", "token", "to", "more")])
EDGE = np.dtype([(name, "<u4") for name in ("token", "to", "next")])
LATEST = np.dtype("<u4")
PLACE = np.dtype(
    [
        ("likely", "<u4", 3),
        ("sketch", "<u4", 2),
        ("alike", "<u4"),
        ("before", "<u2"),
        ("writer", "u1"),
        ("unused", "u1"),
    ]
)
PROMPT = np.dtype([("name", "<u8"), ("state", "<u4")])
NUMBER = np.dtype("<u8")
MASK = 2**64 - 1


@dataclass
class Generation:
    epoch: int
    prompts: np.ndarray
    tokens: int
    states: np.ndarray
    edges: np.ndarray
    latest: np.ndarray
    places: np.ndarray


@dataclass
class Snapshot:
    head: np.ndarray
    groups: list = field(default_factory=list)  # [key, generations]


def read(body):
    at = 0

    def array(kind, count):
        nonlocal at
        found = np.frombuffer(body, kind, count, at).copy()
        at += found.nbytes
        return found

    def number():
        return int(array(NUMBER, 1)[0])

    snapshot = Snapshot(array(HEAD, 1)[0])
    for _ in range(number()):
        key = array(np.dtype("u1"), number()).tobytes()
        generations = [
            Generation(
                number(), array(PROMPT, number()), number(),
                *(array(kind, number()) for kind in (STATE, EDGE, LATEST, PLACE)),
            )
            for _ in range(number())
        ]  # fmt: skip
        snapshot.groups.append([key, generations])
    assert number() == sum_of(body[:-8])
    assert at == len(body)
    return snapshot


def write(snapshot):
    parts = [snapshot.head.tobytes()]

    def number(value):
        parts.append((value & MASK).to_bytes(8, "little"))

    def array(values):
        number(len(values))
        parts.append(bytes(values) if isinstance(values, bytes) else values.tobytes())

    number(len(snapshot.groups))
    for key, generations in snapshot.groups:
        array(key)
        number(len(generations))
        for one in generations:
            number(one.epoch)
            array(one.prompts)
            number(one.tokens)
            for table in (one.states, one.edges, one.latest, one.places):
                array(table)
    return signed(b"".join(parts))


def signed(body):
    return body + sum_of(body).to_bytes(8, "little")


def mixed(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def sum_of(body):
    found, whole = mixed(len(body) + 1), len(body) // 8 * 8
    for word in np.frombuffer(body[:whole], NUMBER).tolist():
        found = (mixed(found ^ word) + 0x9E3779B97F4A7C15) & MASK
    return mixed(found ^ int.from_bytes(body[whole:], "little"))
