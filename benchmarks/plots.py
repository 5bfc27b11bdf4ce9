"""A picture a family: for each row a panel of horizontal bars, the best on top, ours marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from loops import BASE, FLOOR, SUBJECT
from report import RowSummary, short

OURS, OURS_TOO, OTHERS, INK, FAINT = "#d9480f", "#f0a070", "#b8c0c8", "#22262a", "#8a9199"
COLUMNS = 3
BAR_INCHES = 0.2
PANEL_INCHES = 0.75  # For the title and the axis.
WIDTH_INCHES = 11.0
# The same bytes from the same results, and text that stays text.
STYLE = {
    "svg.hashsalt": "cpploop",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "figure.facecolor": "white",
}


def draw(title: str, rows: Sequence[RowSummary], path: Path) -> None:
    """Write the family's picture."""
    most = max(len(row.ranked()) for row in rows)
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    height = lines * (most * BAR_INCHES + PANEL_INCHES) + 0.5
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(WIDTH_INCHES * columns / COLUMNS, height),
            squeeze=False,
            layout="constrained",
        )
        panels = list(axes.flat)
        for panel, row in zip(panels, rows, strict=False):
            _panel(panel, row, most)
        for panel in panels[len(rows) :]:
            panel.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a date: a picture changes when its figures do.
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = "\n".join(line.rstrip() for line in path.read_text().splitlines())
    path.write_text(text + "\n")


def _panel(panel: Axes, row: RowSummary, most: int) -> None:
    names = row.ranked()
    values = [row.median(name) or 0.0 for name in names]
    colours = [_colour(name) for name in names]
    places = range(len(names))
    panel.barh(places, values, color=colours, height=0.72)
    for place, name, value in zip(places, names, values, strict=True):
        panel.text(value, place, "  " + _label(row, name, value), va="center", size=7)
    floor = row.median(FLOOR)
    if floor is not None:
        panel.axvline(floor, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    # As many places in each panel, so that all bars are of one height.
    panel.set_ylim(most - 0.5, -0.5)
    panel.set_xlim(0, max([*values, floor or 0.0]) * 1.32)
    panel.set_yticks(places, names)
    for tick, name in zip(panel.get_yticklabels(), names, strict=True):
        if name.partition("-")[0] == SUBJECT:
            tick.set_weight("bold")
    panel.set_xticks([])
    panel.tick_params(length=0)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    better = ", less is better" if row.measure.lower_is_better else ""
    panel.set_title(f"{row.name} ({row.measure.unit}{better})", loc="left", size=8, weight="bold")


def _label(row: RowSummary, name: str, value: float) -> str:
    ratio = row.ratio(name, BASE)
    return short(value) + (f"  {ratio:.2f}x" if ratio is not None and name != BASE else "")


def _colour(name: str) -> str:
    if name == SUBJECT:
        return OURS
    return OURS_TOO if name.startswith(SUBJECT) else OTHERS
