#!/usr/bin/env python3
"""Builds the source distribution and a wheel for each Python at hand, and checks what came out.

    scripts/wheels.py                          every Python that scripts/pythons.sh knows of
    scripts/wheels.py --python 3.13            one Python (a name of pythons.sh, or `newest`)
    scripts/wheels.py --once                   without the second build that proves reproducibility
    scripts/wheels.py --no-pgo                 without a profile: one build less, a slower module
    scripts/wheels.py --out FOLDER             where the results go (default: dist)

Each wheel is built from the unpacked source distribution, the way a packager would: without build
isolation, without an index, in a network namespace of its own where the system allows one, and with
a git in front of the PATH that fails and leaves a trace. It is built twice, and both files must be
equal: without a profile in folders of different names and depths, with one in the same folder,
because GCC tells functions of one file alone apart by the file's whole path. Of a wheel that is not
as it should be, all that is wrong is printed, and the exit status is 1.

Beside each wheel goes NAME.debug.tar.gz with its debug symbols: unpack it next to the installed
module, and gdb, perf and valgrind find it by its .gnu_debuglink. NAME.profile.tar.gz is what the
wheel was optimised by (scripts/pgo.py): with it, the same commit gives the same wheel.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# Inside the repository: an interpreter that lives in a chroot sees nothing else.
WORK = REPO / "build" / "wheels"
TOOLS = REPO / "build" / "venvs" / "wheels-tools"
LIMIT_BYTES = 1 << 20
# Zip files know no earlier day; it serves where neither the environment nor git tells a time.
FALLBACK_EPOCH = "315532800"

# What a user of the wheel reads, and a type checker needs.
IN_WHEEL = (
    r"cpploop/__init__\.py",
    r"cpploop/py\.typed",
    r"cpploop/_native\.pyi",
    r"cpploop/_native\.[\w.-]+\.so",
    r"cpploop-[^/]+\.dist-info/licenses/LICENSE",
    # Of what is linked into the module, which asks for its notice in every copy.
    r"cpploop-[^/]+\.dist-info/licenses/licenses/liburing\.txt",
)
NOT_IN_WHEEL = (r".*\.a", r".*\.h", r".*\.cc", r".*\.debug", r".*__pycache__.*", r"(tests|docs)/.*")
IN_SDIST = (
    "CMakeLists.txt",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "binding/module.cc",
    "cmake/Extension.cmake",
    "core/engine.cc",
    "licenses/liburing.txt",
    "pyproject.toml",
    "python/cpploop/_native.pyi",
    "python/cpploop/py.typed",
    "tests/python/conftest.py",
)
SMOKE = """
import asyncio, cpploop
async def echo(reader, writer):
    writer.write(await reader.read())
    writer.close()
async def main():
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"ping")
        writer.write_eof()
        assert await reader.read() == b"ping"
        writer.close()
        await writer.wait_closed()
cpploop.run(main())
print("epoll only" if "not built in" in cpploop.build_info()["io_uring"] else "with io_uring")
"""


class BuildError(Exception):
    """A command of the build failed; its output is the text."""


@dataclass
class Interpreter:
    """A Python of pythons.sh with the pinned requirements for building in an environment."""

    name: str
    folder: Path

    @classmethod
    def prepare(cls, name: str) -> Interpreter:
        folder = REPO / "build" / "venvs" / f"wheels-{slug(name)}"
        run(REPO / "scripts" / "venv.sh", "--no-test", "--no-build", name, folder)
        return cls(name, folder)

    def command(self, *arguments: str | Path) -> list[str | Path]:
        return [self.folder / "run", self.folder / "bin" / "python", *arguments]


@dataclass
class Wheel:
    """One built wheel, the symbols that were taken out of it, and what is to be said about both."""

    path: Path
    symbols: Path
    problems: list[str]
    notes: list[str]


def run(
    *command: str | Path, cwd: Path = REPO, env: dict[str, str] | None = None, limit_s: int = 900
) -> str:
    """The command's output; what it printed is in the error when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")
    return done.stdout


def slug(name: str) -> str:
    """A name of pythons.sh, which may be a path, as the name of a folder."""
    return re.sub(r"[^\w.]+", "-", name)


def source_date_epoch() -> str:
    """The time that every file of the results gets: the environment's, else that of the commit."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return told
    try:
        return run("git", "-c", "safe.directory=*", "log", "-1", "--format=%ct").strip()
    except (BuildError, OSError):
        return FALLBACK_EPOCH


class Isolation:
    """An environment for commands that may neither use the network nor ask git."""

    def __init__(self, folder: Path, epoch: str) -> None:
        folder.mkdir(parents=True)
        self.trace = folder / "git-was-called"
        git = folder / "git"
        git.write_text(f'#!/bin/sh\necho "$@" >>"{self.trace}"\nexit 1\n')
        git.chmod(0o755)
        # Nothing of the caller's that changes what a compiler or pip does.
        kept = {
            key: os.environ[key] for key in ("HOME", "LANG", "CXX", "TMPDIR") if key in os.environ
        }
        self.environment = kept | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "SOURCE_DATE_EPOCH": epoch,
            "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2"),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.prefix = ["unshare", "--net"] if network_can_be_cut() else []

    def run(self, *command: str | Path, cwd: Path) -> str:
        output = run(*self.prefix, *command, cwd=cwd, env=self.environment)
        if self.trace.exists():
            raise BuildError(f"the build asked git: {self.trace.read_text()}")
        return output


def network_can_be_cut() -> bool:
    """Whether this user may make a network namespace; elsewhere pip's --no-index has to do."""
    try:
        return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the source distribution ---------------------------------------------------------------------


def build_sdist(interpreter: Interpreter, isolation: Isolation, out: Path) -> Path:
    """Makes the source distribution of the checkout, twice, and returns it."""
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    built = []
    for name in ("sdist-1", "sdist-2"):
        folder = WORK / name
        folder.mkdir()
        isolation.run(*interpreter.command("-c", code, folder), cwd=REPO)
        (sdist,) = folder.iterdir()
        built.append(sdist)
    if sha256(built[0]) != sha256(built[1]):
        raise BuildError("two source distributions of the same checkout differ")
    return Path(shutil.copy(built[0], out))


def sdist_problems(sdist: Path) -> Iterator[str]:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in IN_SDIST:
        if wanted not in names:
            yield f"lacks {wanted}"
    for name in sorted(names):
        if re.match(r"(\.git/|\.ci/|build/|dist/|site/|\.venv)|.*(\.so|\.o|\.pyc)$", name):
            yield f"holds {name}"


# ---- one wheel -----------------------------------------------------------------------------------


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks the source distribution into FOLDER, which holds nothing else then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def make_profile(
    interpreter: Interpreter, isolation: Isolation, sdist: Path, folder: Path, profile: Path
) -> None:
    """Builds in FOLDER what counts, and has it trained; the counts are in PROFILE."""
    source = unpack(sdist, folder)
    # With a network, which has the loopback that the training talks over.
    options = ("--no-build-isolation", "--no-index")
    command = interpreter.command(source / "scripts" / "pgo.py", profile, *options)
    run(*command, cwd=source, env=isolation.environment)


def build_wheel(
    interpreter: Interpreter,
    isolation: Isolation,
    sdist: Path,
    folder: Path,
    out: Path,
    profile: Path | None,
) -> tuple[Path, Path]:
    """Builds in FOLDER; the wheel and its symbols, which are in OUT."""
    source = unpack(sdist, folder)
    pip = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    if profile is not None:
        pip += ["-C", "cmake.define.CPPLOOP_PGO=use"]
        pip += ["-C", f"cmake.define.CPPLOOP_PGO_PROFILE={profile}"]
    isolation.run(*interpreter.command(*pip, "-w", out, "."), cwd=source)
    (wheel,) = out.glob("*.whl")
    (symbols,) = source.glob("build/*/_native*.debug")
    return wheel, Path(shutil.copy(symbols, out))


def pack(files: dict[str, Path], target: Path, epoch: str) -> None:
    """Puts the files into a tarball that has nothing of this machine or hour in it."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.mode = int(epoch), 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with target.open("wb") as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=int(epoch)) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for name, file in sorted(files.items()):
                    archive.add(file, name, filter=plain)


def content_problems(wheel: Path) -> Iterator[str]:
    """What is missing in the wheel, and what should not be there."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    for wanted in IN_WHEEL:
        if not any(re.fullmatch(wanted, name) for name in names):
            yield f"lacks {wanted}"
    for name in names:
        if any(re.fullmatch(refused, name) for refused in NOT_IN_WHEEL):
            yield f"holds {name}"
    for line in ("License-Expression: MIT", "License-File: LICENSE", "Requires-Python: >=3.11"):
        if line not in text.splitlines():
            yield f"its metadata lacks '{line}'"
    if wheel.stat().st_size >= LIMIT_BYTES:
        yield f"is {wheel.stat().st_size} bytes large"


def extract_module(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        return Path(archive.extract(name, folder))


def module_problems(module: Path, symbols: Path, build_folder: Path) -> Iterator[str]:
    """How the module is linked and stripped, and whether it knows where it was built."""
    dynamic = run("readelf", "--wide", "--dynamic", module)
    if not re.search(r"\(FLAGS\).*BIND_NOW|\(FLAGS_1\).*\bNOW\b", dynamic):
        yield "is not linked with -z now"
    for refused in ("TEXTREL", "RPATH", "RUNPATH"):
        if f"({refused})" in dynamic:
            yield f"has a {refused}"
    segments = run("readelf", "--wide", "--segments", module)
    if "GNU_RELRO" not in segments:
        yield "is not linked with -z relro"
    if re.search(r"GNU_STACK.*\bRWE\b", segments):
        yield "asks for an executable stack"
    sections = run("readelf", "--wide", "--sections", module)
    for refused in (".symtab", ".debug_info"):
        if f" {refused} " in sections:
            yield f"is not stripped of {refused}"
    if " .gnu_debuglink " not in sections:
        yield "does not name its debug symbols"
    if build_id(module) != build_id(symbols) or build_id(module) is None:
        yield "and its debug symbols have different build ids"
    if ".debug_info" not in run("readelf", "--wide", "--sections", symbols):
        yield "has debug symbols without .debug_info"
    exported = run("nm", "--dynamic", "--defined-only", module).split()[2::3]
    if exported != ["PyInit__native"]:
        yield f"exports more than its entry: {' '.join(exported)}"
    for file in (module, symbols):
        if str(build_folder).encode() in file.read_bytes():
            yield f"{file.name} names the folder it was built in"


def build_id(file: Path) -> str | None:
    found = re.search(r"Build ID: (\w+)", run("readelf", "--wide", "--notes", file))
    return found[1] if found else None


def platform_tag(wheel: Path) -> tuple[str, list[str]]:
    """The tag that auditwheel finds the wheel to deserve, and what stands against any."""
    output = run(TOOLS / "bin" / "python", "-m", "auditwheel", "show", wheel)
    text = " ".join(output.split())
    found = re.search(r'consistent with the following platform tag: "(\w+)"', text)
    tag = found[1] if found else "none"
    problems = []
    if not re.match(r"(many|musl)linux_", tag):
        problems.append(f"auditwheel finds no portable tag for it: {text}")
    if "external shared libraries" in text and "following external" in text:
        problems.append(f"needs libraries that Pythons do not have: {text}")
    return tag, problems


def smoke(interpreter: Interpreter, isolation: Isolation, wheel: Path, folder: Path) -> str:
    """Installs the wheel alone and serves a connection with it; what it says of itself."""
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", folder)
    isolation.run(*interpreter.command(*pip, wheel), cwd=REPO)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{SMOKE}"
    # With a network: a new namespace has no loopback that is up.
    return run(
        *interpreter.command("-I", "-W", "error", "-c", code), env=isolation.environment
    ).strip()


def check_wheel(
    interpreter: Interpreter,
    isolation: Isolation,
    sdist: Path,
    out: Path,
    *,
    twice: bool,
    pgo: bool,
) -> Wheel:
    work = WORK / slug(interpreter.name)
    folder, another_folder = work / "a", work / "another" / "folder"
    profile = None
    if pgo:
        profile = work / "profile"
        another_folder = folder
        make_profile(interpreter, isolation, sdist, folder, profile)
    first, symbols = build_wheel(interpreter, isolation, sdist, folder, work / "first", profile)
    problems = list(content_problems(first))
    problems += module_problems(extract_module(first, work), symbols, work)
    tag, refusals = platform_tag(first)
    problems += refusals
    notes = ["without a profile" if profile is None else "by profile", tag]
    notes.append(smoke(interpreter, isolation, first, work / "installed"))
    epoch = isolation.environment["SOURCE_DATE_EPOCH"]
    packed = out / f"{first.stem}.debug.tar.gz"
    pack({f"cpploop/{symbols.name}": symbols}, packed, epoch)
    if profile is not None:
        counts = {file.name: file for file in profile.iterdir()}
        pack(counts, out / f"{first.stem}.profile.tar.gz", epoch)
    if twice:
        second, second_symbols = build_wheel(
            interpreter, isolation, sdist, another_folder, work / "second", profile
        )
        same = sha256(first) == sha256(second) and sha256(symbols) == sha256(second_symbols)
        if same:
            notes.append("same twice")
        else:
            problems.append("is another file when it is built again")
    shutil.copy(first, out)
    return Wheel(first, packed, problems, notes)


def line_of(wheel: Wheel, seconds: float) -> str:
    size = f"{wheel.path.stat().st_size / 1024:.0f} KiB"
    symbols = f"symbols {wheel.symbols.stat().st_size / 1024:.0f} KiB"
    facts = [size, symbols, *wheel.notes, f"sha256 {sha256(wheel.path)[:16]}", f"{seconds:.0f} s"]
    return f"{'FAIL' if wheel.problems else 'ok  '} {wheel.path.name}: {', '.join(facts)}"


# ---- all of it -----------------------------------------------------------------------------------


def pythons_at_hand() -> list[str]:
    listed = run(REPO / "scripts" / "pythons.sh", "list")
    return [line.partition("\t")[0] for line in listed.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--python", action="append", default=[], help="a name of scripts/pythons.sh"
    )
    parser.add_argument("--once", action="store_true", help="do not build a second time")
    parser.add_argument("--no-pgo", action="store_true", help="do not optimise by profile")
    parser.add_argument("--out", type=Path, default=REPO / "dist")
    options = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    options.out.mkdir(parents=True, exist_ok=True)
    run(
        REPO / "scripts" / "venv.sh", "--no-build", "--no-test", "--with", "wheels", "newest", TOOLS
    )
    isolation = Isolation(WORK / "no-git", source_date_epoch())
    print("network: cut off" if isolation.prefix else "network: cannot be cut off here; --no-index")

    sdist = build_sdist(Interpreter.prepare("newest"), isolation, options.out)
    failed = list(sdist_problems(sdist))
    print(f"{'FAIL' if failed else 'ok  '} {sdist.name}: {sdist.stat().st_size / 1024:.0f} KiB")
    for name in options.python or pythons_at_hand():
        started = time.monotonic()
        try:
            wheel = check_wheel(
                *(Interpreter.prepare(name), isolation, sdist, options.out),
                twice=not options.once,
                pgo=not options.no_pgo,
            )
        except BuildError as error:
            failed.append(f"Python {name}: {error}")
            continue
        print(line_of(wheel, time.monotonic() - started), flush=True)
        failed += [f"{wheel.path.name}: {problem}" for problem in wheel.problems]
    for problem in failed:
        print(problem, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
