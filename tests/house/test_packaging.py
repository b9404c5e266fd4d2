"""The wheel holds the three packages whole, the licence and the command, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"mmreason": ".", "mmreason_encoders": "encoders", "mmreason_tools": "tools"}
DATA_SUFFIXES = (".py", ".typed", ".html", ".css", ".js", ".jinja", ".json")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel that is built from a copy, so that no build folder appears in the tree."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("mmreason", "encoders", "tools", "tests", "recipes"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = copy.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_only_our_three_import_names_are_installed(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(SOURCES)


def test_every_source_file_is_in_the_wheel(wheel: list[str]) -> None:
    for package, root in SOURCES.items():
        base = ROOT / root
        files = [
            p
            for p in (base / package).rglob("*")
            if p.suffix in DATA_SUFFIXES and "__pycache__" not in p.parts
        ]
        missing = sorted(p.relative_to(base).as_posix() for p in files)
        missing = [name for name in missing if name not in wheel]
        assert not missing, missing


def test_nothing_in_the_packages_has_a_suffix_that_the_wheel_would_leave_out() -> None:
    for package, root in SOURCES.items():
        files = [
            p for p in (ROOT / root / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        ]
        left_out = [p.name for p in files if p.suffix not in DATA_SUFFIXES]
        assert not left_out, f"add to [tool.setuptools.package-data] and to this test: {left_out}"


def test_the_licence_and_the_command_are_in_the_wheel(wheel: list[str]) -> None:
    info = [name for name in wheel if ".dist-info/" in name]
    assert any(name.endswith("LICENSE") for name in info)
    assert any(name.endswith("entry_points.txt") for name in info)
