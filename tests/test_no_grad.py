"""parameter_list and no_grad_set: what is left out is planned out, and does not move."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

import downpour as dp
from downpour.plan.program import Compute, PullDense, PullSparse, PushDense, PushSparse
from tests.networks import Network, a_batch, click, random_batches, rows_of, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Deep(Network):
    """An embedding, a hidden layer, and an output tied to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(8, 8)
        self.alias = torch.nn.Linear(8, 8)
        self.alias.weight = self.hidden.weight

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1)
        return self.out(self.alias(self.hidden(rows))).squeeze(1)


def plan_of(model: Any, losses: Any = click, **limits: Any) -> dp.Plan:
    optimizer = dp.DownpourSGD(sparse=dp.SGD(0.5), dense=dp.SGD(0.5))
    return optimizer.minimize(losses, model=model, example=a_batch(), **limits)


def moved(model: Any, plan: dp.Plan) -> set[str]:
    """What training has changed: parameters by name, and "rows"."""
    before, ps = weights_of(model), dp.embedded(plan)
    features = ["user", "item"]
    rows = rows_of(ps, "embedding", features)
    with dp.Worker(plan, model, ps) as worker:
        for batch in random_batches(0, 4):
            for program in plan.programs:
                worker.step(program, batch)
    after = weights_of(model)
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    return changed | ({"rows"} if not np.array_equal(rows_of(ps, "embedding", features), rows) else
                      set())  # fmt: skip


ALL = {"rows", "out.weight", "out.bias", "hidden.weight", "hidden.bias", "alias.bias"}
WITH_ALIAS = ALL | {"alias.weight"}  # one tensor of two names in a state_dict


def trained(plan: dp.Plan, loss: str = "click") -> set[str]:
    return set(plan.programs[loss].parameters)


@pytest.mark.parametrize("as_objects", [False, True])
def test_parameter_list_restricts_dense_parameters(as_objects: bool) -> None:
    model = Deep()
    chosen = (
        [model.out.weight, model.alias.weight] if as_objects else ["out.weight", "alias.weight"]
    )
    plan = plan_of(model, parameter_list=chosen)
    assert trained(plan) == {"out.weight", "hidden.weight"}
    left_out = ("alias.bias", "hidden.bias", "out.bias")
    assert Compute("click", left_out) in plan.programs["click"].ops
    assert moved(model, plan) == {"rows", "out.weight", "hidden.weight", "alias.weight"}


def test_parameter_list_may_name_the_table_whose_rows_are_trained_anyway() -> None:
    """As in Paddle, where a table is a parameter too and is pushed whatever the list has."""
    model = Deep()
    plan = plan_of(model, parameter_list=["out.weight", "embedding"])
    assert plan == plan_of(model, parameter_list=["out.weight"])
    assert moved(model, plan) == {"rows", "out.weight"}
    assert trained(plan_of(model, parameter_list=["embedding"])) == set()


class TwoTables(Network):
    def __init__(self) -> None:
        super().__init__()
        self.wide = dp.SparseEmbedding("user", 1)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return super().forward(batch) + self.wide(batch).flatten()


def test_a_list_that_names_some_tables_only_is_refused() -> None:
    """It would read as if the others were not trained."""
    names = ["out.weight", "embedding"]
    with pytest.raises(
        dp.PlanError,
        match=r"parameter_list names 'embedding', and loss 'click' trains the rows of 'wide' as we"
        r"ll: .* Name all of these tables or none, or give no_grad_set=\['wide'\]",
    ):
        plan_of(TwoTables(), parameter_list=names)
    both = plan_of(TwoTables(), parameter_list=[*names, "wide"])
    assert both == plan_of(TwoTables(), parameter_list=["out.weight"])
    one = plan_of(TwoTables(), parameter_list=names, no_grad_set=["wide"])
    assert one.programs["click"].tables(PushSparse) == ("embedding",)


def test_no_grad_set_takes_parameters_by_any_of_their_names() -> None:
    model = Deep()
    plan = plan_of(model, no_grad_set={"alias.weight", "_orig_mod.out.bias"})
    assert trained(plan) == {"alias.bias", "hidden.bias", "out.weight"}
    assert moved(model, plan) == {"rows", "alias.bias", "hidden.bias", "out.weight"}


def test_no_grad_set_takes_tables() -> None:
    model = Deep()
    plan = plan_of(model, no_grad_set=["embedding"])
    ops = plan.programs["click"].ops
    assert PullSparse("embedding", ("user", "item")) in ops
    assert not [op for op in ops if isinstance(op, PushSparse)]
    assert Compute("click", ("embedding",)) in ops
    assert plan.programs["click"].skipped_ops == ("lookup_table",)
    assert moved(model, plan) == WITH_ALIAS - {"rows"}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it itself
@pytest.mark.parametrize("compiled", [False, True])
def test_no_grad_set_takes_modules_whose_output_is_detached(compiled: bool) -> None:
    model: Any = Deep()
    plan = plan_of(model, no_grad_set=["hidden"])
    assert Compute("click", detached=("hidden",)) in plan.programs["click"].ops
    assert trained(plan) == {"alias.bias", "hidden.weight", "out.bias", "out.weight"}
    worker_model = torch.compile(model, backend="eager") if compiled else model
    changed = {name.removeprefix("_orig_mod.") for name in moved(worker_model, plan)}
    assert changed == {"alias.bias", "hidden.weight", "alias.weight", "out.bias", "out.weight"}


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


STRUCTURES: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]] = {
    "tensor": (lambda x: x, lambda given: given),
    "tuple": (lambda x: (x, None, 3), lambda given: given[0]),
    "list": (lambda x: [[x], "text"], lambda given: given[0][0]),
    "named tuple": (lambda x: Pair(x, x), lambda given: given.first + given.second),
    "dict": (lambda x: {"x": x}, lambda given: given["x"]),
    "ordered dict": (lambda x: OrderedDict(x=x), lambda given: given["x"]),
    "dataclass": (
        lambda x: dp.JaggedRows(x, torch.zeros(1, dtype=torch.int64)), lambda given: given.values,
    ),
}  # fmt: skip


class Structured(Network):
    """A module that returns a structure, between the rows and the output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.give, self.take = STRUCTURES[name]
        self.part = Part(self.give)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.out(self.take(self.part(self.embedding(batch).flatten(1)))).squeeze(1)


class Part(torch.nn.Module):
    def __init__(self, give: Any) -> None:
        super().__init__()
        self.linear, self.give = torch.nn.Linear(8, 8), give

    def forward(self, x: torch.Tensor) -> Any:
        return self.give(self.linear(x))


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_module_may_give_any_structure_of_tensors(name: str) -> None:
    model = Structured(name)
    plan = plan_of(model, no_grad_set=["part"])
    assert trained(plan) == {"out.bias", "out.weight"}
    assert moved(model, plan) == {"out.bias", "out.weight"}


class Scores(OrderedDict[str, torch.Tensor]):
    """A mapping of one's own, which may be made in its own way."""


@pytest.mark.parametrize(
    ("give", "take", "kind"),
    [
        (lambda x: iter([x]), next, "list_iterator"),
        (lambda x: Scores(x=x), lambda given: given["x"], "Scores"),
    ],
    ids=["iterator", "mapping"],
)
def test_what_cannot_be_detached_is_refused(give: Any, take: Any, kind: str) -> None:
    model = Structured("tensor")
    model.part.give, model.take = give, take
    with pytest.raises(dp.PlanError, match=rf"names module 'part', which returns a {kind}"):
        plan_of(model, no_grad_set=["part"])


class Listed(Deep):
    """Modules that do not run: one that holds others, and one whose own method is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
        self.scaler = Scaler()

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.scaler.scaled(self.layers[0](self.embedding(batch).flatten(1)))
        return self.out(rows).squeeze(1)


class Scaler(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(8))

    def scaled(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * self.scale


@pytest.mark.parametrize("name", ["layers", "scaler"])
def test_a_module_that_does_not_run_is_refused(name: str) -> None:
    with pytest.raises(dp.PlanError, match=f"has module '{name}', which no loss calls"):
        plan_of(Listed(), no_grad_set=[name])
    plan = plan_of(Listed(), no_grad_set=["layers.0", "scaler.scale"])
    assert trained(plan) == {"out.bias", "out.weight"}


class Again(Deep):
    """Its hidden layer runs once more in backward."""

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        rows = self.embedding(batch).flatten(1)
        both = torch.utils.checkpoint.checkpoint(self.both, rows, use_reentrant=True)
        return self.out(both).squeeze(1)

    def both(self, rows: torch.Tensor) -> torch.Tensor:
        return self.alias(rows) + self.hidden(rows)


def test_outputs_are_detached_where_backward_runs_a_module_again() -> None:
    model = Again()
    plan = plan_of(model, no_grad_set=["hidden"])
    assert trained(plan) == {"alias.bias", "hidden.weight", "out.bias", "out.weight"}
    assert "hidden.bias" not in moved(model, plan)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_model_that_was_compiled_and_has_run_is_detached_too() -> None:
    model = Deep()
    compiled: Any = torch.compile(model, backend="eager")
    everything = plan_of(model)
    tables = dp.embedded(everything)
    with dp.Worker(everything, compiled, tables) as worker:
        worker.step("click", a_batch())
    tables.clear("embedding")  # or the trained model would be refused without its rows
    plan = plan_of(compiled, no_grad_set=["hidden"])
    assert "hidden.bias" not in trained(plan)
    assert "_orig_mod.hidden.bias" not in moved(compiled, plan)


def beside(model: Any, batch: dp.Batch) -> torch.Tensor:
    """It uses what the other loss trains, and trains the rows alone."""
    hidden = model.hidden(model.embedding(batch).flatten(1))
    return (hidden * model.out.weight.detach()).square().mean()


def test_what_is_used_without_a_gradient_is_pulled() -> None:
    plan = plan_of(Deep(), [click, beside])
    assert trained(plan, "beside") == {"hidden.bias", "hidden.weight"}
    assert PullDense("dense.click") in plan.programs["beside"].ops


def test_a_module_that_has_the_name_of_another_table_is_not_detached() -> None:
    class Named(Network):
        def __init__(self) -> None:
            super().__init__()
            self.ids = torch.nn.Linear(2, 1)
            self.other = dp.SparseEmbedding("user", 2, table="ids")

        def forward(self, batch: dp.Batch) -> torch.Tensor:
            return super().forward(batch) + self.ids(self.other(batch).squeeze(1)).squeeze(1)

    model = Named()
    plan = plan_of(model, no_grad_set=["ids"])
    assert not [op for op in plan.programs["click"].ops_of(PushSparse) if op.table == "ids"]
    assert "ids.weight" in trained(plan)
    assert "ids.weight" in moved(model, plan)


def other(model: Any, batch: dp.Batch) -> torch.Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("form", ["lists", "dict"])
def test_each_loss_may_have_a_list_of_its_own(form: str) -> None:
    lists: Any = [["out.bias"], ["out.weight", "out.bias"]]
    if form == "dict":
        lists = {"click": lists[0], "other": lists[1]}
    plan = plan_of(Deep(), [click, other], parameter_list=lists)
    assert trained(plan, "click") == {"out.bias"}
    assert trained(plan, "other") == {"out.bias", "out.weight"}
    assert PushDense("dense.click", ("out.bias",)) in plan.programs["other"].ops
    # The second loss's table is read by the first, which does not train what is in it.
    assert "dense.other" in [op.table for op in plan.programs["click"].ops[:2]]  # type: ignore[union-attr]


def test_params_grads_are_by_loss_and_sorted() -> None:
    plan = plan_of(Deep(), [click, other], parameter_list={"click": ["out.weight", "out.bias"]})
    assert plan.params_grads["click"] == (
        ("out.bias", "out.bias@GRAD"), ("out.weight", "out.weight@GRAD"),
    )  # fmt: skip
    assert [name for name, _ in plan.params_grads["other"]] == sorted(
        {"alias.bias", "hidden.bias", "hidden.weight", "out.bias", "out.weight"}
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"parameter_list": ["out.wieght"]}, "'out.wieght'.*did you mean 'out.weight'"),
        ({"parameter_list": ["embeding"]}, "'embeding'.*did you mean 'embedding'"),
        ({"parameter_list": [torch.nn.Parameter(torch.zeros(1))]}, "no parameter of the model"),
        ({"parameter_list": "out.weight"}, "must be a list of names, got 'out.weight'"),
        ({"parameter_list": {"buy": []}}, "names the loss 'buy'; there are: click"),
        ({"parameter_list": [["out.bias"], []]}, "2 lists for 1 losses"),
        ({"no_grad_set": ["embeding"]}, "'embeding'.*did you mean 'embedding'"),
        ({"no_grad_set": [3]}, "has 3, which is no parameter"),
        ({"no_grad_set": "hidden"}, "no_grad_set must be a list of names"),
        ({"parameter_list": [], "no_grad_set": ["embedding"]}, "reaches nothing that can be"),
    ],
)
def test_names_that_nothing_has_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(dp.PlanError, match=message):
        plan_of(Deep(), **limits)
