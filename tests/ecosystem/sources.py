"""Where the suites come from: source distributions by pip, Debian's source packages by apt.

Both are pinned by their SHA-256, which pip checks itself; apt's files are checked here. Hosts are
not named: pip's defaults and this system's own list of Debian archives say where to look.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from processes import find_program
from suites import DEBIAN_SOURCES, DebianSource, Part

REPO = Path(__file__).resolve().parent.parent.parent
PINS = REPO / "requirements" / "ecosystem-sources.txt"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


class SourceError(Exception):
    """A source cannot be had or made use of; the text says why."""


class GoneError(Exception):
    """A source is not to be had any more, or not by this system's means; its suite is skipped."""


def fetch(part: Part, python: Path, build: Path) -> Path:
    """Return the archive of PART's source, checked against its pin; downloaded once."""
    archives = build / "sources"
    archives.mkdir(parents=True, exist_ok=True)
    if part.debian:
        return _fetch_from_debian(part.debian, DEBIAN_SOURCES[part.debian], archives, build / "apt")
    pin = _pin_of(part.project)
    pins = archives / f"{part.project}.txt"
    pins.write_text(f"{pin}\n")
    version = pin.split("==")[1].split()[0]
    if found := list(archives.glob(f"{part.project}-{version}.tar.gz")):
        if f"sha256:{_sha256(found[0])}" in pin:
            return found[0]
        found[0].unlink()
    command = [str(python), *PIP, "download", "--require-hashes", "--no-deps"]
    command += ["--no-build-isolation", "--no-binary", ":all:", "--dest", str(archives)]
    try:
        _run([*command, "-r", str(pins)], f"{part.project} {version}")
    except SourceError as error:
        if "DO NOT MATCH THE HASHES" in str(error):
            raise
        raise GoneError(f"{part.project} {version} is not to be had: {error}") from None
    return archives / f"{part.project}-{version}.tar.gz"


def install(part: Part, archive: Path, python: Path, folder: Path) -> None:
    """Install the package from its source, and unpack what its tests need into FOLDER."""
    # The interpreter counts, because what was compiled is for one, and so does what is done here.
    stamp = folder / ".source"
    interpreter = (python.parent.parent / ".interpreter").read_text()
    wanted = f"{_sha256(archive)} {_sha256(Path(__file__))} {part.files} {interpreter}"
    installed = python.parent.parent / f".installed-{part.project}"
    if stamp.exists() and stamp.read_text() == wanted and installed.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [str(python), *PIP, "install", "--no-deps", "--no-build-isolation"]
    _run([*command, "--force-reinstall", str(archive)], f"installing {archive.name}")
    with tarfile.open(archive) as tar:
        top = tar.getnames()[0].split("/")[0]
        for member in tar.getmembers():
            inner = member.name.removeprefix(top).lstrip("/")
            if inner.split("/")[0] in part.files:
                tar.extract(member.replace(name=inner), folder, filter="data")
    if not {"pytest.ini", "pyproject.toml"}.intersection(part.files):
        # Or pytest would find the settings of our own tests further up.
        (folder / "pytest.ini").write_text("[pytest]\n")
    installed.touch()
    stamp.write_text(wanted)


def version_of(archive: Path) -> str:
    """Return the version that an archive's name ends with."""
    return (
        archive.name.replace(".orig", "").removesuffix(".tar.gz").replace("_", "-").split("-")[-1]
    )


def python_version(python: Path) -> str:
    """Return the version of an interpreter."""
    command = [str(python), "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions_in(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages of an environment."""
    script = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
    command = [str(python), "-c", script, *packages]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(packages, output.split(), strict=True))


def install_programs(programs: Mapping[str, str]) -> None:
    """Install Debian's packages of the programs that are missing.

    The tests themselves skip what they do not find, so what cannot be had is only said.
    """
    missing = {package for program, package in programs.items() if not find_program(program)}
    if not missing:
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        names = ", ".join(sorted(missing))
        print(f"not installed, because that takes apt and root: {names}", flush=True)
        return
    # Packages' scripts look at it: a database that is installed for tests need not be started.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *sorted(missing)]
    try:
        _run(["apt-get", "update", "-qq"], "the list of packages", environment)
        _run(install, ", ".join(sorted(missing)), environment)
    except SourceError as error:
        print(f"not installed: {error}", flush=True)


def _pin_of(project: str) -> str:
    for line in PINS.read_text().splitlines():
        if line.startswith(f"{project}=="):
            return line
    raise SourceError(f"{PINS.name} holds no {project}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    try:
        made = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{what}: {error}") from None
    if made.returncode:
        raise SourceError(f"{what}: {(made.stderr or made.stdout)[-2000:]}")


# --- Debian's source packages ---------------------------------------------------------------------


def _fetch_from_debian(name: str, source: DebianSource, archives: Path, apt: Path) -> Path:
    archive = archives / source.file
    if not (archive.exists() and _sha256(archive) == source.sha256):
        archive.unlink(missing_ok=True)
        try:
            options = _private_lists(source.release, apt)
            _run(["apt-get", *options, "update", "-qq"], f"the list of {source.release}")
            _run_in(
                archives,
                ["apt-get", *options, "source", "-qq", "--download-only", "--tar-only"]
                + [f"{name}={source.version}"],
            )
        except SourceError as error:
            raise GoneError(f"Debian's {name} {source.version} is not to be had: {error}") from None
    if not archive.exists():
        raise GoneError(f"Debian's {name} {source.version} is not to be had")
    if _sha256(archive) != source.sha256:
        archive.unlink()
        raise SourceError(f"{source.file} is not the file that is pinned")
    return archive


def _run_in(folder: Path, command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise SourceError(done.stderr.strip().splitlines()[-1] if done.stderr else "apt-get failed")


def _private_lists(release: str, apt: Path) -> list[str]:
    """Options that make apt look at one release's sources, and leave the system's lists alone."""
    if shutil.which("apt-get") is None or not KEYRING.exists():
        raise SourceError("this system has no apt, or not Debian's keys")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    ).stdout
    # The archive that this system itself is made from; security updates have a label of their own.
    archives = [line.split()[1] for line in listed.splitlines() if line.startswith("Debian ")]
    if not archives:
        raise SourceError("this system knows no archive of Debian; after apt-get update it may")
    (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    table = apt / "sources.list"
    table.write_text(f"deb-src [signed-by={KEYRING}] {archives[0]} {release} main\n")
    settings = {
        "Dir::Etc::sourcelist": str(table),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": str(apt / "lists"),
        "Dir::Cache": str(apt / "cache"),
        "APT::Sandbox::User": "",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
