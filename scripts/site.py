#!/usr/bin/env python3
"""Builds the documentation's site from the repository's own pages, and checks it.

    scripts/site.py            builds site/; exits 1 when anything is wrong

The pages are copied to build/site-src as they lie in the repository, with what they link to, so
that a relative link leads to the same file here, on a forge and in an editor. zensical builds them
in strict mode, without a network where the system lets us cut it off. Then the result is looked at:
every link leads to a file and to a heading that are there, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = Path(__file__).resolve().parent.parent
SOURCE = REPO / "build" / "site-src"
SITE = REPO / "site"
# Where reading begins; what these link to comes along.
ROOTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/**/*.md",
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def linked_files(page: Path) -> Iterator[Path]:
    """The files of the repository that a Markdown page links to, or shows."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if not urlsplit(target).scheme:
            yield (page.parent / unquote(target)).resolve()


def lay_out() -> int:
    """Copies the pages and what they link to; the number of pages."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    waiting = [path for root in ROOTS for path in sorted(REPO.glob(root))]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        target = SOURCE / path.relative_to(REPO)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if path.suffix == ".md":
            waiting += linked_files(path)
    return sum(path.suffix == ".md" for path in seen)


def network_can_be_cut() -> bool:
    """Whether this user may make a network namespace."""
    try:
        return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def build() -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if network_can_be_cut():
        command[:0] = ["unshare", "--net"]
        print("network: cut off", flush=True)
    else:
        print("network: cannot be cut off here; what it may have given is not noticed", flush=True)
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run(command, cwd=REPO, check=True)


class Page(HTMLParser):
    """What an HTML page links to, what it loads, and which names it has for links to end at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.names.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in {"stylesheet", "preload", "icon", "preconnect"}:
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


def problems_of(path: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for address in pages[path].loads:
        if urlsplit(address).netloc:
            yield f"loads {address}"
        elif not target_of(path, address).exists():
            yield f"lacks {address}"
    for address in pages[path].links:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or address.startswith("javascript:"):
            continue
        target = target_of(path, address)
        if not target.exists():
            yield f"links to {address}, which is not there"
        elif (
            parts.fragment
            and target in pages
            and unquote(parts.fragment) not in pages[target].names
        ):
            yield f"links to {address}, which has no such heading"


def target_of(page: Path, address: str) -> Path:
    path = unquote(urlsplit(address).path)
    if not path:
        return page
    target = (SITE / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve()
    return target / "index.html" if target.is_dir() else target


def main() -> int:
    count = lay_out()
    build()
    # The page for what cannot be found has absolute addresses: anything may have asked for it.
    files = [path for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"]
    pages = {path: Page(path) for path in files}
    problems = [
        f"{path.relative_to(SITE)}: {problem}"
        for path in pages
        for problem in problems_of(path, pages)
    ]
    print(*problems, sep="\n")
    links = sum(len(page.links) for page in pages.values())
    print(f"{count} pages, {links} links, {len(problems)} problems")
    return 1 if problems or len(pages) < count else 0


if __name__ == "__main__":
    sys.exit(main())
