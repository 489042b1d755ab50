"""A model's dense parameters beside their tables: each has what the other one was given.

A step changes tables, and what else changes parameters in place (a clamp, `max_norm`, a state_dict
that is loaded) changes the model. With tables in this process both are taken over: the model has
the tables' values once a step has ended, and what was done to them since is in the tables before
the next gradient is applied. With servers, whose tables others train too, a change of the model
alone is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.errors import PlanError
from downpour.plan.program import PullDense

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from downpour.client import Client
    from downpour.parameters import DenseBlock
    from downpour.plan.plan import Plan


class ModelValues:
    """Brings values of dense tables into a model, and its own changes into the tables.

    Dense tables that have no weights yet get the model's. Every call raises PlanError for a
    parameter that was changed where its table cannot follow, and for one that was replaced by
    another tensor; NonFiniteError for NaN or infinity in a change.
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        client: Client,
        blocks: Mapping[str, DenseBlock],
    ) -> None:
        self._client, self._blocks = client, blocks
        self._homes = _homes(model, blocks)
        self._alone = _read_by_one(plan)
        self._as_of: dict[str, int] = {}  # of embedded tables: the changes that the model has seen
        self._begin()

    def _begin(self) -> None:
        is_taken = {}
        for table, block in self._blocks.items():
            flat = block.read()
            is_taken[table] = self._client.init_dense(table, flat)
            block.know(flat)
        self._client.begin()
        if self._client.is_embedded:
            for table in self._blocks:
                if is_taken[table]:
                    self._as_of[table] = self._client.dense_changes[table]
                else:
                    self._write(table)

    def refresh(self, table: str) -> None:
        """Give the model a table's values, for a step that begins."""
        if self._client.is_embedded:
            if self._as_of[table] == self._client.dense_changes[table]:
                self._blocks[table].refuse_cast()
                return  # it has them, and with them what was done to them since
            self._take(table)
        self._write(table)

    def pull(self, table: str) -> None:
        """Give the model a table's values, changes of the model included."""
        self.take([table])
        self.refresh(table)

    def take(self, tables: Iterable[str]) -> None:
        """Bring changes of the model into these tables, before gradients of it are pushed there."""
        if self._client.is_embedded:  # with servers each `refresh` looks for changes
            for table in tables:
                self._take(table)

    def pushed(self, program: str, table: str) -> None:
        """Give the model what a push of a program has made of a table in this process.

        Not where another program has yet to compute with the values of its own window.
        """
        if self._client.is_embedded and (program, table) in self._alone:
            self._write(table)

    def _write(self, table: str) -> None:
        if not self._client.is_embedded and (names := self._changed(table)):
            self._blocks[table].know(self._blocks[table].read())
            raise PlanError(
                f"parameter {names[0]!r} was changed in the model, and not in its table "
                f"{table!r}, which is on servers and keeps its value. Say "
                f"client.set_dense({names[0]!r}, values) instead; what changes it in each forward, "
                "as max_norm, can train in one process alone"
            )
        self._as_of[table] = self._client.dense_changes[table]
        self._blocks[table].write(self._client.pull_dense(table))

    def _take(self, table: str) -> None:
        client, block = self._client, self._blocks[table]
        names = self._changed(table)
        if not names:
            return
        if self._as_of[table] != client.dense_changes[table]:
            block.know(client.pull_dense(table))
            self._as_of[table] = client.dense_changes[table]
            if not self._changed(table):
                return  # another worker of this model has brought the values
            self._write(table)
            raise PlanError(
                f"parameter {names[0]!r} was changed in the model after its table {table!r} had "
                "changed, so that one of the two would be lost; the table's value stays. Change it "
                "where the model has the table's values, after Worker.pull_dense(), or say "
                f"client.set_dense({names[0]!r}, values)"
            )
        flat = block.read()
        client.write_dense(table, flat, names)
        block.know(flat)
        self._as_of[table] = client.dense_changes[table]

    def _changed(self, table: str) -> list[str]:
        for name, homes in self._homes[table].items():
            parameter = self._blocks[table].parameters[name]
            if any(home.get(key) is not parameter for home, key in homes):
                raise PlanError(
                    f"parameter {name!r} was replaced by another tensor, which no table has; "
                    "change its values in place, or plan again and make a new worker"
                )
        return self._blocks[table].changed()


def _homes(
    model: torch.nn.Module, blocks: Mapping[str, DenseBlock]
) -> dict[str, dict[str, list[tuple[dict[str, torch.nn.Parameter | None], str]]]]:
    """By table and parameter, where modules of the model hold it; a tied one has several."""
    homes: dict[int, list[tuple[dict[str, torch.nn.Parameter | None], str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            homes.setdefault(id(parameter), []).append((module._parameters, key))
    return {
        table: {name: homes.get(id(it), []) for name, it in block.parameters.items()}
        for table, block in blocks.items()
    }


def _read_by_one(plan: Plan) -> set[tuple[str, str]]:
    """Programs and tables that other programs do not read, or read anew in each of their steps.

    So what the program's push has made of the table may be in the model as soon as it is made.
    """
    windows = {
        (program.name, op.table): op.every
        for program in plan.programs.values()
        for op in program.ops_of(PullDense)
    }
    return {
        (name, table)
        for name, table in windows
        if all(
            every == 1
            for (other, read), every in windows.items()
            if read == table and other != name
        )
    }
