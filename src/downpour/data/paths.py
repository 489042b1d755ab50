"""Which files a path stands for, in which order, and in which format."""

from __future__ import annotations

import glob
import re
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from downpour.data.readers import COMPRESSED, FORMATS, SUFFIXES
from downpour.errors import DataError, SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence


def listed(paths: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Give one path or several as texts."""
    several = [paths] if isinstance(paths, str | Path) else paths
    if not several:
        raise SettingError("Files.paths must name at least one file, got none")
    return tuple(fspath(path) for path in several)


def expand(path: str, file_format: str | None) -> list[Path]:
    """List the files that a path, a folder or a pattern stands for, in natural order.

    Of a folder, hidden files and those that begin with "_" are left out, and without a format
    those of a suffix that says none. Raises DataError where there is no file.
    """
    here = Path(path)
    if here.is_file():
        return [here]
    if here.is_dir():
        found = [file for file in here.iterdir() if _is_data(file, file_format)]
        rule = "no data file in the folder" if file_format else "no file of a known suffix in"
    else:
        found = [file for file in map(Path, glob.glob(path, recursive=True)) if file.is_file()]  # noqa: PTH207 (patterns may be absolute)
        rule = "no file matches"
    if not found:
        raise DataError(f"{rule} {path!r} (looked from {Path.cwd()})")
    return sorted(found, key=_natural)


def format_of(path: Path) -> str:
    """Tell a file's format by its suffix; DataError where that says none."""
    stem, last = path.stem, path.suffix.lower()
    compressed = last in COMPRESSED
    kind = SUFFIXES.get(Path(stem).suffix.lower() if compressed else last)
    if kind is None:
        raise DataError(
            f"cannot tell the format of {path.name!r} by its suffix ({', '.join(SUFFIXES)}, text "
            f"also with {', '.join(COMPRESSED)}); say format= {' or '.join(map(repr, FORMATS))}"
        )
    if compressed and kind not in ("csv", "tsv"):
        raise DataError(f"only text is read compressed as a whole, got {path.name!r}")
    return kind


def _is_data(file: Path, file_format: str | None) -> bool:
    if file.name.startswith((".", "_")) or not file.is_file():
        return False
    if file_format is not None:
        return True
    try:
        format_of(file)
    except DataError:
        return False
    return True


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
