"""What was trained, on disk: a manifest, Parquet files of rows, safetensors of dense values.

docs/checkpoint-format.md shows the format. The data of a save goes to a new folder; then the
manifest that names it replaces the old one in one step. A crash at any moment leaves the save
before whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from downpour.disk import fingerprint, read_rows_file, sync, write_rows
from downpour.errors import SavedRunError
from downpour.plan.specs import plan_name
from downpour.transport import DenseState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from downpour.client import Client
    from downpour.plan.plan import Plan
    from downpour.plan.specs import SparseTableSpec

FORMAT = 1
MANIFEST, DENSE, MODEL = "manifest.json", "dense.safetensors", "model.pickle"
CONTENT = ("folder", "sparse", "dense", "files", "import_paths", "schema")


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
        tables = {spec.name: _write_rows(data, spec, client) for spec in client.plan.sparse}
        dense = {spec.name: client.export_dense(spec.name) for spec in client.plan.dense}
        (data / MODEL).write_bytes(pickled)
        save_file(_tensors(client.plan, model, dense), data / DENSE)
        shutil.copymode(data / MODEL, data / DENSE)  # safetensors keeps others from reading it
        manifest = {
            "format": FORMAT,
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
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=2))
    except BaseException:
        if not _is_named(folder / MANIFEST, data):
            shutil.rmtree(data, ignore_errors=True)
        raise
    for old in folder.glob("save-*"):
        if old != data:
            shutil.rmtree(old)


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def read_manifest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The manifest of a saved model and the folder of its data, every file checked.

    Raises SavedRunError: nothing saved, a newer format, a file that is missing or was changed.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SavedRunError(
            f"{folder} holds no trained model ({MANIFEST} is missing); give the folder that "
            "`downpour train` named in its last line"
        ) from None
    except ValueError as error:
        raise SavedRunError(f"{path} is no JSON ({error}): it was damaged") from None
    if not isinstance(manifest, dict):
        raise SavedRunError(f"{path} must hold a JSON object, got a {type(manifest).__name__}")
    if manifest.get("format") != FORMAT:
        raise SavedRunError(
            f"{path} has format {manifest.get('format')!r}, this Downpour reads format {FORMAT}; "
            "use the version of Downpour that wrote it, or a newer one"
        )
    lacking = [name for name in CONTENT if name not in manifest]
    if lacking:
        raise SavedRunError(f"{path} lacks {', '.join(lacking)}: it was damaged")
    data = folder / str(manifest["folder"])
    for name, written in manifest["files"].items():
        if not (data / name).is_file():
            raise SavedRunError(f"{data / name} is missing")
        found = fingerprint(data / name)
        if found != written:
            raise SavedRunError(
                f"{data / name} was damaged: it has {found['bytes']} bytes of sha256 "
                f"{found['sha256'][:12]}..., written were {written['bytes']} of "
                f"{written['sha256'][:12]}..."
            )
    return manifest, data


def restore(manifest: Mapping[str, Any], data: Path, client: Client) -> None:
    """Fill the empty tables of `client`."""
    for spec in client.plan.sparse:
        client.restore(spec.name, read_rows_file(data, spec, manifest["sparse"][spec.name]))
    tensors = load_tensors(data)
    for block in client.plan.dense:
        saved = manifest["dense"][block.name]
        names = [section.name for section in block.sections]
        weights = [tensors[f"parameter/{name}"].numpy().reshape(-1) for name in names]
        state = DenseState(
            np.concatenate(weights),
            {name: tensors[f"state/{name}"].numpy() for name in names},
            saved["updates"],
            saved["step"],
        )
        client.restore_dense(block.name, state)


def load_tensors(data: Path) -> dict[str, torch.Tensor]:
    """Parameters, buffers and rule state by `parameter/NAME`, `buffer/NAME` and `state/NAME`."""
    return load_file(data / DENSE)


def _tensors(
    plan: Plan, model: torch.nn.Module, dense: Mapping[str, DenseState]
) -> dict[str, torch.Tensor]:
    """All that is not in rows. Parameters that no loss reaches are the model's own."""
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


def _is_named(manifest: Path, data: Path) -> bool:
    """Whether a manifest is of the data in this folder."""
    return manifest.is_file() and data.name in manifest.read_text(encoding="utf-8")
