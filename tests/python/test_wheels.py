"""What scripts/wheels.py says of a wheel or a source distribution that is not as it should be."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "wheels.py"
METADATA = "License-Expression: MIT\nLicense-File: LICENSE\nRequires-Python: >=3.11\n"
GOOD = {
    "cpploop/__init__.py": "",
    "cpploop/py.typed": "",
    "cpploop/_native.pyi": "",
    "cpploop/_native.cpython-313-x86_64-linux-gnu.so": "",
    "cpploop-0.1.0.dist-info/METADATA": METADATA,
    "cpploop-0.1.0.dist-info/licenses/LICENSE": "",
    "cpploop-0.1.0.dist-info/licenses/licenses/liburing.txt": "",
}


@pytest.fixture(scope="module")
def wheels() -> Any:
    spec = importlib.util.spec_from_file_location("wheels", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules["wheels"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["wheels"]


def wheel_of(files: dict[str, str], folder: Path) -> Path:
    path = folder / "cpploop-0.1.0-cp313-cp313-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_a_good_wheel(wheels: Any, tmp_path: Path) -> None:
    assert list(wheels.content_problems(wheel_of(GOOD, tmp_path))) == []


@pytest.mark.parametrize("missing", [name for name in GOOD if not name.endswith("METADATA")])
def test_what_a_wheel_lacks(wheels: Any, tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in GOOD.items() if name != missing}
    (problem,) = wheels.content_problems(wheel_of(files, tmp_path))
    assert problem.startswith("lacks ")


@pytest.mark.parametrize("extra", ["include/cpploop.h", "lib/libcpploop_core.a", "tests/x.py"])
def test_what_a_wheel_should_not_hold(wheels: Any, tmp_path: Path, extra: str) -> None:
    problems = list(wheels.content_problems(wheel_of({**GOOD, extra: ""}, tmp_path)))
    assert problems == [f"holds {extra}"]


def test_a_wheel_that_is_too_large(wheels: Any, tmp_path: Path) -> None:
    # Stored as it is, so that it is as large as it looks.
    problems = list(wheels.content_problems(wheel_of({**GOOD, "big": "x" * (1 << 20)}, tmp_path)))
    assert len(problems) == 1 and problems[0].endswith("bytes large")


def test_what_a_source_distribution_lacks_and_holds(wheels: Any, tmp_path: Path) -> None:
    path = tmp_path / "cpploop-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in (*wheels.IN_SDIST[1:], "build/left_over", "python/cpploop/_native.so"):
            archive.addfile(tarfile.TarInfo(f"cpploop-0.1.0/{name}"), io.BytesIO())
    problems = set(wheels.sdist_problems(path))
    assert problems == {
        f"lacks {wheels.IN_SDIST[0]}",
        "holds build/left_over",
        "holds python/cpploop/_native.so",
    }


def test_symbols_are_packed_alike(wheels: Any, tmp_path: Path) -> None:
    symbols = tmp_path / "_native.so.debug"
    symbols.write_bytes(b"symbols")
    packed = []
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        # The name of the tarball is not part of it.
        target = tmp_path / name / f"{name}.tar.gz"
        wheels.pack({f"cpploop/{symbols.name}": symbols}, target, "1767225600")
        symbols.touch()
        packed.append(target.read_bytes())
    assert packed[0] == packed[1]
