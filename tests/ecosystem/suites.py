"""The suites: what each is made of, and how its own project runs it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """The tests of one source distribution."""

    project: str
    # Where the source comes from: the package index, or Debian's source package of this name.
    debian: str = ""
    # Files of the source that the tests look at. The package itself is not among them, so that the
    # installed one is tested.
    files: tuple[str, ...] = ("tests", "pyproject.toml")
    pytest: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    # Our own tests of what other projects do, in a folder of this name: nothing to fetch.
    ours: bool = False
    # What those tests start, and the Debian packages that it comes from.
    programs: dict[str, str] = field(default_factory=dict)
    # What those tests are about, so that the page of results can name the versions.
    packages: tuple[str, ...] = ()
    # More than there are cores where tests mostly sleep; one where they share a port.
    processes: int = 2


@dataclass(frozen=True)
class Suite:
    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class DebianSource:
    """A source package as it stands in a release of Debian."""

    release: str
    version: str
    file: str
    sha256: str


DEBIAN_SOURCES = {
    "python-websockets": DebianSource(
        "trixie",
        "15.0.1-1",
        "python-websockets_15.0.1.orig.tar.gz",
        "8451495265af3e368f794c4dc15c99ce90c771d95560f542bff8c64b5455af3b",
    )
}

SUITES = {
    suite.name: suite
    for suite in (
        Suite("uvicorn", (Part("uvicorn", processes=4),)),
        Suite(
            "websockets",
            (
                Part(
                    "websockets",
                    debian="python-websockets",
                    files=("tests",),
                    # Threads and no loop; some of them fail now and then, whatever runs beside.
                    pytest=("--ignore=tests/sync",),
                    processes=3,
                ),
            ),
        ),
        Suite(
            "anyio",
            (
                Part(
                    "anyio",
                    # tox.ini's; the project names its plugins itself.
                    environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                    processes=3,
                ),
            ),
        ),
        Suite(
            "aiohttp",
            (
                Part(
                    "aiohttp",
                    files=(
                        *("tests", "examples", "requirements", "tools", "docs", "vendor"),
                        *("pytest.ini", "setup.cfg", "pyproject.toml", "Makefile", "CHANGES.rst"),
                    ),
                    # pytest.ini's without coverage, without the doctests that it collects, and
                    # with what it leaves out for everybody.
                    pytest=(
                        *("-o", "addopts=", "-p", "no:codspeed"),
                        *("-m", "not dev_mode and not autobahn and not internal"),
                        "--ignore-glob=tests/test_benchmarks_*",
                    ),
                    processes=3,
                ),
            ),
        ),
        Suite(
            "httpx",
            (
                Part("httpx", files=("tests", "pyproject.toml", "CHANGELOG.md"), processes=1),
                # tests/_sync is generated from tests/_async, and runs no loop.
                Part("httpcore", pytest=("--ignore=tests/_sync",), processes=1),
            ),
        ),
        # Our own: each server's ways to take a loop, and how it ends.
        Suite(
            "servers",
            (
                Part(
                    "servers",
                    ours=True,
                    packages=(
                        *("uvicorn", "gunicorn", "hypercorn", "granian", "aiohttp"),
                        *("ipython", "ipykernel"),
                    ),
                ),
            ),
        ),
        # Our own: clients on real databases, and gRPC.
        Suite(
            "services",
            (
                Part(
                    "services",
                    ours=True,
                    programs={"initdb": "postgresql", "redis-server": "redis-server"},
                    packages=("psycopg", "sqlalchemy", "asyncpg", "redis", "grpcio"),
                ),
            ),
        ),
        # Our own: clusters of processes.
        Suite("dask", (Part("cluster", ours=True, packages=("dask", "distributed", "ray")),)),
    )
}
