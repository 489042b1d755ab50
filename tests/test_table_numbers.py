"""Tables are numbered as by Paddle's minimize, and matched by slots to those of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.plan.plan import Plan
from tests.paddle_models import NoDense, TwoTables, Use, loss
from tests.test_fleet_merge import ADAM, file_of, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USER_FIRST, ITEM_FIRST = Use(TwoTables), Use(lambda: TwoTables(("item", "user")))
CTR = "accessor_class: 'DownpourCtrAccessor' embedx_threshold: {}".format
BOTH = (table(0, CTR(3)), table(1, CTR(4)))


def slots(*names: str) -> str:
    """A trainer that says the slots of table 0, table 1 ..."""
    entries = "".join(
        f"sparse_table {{ table_id: {number} {' '.join(f'slot_key: {it!r}' for it in own.split())} "
        "}\n"
        for number, own in enumerate(names)
        if own
    )
    return f"trainer_param {{\n{entries}}}\n"


@pytest.fixture
def plan_by(tmp_path: Path) -> Callable[..., dp.Plan]:
    """Plan a use with a file of this text."""

    def plan(use: Use, text: str, **settings: Any) -> dp.Plan:
        path = tmp_path / "f.prototxt"
        path.write_text(text, encoding="utf-8")
        return use.plan({"fleet_desc_file": path}, **settings)

    return plan


def thresholds(plan: dp.Plan) -> dict[str, tuple[int, float]]:
    """By table its number, and which table of the file it is."""
    return {it.name: (it.id, it.accessor.embedx_threshold) for it in plan.sparse}


def test_tables_are_numbered_by_their_first_look_up_not_by_their_declaration() -> None:
    assert [it.name for it in USER_FIRST.plan().sparse] == ["ua", "ib"]
    assert [it.name for it in ITEM_FIRST.plan().sparse] == ["ib", "ua"]
    assert [it.id for it in ITEM_FIRST.plan().sparse] == [0, 1]


def test_the_look_ups_of_the_first_loss_come_first() -> None:
    def items(model: Any, batch: dp.Batch) -> torch.Tensor:
        return model.ib(batch).mean()

    def both(model: Any, batch: dp.Batch) -> torch.Tensor:
        return model.ua(batch).mean() + items(model, batch)

    numbers = [
        {it.name: it.id for it in Use(TwoTables, losses).plan().sparse}
        for losses in ({"items": items, "both": both}, {"both": both, "items": items})
    ]
    assert numbers == [{"ib": 0, "ua": 1}, {"ua": 0, "ib": 1}]


def test_first_values_of_rows_do_not_depend_on_the_number() -> None:
    ids = np.arange(50)
    rows = []
    for use in (USER_FIRST, ITEM_FIRST):
        plan = use.plan({"no_cvm": True})
        with dp.Worker(plan, use.model(), ps := dp.embedded(plan)):
            rows.append({name: ps.pull(name, ids).tolist() for name in ("ua", "ib")})
    assert rows[0] == rows[1]
    assert rows[0]["ua"] != rows[0]["ib"]


def test_every_loss_has_a_number_for_its_dense_table() -> None:
    plan = Use(NoDense, {"t0": loss("t0"), "t1": loss("t1")}).plan()
    assert [(it.id, it.name) for it in plan.dense] == [(2, "dense.t1")]
    assert Plan.from_fleet_desc(plan.fleet_desc()) == plan
    alone = Use(NoDense, {"t0": loss("t0")}).plan()
    assert ([it.id for it in alone.sparse], alone.dense) == ([0], ())


def test_a_file_of_servers_alone_is_matched_by_look_up(plan_by: Any) -> None:
    assert thresholds(plan_by(USER_FIRST, file_of(*BOTH))) == {"ua": (0, 3), "ib": (1, 4)}
    assert thresholds(plan_by(ITEM_FIRST, file_of(*BOTH))) == {"ib": (0, 3), "ua": (1, 4)}
    one = plan_by(ITEM_FIRST, file_of(BOTH[1]))
    assert thresholds(one) == {"ib": (0, 10), "ua": (1, 4)}


@pytest.mark.parametrize("use", [USER_FIRST, ITEM_FIRST])
def test_slots_say_which_table_it_is_and_its_number_stays(use: Use, plan_by: Any) -> None:
    text = file_of(*BOTH, rest=slots("user", "item"))
    assert thresholds(plan_by(use, text)) == {"ua": (0, 3), "ib": (1, 4)}
    text = file_of(*BOTH, rest=slots("item", "user"))
    plan = plan_by(use, text)
    assert thresholds(plan) == {"ib": (0, 3), "ua": (1, 4)}
    assert [it.id for it in plan.sparse] == [0, 1]
    said = plan.fleet_desc(extensions=False).trainer_param[0].sparse_table
    assert {entry.table_id: [*entry.slot_key] for entry in said} == {0: ["item"], 1: ["user"]}


def test_one_table_that_is_named_moves_the_other(plan_by: Any) -> None:
    text = file_of(BOTH[0], rest=slots("item"))
    assert thresholds(plan_by(USER_FIRST, text)) == {"ib": (0, 3), "ua": (1, 10)}
    only_slots = file_of(rest=slots("item"))
    assert thresholds(plan_by(USER_FIRST, only_slots)) == {"ib": (0, 10), "ua": (1, 10)}


def test_a_plan_that_was_numbered_otherwise_is_read_back_as_it_is(plan_by: Any) -> None:
    """As by releases that numbered tables by their declaration."""
    first = plan_by(ITEM_FIRST, file_of(*BOTH, rest=slots("user", "item")))
    assert [it.name for it in first.sparse] == ["ua", "ib"]
    assert plan_by(ITEM_FIRST, str(first.fleet_desc())) == first


class WideAndDeep(TwoTables):
    """Both tables are read by both features."""

    def __init__(self) -> None:
        super().__init__()
        self.ua = dp.SparseEmbedding(("user", "item"), 9)
        self.ib = dp.SparseEmbedding(("user", "item"), 9)
        self.hidden = torch.nn.Linear(36, 4)


class Three(TwoTables):
    """The first table has slots of its own, the others have the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dp.SparseEmbedding(("user",), 9)
        self.ua = dp.SparseEmbedding(("user", "item"), 9)
        self.ib = dp.SparseEmbedding(("user", "item"), 9)
        self.hidden = torch.nn.Linear(45, 4)

    def rows(self, batch: dp.Batch) -> torch.Tensor:
        return torch.cat([self.first(batch).flatten(1), super().rows(batch)], 1)


def test_tables_of_the_same_slots_are_told_apart_by_their_look_up(plan_by: Any) -> None:
    text = file_of(*BOTH, rest=slots("user item", "item user"))
    assert thresholds(plan_by(Use(WideAndDeep), text)) == {"ua": (0, 3), "ib": (1, 4)}


UNCLEAR: dict[str, tuple[Any, str, str]] = {
    "slots that no table has": (
        TwoTables, file_of(*BOTH, rest=slots("user item")),
        "slot_key is user, item, and loss 'click' reads user in table 0 and item in table 1; write",
    ),
    "slots of two tables of which only one is at its number": (
        Three, file_of(*BOTH, table(2, CTR(5)), rest=slots("user item", "user", "item user")),
        r"prototxt:3: table_id is 0, with slots user, item: it may be of table 'ua' or 'ib'. By "
        r"look-up they are 0: 'first', 1: 'ua', 2: 'ib'; number all of them so, or give",
    ),
    "no slots where the number is that of another": (
        TwoTables, file_of(*BOTH, rest=slots("item")),
        "table_id is 1, with no slot_key: it may be of table 'ua' or 'ib'. By look-up they",
    ),
    "the slots of one table twice": (
        TwoTables, file_of(*BOTH, rest=slots("user", "user")),
        "table_id is 1, which is table 'ua', as is 0; give each table one table_id",
    ),
    "a number that there is not": (
        TwoTables, file_of(table(5, CTR(3)), rest="trainer_param { sparse_table { table_id: 5 "
        "slot_key: 'user' } }"),
        "table_id is 5, of a sparse table, and the losses have none of that number and kind",
    ),
    "a number of a dense table": (
        TwoTables, file_of(table(2, CTR(3))), "table_id is 2, of a sparse table, .* 2: dense",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_tables_that_cannot_be_told_apart_are_refused(name: str, plan_by: Any) -> None:
    model, text, message = UNCLEAR[name]
    with pytest.raises(dp.PlanError, match=message):
        plan_by(Use(model), text)


def test_slots_that_two_losses_read_in_different_tables_are_refused(plan_by: Any) -> None:
    def alone(table: str) -> Any:
        return lambda model, batch: model.get_submodule(table)(batch).mean()

    use = Use(WideAndDeep, {"wide": alone("ua"), "deep": alone("ib")})
    own = slots("user item") + slots("", "user item")
    assert thresholds(plan_by(use, file_of(*BOTH, rest=own))) == {"ua": (0, 3), "ib": (1, 4)}
    one = slots("user item") + slots("user item")
    with pytest.raises(dp.PlanError, match="the losses read them in tables of their own; give eac"):
        plan_by(use, file_of(BOTH[0], rest=one))


def test_a_dense_table_of_a_loss_without_parameters_must_be_empty(plan_by: Any) -> None:
    use = Use(NoDense, {"t0": loss("t0"), "t1": loss("t1")})
    plan = plan_by(use, file_of(table(1, ADAM, "DENSE"), table(2, ADAM, "DENSE")))
    assert [(it.id, it.rule) for it in plan.dense] == [(2, dp.AdamD2Sum(0.25))]
    with pytest.raises(
        dp.PlanError, match=r"fea_dim is 7, and the parameters of table 1 have 0 el"
    ):
        plan_by(use, file_of(table(1, f"fea_dim: 7 {ADAM}", "DENSE")))


SHARED = Use(TwoTables, {"a": loss(), "b": loss()})  # both train the same
OTHER = ADAM.replace("0.25", "0.5")
COPIES: dict[str, tuple[str, str]] = {
    "by their size": (file_of(table(2, ADAM, "DENSE"), table(3, f"fea_dim: 81 {OTHER}", "DENSE")),
                      r"prototxt:\d+: dense_sgd_param: loss 'b' trains hidden.bias, hidden.weight, "
                      r"out.bias, out.weight too, which learns in table 2 by AdamD2Sum\(lr=0.25"),
    "by having nothing else": (file_of(table(2, ADAM, "DENSE"), table(3, OTHER, "DENSE")),
                               "which learns in table 2"),
    "another size": (file_of(table(3, f"fea_dim: 80 {ADAM}", "DENSE")),
                     "fea_dim is 80, and the parameters of table 3 have 0 elements, or 81 with"),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_shared_parameters_must_learn_as_they_do(name: str, plan_by: Any) -> None:
    text, message = COPIES[name]
    with pytest.raises(dp.PlanError, match=message):
        plan_by(SHARED, text)
    same = text.replace("0.5", "0.25").replace("80", "81")
    if name == "another size":
        same = file_of(table(2, ADAM, "DENSE"), table(3, f"fea_dim: 81 {ADAM}", "DENSE"))
    plan = plan_by(SHARED, same)
    assert [(it.id, it.size, it.rule) for it in plan.dense] == [(2, 81, dp.AdamD2Sum(0.25))]


def test_a_trainer_may_list_shared_parameters_in_the_table_of_each_loss(plan_by: Any) -> None:
    names = " ".join(f"dense_variable_name: '{it}'" for it in
                     ("hidden.bias", "hidden.weight", "out.bias", "out.weight"))  # fmt: skip

    def trainer(number: int) -> str:
        return f"trainer_param {{ dense_table {{ table_id: {number} {names} }} }}\n"

    tables = file_of(table(2, ADAM, "DENSE"), rest=trainer(2) + trainer(3))
    assert [it.id for it in plan_by(SHARED, tables).dense] == [2]
    other = file_of(table(2, ADAM, "DENSE"), table(3, OTHER, "DENSE"), rest=trainer(2) + trainer(3))
    with pytest.raises(dp.PlanError, match="give both tables one rule"):
        plan_by(SHARED, other)


def test_a_program_config_may_list_the_tables_that_paddle_numbers(plan_by: Any) -> None:
    def trainer(number: int, name: str) -> str:
        dense = f"pull_dense_table_id: {number} push_dense_table_id: {number}"
        sparse = "pull_sparse_table_id: [0, 1] push_sparse_table_id: [0, 1]"
        return f"trainer_param {{ program_config {{ program_id: '{name}' {dense} {sparse} }} }}\n"

    plan = plan_by(SHARED, file_of(rest=trainer(2, "a") + trainer(3, "b")))
    assert plan == SHARED.plan()
    with pytest.raises(dp.PlanError, match="pull_dense_table_id is 4, and the loss uses 2 there"):
        plan_by(SHARED, file_of(rest=trainer(2, "a") + trainer(4, "b")))
