"""Plugins and user functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreason.plugins import load_function, load_plugins


def test_a_missing_plugin_is_named() -> None:
    with pytest.raises(
        ValueError, match="plugin 'no_such_package.part': no package 'no_such_package' is installed"
    ):
        load_plugins(["no_such_package.part"])


def test_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    assert load_function(f"{file}:length")(["ab"]) == [2.0]
    with pytest.raises(ValueError, match=r"has no function 'size'; it has \['length'\]"):
        load_function(f"{file}:size")
    with pytest.raises(ValueError, match="there is no file"):
        load_function(f"{tmp_path / 'other.py'}:length")
    with pytest.raises(ValueError, match="write it as path/to/file.py:function_name"):
        load_function("mine.length")


def test_a_file_that_does_not_run_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import no_such_module\n")
    with pytest.raises(ValueError, match="mine.py does not run: ModuleNotFoundError: No module named"):
        load_function(f"{file}:length")
