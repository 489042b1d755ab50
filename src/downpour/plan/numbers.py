"""The number of each table: as Paddle's minimize gives them, or as a description file has them.

Paddle numbers sparse tables by their first look-up in the forward of a loss, loss after loss. Then
it numbers a dense table for each loss, one without a parameter too, and a data-norm table for each
loss that trains statistics. Where losses share parameters, each of Paddle's tables has a copy of
them; here a parameter lives in the table of the first loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from downpour.errors import PlanError
from downpour.plan.trainers import trainers_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from downpour.plan.fleet_desc import FleetDesc
    from downpour.plan.programs import Trained
    from downpour.plan.told import Kind

    Slots: TypeAlias = list[tuple[str, tuple[str, ...], str]]  # loss, features, where it is said


@dataclass(frozen=True, slots=True)
class DenseNumber:
    """A number that a loss has for its dense or its data-norm table.

    own: the parameters of that table, empty where there is none. trained: all of the kind that the
    loss trains, those in tables of other losses too.
    """

    id: int
    loss: str
    kind: Kind
    own: tuple[str, ...]
    trained: tuple[str, ...]


def dense_numbers(trained: Mapping[str, Trained], first: int) -> tuple[DenseNumber, ...]:
    """The numbers of dense and data-norm tables, from `first` on."""
    numbers: list[DenseNumber] = []
    taken: set[str] = set()
    for loss, what in trained.items():
        of_kind: dict[Kind, tuple[str, ...]] = {
            "dense": what.parameters, "data_norm": what.statistics,
        }  # fmt: skip
        for kind, names in of_kind.items():
            if names or kind == "dense":
                own = tuple(name for name in names if name not in taken)
                numbers.append(DenseNumber(first + len(numbers), loss, kind, own, names))
                taken.update(own)
    return tuple(numbers)


def sparse_numbers(trained: Mapping[str, Trained], desc: FleetDesc | None) -> dict[str, int]:
    """The number of each table that some loss reads, by rising number.

    Those of a description that names a table, or the slots that read it; all others by their first
    look-up. Raises PlanError where a description's tables cannot be told apart.
    """
    tables = [*dict.fromkeys(table for what in trained.values() for table in what.read)]
    if desc is None:
        return {name: number for number, name in enumerate(tables)}
    placed = _Described(trained, tables, desc).placed()
    free = (number for number in range(len(tables)) if number not in placed)
    of_table = {name: number for number, name in placed.items()}
    numbers = {name: of_table[name] if name in of_table else next(free) for name in tables}
    return dict(sorted(numbers.items(), key=lambda it: it[1]))


class _Described:
    """Finds which table of the losses each sparse table of a description is."""

    def __init__(
        self, trained: Mapping[str, Trained], tables: Sequence[str], desc: FleetDesc
    ) -> None:
        self._read = {loss: what.read for loss, what in trained.items()}
        self._tables, self._desc = tables, desc
        self._slots: dict[int, Slots] = {}
        for loss, trainer in zip(trained, trainers_of([*trained], desc), strict=True):
            if trainer is None:
                continue
            for number, features in trainer.sparse.items():
                if features:
                    where = trainer.at_table("sparse", number, "slot_key")
                    self._slots.setdefault(number, []).append((loss, features, where))

    def placed(self) -> dict[int, str]:
        """Tables by the numbers that the description gives them."""
        # Numbers that no table can have are refused once the whole plan is known.
        numbers = {*self._desc.sparse, *self._slots} & {*range(len(self._tables))}
        fits = {number: self._fitting(number) for number in sorted(numbers)}
        placed: dict[int, str] = {}
        for number in sorted(fits, key=lambda it: len(fits[it])):  # what is certain comes first
            names = fits[number]
            if len(names) > 1:
                self._refuse_unclear(number, names, placed)
                names = [self._tables[number]]
            if names[0] in placed.values():
                self._refuse_twice(number, names[0], placed)
            placed[number] = names[0]
        return placed

    def _fitting(self, number: int) -> list[str]:
        """The tables that one of the description can be; those without names can be all."""
        desc = self._desc.sparse.get(number)
        if desc is not None and desc.name is not None:
            if desc.name not in self._tables:
                raise PlanError(
                    f"{desc.at('sparse.name')} is {desc.name!r}, and the model's is "
                    f"{' or '.join(map(repr, self._tables))}; correct it, or leave it out"
                )
            return [desc.name]
        slots = self._slots.get(number, [])
        found = [
            table
            for table in self._tables
            if all({*features} == {*self._read[loss].get(table, ())} for loss, features, _ in slots)
        ]
        if not found:
            self._refuse_slots(slots)
        return found

    def _refuse_slots(self, slots: Slots) -> None:
        for loss, features, where in slots:
            read = self._read[loss]
            if not any({*features} == {*own} for own in read.values()):
                tables = " and ".join(
                    f"{', '.join(own) or 'nothing'} in table {self._tables.index(table)}"
                    for table, own in read.items()
                )
                raise PlanError(
                    f"{where} is {', '.join(features)}, and loss {loss!r} reads "
                    f"{tables or 'no table'}; write all features that read the table, or none"
                )
        _, features, where = slots[0]
        raise PlanError(
            f"{where} is {', '.join(features)} of one table, and the losses read them in tables of "
            "their own; give each a table_id of its own"
        )

    def _refuse_unclear(self, number: int, names: list[str], placed: Mapping[int, str]) -> None:
        """Of tables that a description does not tell apart, one has the number of its look-up."""
        own = self._tables[number]
        if own in names and own not in placed.values():
            return
        slots = self._slots.get(number, [])
        what = f"slots {', '.join(slots[0][1])}" if slots else "no slot_key"
        raise PlanError(
            f"{self._where(number)} is {number}, with {what}: it may be of table "
            f"{' or '.join(map(repr, names))}. By look-up they are {self._numbered()}; number all "
            "of them so, or give the slot_key of each in trainer_param"
        )

    def _refuse_twice(self, number: int, name: str, placed: Mapping[int, str]) -> None:
        other = next(it for it, table in placed.items() if table == name)
        raise PlanError(
            f"{self._where(number)} is {number}, which is table {name!r}, as is {other}; give each "
            "table one table_id"
        )

    def _where(self, number: int) -> str:
        if number in self._desc.sparse:
            return self._desc.sparse[number].at("table_id")
        return self._slots[number][0][2]

    def _numbered(self) -> str:
        return ", ".join(f"{number}: {name!r}" for number, name in enumerate(self._tables))
