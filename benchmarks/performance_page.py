"""Writes docs/performance.md from results of run.py and micro.py.

    python benchmarks/performance_page.py results/a-servers.json results/b-micro.json

The page says of each row in which a rival was ahead; docs/performance-notes.md, if it is there, is
put behind that list as it is: what was found, and what was tried.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from report import SUBJECT, Summary, markdown

DOCS = Path(__file__).resolve().parent.parent / "docs"
TITLES = {"servers": "Servers", "micro": "Inside one process"}
INTRODUCTION = """# Performance

cpploop beside its rivals, each table measured in one run: interleaved, server and client on
different cores, every answer checked. How it is done, and how to repeat it, is in
[benchmarks/README.md](../benchmarks/README.md). `benchmarks/performance_page.py` writes this page;
do not edit.

Absolute figures belong to this machine, two noisy cores. Compare inside a row, and treat
differences below 5 % as noise: `±` is half the range of the rounds. `x` columns are medians of
ratios taken within a round. CPU per request moves far less than the clock does.
"""


def losses(summary: Summary) -> list[str]:
    """A table line for each row in which a rival was ahead, the worst first."""
    found: list[tuple[float, str]] = []
    for row in summary.rows:
        rival = summary.best_rival(row)
        ratio = summary.ratio(row, SUBJECT, rival) if rival else None
        if ratio is not None and ratio < 1:
            found.append((ratio, f"| `{row}` | {rival} | {ratio:.2f}x |"))
    return [line for _, line in sorted(found)]


def page(results: list[dict[str, Any]], notes: str) -> str:
    summaries = [Summary(data) for data in results]
    lines = [line for summary in summaries for line in losses(summary)]
    parts = [INTRODUCTION, "## What we lose\n"]
    if lines:
        parts.append("Rows in which a rival was ahead in these runs:\n")
        header = ["| row | rival ahead | cpploop / rival |", "|---|---|---|"]
        parts.append("\n".join(header + lines) + "\n")
    else:
        parts.append("No rival was ahead in any row of these runs.\n")
    if notes:
        parts.append(notes)
    for data in results:
        parts.append(f"## {TITLES.get(data['kind'], data['kind'])}\n")
        parts.append(markdown(data))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="result files, in the page's order")
    parser.add_argument("--out", type=Path, default=DOCS / "performance.md")
    arguments = parser.parse_args()
    notes = DOCS / "performance-notes.md"
    results = [json.loads(path.read_text()) for path in arguments.results]
    arguments.out.write_text(page(results, notes.read_text() if notes.exists() else ""))


if __name__ == "__main__":
    main()
