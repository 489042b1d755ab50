"""The manifest of a save: JSON with a checksum of itself, and fields that are what they must be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

from downpour.errors import RefusedError, SavedRunError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Check = Callable[[Any], bool]

FORMAT = 2
CHECKSUM = "checksum"
WAY_OUT = "save it again, or take another copy of it"


def sealed(content: Mapping[str, Any]) -> str:
    """The text of a manifest of this content, its format and its checksum."""
    whole = {"format": FORMAT, **content}
    return json.dumps({**whole, CHECKSUM: _checksum(whole)}, indent=2)


def read_sealed(path: Path, checks: Mapping[str, tuple[str, Check]]) -> dict[str, Any]:
    """What `sealed` wrote, if it is as it was and every field passes its check.

    checks: by name, what the field must be, in words, and whether it is. Other fields are passed
    over. Raises FileNotFoundError or NotADirectoryError where there is no file, and SavedRunError
    for one that is damaged, or of another format.
    """
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (ValueError, RecursionError) as error:
        raise SavedRunError(
            f"{path} is no JSON ({str(error)[:200]}): it was damaged; {WAY_OUT}"
        ) from None
    except OSError as error:
        raise SavedRunError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(manifest, dict):
        raise SavedRunError(f"{path} must hold a JSON object, got a {type(manifest).__name__}")
    if manifest.get("format") != FORMAT:
        raise SavedRunError(
            f"{path} has format {manifest.get('format')!r:.40}, this Downpour reads format "
            f"{FORMAT}; use the version of Downpour that wrote it, or train and save again"
        )
    checksum = manifest.pop(CHECKSUM, None)
    if checksum != _checksum(manifest):
        raise SavedRunError(
            f"{path} was damaged: its {CHECKSUM} is not that of what it says; {WAY_OUT}"
        )
    for name, (what, check) in checks.items():
        if name not in manifest:
            raise SavedRunError(f"{path} lacks {name!r}: it was damaged; {WAY_OUT}")
        if not check(manifest[name]):
            raise SavedRunError(
                f"{path}: {name!r} must be {what}, got {manifest[name]!r:.200}; {WAY_OUT}"
            )
    return manifest


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a saved file is read is a SavedRunError that names it.

    But for what is no fault of the file: too little memory, or servers that do not take it.
    """
    try:
        yield
    except (SavedRunError, ServerError, RefusedError, MemoryError):
        raise
    except Exception as error:
        raise SavedRunError(
            f"{path} cannot be read as it was written ({type(error).__name__}: {error!s:.300}): it "
            f"was damaged; {WAY_OUT}"
        ) from error


# What fields may be checked for.


def is_count(value: object) -> bool:
    """Whether it is a whole number that counts something."""
    return type(value) is int and 0 <= value < 2**63


def is_texts(value: object) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(isinstance(it, str) for it in value)


def is_files(value: object) -> bool:
    """Whether these are names in a folder, at least one, with a size and a SHA-256 each."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(
            re.fullmatch(r"[A-Za-z0-9_.-]+", name) is not None
            and isinstance(facts, dict)
            and is_count(facts.get("bytes"))
            and isinstance(facts.get("sha256"), str)
            and re.fullmatch(r"[0-9a-f]{64}", facts["sha256"]) is not None
            for name, facts in value.items()
        )
    )


def is_sparse(value: object) -> bool:
    """Whether these are tables of rows, each with its file, and how far it was."""
    return isinstance(value, dict) and all(
        isinstance(table, dict)
        and isinstance(table.get("file"), str)
        and is_count(table.get("rows"))
        and is_count(table.get("step"))
        and isinstance(table.get("log_decay"), float)
        and -math.inf < table["log_decay"] <= 0.0
        for table in value.values()
    )


def is_dense(value: object) -> bool:
    """Whether these are dense tables, each with how far it and each of its parts was."""
    return isinstance(value, dict) and all(
        isinstance(table, dict)
        and is_count(table.get("step"))
        and isinstance(table.get("updates"), dict)
        and all(is_count(updates) for updates in table["updates"].values())
        for table in value.values()
    )


TABLES: dict[str, tuple[str, Check]] = {
    "sparse": ("sparse tables with file, rows, step >= 0 and log_decay <= 0", is_sparse),
    "dense": ("dense tables with step >= 0 and updates", is_dense),
    "files": ("one or more files with bytes and sha256", is_files),
}


def require_files(path: Path, manifest: Mapping[str, Any], *names: str) -> None:
    """Raise SavedRunError where a manifest does not list these files, and those of its rows."""
    for name in (*names, *(table["file"] for table in manifest["sparse"].values())):
        if name not in manifest["files"]:
            raise SavedRunError(f"{path} lists no file {name!r}, which it needs; {WAY_OUT}")


def require_tables(path: Path, manifest: Mapping[str, Any], kind: str, names: list[str]) -> None:
    """Raise SavedRunError where a manifest lacks tables of a kind, "sparse" or "dense"."""
    if missing := [name for name in names if name not in manifest[kind]]:
        raise SavedRunError(
            f"{path} has no {kind} table {missing[0]!r}; it has: "
            f"{', '.join(manifest[kind]) or 'none'}"
        )


def _checksum(content: Mapping[str, Any]) -> str:
    """A hash of what is said, however it is written."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
