"""mmreason: SFT and curriculum GRPO for models that reason over images, video and audio.

`from mmreason import load_recipe, train, evaluate` is the command line's own work, from Python:

    train(load_recipe("recipes/debug.yaml", ["seed=1"]))

Importing this package loads neither torch nor transformers. `train` and `evaluate` are rooms of the house as well,
so these two packages are callable: the call imports what it needs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmreason.api import evaluate_model as evaluate
    from mmreason.api import train
    from mmreason.recipe import dump_recipe, load_recipe

__version__ = "0.1.0"
__all__ = ["dump_recipe", "evaluate", "load_recipe", "train"]

_FUNCTIONS = {
    "load_recipe": ("mmreason.recipe", "load_recipe"),
    "dump_recipe": ("mmreason.recipe", "dump_recipe"),
    "train": ("mmreason.api", "train"),
    "evaluate": ("mmreason.api", "evaluate_model"),
}


class _CallableRoom(ModuleType):
    """A subpackage that, called, is the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function that `_FUNCTIONS` names for this room."""
        module, name = _FUNCTIONS[self.__name__.rpartition(".")[2]]
        return getattr(import_module(module), name)(*args, **kwargs)


class _Package(ModuleType):
    """This package: a subpackage that shares its name with a function becomes callable as it is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        """The import system binds each subpackage here."""
        if name in _FUNCTIONS and isinstance(value, ModuleType):
            value.__class__ = _CallableRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import what is asked for by name, when it is asked for."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'mmreason' has no attribute {name!r}; it offers {', '.join(__all__)}")
    if name in ("train", "evaluate"):
        return import_module(f"mmreason.{name}")
    module, function = _FUNCTIONS[name]
    return getattr(import_module(module), function)
