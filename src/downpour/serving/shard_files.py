"""Shards that servers keep on their own disks: a save has a name, and a folder for each shard.

docs/checkpoint-format.md shows the format. A shard is written under a temporary name, and renamed
when all servers have theirs on the disk. So a crash leaves nothing under the name, unless it comes
while the servers rename; then the ids of the shards show it.
"""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from downpour.disk import fingerprint, finite_rows, read_rows_file, sync, write_rows
from downpour.errors import RefusedError, SavedRunError
from downpour.manifest import (
    TABLES,
    is_count,
    read_sealed,
    reading,
    require_files,
    require_tables,
    sealed,
)
from downpour.transport import DenseState

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from downpour.manifest import Check
    from downpour.server import Server
    from downpour.serving.hosted import Hosted

LOG = logging.getLogger("downpour.server")
MANIFEST, DENSE = "manifest.json", "dense.safetensors"
SAVE: dict[str, tuple[str, Check]] = {"save": ("a text", lambda it: isinstance(it, str))}
CONTENT: dict[str, tuple[str, Check]] = {
    **SAVE,
    "fingerprint": ("a text", lambda it: isinstance(it, str)),
    "shard": ("a whole number >= 0", is_count),
    "num_shards": ("a whole number >= 0", is_count),
    **TABLES,
}
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


def shard_folder(root: Path | None, name: str, hosted: Hosted) -> Path:
    """Where the save of a name has this shard.

    Raises RefusedError where a server has no folder for saves, and for a name that is not one part
    of a path.
    """
    if root is None:
        raise RefusedError(
            "this server has no folder for saves; start it with `downpour server --save-root DIR`"
        )
    if NAME.fullmatch(name) is None:
        raise RefusedError(
            "the name of a save must be 1 to 100 of the characters A-Z, a-z, 0-9, '.', '_' and "
            f"'-', the first one no '.', got {name!r:.200}"
        )
    return root / name / f"shard-{hosted.shard}-of-{hosted.deployment.num_shards}"


def save_shard(folder: Path, hosted: Hosted, incarnation: int, save_id: str) -> None:
    """Write the tables, each as of one moment, for the folder that `shard_folder` gave.

    All files are on the disk when it returns, under a temporary name that `keep_shard` changes. It
    removes what interrupted saves of the same name have left.
    """
    written = _beside(folder, save_id)
    if written.is_dir():  # asked for again
        return
    for left in folder.parent.parent.glob(f".{folder.parent.name}.{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = written.with_name(f"{written.name}.part")
    unfinished.mkdir(parents=True)
    try:
        _write(unfinished, hosted, incarnation, save_id)
        unfinished.rename(written)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sync(written.parent)


def keep_shard(folder: Path, save_id: str, replaces: str | None) -> None:
    """Rename what `save_shard` has written.

    replaces: the id of a broken save, whose shard is replaced if it has the name. Raises
    RefusedError if the shard of another save has it, or if nothing was written.
    """
    found = {(number, of): own_id for number, of, own_id in shards_of(folder.parent)}
    place = _numbers(folder)
    if found.get(place) == save_id:  # asked for again
        return
    if place in found and found[place] != replaces:
        raise RefusedError(
            f"{folder.parent.name!r} exists already, with shard {place[0]} of {place[1]}; save "
            "under another name, or remove it first"
        )
    written = _beside(folder, save_id)
    if not written.is_dir():
        raise RefusedError(
            f"{folder.parent.name!r} was not written here, or another save of that name has "
            "removed it; save again"
        )
    old = _beside(folder, f"{save_id}.old")
    folder.parent.mkdir(exist_ok=True)
    if place in found:
        folder.rename(old)
    written.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    for path in (folder.parent, folder.parent.parent):
        sync(path)


def drop_shard(folder: Path, save_id: str) -> None:
    """Remove what a save has written, whether it has its name already or not."""
    shutil.rmtree(_beside(folder, save_id), ignore_errors=True)
    if (*_numbers(folder), save_id) in shards_of(folder.parent):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other shards are in it
            folder.parent.rmdir()


def read_manifest(folder: Path, hosted: Hosted) -> dict[str, Any]:
    """The manifest of a saved shard, that of this shard of these tables.

    Raises SavedRunError where it is missing, damaged or of another format, and RefusedError for
    other tables.
    """
    path = folder / MANIFEST
    try:
        manifest = read_sealed(path, CONTENT)
    except (FileNotFoundError, NotADirectoryError):
        raise SavedRunError(_lacks(folder)) from None
    own = hosted.deployment.fingerprint, hosted.shard, hosted.deployment.num_shards
    if (manifest["fingerprint"], manifest["shard"], manifest["num_shards"]) != own:
        raise RefusedError(
            f"{folder} has shard {manifest['shard']} of {manifest['num_shards']} of the tables "
            f"{manifest['fingerprint'][:12]}, this is shard {own[1]} of {own[2]} of the "
            f"tables {own[0][:12]}; plan with the same model, losses, data and settings"
        )
    require_files(path, manifest, DENSE)
    require_tables(path, manifest, "sparse", [*hosted.server.sparse])
    for name, written in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != written["bytes"]:
            raise SavedRunError(
                f"{folder / name} was damaged: it has {size or 0} bytes, written were "
                f"{written['bytes']}"
            )
    return manifest


def load_shard(folder: Path, hosted: Hosted, save_id: str | None = None) -> Server:
    """The tables of a saved shard, as a server of their own.

    save_id: of the save that it must be of, if given. Rows that hold NaN or infinity are left out,
    and logged. Raises as `read_manifest` does, and SavedRunError for a file that was changed.
    """
    manifest = read_manifest(folder, hosted)
    if save_id is not None and manifest["save"] != save_id:
        raise SavedRunError(f"{folder} is of another save than a moment before; load again")
    for name, written in manifest["files"].items():
        with reading(folder / name):
            found = fingerprint(folder / name)
        if found != {it: written[it] for it in found}:
            raise SavedRunError(f"{folder / name} was damaged: it has another sha256 than written")
    server = hosted.new_server()
    for spec in hosted.deployment.plan.sparse:
        saved = manifest["sparse"][spec.name]
        state, left_out = finite_rows(read_rows_file(folder, spec, saved))
        if len(left_out):
            LOG.warning(
                "event=rows_left_out table=%s rows=%d reason=NaN or infinity keys=%s",
                spec.name, len(left_out), left_out[:10].tolist(),
            )  # fmt: skip
        with reading(folder / saved["file"]):
            hosted.check_own(state.keys)
            server.restore(spec.name, state)
    with reading(folder / DENSE):
        tensors = load_file(folder / DENSE)
        for name, saved in manifest["dense"].items():
            parts = list(server.dense[name].sections)
            weights = [tensors[f"parameter/{name}/{part}"].reshape(-1) for part in parts]
            state_of = {part: tensors[f"state/{name}/{part}"] for part in parts}
            flat = np.concatenate(weights)
            server.restore_dense(name, DenseState(flat, state_of, saved["updates"], saved["step"]))
    return server


def _write(data: Path, hosted: Hosted, incarnation: int, save_id: str) -> None:
    """All files of a shard, the manifest last; they are on the disk when this returns."""
    deployment = hosted.deployment
    sparse = {
        spec.name: write_rows(data, spec, hosted.export(spec.name))
        for spec in deployment.plan.sparse
    }
    dense = _write_dense(data / DENSE, hosted)
    manifest = {
        "save": save_id,
        "incarnation": incarnation,
        "fingerprint": deployment.fingerprint,
        "shard": hosted.shard,
        "num_shards": deployment.num_shards,
        "sections": {
            "min_size": deployment.sections.min_size,
            "placement": deployment.sections.placement,
        },
        "sparse": sparse,
        "dense": dense,
        "files": {path.name: fingerprint(path) for path in sorted(data.iterdir())},
    }
    (data / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
    for path in (*data.iterdir(), data):
        sync(path)


def _write_dense(path: Path, hosted: Hosted) -> dict[str, Any]:
    """Weights and state by part; what the manifest says of each table that has weights."""
    tensors: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {}
    for name, table in hosted.server.dense.items():
        own = hosted.export_dense(name)
        if own is None:
            continue
        for part in table.sections.values():
            tensors[f"parameter/{name}/{part.name}"] = own.weights[part.span].reshape(part.shape)
            tensors[f"state/{name}/{part.name}"] = own.state[part.name]
        facts[name] = {"step": own.step, "updates": dict(own.updates)}
    save_file(tensors, path)
    return facts


def _beside(folder: Path, ending: str) -> Path:
    """The temporary name of a shard."""
    return folder.parent.parent / f".{folder.parent.name}.{folder.name}.{ending}"


def _lacks(folder: Path) -> str:
    """Say that a save has not this shard, and what there is."""
    name, root = folder.parent.name, folder.parent.parent
    if shards := shards_of(folder.parent):
        there = ", ".join(f"{number} of {of}" for number, of, _ in shards)
        return (
            f"save {name!r} has no {folder.name}, but shards {there}; load it on as many servers, "
            "each with the folder that it saved in"
        )
    names = sorted(path.name for path in root.iterdir() if shards_of(path)) if root.is_dir() else []
    return f"no save {name!r} in {root}; there are: {', '.join(names) or 'none'}"


def shards_of(folder: Path) -> list[tuple[int, int, str | None]]:
    """The shards in the folder of a save: number, how many there were, and the id of the save.

    The id is None if the manifest cannot be read.
    """
    if not folder.is_dir() or folder.name.startswith("."):
        return []
    shards = [path for path in folder.iterdir() if SHARD.fullmatch(path.name)]
    return sorted((*_numbers(path), _id_of(path)) for path in shards)


def _numbers(shard: Path) -> tuple[int, int]:
    found = SHARD.fullmatch(shard.name)
    assert found is not None
    return int(found[1]), int(found[2])


def _id_of(shard: Path) -> str | None:
    try:
        return str(read_sealed(shard / MANIFEST, SAVE)["save"])
    except (OSError, SavedRunError):
        return None
