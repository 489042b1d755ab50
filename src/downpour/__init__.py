"""Downpour: a parameter server for PyTorch, embedding tables keyed by raw 64-bit ids.

Names are imported when they are first used, so that `import downpour` takes no time and a server
needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.accessor import CtrAccessor, Lifecycle
    from downpour.client import Client, embedded
    from downpour.clip import ClipByNorm, ClipByValue
    from downpour.consistency import Async, Geo, HalfAsync, Sync
    from downpour.data import Dense, Feature, Files, Frame, Label, Schema, Source
    from downpour.data_norm import DataNorm
    from downpour.errors import (
        DataError,
        DownpourError,
        NonFiniteError,
        OutOfMemoryError,
        PlanError,
        RefusedError,
        RoundClosedError,
        SavedRunError,
        ServerError,
        ServerLostError,
        ServerTimeoutError,
        SettingError,
        TableError,
        WorkerLostError,
    )
    from downpour.features import Batch
    from downpour.federated.federation import Federation
    from downpour.federated.methods import FedAdam, FedAvg, FedAvgM, FedProx
    from downpour.federated.update import ClipUpdate, Update
    from downpour.init import Constant, Normal, Uniform
    from downpour.jagged import Jagged
    from downpour.nn import JaggedRows, SparseEmbedding
    from downpour.optimizer import DownpourSGD
    from downpour.plan.plan import Plan
    from downpour.plan.sections import Sections
    from downpour.remote.connect import connect
    from downpour.rules import (
        SGD,
        Adagrad,
        Adam,
        AdamD2Sum,
        Ftrl,
        G2SumAdagrad,
        Momentum,
        RowAdam,
        RowwiseAdagrad,
        SharedAdam,
        Summary,
        UncorrectedAdam,
    )
    from downpour.run import EarlyStop, Run
    from downpour.saved import SavedRun, load
    from downpour.schedules import (
        Cosine,
        Exponential,
        Linear,
        StepDecay,
        TorchSchedule,
        Warmup,
    )
    from downpour.security import Security
    from downpour.strategy import AdjustInsWeight, Strategy
    from downpour.train import Trainer
    from downpour.transpile.config import DistributeTranspilerConfig
    from downpour.transpile.executor import Executor
    from downpour.transpile.job import load_job, write_job
    from downpour.transpile.transpiler import DistributeTranspiler
    from downpour.worker import Worker

_HOMES = {
    "accessor": ["CtrAccessor", "Lifecycle"],
    "client": ["Client", "embedded"],
    "clip": ["ClipByNorm", "ClipByValue"],
    "consistency": ["Async", "Geo", "HalfAsync", "Sync"],
    "data": ["Dense", "Feature", "Files", "Frame", "Label", "Schema", "Source"],
    "data_norm": ["DataNorm"],
    "errors": [
        "DataError",
        "DownpourError",
        "NonFiniteError",
        "OutOfMemoryError",
        "PlanError",
        "RefusedError",
        "RoundClosedError",
        "SavedRunError",
        "ServerError",
        "ServerLostError",
        "ServerTimeoutError",
        "SettingError",
        "TableError",
        "WorkerLostError",
    ],
    "features": ["Batch"],
    "federated.federation": ["Federation"],
    "federated.methods": ["FedAdam", "FedAvg", "FedAvgM", "FedProx"],
    "federated.update": ["ClipUpdate", "Update"],
    "init": ["Constant", "Normal", "Uniform"],
    "jagged": ["Jagged"],
    "nn": ["JaggedRows", "SparseEmbedding"],
    "optimizer": ["DownpourSGD"],
    "plan.plan": ["Plan"],
    "plan.sections": ["Sections"],
    "remote.connect": ["connect"],
    "rules": [
        "SGD",
        "Adagrad",
        "Adam",
        "AdamD2Sum",
        "Ftrl",
        "G2SumAdagrad",
        "Momentum",
        "RowAdam",
        "RowwiseAdagrad",
        "SharedAdam",
        "Summary",
        "UncorrectedAdam",
    ],
    "run": ["EarlyStop", "Run"],
    "saved": ["SavedRun", "load"],
    "schedules": ["Cosine", "Exponential", "Linear", "StepDecay", "TorchSchedule", "Warmup"],
    "security": ["Security"],
    "strategy": ["AdjustInsWeight", "Strategy"],
    "train": ["Trainer"],
    "transpile.config": ["DistributeTranspilerConfig"],
    "transpile.executor": ["Executor"],
    "transpile.job": ["load_job", "write_job"],
    "transpile.transpiler": ["DistributeTranspiler"],
    "worker": ["Worker"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__: str  # of the installed package

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamD2Sum",
    "AdjustInsWeight",
    "Async",
    "Batch",
    "Client",
    "ClipByNorm",
    "ClipByValue",
    "ClipUpdate",
    "Constant",
    "Cosine",
    "CtrAccessor",
    "DataError",
    "DataNorm",
    "Dense",
    "DistributeTranspiler",
    "DistributeTranspilerConfig",
    "DownpourError",
    "DownpourSGD",
    "EarlyStop",
    "Executor",
    "Exponential",
    "Feature",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "Federation",
    "Files",
    "Frame",
    "Ftrl",
    "G2SumAdagrad",
    "Geo",
    "HalfAsync",
    "Jagged",
    "JaggedRows",
    "Label",
    "Lifecycle",
    "Linear",
    "Momentum",
    "NonFiniteError",
    "Normal",
    "OutOfMemoryError",
    "Plan",
    "PlanError",
    "RefusedError",
    "RoundClosedError",
    "RowAdam",
    "RowwiseAdagrad",
    "Run",
    "SavedRun",
    "SavedRunError",
    "Schema",
    "Sections",
    "Security",
    "ServerError",
    "ServerLostError",
    "ServerTimeoutError",
    "SettingError",
    "SharedAdam",
    "Source",
    "SparseEmbedding",
    "StepDecay",
    "Strategy",
    "Summary",
    "Sync",
    "TableError",
    "TorchSchedule",
    "Trainer",
    "UncorrectedAdam",
    "Uniform",
    "Update",
    "Warmup",
    "Worker",
    "WorkerLostError",
    "connect",
    "embedded",
    "load",
    "load_job",
    "write_job",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _installed_version()
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"downpour.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'downpour' has no attribute {name!r}")
    globals()[name] = value
    return value


def _installed_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("downpour-ps")
    except metadata.PackageNotFoundError:
        raise AttributeError(
            "module 'downpour' has no __version__, as the package downpour-ps is not installed; "
            "install it with `pip install .` in its source folder"
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
