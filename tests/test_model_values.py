"""Changes of a model's dense parameters in place: in the tables too, or refused by name."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

import downpour as dp
from downpour.tables.batches import bits_of, same_bits
from tests.servers import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOUND = 0.0625  # a float32


class Dense(torch.nn.Module):
    """Parameters alone, some of them in a torch embedding."""

    def __init__(self, max_norm: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = torch.nn.Embedding(6, 3, max_norm=max_norm)
        self.top = torch.nn.Linear(5, 1)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        places = self.place(torch.from_numpy(batch.features["place"].values.astype(np.int64)))
        columns = torch.cat([places, batch.dense["x"]], dim=1)
        scores: torch.Tensor = self.top(columns).squeeze(1)
        return scores


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.two.weight = self.one.weight

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        return self.two(torch.tanh(self.one(batch.dense["x"]))).sum(1)


def square(model: Any, batch: dp.Batch) -> torch.Tensor:
    return mse_loss(model(batch), batch.label)


def other(model: Any, batch: dp.Batch) -> torch.Tensor:
    return mse_loss(model(batch) * 2.0, batch.label)


def batches(number: int = 8) -> list[dp.Batch]:
    random = np.random.default_rng(0)
    return [
        dp.Batch(
            features={"place": random.integers(0, 6, 16)},
            dense={"x": random.normal(size=(16, 2)).astype(np.float32)},
            labels={"y": random.normal(size=16).astype(np.float32)},
        )
        for _ in range(number)
    ]


def planned(model: torch.nn.Module, losses: Any = square, **settings: Any) -> dp.Plan:
    settings = {"dense": dp.SGD(0.5), **settings}
    return dp.DownpourSGD(**settings).minimize(losses, model=model, example=batches(1)[0])


def trained(
    model: Any, change: Callable[[Any], None], *, num_shards: int = 1, **settings: Any
) -> dp.Client:
    """Train a model, which `change` changes after each step; its tables."""
    plan = planned(model, **settings)
    sections = dp.Sections(min_size=1)
    ps = dp.embedded(plan, num_shards=num_shards, sections=sections)
    with dp.Worker(plan, model, ps) as worker:
        for batch in batches():
            worker.step("square", batch)
            change(model)
    return ps


def by_torch(model: Any, change: Callable[[Any], None], window: int = 1) -> Any:
    """The same by plain torch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for number, batch in enumerate(batches(), start=1):
        square(model, batch).backward()
        if number % window == 0:
            optimizer.step()
            optimizer.zero_grad()
        change(model)
    return model


def clamp_data(model: Any) -> None:
    model.top.weight.data.clamp_(-BOUND, BOUND)


def clamp(model: Any) -> None:
    with torch.no_grad():
        model.top.weight.clamp_(-BOUND, BOUND)


def copy_values(model: Any) -> None:
    with torch.no_grad():
        model.top.bias.copy_(model.top.bias / 2)
        model.place.weight[2] = 0.25


def load_state(model: Any) -> None:
    model.load_state_dict({name: value / 2 for name, value in model.state_dict().items()})


def assign_data(model: Any) -> None:
    model.top.weight.data = model.top.weight.data / 2


def nothing(model: Any) -> None:
    pass


def same_values(ours: Any, theirs: Any, ps: dp.Client) -> None:
    """Model and tables have what torch has, to the bit."""
    for name, value in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), value), name
    for spec in ps.plan.dense:
        flat = ps.pull_dense(spec.name)
        for section in spec.sections:
            value = theirs.get_parameter(section.name).detach().numpy()
            assert np.array_equal(flat[section.span].reshape(section.shape), value), section.name


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(
    "change", [nothing, clamp, clamp_data, copy_values, load_state, assign_data]
)
def test_changes_between_steps_are_those_of_torch(change: Any, num_shards: int) -> None:
    model, twin = Dense(), Dense()
    ps = trained(model, change, num_shards=num_shards)
    same_values(model, by_torch(twin, change), ps)


@pytest.mark.parametrize("change", [clamp, copy_values])
def test_changes_within_a_window_are_those_of_torch(change: Any) -> None:
    model, twin = Dense(), Dense()
    ps = trained(model, change, window=4)
    same_values(model, by_torch(twin, change, window=4), ps)


def test_max_norm_is_that_of_torch() -> None:
    model, twin = Dense(max_norm=0.4), Dense(max_norm=0.4)
    ps = trained(model, nothing)
    same_values(model, by_torch(twin, nothing), ps)


def test_tied_weights_are_one_parameter_and_change_as_one() -> None:
    def halve(model: Any) -> None:
        model.two.weight.data.mul_(0.5)

    model, twin = Tied(), Tied()
    ps = trained(model, halve)
    names = [section.name for spec in ps.plan.dense for section in spec.sections]
    assert names == ["one.bias", "one.weight", "two.bias"]
    assert model.one.weight is model.two.weight
    same_values(model, by_torch(twin, halve), ps)


def test_state_of_the_rule_stays_as_it_does_in_torch() -> None:
    model, twin = Dense(), Dense()
    trained(model, clamp, dense=dp.Adam(0.1))
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.1)
    for batch in batches():
        optimizer.zero_grad()
        square(twin, batch).backward()
        optimizer.step()
        clamp(twin)
    for name, value in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-5, atol=1e-7)


def test_a_model_has_the_tables_values_after_each_step() -> None:
    model = Dense()
    plan = planned(model)
    ps = dp.embedded(plan)
    worker = dp.Worker(plan, model, ps)
    for batch in batches(3):
        worker.step("square", batch)
        own = torch.cat([model.get_parameter(it.name).flatten() for it in plan.dense[0].sections])
        assert np.array_equal(own.detach().numpy(), ps.pull_dense("dense.square"))


def test_a_change_before_the_first_step_counts() -> None:
    model = Dense()
    plan = planned(model)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        clamp(model)
        worker.pull_dense()
        assert float(model.top.weight.detach().abs().max()) <= BOUND


def test_a_refused_step_keeps_the_change_for_the_next() -> None:
    def broken(model: Any, batch: dp.Batch) -> torch.Tensor:
        return square(model, batch) * (torch.nan if batch.size == 1 else 1.0)

    model, twin = Dense(), Dense()
    plan = planned(model, broken)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        clamp(model)
        with pytest.raises(dp.NonFiniteError):
            worker.step("broken", batches(1)[0].slice(0, 1))
        worker.step("broken", batches(1)[0])
    clamp(twin)
    square(twin, batches(1)[0]).backward()
    torch.optim.SGD(twin.parameters(), lr=0.5).step()
    assert torch.equal(model.top.weight, twin.top.weight)


def test_two_losses_see_changes_between_them() -> None:
    model, twin = Dense(), Dense()
    plan = planned(model, [square, other])
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        for batch in batches():
            for loss in (square, other):
                worker.step(loss.__name__, batch)
                clamp(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    for batch in batches():
        for loss in (square, other):
            optimizer.zero_grad()
            loss(twin, batch).backward()
            optimizer.step()
            clamp(twin)
    assert torch.equal(model.top.weight, twin.top.weight)


def test_a_change_beside_a_push_that_the_model_has_not_seen_is_refused() -> None:
    model = Dense()
    plan = planned(model, [square, other], window=2)
    worker = dp.Worker(plan, model, dp.embedded(plan))
    first, second = batches(2)
    worker.step("other", first)
    for batch in (first, second):
        worker.step("square", batch)  # `other` computes on without what this has pushed
    clamp(model)
    with pytest.raises(dp.PlanError, match=r"'top\.weight' was changed in the model after its ta"):
        worker.step("other", second)
    worker.step("square", second)  # it was said once, and the table's value is there again
    worker.close()


def test_nan_in_a_change_is_refused_and_the_table_keeps_its_value() -> None:
    model = Dense()
    plan = planned(model)
    ps = dp.embedded(plan)
    before = ps.pull_dense("dense.square")
    worker = dp.Worker(plan, model, ps)
    before = ps.pull_dense("dense.square")
    model.top.weight.data[0, 0] = torch.inf
    with pytest.raises(dp.NonFiniteError, match=r"loss|top\.weight"):
        worker.step("square", batches(1)[0])
    with pytest.raises(dp.NonFiniteError, match=r"the values of 'top\.weight'"):
        worker.pull_dense()
    assert np.array_equal(ps.pull_dense("dense.square"), before)


def replaced(model: Any) -> None:
    model.top.weight = torch.nn.Parameter(torch.zeros(1, 5))


def tied_later(model: Any) -> None:
    model.top.weight = model.top.weight_twin = torch.nn.Parameter(torch.zeros(1, 5))


def cast(model: Any) -> None:
    model.top.weight.data = model.top.weight.data.double()


def reshaped(model: Any) -> None:
    model.top.weight.data = torch.zeros(1, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced, "was replaced by another tensor"),
        (tied_later, "was replaced by another tensor"),
        (cast, r"is float64, as after model\.double\(\), and the plan's table"),
        (reshaped, r"is \[1, 6\] now, the plan has \[1, 5\]"),
    ],
)
def test_another_tensor_in_a_parameters_place_is_refused(change: Any, message: str) -> None:
    model = Dense()
    plan = planned(model)
    with pytest.raises(dp.PlanError, match=message), dp.Worker(plan, model, dp.embedded(plan)):
        change(model)


@pytest.fixture
def remote() -> Iterator[tuple[Any, dp.Plan, dp.Client]]:
    """A model, its plan, and a client of two servers that split parameters."""
    model = Dense()
    plan, sections = planned(model), dp.Sections(min_size=2)
    with servers(2) as addresses, dp.connect(plan, addresses, sections=sections) as client:
        yield model, plan, client


def test_with_servers_a_change_of_the_model_is_refused_by_name(remote: Any) -> None:
    model, plan, client = remote
    worker = dp.Worker(plan, model, client)
    worker.step("square", batches(1)[0])
    clamp(model)
    with pytest.raises(dp.PlanError, match=r"'top\.weight' was changed.*set_dense\('top\.weight'"):
        worker.step("square", batches(1)[0])
    worker.close()
    assert float(model.top.weight.detach().abs().max()) > BOUND  # the servers' value


def test_with_servers_max_norm_is_refused_by_name() -> None:
    model = Dense(max_norm=0.01)
    model.place.weight.data.mul_(10.0)
    plan = planned(model)
    model.place.weight.data.mul_(10.0)
    with servers() as addresses, dp.connect(plan, addresses) as client:
        worker = dp.Worker(plan, model, client)
        worker.step("square", batches(1)[0])
        with pytest.raises(dp.PlanError, match=r"'place\.weight' was changed.*as max_norm"):
            worker.close()


def set_both(ps: dp.Client) -> None:
    ps.set_dense("top.weight", torch.full((1, 5), 0.5))
    ps.set_dense("top.bias", [2.0])


def test_set_dense_writes_a_parameter_or_a_table_on_servers_and_here(remote: Any) -> None:
    model, plan, client = remote
    here = dp.embedded(plan, num_shards=2)
    for ps in (client, here):
        with pytest.raises(dp.TableError, match="has no weights yet"):
            ps.set_dense("top.bias", [1.0])
        worker = dp.Worker(plan, copy.deepcopy(model), ps)
        worker.step("square", batches(1)[0])
        before, sections = ps.export_dense("dense.square"), plan.dense[0].sections
        set_both(ps)
        after = ps.export_dense("dense.square")
        for section in sections:
            expected = {"top.weight": 0.5, "top.bias": 2.0}.get(
                section.name, before.weights[section.span]
            )
            assert np.array_equal(
                after.weights[section.span], np.broadcast_to(expected, section.size)
            )
        assert (after.step, dict(after.updates)) == (before.step, dict(before.updates))
        worker.pull_dense()
        assert worker.model.top.bias.item() == 2.0
        ps.set_dense("dense.square", np.arange(plan.dense[0].size))
        assert ps.pull_dense("dense.square").tolist() == [*range(plan.dense[0].size)]
        worker.step("square", batches(1)[0])  # from there


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("top", [1.0], r"no dense table or parameter 'top'; there are the tables dense\.square "),
        (
            "top.bias",
            [[1.0]],
            r"the values of 'top\.bias' must be numbers \[1\], got float64 \[1, 1",
        ),
        ("top.bias", ["x"], r"must be numbers \[1\]"),
        ("top.bias", [np.nan], "NaN or infinity in the values of 'top.bias'"),
        ("top.bias", [1e300], "NaN or infinity in the values of 'top.bias'"),
        ("dense.square", [1.0], r"the values of 'dense\.square' must be numbers \[24\]"),
    ],
)
def test_set_dense_refuses_other_values_and_changes_nothing(
    name: str, values: Any, message: str, remote: Any
) -> None:
    model, plan, client = remote
    for ps in (client, dp.embedded(plan)):
        dp.Worker(plan, copy.deepcopy(model), ps)
        before = ps.pull_dense("dense.square")
        with pytest.raises((dp.TableError, dp.NonFiniteError), match=message):
            ps.set_dense(name, values)
        assert np.array_equal(ps.pull_dense("dense.square"), before)


@given(st.sampled_from([np.float32, np.float64]), st.integers(0, 9000), st.data())
def test_same_bits(dtype: Any, size: int, data: Any) -> None:
    ours = bits_of(np.random.default_rng(size).normal(size=size).astype(dtype))
    theirs = ours.copy()
    assert same_bits(ours, theirs)
    if size:
        place, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 31))
        theirs[place] ^= 1 << bit
        assert not same_bits(ours, theirs)
