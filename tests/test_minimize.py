"""From losses to a plan: tables, programs, rules, and what is refused."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

import downpour as dp
from downpour.plan.program import Compute, PullDense, PullSparse, PushDense
from tests.networks import Network, a_batch, click, planned


class Tied(Network):
    def __init__(self) -> None:
        super().__init__()
        self.z = torch.nn.Linear(8, 8)
        self.a = torch.nn.Linear(8, 8)
        self.a.weight = self.z.weight

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.a(self.z(self.embedding(batch).flatten(1)))).squeeze(1)


def test_parameters_are_sorted_by_name_and_a_tied_one_has_one_home() -> None:
    (block,) = planned(Tied()).dense
    names = [section.name for section in block.sections]
    assert names == ["a.bias", "out.bias", "out.weight", "z.bias", "z.weight"]
    assert [section.offset for section in block.sections] == [0, 8, 9, 17, 25]
    assert block.size == 89


def test_a_frozen_parameter_is_not_planned() -> None:
    model = Network()
    model.out.bias.requires_grad_(False)
    assert [section.name for section in planned(model).dense[0].sections] == ["out.weight"]


class TwoTables(Network):
    """Two tables and a head a loss; `unread` is in no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = dp.SparseEmbedding("user", 2)
        self.wide = dp.SparseEmbedding("user", 3)
        self.first, self.second = torch.nn.Linear(8, 1), torch.nn.Linear(3, 1)


def one(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.first(model.embedding(batch).flatten(1)).mean()


def two(model: Any, batch: dp.Batch) -> torch.Tensor:
    return one(model, batch) + model.second(model.wide(batch)).mean()


def three(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.first.bias * one(model, batch)


def four(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.out.weight.sum()


def test_tables_are_numbered_sparse_first_then_one_for_each_loss_be_it_empty() -> None:
    plan = planned(TwoTables(), [one, two, three, four])
    assert [(table.id, table.name) for table in plan.sparse] == [(0, "embedding"), (1, "wide")]
    assert [(block.id, block.name) for block in plan.dense] == [
        (2, "dense.one"), (3, "dense.two"), (5, "dense.four"),  # 4 is of loss three, as in Paddle
    ]  # fmt: skip


def test_a_shared_parameter_lives_with_the_first_loss_that_reaches_it() -> None:
    plan = planned(TwoTables(), [one, two, three])
    parameters = {block.name: [section.name for section in block.sections] for block in plan.dense}
    assert parameters == {
        "dense.one": ["first.bias", "first.weight"],
        "dense.two": ["second.bias", "second.weight"],
    }
    assert plan.programs["two"].tables(PullDense) == ("dense.one", "dense.two")
    assert plan.programs["two"].tables(PushDense) == ("dense.one", "dense.two")
    assert plan.programs["three"].tables(PullDense, PushDense) == ("dense.one",)


def test_each_program_reads_the_tables_of_its_own_loss() -> None:
    plan = planned(TwoTables(), [one, two, four])
    assert plan.programs["one"].tables(PullSparse) == ("embedding",)
    assert plan.programs["two"].tables(PullSparse) == ("embedding", "wide")
    assert plan.programs["four"].ops == (
        PullDense("dense.four"), Compute("four"), PushDense("dense.four", ("out.weight",)),
    )  # fmt: skip


def test_a_model_without_sparse_features_plans_dense_tables_only() -> None:
    plan = planned(torch.nn.Linear(1, 1), lone := {"fit": lambda m, b: m(b.label[:, None]).mean()})
    assert plan.sparse == ()
    assert plan.programs.keys() == lone.keys()
    assert plan.dense[0].id == 0


def test_a_model_that_is_one_embedding_plans_one_table_only() -> None:
    plan = planned(dp.SparseEmbedding("user", 2), {"pull": lambda m, b: m(b).square().sum()})
    assert [table.name for table in plan.sparse] == ["embedding"]
    assert plan.dense == ()


def test_the_learning_rate_is_for_rules_that_are_not_given() -> None:
    model = TwoTables()
    optimizer = dp.DownpourSGD(learning_rate=0.3, sparse={"wide": dp.Adagrad(0.1)})
    plan = optimizer.minimize(two, model=model, example=a_batch())
    rules: list[Any] = [table.accessor.rule for table in plan.sparse]
    assert rules == [dp.G2SumAdagrad(0.3), dp.Adagrad(0.1)]
    assert {block.rule for block in plan.dense} == {dp.AdamD2Sum(0.3)}
    assert dp.G2SumAdagrad(0.3).initial_g2sum == 3.0


def test_learning_rate_and_window_are_positional_as_in_paddle() -> None:
    assert dp.DownpourSGD(0.2) == dp.DownpourSGD(learning_rate=0.2)
    assert dp.DownpourSGD(0.2, 3) == dp.DownpourSGD(learning_rate=0.2, window=3)
    with pytest.raises(TypeError):
        dp.DownpourSGD(0.2, 3, dp.SGD(0.1))  # type: ignore[misc]
    with pytest.raises(dp.SettingError, match="learning_rate must be > 0, got 'fast'"):
        dp.DownpourSGD("fast")  # type: ignore[arg-type]


def test_a_rule_for_a_table_that_is_not_there_is_refused() -> None:
    with pytest.raises(dp.SettingError, match=r"'wdie'.*embedding, unread, wide"):
        planned(TwoTables(), sparse={"wdie": dp.SGD(0.1)})


def not_scalar(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch)


def not_tensor(model: Any, batch: dp.Batch) -> float:
    return model(batch).mean().item()


def reaches_nothing(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).detach().mean()


def complex_loss(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).mean().to(torch.complex64)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (not_scalar, r"'not_scalar' must return a scalar tensor, got \[4\]; take its mean"),
        (not_tensor, "'not_tensor' must return a scalar tensor, got float"),
        (reaches_nothing, "'reaches_nothing' reaches nothing that can be trained"),
        ([], "at least one loss"),
        ({}, "at least one loss"),
        (None, "None has no name"),
        (3, "3 has no name"),
        ("click", "'c' has no name"),
        ([click, 3], "3 has no name"),
        ({"click": 3}, r"'click' must be a function .* got 3"),
        ({1: click}, "must be a text, got 1"),
        ({"": click}, "must be a text, got ''"),
        (lambda model, batch: model(batch).mean(), "has no name; give {'click': loss}"),
        (functools.partial(click), "has no name"),
        ([click, click], "two losses are called 'click'"),
    ],
)
def test_losses_that_cannot_be_planned_are_refused(losses: Any, message: str) -> None:
    with pytest.raises(dp.PlanError, match=message):
        planned(Network(), losses)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": None}, "model must be a torch.nn.Module, got None"),
        ({"model": Network}, "model must be a torch.nn.Module, got <class"),
        ({"example": {}}, "example must be a downpour.Batch, got dict"),
        ({"no_grad_set": [["out.bias"]]}, "has .'out.bias'., which is no parameter"),
        ({"losses": complex_loss}, "'complex_loss' must be a real number, got torch.complex64"),
    ],
)
def test_what_is_given_is_checked_first(given: dict[str, Any], message: str) -> None:
    arguments = {"losses": click, "model": Network(), "example": a_batch(), **given}
    with pytest.raises(dp.PlanError, match=message):
        dp.DownpourSGD().minimize(arguments.pop("losses"), **arguments)


def test_a_loss_that_is_not_finite_on_the_example_is_refused() -> None:
    with pytest.raises(dp.NonFiniteError, match="loss 'inf' is inf on the example batch"):
        planned(Network(), {"inf": lambda m, b: m(b).mean() + torch.inf})


def test_an_example_without_a_feature_is_refused() -> None:
    example = dp.Batch(features={"user": [1]}, labels=[1])
    with pytest.raises(dp.DataError, match=r"lacks feature 'item'.*'embedding'.*user"):
        planned(Network(), example=example)


class Shared(torch.nn.Module):
    """Two modules that name one table."""

    def __init__(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        super().__init__()
        settings: dict[str, Any] = {"features": "user", "dim": 2, "table": "ids"}
        self.first = dp.SparseEmbedding(**{**settings, **first})
        self.second = dp.SparseEmbedding(**{**settings, **second})


def both(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model.first(batch).sum() + model.second(batch).sum()


def test_modules_that_name_one_table_share_it() -> None:
    (table,) = planned(Shared({}, {"features": ("item", "user")}), both).sparse
    assert table.name == "ids"
    assert [feature.name for feature in table.features] == ["user", "item"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 3}, "share table 'ids' and differ.*dim=2.*dim=3"),
        ({"init": dp.Constant(1.0)}, "share table 'ids' and differ"),
        ({"bounds": (-1.0, 1.0)}, "share table 'ids' and differ"),
        ({"dtype": torch.float64}, "share table 'ids' and differ"),
        ({"padding_key": 0}, "padding_key=None.*padding_key=0"),
        ({"spaces": {"user": "person"}}, "feature 'user'.*'user' and 'person'"),
        ({"spaces": None}, "feature 'user'.*'user' and None"),
    ],
)
def test_modules_that_share_a_table_must_agree(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.PlanError, match=message):
        planned(Shared({}, settings), both)


def test_a_table_must_not_have_the_name_of_a_dense_one() -> None:
    with pytest.raises(dp.PlanError, match=r"'dense\.click' has the name of a dense table"):
        planned(Network(table="dense.click"))


def test_parameters_of_two_types_in_one_loss_are_refused() -> None:
    model = Network()
    model.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    with pytest.raises(dp.PlanError, match="all be float32 or all float64"):
        planned(model, {"scaled": lambda m, b: (m(b) * m.scale).mean()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be an int >= 1, got 0"),
        ({"window": 1.5}, "window must be an int >= 1, got 1.5"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be > 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be > 0, got inf"),
        ({"learning_rate": True}, "learning_rate must be > 0, got True"),
        ({"scale_datanorm": True}, "scale_datanorm must be a number >= 0 or None, got True"),
        ({"learning_rate": "0.1"}, "learning_rate must be > 0, got '0.1'"),
        ({"sparse": 0.1}, "takes rules.*got 0.1"),
        ({"sparse": {"embedding": "adagrad"}}, "takes rules.*got 'adagrad'"),
        ({"dense": torch.optim.SGD}, "takes a rule"),
        ({"dense": dp.RowAdam(0.1)}, "RowAdam updates sparse tables only"),
        ({"clip": 1.0}, "clip takes ClipByValue or ClipByNorm, got 1.0"),
    ],
)
def test_settings_of_the_optimizer_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        dp.DownpourSGD(**settings)


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None, True, 2**70])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(dp.SettingError, match=r"seed must be an int in \[0, 2\*\*63\), got"):
        dp.DownpourSGD().minimize(click, model=Network(), example=a_batch(), seed=seed)


def test_a_rule_for_dense_tables_is_refused_on_a_sparse_one() -> None:
    with pytest.raises(dp.SettingError, match="AdamD2Sum updates dense tables only"):
        planned(Network(), sparse=dp.AdamD2Sum(0.1))


def test_two_copies_of_a_model_give_one_plan() -> None:
    model = Network()
    assert planned(copy.deepcopy(model)) == planned(model)
