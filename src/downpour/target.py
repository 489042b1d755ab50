"""From `module_or_file[:function]` on the command line to what that returns."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from downpour.errors import SettingError
from downpour.local_path import local_path
from downpour.run import Run

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODEL_SEED = 0
T = TypeVar("T")


def load_run(target: str) -> Run:
    """What a function of a file or module returns, `run` unless the target names another.

    See `load`. Raises SettingError.
    """
    return load(target, "run", Run)


def load(target: str, function: str, kind: type[T]) -> T:
    """Import a module or a file, call its function, and give what it returns.

    A file finds the modules beside it, as when Python runs it. Random numbers are seeded before
    the call, so that a model starts from the same weights each time. Raises SettingError.
    """
    where, _, said = target.partition(":")
    name = said or function
    if not where:
        raise SettingError(f"{target!r} names no file or module; give FILE or FILE:FUNCTION")
    module = _load(where)
    made = getattr(module, name, None)
    if not callable(made):
        raise SettingError(
            f"{where} has no function {name!r}; give FILE:FUNCTION, the function that returns a "
            f"downpour.{kind.__name__}"
        )
    torch.manual_seed(MODEL_SEED)
    given = made()
    if not isinstance(given, kind):
        raise SettingError(
            f"{target}: {name}() must return a downpour.{kind.__name__}, got {given!r}"
        )
    return given


def _load(where: str) -> ModuleType:
    if where.endswith(".py"):
        return _load_file(local_path(where, "the target"))
    if "" not in sys.path:
        sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # a module that is there imports one that is not
        raise SettingError(f"no module {where!r}; for a file say {where}.py") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SettingError(f"there is no file {path}")
    path = path.resolve()
    if "." in path.stem:
        raise SettingError(f"{path.name} cannot be imported: a module's name has no dot; rename it")
    add_import_path(path.parent)
    loaded = sys.modules.get(path.stem)
    if loaded is not None and _is_of(loaded.__spec__, path):
        return loaded
    importlib.invalidate_caches()
    if loaded is not None or not _is_of(importlib.util.find_spec(path.stem), path):
        raise SettingError(
            f"{path.name} cannot be imported as {path.stem!r}: a module of that name is there "
            "already; rename the file"
        )
    return importlib.import_module(path.stem)


def _is_of(spec: ModuleSpec | None, path: Path) -> bool:
    """Whether a module is that of a file."""
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def add_import_path(folder: Path) -> None:
    """Let modules of a folder be imported, before others of the same name."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
