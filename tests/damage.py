"""Saves that are changed on disk: by a bit, or so that every checksum is right again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from downpour.disk import fingerprint
from downpour.manifest import sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def unsealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says besides its format and checksum."""
    return {name: it for name, it in manifest.items() if name not in ("format", "checksum")}


def flipped(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def resealed(
    path: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None
) -> None:
    """Change a manifest, and give it the checksum of what it says then."""
    manifest = unsealed(json.loads(path.read_text()))
    change(manifest)
    path.write_text(sealed(manifest))


def replaced(manifest: Path, file: Path, content: bytes) -> None:
    """Give a file of a save another content, and let its manifest say that this is right."""
    file.write_bytes(content)

    def list_it(said: dict[str, Any]) -> None:
        said["files"][file.name] = fingerprint(file)

    resealed(manifest, list_it)
