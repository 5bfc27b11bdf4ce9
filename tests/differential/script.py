"""What scripts are made of, as Hypothesis strategies.

A script is a literal of dicts, lists, tuples, strings and numbers:

    {"kind": "tcp",                                # kinds.KINDS
     "setup": {"protocol": "stream", "cancel": 1}, # how the end under test is made
     "debug": False, "peek": True,                 # look at the transport after every operation
     "reactions": {"data_received": [None, {"do": [("close",)], "then": ("raise", "OSError")}]},
     "steps": [{"where": "callback", "do": [("write", "bytes", 100), ("peer_recv", None)]}]}

The n-th call of a callback takes the n-th reaction of its name. ``then`` is what it returns or
raises. Operations on the second end of a double kind are written ``b.write``; ``peer_*`` move the
socket at the far end of the others.
"""

from __future__ import annotations

from typing import Any

import kinds
from hypothesis import strategies as st

_SMALL = [0, 1, 3, 100, 1000, 4000]
_LARGE = [16384, 65536, 65537, 150_000, 300_000, 450_000]
_SIZES = st.sampled_from(_SMALL * 3 + _LARGE)
_FORM = st.sampled_from(["bytes", "bytes", "bytearray", "memoryview", "mutable view"])
_MARK = st.sampled_from([None, None, 0, 1, 1000, 65536, 200_000, -1])
_EXCEPTION = st.sampled_from(
    ["ValueError"] * 4
    + ["OSError", "ConnectionResetError", "CancelledError", "KeyboardInterrupt", "SystemExit"]
)
_INDEX = st.integers(0, 3)


def _op(name: str, *args: Any) -> Any:
    return st.tuples(st.just(name), *args)


_WRITES = [
    _op("write", _FORM, _SIZES),
    _op("write", _FORM, _SIZES),
    _op("writelines", _FORM, st.lists(_SIZES, max_size=4)),
    _op("limits", _MARK, _MARK),
    _op("write_eof"),
    _op("write_bad", st.sampled_from(sorted(kinds.BAD))),
]
_READS = [_op("pause_reading"), _op("resume_reading"), _op("resume_reading")]
_ENDS = [_op("close"), _op("abort")]
_PROTOCOLS = [_op("set_protocol", st.sampled_from(["stream", "buffered"]))]
_COMMON = [_op("look"), _op("cancel", _INDEX), _op("stop")]
_PEER = [
    _op("peer_send", _SIZES),
    _op("peer_send", _SIZES),
    _op("peer_recv", st.sampled_from([None, None, 1, 1000, 100_000])),
    _op("peer_shutdown"),
    _op("peer_close"),
    _op("peer_reset"),
]
_TLS_PEER = [*_PEER, _op("peer_unwrap"), _op("peer_garbage", st.sampled_from([1, 5, 100]))]


def _second(operations: list[Any]) -> list[Any]:
    return [op.map(lambda it: ("b." + it[0], *it[1:])) for op in operations]


_ONE = [*_WRITES, *_WRITES, *_READS, *_ENDS, *_PROTOCOLS]
_SENDTO = _op(
    "sendto",
    _FORM,
    st.sampled_from([0, 1, 100, 1000, 9000, 70000]),
    st.sampled_from([None, None, "peer", "peer", "wrong"]),
)

_OPERATIONS: dict[str, list[Any]] = {
    "tcp": [*_ONE, *_PEER, *_COMMON],
    "unix": [*_ONE, *_PEER, *_COMMON],
    "tls": [*_ONE, *_TLS_PEER, *_COMMON],
    "udp": [_SENDTO, _SENDTO, _SENDTO, *_READS, *_ENDS, _WRITES[3], *_PEER, *_COMMON],
    "unixgram": [_SENDTO, _SENDTO, _SENDTO, *_READS, *_ENDS, _WRITES[3], *_PEER, *_COMMON],
    "pipe-read": [*_READS, _ENDS[0], _op("set_protocol", st.just("stream")), *_PEER, *_COMMON],
    "pipe-write": [
        *_WRITES,
        *_ENDS,
        _op("set_protocol", st.just("stream")),
        *_PEER,
        *_COMMON,
    ],
}
for _kind in kinds.DOUBLE:
    _OPERATIONS[_kind] = [*_ONE, *_second(_ONE), *_COMMON]

_CALLBACKS: dict[str, list[str]] = {
    "udp": ["connection_made", "datagram_received", "error_received", "connection_lost"],
    "pipe-read": ["connection_made", "data_received", "eof_received", "connection_lost"],
    "pipe-write": ["connection_made", "pause_writing", "resume_writing", "connection_lost"],
}
_CALLBACKS["udp"] += ["pause_writing", "resume_writing"]
_CALLBACKS["unixgram"] = _CALLBACKS["udp"]
_STREAM_CALLBACKS = [
    "connection_made",
    "data_received",
    "data_received",
    "eof_received",
    "pause_writing",
    "resume_writing",
    "connection_lost",
    "get_buffer",
]
_RAISE = st.tuples(st.just("raise"), _EXCEPTION)
_NOTHING = st.none()


def _then(callback: str) -> Any:
    if callback == "eof_received":
        value = st.tuples(st.just("return"), st.sampled_from([True, False, None, 1, "", "yes"]))
        return st.one_of(value, value, _RAISE)
    if callback == "get_buffer":
        return st.one_of(
            _NOTHING, st.tuples(st.just("buffer"), st.sampled_from([0, 1, 70])), _RAISE
        )
    return st.one_of(_NOTHING, _NOTHING, _NOTHING, _RAISE)


def _some(operations: list[Any]) -> Any:
    """All the operations, or a few: scripts of few kinds of steps go deeper."""
    few = st.sets(st.integers(0, len(operations) - 1), min_size=2, max_size=6)
    return st.one_of(
        st.just(operations),
        few.map(lambda chosen: [operations[index] for index in sorted(chosen)]),
    )


@st.composite
def scripts(draw: Any, kind: str) -> dict[str, Any]:
    """A script for the pairs of KIND."""
    operations = st.one_of(draw(_some(_OPERATIONS[kind])))
    inside = st.one_of(draw(_some(_OPERATIONS[kind])))
    callbacks = _CALLBACKS.get(kind, _STREAM_CALLBACKS)
    setup: dict[str, Any] = {}
    if kind in kinds.STREAMS:
        setup["protocol"] = draw(st.sampled_from(["stream", "buffered"]))
        if setup["protocol"] == "buffered":
            setup["memory"] = draw(st.sampled_from([65536, 4000, 700]))
        if draw(st.booleans()):
            setup["server"] = True
    elif kind == "udp":
        setup["connected"] = draw(st.booleans())
    elif kind in kinds.PIPES:
        setup["socket"] = draw(st.booleans())
    if draw(st.integers(0, 9)) == 9:
        setup["cancel"] = draw(st.integers(0, 6))
    names = draw(st.lists(st.sampled_from(callbacks), max_size=3, unique=True))
    reactions: dict[str, list[Any]] = {}
    for name in sorted(names):
        one = st.fixed_dictionaries(
            {"do": st.lists(inside, max_size=4), "then": _then(name)},
        )
        reactions[name] = draw(st.lists(st.one_of(one, one, st.none()), min_size=1, max_size=3))
    where = st.sampled_from(["callback", "outside", "task"])
    step = st.fixed_dictionaries(
        {"where": where, "do": st.lists(operations, min_size=1, max_size=4)},
    )
    return {
        "kind": kind,
        "setup": setup,
        "debug": draw(st.integers(0, 9)) == 9,
        "peek": draw(st.booleans()),
        "reactions": reactions,
        # Hypothesis's own lists are short: most of what is worth seeing takes several steps.
        "steps": draw(st.lists(step, min_size=draw(st.sampled_from([0, 2, 5])), max_size=10)),
    }
