"""A trained run, loaded: predicts and evaluates, and makes no rows."""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FunctionType, NoneType
from typing import TYPE_CHECKING, Any

import torch

from downpour import checkpoint
from downpour.client import Client, embedded
from downpour.data import Files, Schema
from downpour.data.paths import format_of
from downpour.errors import DataError, SavedRunError, SettingError
from downpour.evaluate import Evaluation, evaluate, inference, predict_batch
from downpour.hashing import mix, space_salt
from downpour.local_path import local_path
from downpour.loss_errors import explained
from downpour.manifest import reading
from downpour.model_tables import note_trained
from downpour.plan.plan import Plan
from downpour.plan.specs import plan_name
from downpour.target import add_import_path
from downpour.transfer import HOST, checked_device
from downpour.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from downpour.features import Batch
    from downpour.run import Predict, Run
    from downpour.transport import Keys

MODEL_FOLDER = "model"
UNINITIALIZED = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)


class _Pickler(pickle.Pickler):
    """Leaves parameters and buffers out: they are in the safetensors file, under their names.

    Other tensors are pickled as those of the CPU: where a run is loaded there may be no GPU. What
    torch.compile wraps is pickled as it was before. `modules` are those that define what the pickle
    names.
    """

    def __init__(self, file: io.BytesIO, model: torch.nn.Module) -> None:
        super().__init__(file)
        self.modules: set[str] = set()
        self._named = {
            id(p): ("parameter", plan_name(name), p.requires_grad)
            for name, p in model.named_parameters()
        }
        self._named |= {
            id(b): ("buffer", plan_name(name), False) for name, b in model.named_buffers()
        }

    def persistent_id(self, obj: object) -> tuple[str, str, bool] | None:
        """The name of a tensor of the model."""
        return self._named.get(id(obj)) if isinstance(obj, torch.Tensor) else None

    def reducer_override(self, obj: Any) -> Any:
        """Note where classes and functions are from; leave out what torch.compile put around."""
        if isinstance(obj, (type, FunctionType)):
            self.modules.add(obj.__module__)
        elif isinstance(obj, torch.nn.Module) and hasattr(obj, "_orig_mod"):
            return _itself, (obj._orig_mod,)
        elif isinstance(obj, torch.Tensor) and not obj.is_cpu:
            here: Any = obj.detach().cpu().requires_grad_(obj.requires_grad)
            return here.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return NotImplemented


def _itself(module: torch.nn.Module) -> torch.nn.Module:
    return module


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._made: dict[str, torch.Tensor] = {}
        self.modules: set[str] = set()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Note where classes and functions are from."""
        self.modules.add(module_name)
        return super().find_class(module_name, global_name)

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


def pickled_model(run: Run, plan: Plan) -> tuple[bytes, list[str]]:
    """The structure of the run's model and what else Python must know to predict with it.

    With it the folders that its own modules were imported from. Raises SettingError for a model
    that cannot be saved.
    """
    tensors = [*run.model.named_parameters(), *run.model.named_buffers()]
    lazy = [name for name, tensor in tensors if isinstance(tensor, UNINITIALIZED)]
    if lazy:
        raise SettingError(
            f"this run could not be saved once trained: {lazy[0]!r} has no shape, as no loss uses "
            "its module; remove it from the model"
        )
    content = {
        "model": run.model,
        "predict": run.predict,
        "label": run.label,
        "plan": replace(plan, losses={}),
    }
    file = io.BytesIO()
    pickler = _Pickler(file, run.model)
    try:
        pickler.dump(content)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise SettingError(
            f"this run could not be saved once trained: {error}. Define the model's classes, "
            "predict and schedules at the top level of a module, not in a function or as a lambda"
        ) from error
    return file.getvalue(), _import_paths(pickler.modules)


def save(run_dir: Path, run: Run, plan: Plan, client: Client, run_id: str) -> None:
    """Keep what was trained so far in the run's folder; `run_id` as metrics.json has it."""
    schema = getattr(run.data, "schema", None)
    pickled, import_paths = pickled_model(run, plan)
    facts = {
        "run": run_id,
        "import_paths": import_paths,
        "schema": asdict(schema) if isinstance(schema, Schema) else None,
        "text": text_settings(run.data),
    }
    checkpoint.save(run_dir / MODEL_FOLDER, client, run.model, pickled, facts)


def text_settings(data: object) -> dict[str, Any]:
    """How `Files` were told to read text, for other files like them."""
    names = ("format", "delimiter", "quote_char", "null_values", "column_names")
    return {name: getattr(data, name) for name in names} if isinstance(data, Files) else {}


def load(run_dir: str | Path, *, device: str | torch.device = HOST) -> SavedRun:
    """Load what `downpour train` saved in a run's folder.

    device: where the model is to be, "cpu" or a GPU as "cuda:0", wherever it was trained.

    The model is unpickled, which runs code that the folder names: load only runs you trust. The
    file that defines the model must be where it was, or importable.

    Rows that hold NaN or infinity are left out, and a warning names them. Raises SavedRunError: no
    model there, another format, damaged files, a model's file not found.
    """
    where = checked_device("load: device", device)
    run_dir = local_path(run_dir, "load")
    folder = run_dir / MODEL_FOLDER
    manifest, data = checkpoint.read_manifest(folder)
    for path in manifest["import_paths"]:
        add_import_path(Path(path))
    content = _unpickled(run_dir, manifest, data)
    with reading(data / checkpoint.MODEL):  # a pickle may be half of what it was
        client = embedded(content["plan"])
        _ = [*content["model"].parameters(), *content["model"].buffers()]
    left_out = checkpoint.restore(manifest, data, client)
    model: torch.nn.Module = content["model"].to(where)
    with reading(data / checkpoint.MODEL):
        worker = Worker(content["plan"], model, client, device=where)
    note_trained(model, client)
    for table, keys in left_out.items():
        rows = manifest["sparse"][table]["rows"]
        warnings.warn(_told_left_out(run_dir, client, table, keys, rows), stacklevel=2)
    schema = manifest["schema"]
    with reading(data.parent / checkpoint.MANIFEST):
        own_schema = None if schema is None else Schema.from_dict(schema)
    return SavedRun(
        model=model,
        client=client,
        worker=worker,
        predict_with=content["predict"],
        label=content["label"],
        schema=own_schema,
        text=manifest.get("text", {}),
        left_out=left_out,
    )


def _unpickled(run_dir: str | Path, manifest: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """The model, how to predict with it, and its plan."""
    tensors = checkpoint.load_tensors(data)
    try:
        with (data / checkpoint.MODEL).open("rb") as file:
            unpickler = _Unpickler(file, tensors)
            content = unpickler.load()
    except (ImportError, AttributeError) as error:
        way_out = (
            "It was defined in a script that ran itself: load it from there, or define it in a "
            "module that the script imports"
            if "__main__" in str(error)
            else "The file that defines it was imported from "
            f"{', '.join(manifest['import_paths']) or 'PYTHONPATH'}; put it there or on PYTHONPATH"
        )
        raise SavedRunError(f"{run_dir}: the model cannot be made: {error}. {way_out}") from error
    except Exception as error:
        raise SavedRunError(
            f"{data / checkpoint.MODEL}: the model cannot be made ({type(error).__name__}: "
            f"{error!s:.300}): the file was damaged, or the model's class has changed since"
        ) from error
    kinds: dict[str, Any] = {
        "model": torch.nn.Module,
        "plan": Plan,
        "predict": Callable,
        "label": (str, NoneType),
    }
    if not isinstance(content, dict) or any(
        name not in content or not isinstance(content[name], kind) for name, kind in kinds.items()
    ):
        raise SavedRunError(f"{data / checkpoint.MODEL} holds no model with its plan")
    for name in unpickler.modules:
        _require_own(name, manifest["import_paths"], run_dir)
    return content


def _told_left_out(run_dir: str | Path, client: Client, table: str, keys: Keys, rows: int) -> str:
    """Which rows were left out, by ids where the table has one id space."""
    features = client.plan.sparse_table(table).features
    spaces = {feature.space for feature in features}
    what, shown = "keys", keys[:10]
    if len(spaces) == 1:
        what, space = f"ids of {features[0].name}", spaces.pop()
        shown = shown if space is None else mix(shown, space_salt(space))
    more = ", ..." if len(keys) > len(shown) else ""
    return (
        f"{run_dir}: {len(keys):,} of {rows:,} rows of table {table!r} hold NaN or infinity "
        f"({what} {', '.join(map(str, shown.tolist()))}{more}); they are left out: those ids have "
        "their initial rows, as ids that were never trained on"
    )


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A trained model with its tables.

    `model` reads its rows from `client`'s tables; an id that was never trained on has its initial
    row. `schema` reads files and frames as the training data was read; None for a Source that has
    none. `text`: settings of `Files` that its files were read with. `left_out`: by table, the
    stored keys [n] of rows that held NaN or infinity and were left out.
    """

    model: torch.nn.Module
    client: Client
    worker: Worker
    predict_with: Predict
    label: str | None
    schema: Schema | None
    text: Mapping[str, Any]
    left_out: Mapping[str, Keys]

    def predict(self, batch: Batch) -> np.ndarray[Any, Any]:
        """The scores [batch] of a batch."""
        with inference(self.model), explained("predict", self.model, batch.size):
            return predict_batch(self.model, batch, self.predict_with, self.worker.device)

    def predict_all(self, batches: Iterable[Batch]) -> Iterator[np.ndarray[Any, Any]]:
        """The scores of each batch."""
        for batch in batches:
            yield self.predict(batch)

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """AUC, bucketed AUC, logloss and COPC over batches that have labels.

        RMSE and MAE as well where labels are other numbers than 0 and 1. What is not defined for
        them is None, and `undefined` of the evaluation says why.
        """
        with explained("evaluate", self.model, num_samples=2):
            return evaluate(self.model, batches, self.predict_with, self.label, self.worker.device)

    def files(self, paths: Sequence[str | Path], *, batch_size: int, labels: bool) -> Files:
        """Files like those of the training data; without `labels` and weights, to predict.

        Raises DataError where the training data had no schema.
        """
        settings = dict(self.text)
        if not _are_unknown(paths):  # of the formats of their own suffixes
            settings["format"] = None
        return Files(paths, self._reading(labels=labels), batch_size=batch_size, **settings)

    def _reading(self, *, labels: bool) -> Schema:
        if self.schema is None:
            raise DataError(
                "this run was trained on a Source without a schema, so a file cannot be read as "
                "its data was; make batches yourself and give them to downpour.load(...).predict"
            )
        if labels:
            return self.schema
        return Schema(features=self.schema.features, dense=self.schema.dense)


def _are_unknown(paths: Sequence[str | Path]) -> bool:
    """Whether some of these are files whose suffix names no format."""
    try:
        for path in (local_path(path, "files") for path in paths):
            if path.is_file():
                format_of(path)
    except DataError:
        return True
    return False


def _require_own(name: str, paths: Sequence[str], run_dir: str | Path) -> None:
    """Refuse a module of another folder that hides the run's own of the same name."""
    for root in _import_paths([name]):
        own = [Path(path, *name.split(".")) for path in paths if root not in paths]
        for path in own:
            if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
                raise SavedRunError(
                    f"{run_dir}: its model is defined in {path}, and this process has imported "
                    f"another module {name!r} from {root}; load the run in a process of its own"
                )


def _import_paths(names: Iterable[str]) -> list[str]:
    """The folders that hold those of these modules which are not installed."""
    folders = set()
    for name in names:
        top = name.partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or top in sys.stdlib_module_names or top == "downpour":
            continue
        path = Path(file).resolve()
        if "site-packages" in path.parts or "dist-packages" in path.parts:
            continue
        up = name.count(".") + (path.name == "__init__.py")
        folders.add(str(path.parents[up]))
    return sorted(folders)
