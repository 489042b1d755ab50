"""Which files a path stands for, in which order, and in which format."""

from __future__ import annotations

import glob
import re
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from downpour.data.readers import COMPRESSED, FORMATS, SUFFIXES
from downpour.errors import DataError, SettingError
from downpour.local_path import local_path

if TYPE_CHECKING:
    from collections.abc import Sequence


def listed(paths: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Give one path or several as texts."""
    several = [paths] if isinstance(paths, str | Path) else paths
    if not several:
        raise SettingError("Files.paths must name at least one file, got none")
    for path in several:
        local_path(path, "Files.paths")
    return tuple(fspath(path) for path in several)


def expand(path: str, file_format: str | None) -> list[Path]:
    """List the files that a path, a folder or a pattern stands for, in natural order.

    `~` is the user's home. Of a folder, hidden files and those that begin with "_" are left out,
    and without a format those of a suffix that says none; folders in it are refused where they
    hold data. Raises DataError where there is no file.
    """
    here = local_path(path, "Files.paths")
    if here.is_file():
        return [here]
    if here.is_dir():
        found = [file for file in here.iterdir() if _is_data(file, file_format)]
        _refuse_folders(here, file_format)
        rule = "no data file in the folder" if file_format else "no file of a known suffix in"
    else:
        found = [Path(file) for file in glob.glob(str(here), recursive=True)]  # noqa: PTH207 (patterns may be absolute)
        found = [file for file in found if file.is_file()]
        rule = "no file matches"
    if not found:
        raise DataError(f"{rule} {path!r} (looked from {Path.cwd()})")
    return sorted(found, key=_natural)


def partitions(path: Path) -> dict[str, str]:
    """What the folders of a path say in the way of Hive: {"day": "1"} of log/day=1/part.csv."""
    named = (folder.partition("=") for folder in path.parts[:-1])
    return {name: value for name, mark, value in named if name and mark}


def _refuse_folders(here: Path, file_format: str | None) -> None:
    """Raise DataError where folders of a folder hold data, which would be left out unseen."""
    for folder in sorted(here.iterdir(), key=_natural):
        if folder.name.startswith((".", "_")) or not folder.is_dir():
            continue
        inside = next((it for it in folder.rglob("*") if _is_data(it, file_format)), None)
        if inside is None:
            continue
        columns = partitions(inside.relative_to(here))
        note = ""
        if columns:
            note = f"; {', '.join(columns)} of the folders' names is no column then"
        raise DataError(
            f"the folder {str(here)!r} has folders with data in it, as {inside.relative_to(here)}, "
            f"which are not read with it; name them, for all of them "
            f"{str(here / '**' / ('*' + inside.suffix))!r}{note}"
        )


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
