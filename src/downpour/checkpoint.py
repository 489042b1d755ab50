"""What was trained, on disk: a manifest, Parquet files of rows, safetensors of dense values.

docs/checkpoint-format.md shows the format. The data of a save goes to a new folder; then the
manifest that names it replaces the old one in one step. A crash at any moment leaves the save
before whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from downpour.disk import (
    fingerprint,
    finite_rows,
    naming,
    read_rows_file,
    sync,
    write_rows,
)
from downpour.errors import SavedRunError
from downpour.manifest import (
    TABLES,
    is_texts,
    read_sealed,
    reading,
    require_files,
    require_tables,
    sealed,
)
from downpour.plan.specs import plan_name
from downpour.transport import DenseState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from downpour.client import Client
    from downpour.manifest import Check
    from downpour.plan.plan import Plan
    from downpour.plan.specs import SparseTableSpec
    from downpour.transport import Keys

MANIFEST, DENSE, MODEL = "manifest.json", "dense.safetensors", "model.pickle"
CONTENT: dict[str, tuple[str, Check]] = {
    "folder": ("the name of a folder beside it, save-...", lambda it: _is_folder(it)),
    **TABLES,
    "import_paths": ("a list of folders", is_texts),
    "schema": ("a schema or null", lambda it: it is None or isinstance(it, dict)),
}


def save(
    folder: Path,
    client: Client,
    model: torch.nn.Module,
    pickled: bytes,
    facts: Mapping[str, Any],
) -> None:
    """Write the tables of `client`, the model's buffers, and its pickled structure.

    `facts` go into the manifest as they are. An OSError leaves what was saved before.
    """
    data = folder / f"save-{secrets.token_hex(4)}"
    data.mkdir(parents=True)
    try:
        with naming(data):
            _write(folder, data, client, model, pickled, facts)
    except BaseException:
        if not _is_named(folder / MANIFEST, data):
            shutil.rmtree(data, ignore_errors=True)
        raise
    for old in folder.glob("save-*"):
        if old != data:
            shutil.rmtree(old)


def _write(
    folder: Path,
    data: Path,
    client: Client,
    model: torch.nn.Module,
    pickled: bytes,
    facts: Mapping[str, Any],
) -> None:
    """Write all files of a save, and then the manifest that names them."""
    tables = {spec.name: _write_rows(data, spec, client) for spec in client.plan.sparse}
    dense = {spec.name: client.export_dense(spec.name) for spec in client.plan.dense}
    (data / MODEL).write_bytes(pickled)
    _save_tensors(model_tensors(client.plan, model, dense), data / DENSE)
    shutil.copymode(data / MODEL, data / DENSE)  # safetensors keeps others from reading it
    manifest = {
        "folder": data.name,
        "sparse": tables,
        "dense": {
            name: {"step": table.step, "updates": dict(table.updates)}
            for name, table in dense.items()
        },
        "files": {path.name: fingerprint(path) for path in sorted(data.iterdir())},
        **facts,
    }
    for path in (*data.iterdir(), data):
        sync(path)
    write_whole(folder / MANIFEST, sealed(manifest))


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # as of a full disk
        raise OSError(f"{error}: {str(path)!r}") from error


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path, beside=beside):
        try:
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):  # as the folder is a file by now
                beside.unlink()
        sync(path.parent)


def read_manifest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The manifest of a saved model and the folder of its data, every file checked.

    Raises SavedRunError: nothing saved, another format, a file that is missing or was changed.
    """
    path = folder / MANIFEST
    try:
        manifest = read_sealed(path, CONTENT)
    except (FileNotFoundError, NotADirectoryError):
        raise SavedRunError(
            f"{folder} holds no trained model ({MANIFEST} is missing); give the folder that "
            "`downpour train` named in its last line"
        ) from None
    require_files(path, manifest, DENSE, MODEL)
    data = folder / str(manifest["folder"])
    for name, written in manifest["files"].items():
        _require_whole(data / name, written)
    return manifest, data


def _require_whole(path: Path, written: Mapping[str, Any]) -> None:
    """Raise SavedRunError for a file that is not as it was written."""
    if not path.is_file():
        raise SavedRunError(f"{path} is missing")
    with reading(path):
        found = fingerprint(path)
    if found != {name: written[name] for name in found}:
        raise SavedRunError(
            f"{path} was damaged: it has {found['bytes']} bytes of sha256 "
            f"{found['sha256'][:12]}..., written were {written['bytes']} of "
            f"{written['sha256'][:12]}..."
        )


def restore(manifest: Mapping[str, Any], data: Path, client: Client) -> dict[str, Keys]:
    """Fill the empty tables of `client`; by table, the keys whose rows were left out.

    Those are rows that hold NaN or infinity. Raises SavedRunError for what is not of these tables.
    """
    plan, path = client.plan, data.parent / MANIFEST
    require_tables(path, manifest, "sparse", [spec.name for spec in plan.sparse])
    require_tables(path, manifest, "dense", [block.name for block in plan.dense])
    left_out = {}
    for spec in plan.sparse:
        saved = manifest["sparse"][spec.name]
        rows, keys = finite_rows(read_rows_file(data, spec, saved))
        with reading(data / saved["file"]):
            client.restore(spec.name, rows)
        if len(keys):
            left_out[spec.name] = keys
    tensors = load_tensors(data)
    for block in plan.dense:
        saved = manifest["dense"][block.name]
        names = [section.name for section in block.sections]
        with reading(data / DENSE):
            weights = [tensors[f"parameter/{name}"].numpy().reshape(-1) for name in names]
            state = DenseState(
                np.concatenate(weights),
                {name: tensors[f"state/{name}"].numpy() for name in names},
                saved["updates"],
                saved["step"],
            )
            client.restore_dense(block.name, state)
    return left_out


def load_tensors(data: Path) -> dict[str, torch.Tensor]:
    """Parameters, buffers and rule state by `parameter/NAME`, `buffer/NAME` and `state/NAME`."""
    with reading(data / DENSE):
        return load_file(data / DENSE)


def model_tensors(
    plan: Plan, model: torch.nn.Module, dense: Mapping[str, DenseState]
) -> dict[str, torch.Tensor]:
    """Copies of all that is not in rows, by the names of `load_tensors`.

    Parameters that no loss reaches are the model's own.
    """
    parts = {f"parameter/{plan_name(name)}": p.detach() for name, p in model.named_parameters()}
    parts |= {f"buffer/{plan_name(name)}": value for name, value in model.named_buffers()}
    for spec in plan.dense:
        table = dense[spec.name]
        for section in spec.sections:
            weights = torch.from_numpy(table.weights[section.span]).view(section.shape)
            parts[f"parameter/{section.name}"] = weights
            parts[f"state/{section.name}"] = torch.from_numpy(table.state[section.name])
    # The file takes neither views nor two names for one memory.
    return {name: value.cpu().contiguous().clone() for name, value in parts.items()}


def _write_rows(data: Path, spec: SparseTableSpec, client: Client) -> dict[str, Any]:
    return {
        **write_rows(data, spec, client.export(spec.name)),
        "dim": spec.accessor.dim,
        "rule": "; ".join(map(repr, spec.accessor.rules)),
        "features": {feature.name: feature.space for feature in spec.features},
    }


def _is_folder(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"save-[0-9a-z]+", value) is not None


def _is_named(manifest: Path, data: Path) -> bool:
    """Whether a manifest is of the data in this folder."""
    return manifest.is_file() and data.name in manifest.read_text(encoding="utf-8")
