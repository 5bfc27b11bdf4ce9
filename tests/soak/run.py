"""Runs everything a loop does, over and over, and looks whether anything grows.

    python tests/soak/run.py --seconds 3600 --plot soak.svg
    python tests/soak/run.py --short               two minutes, for every push
    python tests/soak/run.py --only tls,udp --seconds 60 --loop asyncio

Descriptors, threads, children, resident memory, allocated blocks and references to the loop and to
the native types are sampled all the time; when it ends, the last quarter of the run is compared
with the second. Exits 1 when something grew or a wrong byte came back. The picture can be drawn
again from the samples: `--json FILE --redraw --plot FILE`.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

import activities
import support

SHORT_S = 120.0
SAMPLE_S = 1.0
# An activity that takes longer hangs.
ROUND_LIMIT_S = 60.0
# What may differ between quarters: what is open just then differs from sample to sample.
FDS_MAX = 12
THREADS_MAX = 4
RSS_GROWTH_MAX = 0.04
RSS_SLACK_KIB = 2048
BLOCKS_GROWTH_MAX = 0.02
BLOCKS_SLACK = 2_000
# Each instance of a heap type holds its type, and whatever waits holds its loop.
REFERENCES_SLACK = 200
# A curve has this many points at most: the samples of each are drawn as their median.
POINTS_MAX = 240


@dataclass
class Sample:
    """What the process held at one moment."""

    at_s: float
    fds: int
    threads: int
    children: int
    rss_kib: int
    blocks: int
    references: int


def references() -> int:
    """Those to the running loop and to the native types, which every instance holds."""
    kinds = support.native_types().values()
    return sys.getrefcount(asyncio.get_running_loop()) + sum(map(sys.getrefcount, kinds))


def sample(started: float) -> Sample:
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return Sample(
        at_s=time.monotonic() - started,
        fds=len(os.listdir("/proc/self/fd")),
        threads=int(status["Threads"]),
        children=len(children),
        rss_kib=int(status["VmRSS"].split()[0]),
        blocks=sys.getallocatedblocks(),
        references=references(),
    )


async def repeat(soak: activities.Soak, name: str, end: float) -> None:
    activity = activities.ACTIVITIES[name]
    while time.monotonic() < end:
        async with asyncio.timeout(ROUND_LIMIT_S):
            await activity(soak)
        soak.done[name] += 1
        await asyncio.sleep(0)


async def run(soak: activities.Soak, names: list[str], seconds: float) -> list[Sample]:
    # As numbers in one piece of memory: kept as objects they would be what grows.
    kept = array.array("d")
    started = time.monotonic()
    end = started + seconds
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(repeat(soak, name, end))
        while time.monotonic() < end:
            await asyncio.sleep(SAMPLE_S)
            kept.extend(astuple(sample(started)))
    width = len(fields(Sample))
    rows = (kept[at : at + width] for at in range(0, len(kept), width))
    return [Sample(at_s, *map(int, rest)) for at_s, *rest in rows]


def growth(samples: list[Sample]) -> list[str]:
    """What grew between the second quarter and the last."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]

    def medians(value: Callable[[Sample], int]) -> tuple[float, float]:
        return statistics.median(map(value, early)), statistics.median(map(value, late))

    problems = []
    for name, value, slack in (
        ("descriptors", lambda s: s.fds, FDS_MAX),
        ("threads", lambda s: s.threads, THREADS_MAX),
        ("children", lambda s: s.children, THREADS_MAX),
        ("references", lambda s: s.references, REFERENCES_SLACK),
    ):
        before, after = medians(value)
        if after > before + slack:
            problems.append(f"{name} grew from {before:.0f} to {after:.0f}")
    before, after = medians(lambda s: s.rss_kib)
    if after > before * (1 + RSS_GROWTH_MAX) + RSS_SLACK_KIB:
        problems.append(f"resident memory grew from {before:.0f} to {after:.0f} KiB")
    before, after = medians(lambda s: s.blocks)
    if after > before * (1 + BLOCKS_GROWTH_MAX) + BLOCKS_SLACK:
        problems.append(f"allocated blocks grew from {before:.0f} to {after:.0f}")
    return problems


def title_of(samples: list[Sample], loop: str) -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return f"Soak: {samples[-1].at_s / 60:.0f} minutes of everything at once on {loop}, {version}"


# What is drawn: its name in a sample, in words, how much of it is one unit, its colour.
CURVES = (
    ("rss_kib", "resident memory, MiB", 1024, "#2ca02c"),
    ("blocks", "allocated blocks, thousands", 1000, "#d62728"),
    ("references", "references to the loop and the native types", 1, "#9467bd"),
    ("fds", "open descriptors", 1, "#1f77b4"),
    ("threads", "threads", 1, "#ff7f0e"),
)


def thinned(samples: list[Sample]) -> list[list[Sample]]:
    """The samples in as many runs as a curve has points."""
    step = max(1, -(-len(samples) // POINTS_MAX))
    return [samples[start : start + step] for start in range(0, len(samples), step)]


def plot(samples: list[Sample], path: Path, title: str) -> None:
    """A panel for each curve, from nothing to its most, as a picture that needs no library."""
    left, right, top, panel, gap = 60, 20, 44, 78, 34
    width, height = 900, top + len(CURVES) * (panel + gap) + 16
    end = samples[-1].at_s
    runs = thinned(samples)

    def x(at_s: float) -> float:
        return left + at_s / end * (width - left - right)

    def text(x: float, y: float, words: str, style: str = "") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{words}</text>'

    drawn = [text(left, 22, title, 'font-size="15"')]
    for row, (name, words, unit, colour) in enumerate(CURVES):
        values = [statistics.median(getattr(one, name) for one in run) / unit for run in runs]
        most = max(values)
        above = top + row * (panel + gap)
        below = above + panel
        points = " ".join(
            f"{x(run[0].at_s):.1f},{below - value / most * (panel - 18):.1f}"
            for run, value in zip(runs, values, strict=True)
        )
        axis = f"M{left} {above}V{below}H{width - right}"
        drawn += [
            f'<path d="{axis}" fill="none" stroke="#999"/>',
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>',
            text(left + 6, above + 10, words, f'fill="{colour}"'),
            text(left - 6, below, "0", 'text-anchor="end"'),
            text(left - 6, above + 22, f"{most:.0f}", 'text-anchor="end"'),
        ]
        for quarter in range(5):
            at_s = end * quarter / 4
            mark = f"{at_s / 60:.0f} min" if end >= 600 else f"{at_s:.0f} s"
            drawn.append(text(x(at_s), below + 15, mark, 'text-anchor="middle" fill="#666"'))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--short", action="store_true", help=f"{SHORT_S:.0f} seconds")
    parser.add_argument("--loop", choices=["cpploop", "asyncio"], default="cpploop")
    parser.add_argument("--only", help="activities, comma-separated")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=Path, help="every sample")
    parser.add_argument("--plot", type=Path, help="a picture (SVG)")
    parser.add_argument("--redraw", action="store_true", help="the picture from --json's samples")
    options = parser.parse_args()
    if options.redraw:
        kept = [Sample(**one) for one in json.loads(options.json.read_text())]
        plot(kept, options.plot, title_of(kept, options.loop))
        return 0
    seconds = SHORT_S if options.short else options.seconds
    names = options.only.split(",") if options.only else list(activities.ACTIVITIES)
    for name in names:
        if name not in activities.ACTIVITIES:
            parser.error(f"no activity {name!r}; there are {', '.join(activities.ACTIVITIES)}")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"soak: {seconds:.0f} s on {options.loop}, seed {seed}: {', '.join(names)}", flush=True)

    new_loop = support.factory(options.loop)
    reports: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cpploop-soak-") as folder:
        certificates = support.make_certificates(Path(folder))
        server_tls, client_tls = certificates.server_context(), certificates.client_context()
        soak = activities.Soak(random.Random(seed), Path(folder), new_loop, server_tls, client_tls)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.get_loop().set_exception_handler(
                lambda loop, context: reports.append(f"{context['message']}: {context}")
            )
            samples = runner.run(run(soak, names, seconds))

    for name in names:
        print(f"{name:24} {soak.done[name]:8} rounds")
    first, last = samples[0], samples[-1]
    print(f"{soak.bytes_checked} bytes checked, {len(samples)} samples")
    print(f"first {asdict(first)}\nlast  {asdict(last)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in samples]))
    if options.plot:
        plot(samples, options.plot, title_of(samples, options.loop))
    problems = growth(samples)
    problems += [f"nothing done: {name}" for name in names if not soak.done[name]]
    problems += [f"exception handler called: {text[:500]}" for text in reports[:5]]
    for problem in problems:
        print(f"FAIL: {problem}")
    print("1 failed" if problems else "1 passed", "in", f"{seconds:.0f}s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
