"""This suite's own option --sample: each test function once, with a set that a word decides."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import conftest
import pytest


class Item:
    """What a sample looks at of a collected test."""

    def __init__(self, nodeid: str, *marks: pytest.Mark) -> None:
        self.nodeid = nodeid
        self.marks = marks

    def iter_markers(self, name: str) -> Iterator[pytest.Mark]:
        return (mark for mark in self.marks if mark.name == name)

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next(self.iter_markers(name), None)


def sample(items: list[Item], word: str) -> list[str]:
    """The names of what is left, in their order; all the rest is told to pytest."""
    kept: list[Any] = list(items)
    deselected: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    config: Any = SimpleNamespace(hook=hook)
    conftest.take_sample(config, kept, word)
    assert [item for item in items if item in kept] == kept
    assert sorted(map(id, [*kept, *deselected])) == sorted(map(id, items))
    return [item.nodeid for item in kept]


def test_each_function_once_with_a_set_that_the_word_decides() -> None:
    items = [Item(f"a.py::test_{name}[{i}]") for name in "xyz" for i in range(20)]
    items += [Item("a.py::test_plain"), Item("b.py::test_x[0]")]
    one, same, other = (sample(items, word) for word in ("one", "one", "other"))
    for names in (one, other):
        functions = [name.partition("[")[0] for name in names]
        assert functions == [f"a.py::test_{name}" for name in ("x", "y", "z", "plain")] + [
            "b.py::test_x"
        ]
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    "mark", [pytest.mark.skip(reason="").mark, pytest.mark.skipif(True, reason="").mark]
)
def test_a_skipped_set_does_not_take_the_place_of_one_that_runs(mark: pytest.Mark) -> None:
    items = [Item(f"a.py::test_x[{i}]", mark) for i in range(20)]
    assert len(sample(items, "word")) == 1
    assert sample([*items, Item("a.py::test_x[runs]")], "word") == ["a.py::test_x[runs]"]
    # A condition that does not hold skips nothing.
    may_run = pytest.mark.skipif(False, reason="").mark
    assert sample([*items, Item("a.py::test_x[runs]", may_run)], "word") == ["a.py::test_x[runs]"]
