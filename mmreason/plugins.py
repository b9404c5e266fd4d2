"""Import the packages a recipe names and the functions of a user's own file. The only dynamic import of mmreason."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BUNDLED = ("mmreason_encoders", "mmreason_tools")


def load_plugins(names: Sequence[str] = BUNDLED) -> None:
    """Import each package; importing registers what it brings (Auto classes, tools).

    Raises:
        ValueError: a package is not installed.
    """
    for name in names:
        # "a.b" is looked up inside "a", which find_spec imports and reports as missing by itself
        missing = next((n for n in _parents(name) if importlib.util.find_spec(n) is None), None)
        if missing is not None:
            raise ValueError(
                f"plugin {name!r}: no package {missing!r} is installed; install it or remove it from plugins"
            )
        importlib.import_module(name)


def _parents(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[: i + 1]) for i in range(len(pieces))]


def load_function(spec: str) -> Callable[..., Any]:
    """The function named by `file.py:name`, from a user's file.

    Raises:
        ValueError: the form is wrong, the file does not exist or does not run, or it has no such function.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"{spec!r} is not a function of a file; write it as path/to/file.py:function_name")
    if not Path(path).is_file():
        raise ValueError(f"{spec!r}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"mmreason_user_{Path(path).stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses of the file look their module up there
    try:
        module_spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, LookupError) as error:
        raise ValueError(f"{spec!r}: {path} does not run: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise ValueError(f"{spec!r}: {path} has no function {name!r}; it has {names}")
    return function
