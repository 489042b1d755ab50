"""What a description says of dense and data-norm tables: taken in, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from downpour.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.plan.fleet_desc import DenseTableDesc, FleetDesc
    from downpour.plan.numbers import DenseNumber
    from downpour.plan.specs import DenseTableSpec


def described_dense(
    tables: Sequence[DenseTableSpec], numbers: Sequence[DenseNumber], desc: FleetDesc
) -> tuple[DenseTableSpec, ...]:
    """The tables as a description has them. Raises PlanError for what contradicts the losses.

    The reference has a table for a loss without parameters, and copies of parameters that losses
    share in the table of each. Such a file is taken if its tables agree: there is no such table
    here, and one home for each parameter.
    """
    said = {number.id: desc.dense[number.id] for number in numbers if number.id in desc.dense}
    made = tuple(_table(table, said[table.id]) if table.id in said else table for table in tables)
    for number in numbers:
        if number.id in said:
            _check_size(number, said[number.id], made)
    return made


def _table(table: DenseTableSpec, desc: DenseTableDesc) -> DenseTableSpec:
    shapes = {section.name: section.shape for section in table.sections}
    desc.require_same(
        {
            "dense.name": (desc.name, table.name),
            "dense.section": (desc.shapes, shapes),
            "dense.dtype": (desc.dtype, table.dtype),
        }
    )
    made = replace(table, rule=desc.rule, files=desc.files)
    if made.is_data_norm != table.is_data_norm:
        holds = "data-norm statistics" if table.is_data_norm else "parameters"
        raise PlanError(
            f"{desc.at('accessor.dense_sgd_param.name')} is of {type(desc.rule).__name__}, and "
            f"table {table.id} holds {holds}; 'summary' is the rule of data-norm tables and of no "
            "other"
        )
    return made


def _check_size(
    number: DenseNumber, desc: DenseTableDesc, tables: Sequence[DenseTableSpec]
) -> None:
    """A size must be that of the table, or with what it shares with the tables of other losses."""
    sizes = {section.name: section.size for table in tables for section in table.sections}
    own = sum(sizes[name] for name in number.own)
    whole = sum(sizes[name] for name in number.trained)
    if desc.fea_dim not in (None, own, whole):
        also = "" if own == whole else f", or {whole} with those of other tables"
        raise PlanError(
            f"{desc.at('accessor.fea_dim')} is {desc.fea_dim}, and the parameters of table "
            f"{number.id} have {own} elements{also}; write fea_dim: {own}, or leave it out"
        )
    if desc.fea_dim == whole or not number.own:
        require_one_rule(number, desc, tables)


def require_one_rule(
    number: DenseNumber, desc: DenseTableDesc, tables: Sequence[DenseTableSpec]
) -> None:
    """A table with copies of parameters must be of the rule by which they learn. PlanError."""
    for table in tables:
        names = {section.name for section in table.sections}
        shared = [name for name in number.trained if name in names]
        if shared and table.id != number.id and table.rule != desc.rule:
            raise PlanError(
                f"{desc.at('accessor.dense_sgd_param')}: loss {number.loss!r} trains "
                f"{', '.join(shared[:5])} too, which learns in table {table.id} by {table.rule!r}, "
                f"not by {desc.rule!r}; give both tables one rule"
            )
