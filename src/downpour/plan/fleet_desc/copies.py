"""Dense tables as Paddle has them: one for each loss, with copies of what losses share.

Here a parameter lives in the table of the first loss that trains it. A description for Paddle's own
parser is brought into the other form, which its minimize compares with the programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from downpour.plan.program import PushDense
from downpour.plan.specs import grad_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from downpour.plan.fleet_desc.fleet_desc_pb2 import DownpourTrainerParameter, PSParameter
    from downpour.plan.plan import Plan
    from downpour.plan.program import Program
    from downpour.plan.specs import DenseTableSpec


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that Paddle gives a loss: its number, what is in it, and where that lives here."""

    id: int
    names: tuple[str, ...]
    homes: tuple[DenseTableSpec, ...]

    @property
    def size(self) -> int:
        sections = (section for home in self.homes for section in home.sections)
        return sum(section.size for section in sections if section.name in self.names)

    @property
    def has_copies(self) -> bool:
        """Whether something in it lives in the table of another loss."""
        return any(home.id != self.id for home in self.homes)


def write_copies(message: PSParameter, plan: Plan) -> None:
    """Give each loss a table with all that it trains, in a message without extensions."""
    server = message.server_param.downpour_server_param
    tables = {table.table_id: table for table in server.downpour_table_param}
    for trainer, (_, own) in zip(message.trainer_param, _losses(plan), strict=False):
        for table in own:
            if table.has_copies:
                if table.id not in tables:
                    tables[table.id] = type(tables[table.homes[0].id])()
                    tables[table.id].CopyFrom(tables[table.homes[0].id])
                    tables[table.id].table_id = table.id
                tables[table.id].accessor.fea_dim = table.size
        if any(table.has_copies for table in own):
            _write_entries(trainer, own)
    ordered = [tables[number] for number in sorted(tables)]
    del server.downpour_table_param[:]
    server.downpour_table_param.extend(ordered)


def _write_entries(trainer: DownpourTrainerParameter, own: list[_Table]) -> None:
    """A program's dense tables: those that it trains, then those that it only reads."""
    pushed = [table.id for table in own if table.names]
    trained = {*pushed, *(home.id for table in own for home in table.homes)}
    read = [entry for entry in trainer.dense_table if entry.table_id not in trained]
    del trainer.dense_table[:]
    for table in own:
        if table.names:
            trainer.dense_table.add(
                table_id=table.id,
                dense_variable_name=table.names,
                dense_gradient_variable_name=map(grad_name, table.names),
            )
    trainer.dense_table.extend(read)
    for config in trainer.program_config:
        pulled = [number for number in config.pull_dense_table_id if number not in trained]
        del config.push_dense_table_id[:], config.pull_dense_table_id[:]
        config.push_dense_table_id.extend(pushed)
        config.pull_dense_table_id.extend([*pushed, *pulled])


def copy_lines(plan: Plan) -> Iterator[str]:
    """What copies do not say: that their parameters learn by the rule of another table."""
    rules = {table.id: table.rule for table in plan.dense}
    for program, own in _losses(plan):
        for table in own:
            for home in table.homes:
                rule = rules.get(table.id, table.homes[0].rule)
                if home.rule != rule:
                    yield (
                        f"program {program.name!r}: what it trains of table {home.id} learns by "
                        f"{home.rule!r}, and its copy in table {table.id} by {rule!r}"
                    )


def _losses(plan: Plan) -> list[tuple[Program, list[_Table]]]:
    """The tables that Paddle gives each loss.

    Empty where a plan is numbered in another way: one that nobody has made by `minimize`.
    """
    homes = {section.name: table for table in plan.dense for section in table.sections}
    losses, number = [], len(plan.sparse)
    for program in plan.programs.values():
        names = sorted({name for op in program.ops_of(PushDense) for name in op.parameters})
        if not homes.keys() >= {*names}:
            return []
        own = []
        for of_norm in (False, True):
            kind = tuple(name for name in names if homes[name].is_data_norm == of_norm)
            if kind or not of_norm:
                tables = {homes[name].id: homes[name] for name in kind}
                own.append(_Table(number, kind, tuple(tables.values())))
                number += 1
        losses.append((program, own))
    return losses if _are_numbered(plan, [table for _, own in losses for table in own]) else []


def _are_numbered(plan: Plan, tables: list[_Table]) -> bool:
    """Whether the plan's tables have the numbers of these, and what they hold."""
    names = {table.id: {*table.names} for table in tables}
    return all(
        {section.name for section in table.sections} <= names.get(table.id, set())
        for table in plan.dense
    )
