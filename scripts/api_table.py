#!/usr/bin/env python3
"""Keep docs/api-table.md: every public method of asyncio's classes, and what cpploop has for it.

    scripts/api_table.py --collect    note what the running Python's asyncio has
    scripts/api_table.py --write      write docs/api-table.md from what was noted on every Python
    scripts/api_table.py --check      compare the running Python with it; exits 1 if it differs

One interpreter sees only its own asyncio. So --collect is run under each Python at hand
(scripts/pythons.sh list), with cpploop importable, and adds to scripts/api_data.json; scripts/
api_tests.json says by hand which test covers what. --check needs no other Python: it names every
method and parameter that the running asyncio has and the table has not, and every signature of
ours that is not asyncio's.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import enum
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
DATA = REPO / "scripts" / "api_data.json"
TESTS = REPO / "scripts" / "api_tests.json"
PAGE = REPO / "docs" / "api-table.md"
TEST_FOLDER = REPO / "tests" / "python"

# A section of the table: asyncio's classes whose public names it lists, the class that asyncio
# makes, and what is said about ours.
SECTIONS = {
    "loop": ("Loop", ("AbstractEventLoop", "BaseEventLoop", "SelectorEventLoop")),
    "handle": ("Handle", ("Handle",)),
    "timer": ("TimerHandle", ("TimerHandle",)),
    "server": ("Server", ("AbstractServer", "Server")),
    "stream": (
        "Transport (TCP, Unix sockets)",
        ("BaseTransport", "ReadTransport", "WriteTransport", "Transport"),
    ),
    "datagram": ("DatagramTransport", ("BaseTransport", "DatagramTransport")),
    "subprocess": ("SubprocessTransport", ("BaseTransport", "SubprocessTransport")),
}
# Where ours differs on purpose, and why.
DIFFERS = {("loop", "create_task"): "`(coro, **kwargs)`: what the running Python's Task takes"}
DUNDERS = ("__aenter__", "__aexit__")


# --- looking at the running Python ----------------------------------------------------------------


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def signature_of(member: Any) -> str:
    """Names, kinds and defaults of a method's parameters, without self and annotations."""
    if isinstance(member, property) or inspect.isdatadescriptor(member):
        return "property"
    try:
        parameters = list(inspect.signature(member).parameters.values())
    except (TypeError, ValueError):
        return "no signature"
    plain = [p.replace(annotation=p.empty, default=_plain(p.default)) for p in parameters[1:]]
    return str(inspect.Signature(plain))


def _plain(default: Any) -> Any:
    if isinstance(default, enum.IntEnum):
        return int(default)
    if default is inspect.Parameter.empty or isinstance(
        default, (int, float, str, bytes, type(None))
    ):
        return default
    return _Shown(f"<{type(default).__name__}>")


class _Shown:
    """A default whose own repr differs from run to run."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def public_names(cls: type) -> Iterator[str]:
    for name in sorted({name for base in cls.__mro__[:-1] for name in vars(base)}):
        if not name.startswith("_") or name in DUNDERS:
            yield name


def asyncio_signatures() -> dict[str, dict[str, str]]:
    """Section -> name -> signature, the most concrete of asyncio's classes deciding."""
    result: dict[str, dict[str, str]] = {}
    for section, (_, classes) in SECTIONS.items():
        names: dict[str, str] = {}
        for cls in (getattr(asyncio, name, None) for name in classes):
            for name in public_names(cls) if cls is not None else ():
                names[name] = signature_of(inspect.getattr_static(cls, name))
        result[section] = dict(sorted(names.items()))
    return result


def our_classes() -> dict[str, type]:
    """Section -> the class whose instances cpploop hands out."""
    import cpploop
    from cpploop import _native

    native: Any = _native
    datagram: Any = getattr(native, "DatagramTransport", None)
    if datagram is None:
        from asyncio import selector_events

        datagram = vars(selector_events)["_SelectorDatagramTransport"]
    from asyncio import unix_events

    subprocess: Any = vars(unix_events)["_UnixSubprocessTransport"]
    edge: Any = sys.modules.get("cpploop._processes")
    subprocess = getattr(edge, "_UnixSubprocessTransport", subprocess)
    return {
        "loop": cpploop.Loop,
        "handle": native.Handle,
        "timer": native.TimerHandle,
        "server": asyncio.Server,
        "stream": native.StreamTransport,
        "datagram": datagram,
        "subprocess": subprocess,
    }


def our_members() -> dict[str, dict[str, list[str]]]:
    """Section -> name -> [signature, where it is implemented]."""
    result: dict[str, dict[str, list[str]]] = {}
    for section, cls in our_classes().items():
        members: dict[str, list[str]] = {}
        for name in asyncio_signatures()[section]:
            owner = next((base for base in cls.__mro__ if name in vars(base)), None)
            if owner is not None:
                signature = signature_of(inspect.getattr_static(cls, name))
                members[name] = [signature, where_is(owner)]
        result[section] = members
    return result


def where_is(owner: type) -> str:
    if owner.__module__ == "cpploop._native":
        return "native"
    return "edge" if owner.__module__.startswith("cpploop") else "asyncio's own"


# --- the data file --------------------------------------------------------------------------------

# Section -> name -> {"where": text, "asyncio": {Python: [signature, ...]}}. Patch releases of one
# Python differ now and then; then there are several signatures. In the file each signature is
# written once, with the Pythons that have it.
Data = dict[str, dict[str, dict[str, Any]]]


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load_data() -> Data:
    data: Data = load(DATA)
    for names in data.values():
        for entry in names.values():
            of_version: dict[str, list[str]] = {}
            for signature, versions in entry["asyncio"].items():
                for version in versions.split():
                    of_version.setdefault(version, []).append(signature)
            entry["asyncio"] = of_version
    return data


def save_data(data: Data) -> None:
    for names in data.values():
        for entry in names.values():
            of_signature: dict[str, list[str]] = {}
            for version in sorted(entry["asyncio"], key=key):
                for signature in entry["asyncio"][version]:
                    of_signature.setdefault(signature, []).append(version)
            entry["asyncio"] = {text: " ".join(found) for text, found in of_signature.items()}
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def collect() -> None:
    data = load_data()
    version = python_version()
    ours = our_members()
    for section, names in asyncio_signatures().items():
        of_section = data.setdefault(section, {})
        for name, signature in names.items():
            entry = of_section.setdefault(name, {"asyncio": {}})
            noted = entry["asyncio"].setdefault(version, [])
            if signature not in noted:
                entry["asyncio"][version] = sorted([*noted, signature])
            entry["where"] = ours[section].get(name, ["missing", "nowhere"])[1]
        for name in [name for name in of_section if name not in names]:
            of_section[name]["asyncio"].pop(version, None)
            if not of_section[name]["asyncio"]:
                del of_section[name]
    save_data(data)


def versions_in(data: Data) -> list[str]:
    found = {v for names in data.values() for entry in names.values() for v in entry["asyncio"]}
    return sorted(found, key=key)


# --- the check ------------------------------------------------------------------------------------

WHAT_TO_DO = "then run scripts/api_table.py --collect --write and commit what it wrote"


def problems() -> Iterator[str]:
    """One line for everything that is not as the table says."""
    data = load_data()
    version = python_version()
    known = versions_in(data)
    # A Python that nobody has noted yet is compared with the newest one that was.
    against = version if version in known else known[-1]
    ours = our_members()
    for section, names in asyncio_signatures().items():
        yield from problems_of_asyncio(section, names, against, data)
        yield from problems_of_ours(section, names, ours[section], data)
    yield from problems_of_tests(data)
    if PAGE.read_text(encoding="utf-8") != render(data):
        yield f"{PAGE.relative_to(REPO)} is not what scripts/api_table.py --write writes: run it"


def problems_of_asyncio(
    section: str, names: dict[str, str], against: str, data: Data
) -> Iterator[str]:
    title = SECTIONS[section][0]
    asyncio_of = f"asyncio of Python {python_version()}"
    of_section = data.get(section, {})
    for name, signature in names.items():
        noted = of_section.get(name, {"asyncio": {}})["asyncio"].get(against)
        if noted is None:
            yield (
                f"{title}.{name}{signature}: new in {asyncio_of}. Implement it, or make sure that "
                f"asyncio's own works; name its test in scripts/{TESTS.name}; {WHAT_TO_DO}"
            )
        elif signature not in noted:
            yield (
                f"{title}.{name}: {asyncio_of} has {signature}, noted is {' or '.join(noted)}. "
                f"Follow it; {WHAT_TO_DO}"
            )
    for name, entry in of_section.items():
        if against in entry["asyncio"] and name not in names:
            yield f"{title}.{name}: gone from {asyncio_of}; {WHAT_TO_DO}"


def problems_of_ours(
    section: str, names: dict[str, str], ours: dict[str, list[str]], data: Data
) -> Iterator[str]:
    title = SECTIONS[section][0]
    for name, signature in names.items():
        mine, where = ours.get(name, ["missing", "nowhere"])
        if mine != signature and (section, name) not in DIFFERS:
            yield f"{title}.{name}: ours is {mine} ({where}), asyncio's is {signature}: make it so"
        noted = data.get(section, {}).get(name, {}).get("where", where)
        if noted != where:
            yield f"{title}.{name}: implemented {where}, noted is {noted}; {WHAT_TO_DO}"


# --- the tests ------------------------------------------------------------------------------------


@functools.cache
def tests_in(name: str) -> dict[str, set[str]]:
    """Test function -> the attributes it uses, itself and by what it calls in its own module."""
    tree = ast.parse((TEST_FOLDER / name).read_text(encoding="utf-8"))
    functions = {
        node.name: node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }

    def used(function: str, seen: set[str]) -> set[str]:
        seen.add(function)
        found: set[str] = set()
        for node in ast.walk(functions[function]):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.AsyncWith):
                found.update(DUNDERS)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # Parametrised tests get the method by its name.
                found.add(node.value)
            elif isinstance(node, ast.Name) and node.id in functions and node.id not in seen:
                found |= used(node.id, seen)
        return found

    return {name: used(name, set()) for name in functions if name.startswith("test_")}


def problems_of_tests(data: Data) -> Iterator[str]:
    tests: dict[str, dict[str, str]] = load(TESTS)
    for section, names in data.items():
        title = SECTIONS[section][0]
        for name in names:
            test = tests.get(section, {}).get(name)
            if test is None:
                yield f"{title}.{name}: no test is named in {TESTS.name}"
                continue
            file, _, function = test.partition("::")
            if not (TEST_FOLDER / file).exists():
                yield f"{title}.{name}: {test} is named in {TESTS.name}, but there is no such file"
            elif function not in tests_in(file):
                yield f"{title}.{name}: {test} is named in {TESTS.name}, but there is no such test"
            elif name not in tests_in(file)[function]:
                yield f"{title}.{name}: {test} does not use it"
        for name in sorted(set(tests.get(section, {})) - set(names)):
            yield f"{title}.{name}: named in {TESTS.name}, but asyncio has no such name"


# --- the page -------------------------------------------------------------------------------------


def key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def span(versions: list[str], known: list[str]) -> str:
    """3.11-3.12, 3.13 on, all."""
    if versions == known:
        return "all"
    first, last = versions[0], versions[-1]
    if last == known[-1]:
        return f"{first} on" if len(versions) > 1 else first
    return first if first == last else f"{first} to {last}"


def rows(section: str, names: dict[str, dict[str, Any]], known: list[str]) -> Iterator[str]:
    tests = load(TESTS).get(section, {})
    for name, entry in sorted(names.items()):
        variants: dict[str, list[str]] = {}
        for version in sorted(entry["asyncio"], key=key):
            shown = " or ".join(
                text if text == "property" else f"`{text}`" for text in entry["asyncio"][version]
            )
            variants.setdefault(shown, []).append(version)
        mine = DIFFERS.get((section, name), "the same")
        file, _, function = tests.get(name, "").partition("::")
        link = f"[{function}](../tests/python/{file})" if file else "none"
        for shown, versions in variants.items():
            yield (
                f"| `{name}` | {shown} | {span(versions, known)} | {mine} "
                f"| {entry['where']} | {link} |"
            )


def render(data: Data) -> str:
    known = versions_in(data)
    lines = [
        "# The API, method by method",
        "",
        f"Every public method and property of asyncio's classes on Python {known[0]} to "
        f"{known[-1]}:",
        "its parameters, whether ours are the same, where cpploop implements it, and a test that",
        "calls it on both loops. *Native* is C++, *edge* is cpploop's Python, *asyncio's own* is",
        "the running Python's code, inherited, working on the native parts below it.",
        "",
        "Written by `scripts/api_table.py`. CI compares it with every Python it runs on, so that a",
        "method or a parameter that a newer asyncio brings fails by name.",
        "",
    ]
    totals: dict[str, int] = {}
    for section in SECTIONS:
        for entry in data.get(section, {}).values():
            totals[entry["where"]] = totals.get(entry["where"], 0) + 1
    counts = ", ".join(f"{count} {where}" for where, count in sorted(totals.items()))
    lines += [f"{sum(totals.values())} in all: {counts}.", ""]
    for section, (title, classes) in SECTIONS.items():
        lines += [
            f"## {title}",
            "",
            f"asyncio's {', '.join(classes)}.",
            "",
            "| name | asyncio's signature | Python | ours | implemented | test |",
            "|---|---|---|---|---|---|",
            *rows(section, data.get(section, {}), known),
            "",
        ]
    return "\n".join(lines).rstrip("\n") + "\n"


# --- the command ----------------------------------------------------------------------------------


def write() -> None:
    PAGE.write_text(render(load_data()), encoding="utf-8")


def check() -> int:
    found = list(dict.fromkeys(problems()))
    for line in found:
        print(line)
    total = sum(len(names) for names in asyncio_signatures().values())
    print(f"api table, Python {python_version()}: {total} names, {len(found)} problems")
    return 1 if found else 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps: dict[str, Callable[[], int | None]] = {
        "collect": collect,
        "write": write,
        "check": check,
    }
    for name in steps:
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args(argv)
    wanted = [name for name in steps if getattr(arguments, name)]
    if not wanted:
        parser.error("one of --collect, --write, --check")
    return max(steps[name]() or 0 for name in wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
