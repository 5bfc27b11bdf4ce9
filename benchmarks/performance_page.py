"""Writes docs/performance.md and docs/plots/ from results of run.py, and from nothing else.

    python benchmarks/performance_page.py benchmarks/results/COMMIT-MACHINE/full [MORE...] \
        [--ring benchmarks/results/COMMIT-MACHINE/FOLDER]

Files and folders are read in their order, and of a row that is in several the last one counts: a
short run of today goes behind a long one of last week. What `make bench-ring` measured has a part
of its own: its rows have other rivals. The page says of each row in which a rival was ahead, and
what targets.py asks of each; docs/performance-notes.md, if it is there, is put behind that as it
is: what was found, and what was tried.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import backends
import report
import store
import targets
from catalogue import FAMILIES
from loops import SUBJECT
from report import RowSummary

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION = """# Performance

cpploop beside its rivals: interleaved, server and client on different cores, every answer checked.
How it is done, and how to repeat it, is in [benchmarks/README.md](../benchmarks/README.md).
`benchmarks/performance_page.py` writes this page from stored results; do not edit.

Absolute figures belong to the machine that made them. Compare inside a row, and treat differences
below 5 % as noise: `±` is half the range of the rounds. `x` columns are medians of ratios between
figures that were measured one shortly after the other, and say how many times as good a loop is,
also where a lower figure is better. So they can differ from the quotient of two columns. CPU per
request moves far less than the clock does.
"""


RING = """## epoll and io_uring

cpploop's two backends beside the rivals on a ring, in a run of its own: ratios above 1 are
io_uring's. What holds it back is in [its notes](dev/io_uring.md).
"""


def page(
    rows: Sequence[RowSummary],
    notes: str,
    plots: Mapping[str, str],
    ring: Sequence[RowSummary] = (),
) -> str:
    """The whole page; `plots` has the pictures' addresses by family title."""
    parts = [INTRODUCTION, "## What was measured\n", report.headings(rows) + "\n"]
    parts.append("## What we lose\n")
    lost = report.lost_table(rows)
    if lost:
        parts.append(f"Rows in which a rival was ahead in these runs:\n\n{lost}\n")
    else:
        parts.append("No rival was ahead in any row of these runs.\n")
    unmeasured = [row.name for row in rows if SUBJECT not in row.ranked()]
    if unmeasured:
        listed = ", ".join(f"`{name}`" for name in unmeasured)
        parts.append(f"{SUBJECT} has no figure in {listed}.\n")
    parts.append("## Targets\n")
    parts.append(targets.table(rows) + "\n")
    if notes:
        parts.append(notes)
    for title, own in report.by_family(rows):
        parts.append(f"## {title}\n")
        if title in plots:
            parts.append(f"![{title}: each row's loops as bars, the best on top]({plots[title]})\n")
        parts.append(report.family_tables(own) + "\n")
    if ring:
        parts += [RING, report.headings(ring) + "\n", backends.table(ring) + "\n"]
    told = report.all_notes(rows)
    if told:
        parts += ["## Notes of the runs\n", "\n".join(f"- {text}" for text in told) + "\n"]
    return "\n".join(parts)


def draw_all(rows: Sequence[RowSummary], folder: Path) -> dict[str, str]:
    """A picture for each family with figures; their addresses on the page."""
    import plots  # Its library is needed for this alone.

    families = {title: family for family, title in FAMILIES.items()}
    found = {}
    for title, own in report.by_family([row for row in rows if row.ranked()]):
        path = folder / f"{families[title]}.svg"
        plots.draw(title, own, path)
        found[title] = f"{folder.name}/{path.name}"
    return found


def drawn_before(page_text: str) -> dict[str, str]:
    """The pictures that a page shows, for a page written without drawing them anew."""
    return dict(re.findall(r"^!\[(.*?):.*?\]\((.*?)\)$", page_text, re.M))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="files and folders of results")
    parser.add_argument(
        "--ring", action="append", default=[], type=Path, help="results of `make bench-ring`"
    )
    parser.add_argument("--out", type=Path, default=DOCS / "performance.md")
    parser.add_argument("--no-plots", action="store_true", help="keep the pictures that are there")
    arguments = parser.parse_args()
    rows = report.summaries(store.read(arguments.results))
    notes = DOCS / "performance-notes.md"
    if arguments.no_plots:
        drawn = drawn_before(arguments.out.read_text()) if arguments.out.exists() else {}
    else:
        drawn = draw_all(rows, arguments.out.parent / "plots")
    ring = report.summaries(store.read(arguments.ring))
    found = notes.read_text() if notes.exists() else ""
    arguments.out.write_text(page(rows, found, drawn, ring))


if __name__ == "__main__":
    main()
