"""A trained run, loaded: predicts and evaluates, and makes no rows."""

from __future__ import annotations

import io
import pickle
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from downpour import checkpoint
from downpour.client import Client, embedded
from downpour.data import Schema
from downpour.errors import DataError, SavedRunError, SettingError
from downpour.evaluate import Evaluation, evaluate, inference, predict_batch
from downpour.target import add_import_path
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from downpour.features import Batch
    from downpour.plan.program import Plan
    from downpour.run import Predict, Run

MODEL_FOLDER = "model"


class _Pickler(pickle.Pickler):
    """Leaves parameters and buffers out: they are in the safetensors file, under their names."""

    def __init__(self, file: io.BytesIO, model: torch.nn.Module) -> None:
        super().__init__(file)
        named = {
            id(p): ("parameter", name, p.requires_grad) for name, p in model.named_parameters()
        }
        named |= {id(b): ("buffer", name, False) for name, b in model.named_buffers()}
        self._named = named

    def persistent_id(self, obj: object) -> tuple[str, str, bool] | None:
        """The name of a tensor of the model."""
        return self._named.get(id(obj)) if isinstance(obj, torch.Tensor) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._made: dict[str, torch.Tensor] = {}

    def persistent_load(self, pid: tuple[str, str, bool]) -> torch.Tensor:
        """A tensor of the model; the same one each time it is named."""
        kind, name, requires_grad = pid
        full = f"{kind}/{name}"
        if full not in self._made:
            tensor = self._tensors[full]
            self._made[full] = (
                torch.nn.Parameter(tensor, requires_grad) if kind == "parameter" else tensor
            )
        return self._made[full]


def pickled_model(run: Run, plan: Plan) -> bytes:
    """The structure of the run's model and what else Python must know to predict with it.

    Raises SettingError for a model that cannot be pickled.
    """
    model = getattr(run.model, "_orig_mod", run.model)
    content = {
        "model": model,
        "predict": run.predict,
        "label": run.label,
        "plan": replace(plan, losses={}),
    }
    file = io.BytesIO()
    try:
        _Pickler(file, model).dump(content)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingError(
            f"this run could not be saved once trained: {error}. Define the model's classes, "
            "predict and schedules at the top level of a module, not in a function or as a lambda"
        ) from error
    return file.getvalue()


def save(run_dir: Path, run: Run, plan: Plan, client: Client) -> None:
    """Keep what was trained so far in the run's folder."""
    model = getattr(run.model, "_orig_mod", run.model)
    schema = getattr(run.data, "schema", None)
    facts = {
        "import_paths": _import_paths(model, run.predict),
        "schema": asdict(schema) if isinstance(schema, Schema) else None,
    }
    checkpoint.save(run_dir / MODEL_FOLDER, client, model, pickled_model(run, plan), facts)


def load(run_dir: str | Path) -> SavedRun:
    """Load what `downpour train` saved in a run's folder.

    The model is unpickled, which runs code that the folder names: load only runs you trust. The
    file that defines the model must be where it was, or importable.

    Raises SavedRunError: no model there, a newer format, damaged files, a model's file not found.
    """
    folder = Path(run_dir) / MODEL_FOLDER
    manifest, data = checkpoint.read_manifest(folder)
    for path in manifest["import_paths"]:
        add_import_path(Path(path))
    try:
        with (data / checkpoint.MODEL).open("rb") as file:
            content = _Unpickler(file, checkpoint.load_tensors(data)).load()
    except (ImportError, AttributeError) as error:
        raise SavedRunError(
            f"{run_dir}: the model cannot be made: {error}. The file that defines it was imported "
            f"from {', '.join(manifest['import_paths']) or 'PYTHONPATH'}; put it there or on "
            "PYTHONPATH"
        ) from error
    client = embedded(content["plan"])
    checkpoint.restore(manifest, data, client)
    schema = manifest["schema"]
    worker = Worker(content["plan"], content["model"], client)
    return SavedRun(
        model=content["model"],
        client=client,
        worker=worker,
        predict_with=content["predict"],
        label=content["label"],
        schema=None if schema is None else Schema.from_dict(schema),
    )


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A trained model with its tables.

    `model` reads its rows from `client`'s tables; an id that was never trained on has its initial
    row. `schema` reads files and frames as the training data was read; None for a Source that has
    none.
    """

    model: torch.nn.Module
    client: Client
    worker: Worker
    predict_with: Predict
    label: str | None
    schema: Schema | None

    def predict(self, batch: Batch) -> np.ndarray[Any, Any]:
        """The scores [batch] of a batch."""
        with inference(self.model):
            return predict_batch(self.model, batch, self.predict_with)

    def predict_all(self, batches: Iterable[Batch]) -> Iterator[np.ndarray[Any, Any]]:
        """The scores of each batch."""
        for batch in batches:
            yield self.predict(batch)

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """AUC, bucketed AUC, logloss and COPC over batches that have labels."""
        return evaluate(self.model, batches, self.predict_with, self.label)

    def reading(self, *, labels: bool) -> Schema:
        """The schema to read a file by, without labels and weights to predict. DataError."""
        if self.schema is None:
            raise DataError(
                "this run was trained on a Source without a schema, so a file cannot be read as "
                "its data was; make batches yourself and give them to downpour.load(...).predict"
            )
        if labels:
            return self.schema
        return Schema(features=self.schema.features, dense=self.schema.dense)


def _import_paths(model: torch.nn.Module, predict: Predict) -> list[str]:
    """The folders that hold the modules which define the model and are not installed."""
    names = {type(module).__module__ for module in model.modules()} | {predict.__module__}
    folders = set()
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or "site-packages" in file or name.startswith("downpour."):
            continue
        root = Path(file).resolve().parent
        for _ in range(name.count(".")):
            root = root.parent
        folders.add(str(root))
    return sorted(folders)
