"""What each row is to reach, and why those that fall short do: the page's table of targets.

A target is 1.1 times the best rival of the same run, unless it says otherwise below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import report
from catalogue import MEMORY_GROWTH, Probed
from loops import BASE, FLOOR, SUBJECT
from report import RowSummary

# Rounds of one loop differ by so much from one minute to the next.
NOISE = 0.95


@dataclass(frozen=True)
class Target:
    """What is asked of a row, and whether the row does it."""

    text: str
    is_met: Callable[[RowSummary], bool]


def _ahead(factor: float) -> Target:
    return Target(
        f"{factor:g}x the best rival" if factor != 1 else "no rival ahead",
        lambda row: (row.against_best() or 0) >= factor,
    )


def _ahead_of_base_too(row: RowSummary) -> bool:
    return (row.against_best() or 0) >= 1.1 and (row.ratio(SUBJECT, BASE) or 0) >= 1.5


def _near_the_floor(row: RowSummary) -> bool:
    cpu = row.quotient(SUBJECT, FLOOR, "cpu_us")
    return cpu is not None and cpu <= 1.08 and (row.against_best() or 0) >= NOISE


def _least_cpu(row: RowSummary) -> bool:
    against = [row.quotient(SUBJECT, name, "cpu_us") for name in row.rivals()]
    known = [ratio for ratio in against if ratio is not None]
    return bool(known) and max(known) <= 1.03


FLOOR_TARGET = Target("1.08x the bare server's CPU, no rival ahead beyond noise", _near_the_floor)
CPU_TARGET = Target("within 3 % of the least CPU", _least_cpu)
TLS_SERVER_TARGET = Target(f"1.1x the best rival, 1.5x {BASE}", _ahead_of_base_too)


def target_of(row: RowSummary) -> Target:
    """What the row is to reach."""
    if re.fullmatch(r"(proto|buffered)-1k-\d+(-unix)?", row.name):
        return FLOOR_TARGET
    if re.fullmatch(r"(uvicorn|aiohttp)-tls-\d+", row.name):
        return TLS_SERVER_TARGET
    if re.match(r"tls-.*-100k-", row.name):
        return CPU_TARGET
    if re.match(r"tls-\w+-(1k|16k)-", row.name):
        return _ahead(1.15)
    if isinstance(row.row.run, Probed) or row.measure is MEMORY_GROWTH or row.is_latency:
        return _ahead(1)
    return _ahead(1.1)


# Of the first that fits; what is behind it is told in docs/performance-notes.md.
REASONS = {
    r"(proto|buffered)-": "the kernel's part: the bare server is not much faster",
    r"streams-1k-": "StreamReader and StreamWriter are asyncio's own Python code",
    r"streams-100k-": "the kernel copies most of the time",
    r"sock-1k-": "a coroutine and a future for each wait",
    r"sock": "the kernel copies most of the time",
    r"uvicorn|aiohttp": "the server's own Python; blazio's ring sends for all in one system call",
    r"tls-handshake": "three quarters are the cipher's; the rest is asyncio's own protocol",
    r"tls-\w+-100k": "the cipher's work",
    r"tls-": "OpenSSL's own work for a record is most of it",
    r"call_soon_threadsafe": "a true asyncio.Handle for each post, which others do without",
    r"gather": "83 % of the time is the interpreter's, 5 % asyncio's C code, 9 % ours",
    r"call_soon|sleep_0": "asyncio's own tasks, and the call itself",
    r"timers_100k": "making the handles",
    r"run_in_executor": "the executor's threads and the hand-over between them",
    r"bulk_write": "loop and reader share a core and the lock: by chance the figure doubles",
    r"readline": "the same Python code on every loop",
    r"udp_echo": "a datagram is an object for its bytes and one for its address",
    r"connect_close": "23 system calls for both ends; uvloop hands epoll_ctl to a ring: 22",
    r"spawn": "the child's own start",
    r"connection_memory": "a transport is 616 bytes; memory that imports freed is used first",
    r"timer_memory": "a handle here is asyncio's, with its context and its place in the heap",
    r"import_time": "what asyncio itself imports",
    r"latency-uvicorn": "a pause or two of the machine's are the percentile; see the notes below",
    r"slow-consumer-memory": "what one read brings, and what is queued for the slow one",
    r"callback-flood": "asyncio's order: what is read waits for the callbacks that are ready",
    r"latency|slow-consumer": "percentiles of so short a run are the machine's",
}


def reason_for(row: RowSummary) -> str:
    """Why the row falls short, in a few words."""
    return next((text for name, text in REASONS.items() if re.match(name, row.name)), "")


def table(rows: Sequence[RowSummary]) -> str:
    """Every row with its target, and the reason where it is missed; those come first."""
    lines = []
    for row in rows:
        ratio = row.against_best()
        if ratio is None:
            continue
        target = target_of(row)
        met = target.is_met(row)
        cpu = row.quotient(SUBJECT, FLOOR, "cpu_us") if target is FLOOR_TARGET else None
        figure = report.times(ratio) + (f", CPU {report.times(cpu)}" if cpu else "")
        if target is TLS_SERVER_TARGET:
            figure += f", {report.times(row.ratio(SUBJECT, BASE))} {BASE}"
        verdict = "met" if met else "missed"
        reason = "" if met else reason_for(row)
        lines.append((met, ratio, [f"`{row.name}`", target.text, figure, verdict, reason]))
    lines.sort(key=lambda line: line[:2])
    head = ["row", "target", f"{SUBJECT} / best rival", "", "reason"]
    return report.render([head, *(cells for _, _, cells in lines)])
