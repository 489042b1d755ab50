"""A transpiled job as folders, one for each process: to be copied to its machine and run there.

JOB/split.txt, JOB/server0/, JOB/trainer0/ ... A folder's job.json has all that its process needs,
its text files show its programs to people. A server needs nothing else; a trainer needs its model
and losses, which are code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from downpour.errors import DownpourError, SavedRunError, SettingError
from downpour.federated.methods import FedAdam, FedAvg, FedAvgM, FedProx
from downpour.local_path import WRITE_ELSEWHERE, local_path
from downpour.plan.losses import named_losses
from downpour.plan.plan import Plan
from downpour.transpile.config import DistributeTranspilerConfig
from downpour.transpile.transpiler import Transpiled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from downpour.plan.program import Loss
    from downpour.transpile.programs import DistributedProgram

FORMAT = 1
JOB, SPLIT = "job.json", "split.txt"
METHODS = {method.__name__: method for method in (FedAvg, FedProx, FedAvgM, FedAdam)}


def write_job(transpiled: Transpiled, folder: str | Path) -> None:
    """Write the folder of every server and every trainer of a job into a new folder.

    Raises SettingError where the folder has something in it already, PlanError for rules and
    initial values that no description can hold.
    """
    folder = local_path(folder, "write_job", WRITE_ELSEWHERE)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} is there already; name a folder that is new or empty")
    text = str(transpiled.plan.fleet_desc())  # before anything is written
    for number, endpoint in enumerate(transpiled.endpoints):
        own = replace(transpiled, current_endpoint=endpoint)
        programs = own.pserver_startup(endpoint), own.pserver_program(endpoint)
        _write(folder / f"server{number}", own, text, programs)
    for number in range(transpiled.trainers):
        own = replace(transpiled, trainer_id=number)
        _write(folder / f"trainer{number}", own, text, (own.trainer_startup, *own.trainer_programs))
    (folder / SPLIT).write_text(f"{transpiled.split}\n", encoding="utf-8")


def load_job(
    folder: str | Path, losses: Loss | Sequence[Loss] | Mapping[str, Loss] | None = None
) -> Transpiled:
    """What was transpiled, of the folder of one process.

    losses: those that the plan was made of, for a trainer. Raises SavedRunError for a folder that
    holds no job, SettingError for losses of other names than the plan's.
    """
    path = local_path(folder, "load_job") / JOB
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise SavedRunError(
                f"{path} has format {said['format']!r}, this Downpour reads format {FORMAT}; use "
                "the release that wrote it"
            )
        loaded = _transpiled(said)
    except OSError as error:
        raise SavedRunError(
            f"{path} cannot be read ({error}); write_job writes JOB/server0, JOB/trainer0 and so on"
        ) from error
    except SavedRunError:
        raise
    except (DownpourError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise SavedRunError(f"{path} holds no job: {error}") from error
    if losses is None:
        return loaded
    named = named_losses(losses)
    if named.keys() != loaded.plan.programs.keys():
        raise SettingError(
            f"load_job: the losses must be those of the job, {', '.join(loaded.plan.programs)}, "
            f"got {', '.join(named)}"
        )
    return replace(loaded, plan=replace(loaded.plan, losses=named))


def _write(
    folder: Path, own: Transpiled, plan: str, programs: Iterable[DistributedProgram]
) -> None:
    folder.mkdir(parents=True)
    config = own.config
    federation = config.federation
    said = {
        "format": FORMAT,
        "trainer_id": own.trainer_id,
        "trainers": own.trainers,
        "sync_mode": own.sync_mode,
        "endpoints": own.endpoints,
        "current_endpoint": own.current_endpoint,
        "slice_var_up": config.slice_var_up,
        "min_block_size": config.min_block_size,
        "split_method": config.split_method,
        "federation": federation and {"method": type(federation).__name__, **asdict(federation)},
        "plan": plan.splitlines(),
    }
    (folder / JOB).write_text(f"{json.dumps(said, indent=1)}\n", encoding="utf-8")
    for program in programs:
        (folder / f"{program.name}.txt").write_text(f"{program}\n", encoding="utf-8")


def _transpiled(said: Mapping[str, Any]) -> Transpiled:
    return Transpiled(
        plan=Plan.from_fleet_desc("\n".join(said["plan"])),
        trainer_id=said["trainer_id"],
        trainers=said["trainers"],
        sync_mode=said["sync_mode"],
        endpoints=tuple(said["endpoints"]),
        config=DistributeTranspilerConfig(
            slice_var_up=said["slice_var_up"],
            min_block_size=said["min_block_size"],
            split_method=said["split_method"],
            federation=_method(said["federation"]),
        ),
        current_endpoint=said["current_endpoint"],
    )


def _method(said: Mapping[str, Any] | None) -> FedAvg | None:
    if said is None:
        return None
    settings: dict[str, Any] = {
        name: tuple(it) if isinstance(it, list) else it for name, it in said.items()
    }
    return METHODS[settings.pop("method")](**settings)
