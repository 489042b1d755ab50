"""The model of a run's best evaluation, kept so that the run can end with it.

In the run's folder it is the saved model; without a folder it is in memory, as large as the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from downpour import checkpoint
from downpour import folder as run_folder
from downpour.disk import finite_rows
from downpour.errors import DownpourError
from downpour.plan.specs import plan_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from downpour.client import Client
    from downpour.plan.plan import Plan
    from downpour.run import Run
    from downpour.run_files import RunFiles
    from downpour.transport import DenseState, SparseState


class BestModel:
    """Keeps a run's tables and model as they are at an evaluation, and brings them back.

    say: told of what could not be kept or brought back.
    """

    def __init__(self, files: RunFiles, say: Callable[[str], None]) -> None:
        self._files, self._say = files, say
        self._in_memory: _InMemory | None = None
        self._as_of: tuple[int, dict[str, int]] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether there is one."""
        return self._as_of is not None

    def keep(self, run: Run, plan: Plan, client: Client, *, epoch: int, step: int) -> None:
        """Keep what there is now, in place of what was kept before.

        Where it cannot be written nothing is kept, and training may go on.
        """
        self._in_memory = self._as_of = None
        if self._files.folder is None:
            self._in_memory = _InMemory.of(client, run.model)
        else:
            try:
                self._files.save_model(run, plan, client, epoch=epoch, step=step, is_best=True)
            except OSError as error:
                if isinstance(error, DownpourError):  # of a server
                    raise
                self._say(
                    f"the best model so far could not be saved: {error}; training goes on, and "
                    "ends with the model of its last step unless a later one is better"
                )
                return
        self._as_of = step, dict(client.steps)

    def is_now(self, step: int, client: Client) -> bool:
        """Whether nothing was trained since it was kept."""
        return self._as_of == (step, client.steps)

    def restore_tables(self, client: Client) -> None:
        """Make the tables what they were, to the bit, but for rows that hold NaN or infinity."""
        kept = self._in_memory
        saved = self._saved() if kept is None else None  # read and checked before any is cleared
        for spec in client.plan.sparse:
            client.clear(spec.name)
        left_out = {} if saved is None else checkpoint.restore(*saved, client)
        if kept is not None:
            for name, rows in kept.rows.items():
                finite, left_out[name] = finite_rows(rows)
                client.restore(name, finite)
            for name, state in kept.dense.items():
                client.restore_dense(name, state)
        for name, keys in left_out.items():
            if len(keys):
                self._say(f"table {name!r}: {len(keys):,} rows hold NaN or infinity; left out")

    def restore_model(self, model: torch.nn.Module) -> None:
        """Make the model's parameters and buffers what they were."""
        if self._in_memory is None:
            tensors: Mapping[str, torch.Tensor] = checkpoint.load_tensors(self._saved()[1])
        else:
            tensors = self._in_memory.tensors
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"parameter/{plan_name(name)}"])
            for name, buffer in model.named_buffers():
                buffer.copy_(tensors[f"buffer/{plan_name(name)}"])

    def restore_servers(self, client: Client) -> None:
        """As `restore_tables`, on servers that run on; where they refuse it, only say so."""
        try:
            self.restore_tables(client)
        except DownpourError as error:
            self._say(f"the servers could not be given the best evaluation's tables: {error}")

    def _saved(self) -> tuple[Mapping[str, Any], Path]:
        assert self._files.folder is not None
        return checkpoint.read_manifest(self._files.folder / run_folder.MODEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class _InMemory:
    """Copies of tables by name, and of the model's tensors as a save has them."""

    rows: Mapping[str, SparseState]
    dense: Mapping[str, DenseState]
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, client: Client, model: torch.nn.Module) -> _InMemory:
        dense = {spec.name: client.export_dense(spec.name) for spec in client.plan.dense}
        return cls(
            rows={spec.name: client.export(spec.name) for spec in client.plan.sparse},
            dense=dense,
            tensors=checkpoint.model_tensors(client.plan, model, dense),
        )
