"""Programs as messages: what each trainer reads of its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downpour.plan.fleet_desc.described import TrainerDesc
from downpour.plan.fleet_desc.programs import read_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from downpour.plan.fleet_desc.described import DenseTableDesc, SparseTableDesc
    from downpour.plan.fleet_desc.places import Node, Place

VERBS = ("pull_sparse", "push_sparse", "pull_dense", "push_dense")
# What a plan's own description has, and means nothing where tables have no names.
_OWN = ("no_grad", "weigh_samples", "detached")
_OWN_OF_TABLE = ("times_batch_size", "counts", "pull_every", "push_every", "scale_datanorm")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a description, by id.

    `are_all`: a trainer may use no others; those that a file leaves out are planned.
    """

    sparse: Mapping[int, SparseTableDesc]
    dense: Mapping[int, DenseTableDesc]
    are_all: bool

    @property
    def unnamed(self) -> int | None:
        """The first table without a name; None in a plan's own description, where all have one."""
        names = {number: table.name for number, table in self.sparse.items()}
        names |= {number: table.name for number, table in self.dense.items()}
        return next((number for number, name in names.items() if not name), None)

    def have(self, ids: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether all tables of a program are here, and have names."""
        numbers = [(number, self.of(verb)) for verb, listed in ids.items() for number in listed]
        return self.unnamed is None and all(number in known for number, known in numbers)

    def of(self, name: str) -> Mapping[int, SparseTableDesc] | Mapping[int, DenseTableDesc]:
        """The tables that a field is about, by what its name has in it."""
        return self.sparse if "sparse" in name else self.dense


def read_trainers(root: Node, tables: Tables) -> tuple[TrainerDesc, ...]:
    """Read every program, in order. Raises PlanError."""
    return tuple(
        trainer for node in root.children("trainer_param") for trainer in _read(node, tables)
    )


def _read(node: Node, tables: Tables) -> Iterator[TrainerDesc]:
    """One for each program_config, or one alone without any."""
    entries = {name: _entries(node, name, tables) for name in ("sparse_table", "dense_table")}
    if tables.unnamed is not None:
        _refuse_own(node, entries, tables.unnamed)
    _check_rows_per_batch(node)
    configs = node.children("program_config")
    if not configs:
        yield _trainer(node, entries, None, program_id=None, program=None, **_ids(None, tables))
    unused = {number: entry for listed in entries.values() for number, entry in listed.items()}
    for config in configs:
        ids = _ids(config, tables)
        used = {number for numbers in ids.values() for number in numbers}
        unused = {number: entry for number, entry in unused.items() if number not in used}
        own = {
            name: {number: entry for number, entry in listed.items() if number in used}
            for name, listed in entries.items()
        }
        program = read_program(node, config, own, tables, ids) if tables.have(ids) else None
        named = config.get("program_id")
        yield _trainer(node, own, config.place, program_id=named, program=program, **ids)
    for number, entry in unused.items():
        if configs:
            raise entry.error("table_id", f"no program_config names table {number}; name it there")


def _trainer(
    node: Node,
    entries: Mapping[str, Mapping[int, Node]],
    config: Place | None,
    **of_program: Any,
) -> TrainerDesc:
    sparse, dense = entries["sparse_table"], entries["dense_table"]
    return TrainerDesc(
        skip_ops=tuple(node.get("skip_op")),
        push_dense_per_batch=_batches(node, "push_dense_per_batch"),
        pull_dense_per_batch=_batches(node, "pull_dense_per_batch"),
        sparse={number: tuple(it.get("slot_key")) for number, it in sparse.items()},
        dense={number: tuple(it.get("dense_variable_name")) for number, it in dense.items()},
        place=node.place,
        config=config,
        entries={
            **{("sparse", number): entry.place for number, entry in sparse.items()},
            **{("dense", number): entry.place for number, entry in dense.items()},
        },
        **of_program,
    )


def _batches(node: Node, name: str) -> int | None:
    if not node.has(name):
        return None
    number: int = node.get(name)
    if number < 1:
        raise node.error(name, f"must be at least 1, got {number}")
    return number


def _check_rows_per_batch(node: Node) -> None:
    number = _batches(node, "push_sparse_per_batch")
    if number not in (None, 1):
        why = f"must be 1, got {number}: rows are pushed after every batch"
        raise node.error("push_sparse_per_batch", why)


def _ids(config: Node | None, tables: Tables) -> dict[str, tuple[int, ...]]:
    """The tables that a program_config names, by what is done with them."""
    if config is None:
        return dict.fromkeys(VERBS, ())
    if not config.get("program_id"):
        raise config.error("program_id", "is missing: the program's name")
    return {verb: _known_ids(config, f"{verb}_table_id", tables) for verb in VERBS}


def _known_ids(config: Node, name: str, tables: Tables) -> tuple[int, ...]:
    known = tables.of(name)
    numbers = tuple(config.get(name))
    for index, number in enumerate(numbers):
        if tables.are_all and number not in known:
            raise config.error(name, _unknown(number, name, known), index)
        if number in numbers[:index]:
            raise config.error(name, f"{number} is given twice; keep one", index)
    return numbers


def _unknown(number: int, name: str, known: Mapping[int, object]) -> str:
    kind = "sparse" if "sparse" in name else "dense"
    return f"there is no {kind} table {number}; there are {', '.join(map(str, known)) or 'none'}"


def _entries(node: Node, name: str, tables: Tables) -> dict[int, Node]:
    """What a trainer says of each of its tables, by id."""
    entries: dict[int, Node] = {}
    known = tables.of(name)
    for entry in node.children(name):
        number = entry.get("table_id")
        if tables.are_all and number not in known:
            raise entry.error("table_id", _unknown(number, name, known))
        if number in entries:
            raise entry.error("table_id", f"{number} is given twice; keep one")
        entries[number] = entry
        _check_lengths(entry)
        if number in known:
            _check_width(entry, known[number])
    return entries


def _check_lengths(entry: Node) -> None:
    """Lists that stand beside each other must be of one length, gradients the first of them."""
    if "slot_key" in entry.message.DESCRIPTOR.fields_by_name:
        keys, values = len(entry.get("slot_key")), len(entry.get("slot_value"))
        if values not in (0, keys):
            raise entry.error("slot_value", f"must be {keys}, as slot_key, got {values}")
        if len(entry.get("slot_gradient")) > keys:
            why = f"must be at most {keys}, as slot_key, got {len(entry.get('slot_gradient'))}"
            raise entry.error("slot_gradient", why)
        return
    names = len(entry.get("dense_variable_name"))
    gradients = len(entry.get("dense_gradient_variable_name"))
    if gradients not in (0, names):
        why = f"must be {names}, as dense_variable_name, got {gradients}"
        raise entry.error("dense_gradient_variable_name", why)


def _check_width(entry: Node, table: SparseTableDesc | DenseTableDesc) -> None:
    """A width that is said a second time must be that of the table."""
    for name in ("feature_dim", "fea_dim"):
        if name not in entry.message.DESCRIPTOR.fields_by_name or not entry.has(name):
            continue
        if entry.get(name) != table.fea_dim:
            why = f"must be {table.fea_dim}, the fea_dim of its table, or be left out, got "
            raise entry.error(name, f"{why}{entry.get(name)}")


def _refuse_own(node: Node, entries: Mapping[str, Mapping[int, Node]], unnamed: int) -> None:
    why = (
        f"is of a plan's own description, whose tables all have names, and table {unnamed} has "
        "none; take it out"
    )
    for name in _OWN:
        if node.get(name):
            raise node.error(name, why)
    for entry in (entry for listed in entries.values() for entry in listed.values()):
        for descriptor, _ in entry.message.ListFields():
            if descriptor.name in _OWN_OF_TABLE:
                raise entry.error(descriptor.name, why)
