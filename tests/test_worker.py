"""A worker's step: what it refuses, and that it then has changed nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from tests.networks import Network, a_batch, click, everything, planned, random_batches, rows_of

POISON = a_batch(labels=[0, 1, 0, 2])  # the losses below go wrong on a label of 2


def poisoned(batch: dp.Batch) -> bool:
    return bool(batch.label.max() > 1)


def bad_loss(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch) * (torch.inf if poisoned(batch) else 1.0)


def nan_loss(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch) * (torch.nan if poisoned(batch) else 1.0)


def bad_feature(model: Any, batch: dp.Batch) -> torch.Tensor:
    items = model.embedding(batch)[:, 1].sum()
    return click(model, batch) + torch.sqrt(items * 0.0 + float(not poisoned(batch)))


def bad_parameter(model: Any, batch: dp.Batch) -> torch.Tensor:
    bias = model.out.bias.sum()
    return click(model, batch) + torch.sqrt(bias * 0.0 + float(not poisoned(batch)))


def other_parameter(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch) + (model.extra.sum() if poisoned(batch) else 0.0)


def other_feature(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch) + (model.genre(batch).sum() if poisoned(batch) else 0.0)


def other_batch(model: Any, batch: dp.Batch) -> torch.Tensor:
    made = dp.Batch(features={"user": [1]}) if poisoned(batch) else batch
    return click(model, batch) + model.embedding(made).sum()


def attached(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch)
    items = rows[:, 1] if poisoned(batch) else rows[:, 1].detach()
    return model.out(torch.cat([rows[:, 0], items], dim=1)).square().mean()


def raising(model: Any, batch: dp.Batch) -> torch.Tensor:
    if poisoned(batch):
        raise ZeroDivisionError
    return click(model, batch)


class Extended(Network):
    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.nn.Parameter(torch.ones(2))
        self.genre = dp.SparseEmbedding("item", 3)


REFUSED = [
    (bad_loss, dp.NonFiniteError, "loss 'bad_loss' is inf"),
    (nan_loss, dp.NonFiniteError, "loss 'nan_loss' is nan"),
    (bad_feature, dp.NonFiniteError, r"gradient of feature item \(table 'embedding'\)"),
    (bad_parameter, dp.NonFiniteError, "gradient of parameter 'out.bias'"),
    (other_parameter, dp.PlanError, "reaches parameter 'extra'"),
    (other_feature, dp.PlanError, r"reads \['item'\] of table 'genre'"),
    (attached, dp.PlanError, "reaches feature item of table 'embedding'"),
    (other_batch, dp.DataError, "lacks feature 'item'"),
    (raising, ZeroDivisionError, None),
]


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(("loss", "error", "message"), REFUSED)
def test_a_step_that_is_refused_changes_nothing(
    loss: Any, error: type[Exception], message: str | None, num_shards: int
) -> None:
    model = Extended()
    plan = planned(model, loss, sparse=dp.Adam(0.1, weight_decay=0.1), dense=dp.Adam(0.1))
    ps = dp.embedded(plan, num_shards=num_shards)
    with dp.Worker(plan, model, ps) as worker:
        for _ in range(2):
            worker.step(loss.__name__, a_batch())
        before = everything(ps)
        with pytest.raises(error, match=message):
            worker.step(loss.__name__, POISON)
        assert everything(ps) == before
        worker.step(loss.__name__, a_batch())
        assert ps.steps["embedding"] == 3


@pytest.mark.parametrize("window", [1, 3])
def test_training_goes_on_as_if_a_refused_step_had_not_been(window: int) -> None:
    def train(batches: list[dp.Batch]) -> dict[str, Any]:
        model = Network()
        plan = planned(model, bad_parameter, window=window)
        ps = dp.embedded(plan)
        with dp.Worker(plan, model, ps) as worker:
            for batch in batches:
                if poisoned(batch):
                    with pytest.raises(dp.NonFiniteError):
                        worker.step("bad_parameter", batch)
                else:
                    worker.step("bad_parameter", batch)
        return everything(ps)

    assert train([a_batch(), POISON, a_batch()]) == train([a_batch(), a_batch()])


def test_a_refused_step_may_leave_rows_as_they_are_before_any_step() -> None:
    model = Network()
    plan = planned(model, bad_loss)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker, pytest.raises(dp.NonFiniteError):
        worker.step("bad_loss", POISON)
    assert np.array_equal(
        rows_of(ps, "embedding", ["user", "item"]),
        rows_of(dp.embedded(plan), "embedding", ["user", "item"]),
    )


@pytest.mark.parametrize("clip", [dp.ClipByNorm(1.0), None])
def test_gradients_that_only_sum_to_infinity_are_refused(clip: Any) -> None:
    def large(model: Any, batch: dp.Batch) -> torch.Tensor:
        again = a_batch()  # user 5 once more: 3e38 is finite in float32, twice that is not
        return (model.embedding(batch).sum() + model.embedding(again)[:, 0].sum()) * 1.5e38

    model = Network(init=dp.Constant(0.0))
    plan = planned(model, large, clip=clip)
    ps = dp.embedded(plan)
    with (
        dp.Worker(plan, model, ps) as worker,
        pytest.raises(dp.NonFiniteError, match="table 'embedding' sum to infinity"),
    ):
        worker.step("large", a_batch())
    assert not ps.export("embedding").weights.any()


def not_a_rate(step: int) -> float:
    return 1.0 if step < 3 else float("nan")


def too_fast(step: int) -> float:
    return 1.0 if step < 3 else 30.0


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("schedule", [not_a_rate, too_fast])
@pytest.mark.parametrize("where", ["sparse", "dense"])
def test_a_schedule_that_gives_no_rate_stops_before_anything_is_pushed(
    where: str, schedule: Any, window: int
) -> None:
    model = Network()
    rule = dp.SGD(0.1, schedule=schedule, weight_decay=0.5)
    settings: dict[str, Any] = {where: rule, "window": window}
    plan = planned(model, **settings)
    ps = dp.embedded(plan)
    steps = 2 if where == "sparse" else 3 * window - 1
    worker = dp.Worker(plan, model, ps)
    for _ in range(steps):
        worker.step("click", a_batch())
    before = everything(ps)
    with pytest.raises(dp.SettingError, match=r"learning rate|weight_decay"):
        worker.step("click", a_batch())
    assert everything(ps) == before


def test_a_batch_that_lacks_a_feature_is_refused() -> None:
    model = Network()
    plan = planned(model)
    ps = dp.embedded(plan)
    lacking = dp.Batch(features={"user": [1, 2]}, labels=[0, 1])
    with dp.Worker(plan, model, ps) as worker:
        before = everything(ps)
        with pytest.raises(dp.DataError, match="lacks feature 'item'"):
            worker.step("click", lacking)
        worker.prefetch("click", lacking)
        with pytest.raises(dp.DataError, match="lacks feature 'item'"):
            worker.step("click", lacking)
        assert everything(ps) == before


def test_an_unknown_program_is_refused() -> None:
    model = Network()
    plan = planned(model)
    with (
        dp.Worker(plan, model, dp.embedded(plan)) as worker,
        pytest.raises(dp.PlanError, match="no program 'buy'; the plan has: click"),
    ):
        worker.step("buy", a_batch())


def test_a_plan_of_another_model_is_refused() -> None:
    plan = planned(Network(dim=4))
    with pytest.raises(dp.PlanError, match=r"'out.weight' \[1, 8\], and the model has \[1, 4\]"):
        dp.Worker(plan, Network(dim=2), dp.embedded(plan))


def learn(model: Any, batch: dp.Batch) -> torch.Tensor:
    return click(model, batch)


def fixed(model: Any, batch: dp.Batch) -> torch.Tensor:
    rows = model.embedding(batch)
    return model.out(torch.cat([rows[:, 0], rows[:, 1].detach()], dim=1)).square().mean()


def test_a_detached_feature_does_not_move_even_under_adam() -> None:
    model = Network()
    plan = planned(model, [learn, fixed], sparse=dp.Adam(0.1))
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step("learn", a_batch())
        users, items = rows_of(ps, "embedding", ["user"]), rows_of(ps, "embedding", ["item"])
        worker.step("fixed", a_batch())
    assert np.array_equal(rows_of(ps, "embedding", ["item"]), items)
    moved = (rows_of(ps, "embedding", ["user"]) != users).all(axis=1)
    assert np.flatnonzero(moved).tolist() == [5, 7, 9]


def test_evaluation_creates_no_rows_and_unknown_ids_have_their_initial_row() -> None:
    model = Network()
    plan = planned(model)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step("click", a_batch())
        rows = ps.stats()["embedding"].rows  # type: ignore[union-attr]
        with torch.no_grad():
            seen = model.embedding(a_batch([11, 5], [[], []]))[:, 0].numpy()
        assert ps.stats()["embedding"].rows == rows  # type: ignore[union-attr]
    fresh = dp.embedded(plan).pull("embedding", [11], feature="user", create=True)
    assert np.array_equal(seen[:1], fresh)
    assert np.array_equal(seen[1:], ps.pull("embedding", [5], feature="user"))


def test_a_batch_prefetched_and_never_stepped_changes_no_result() -> None:
    def train(*, ahead: bool) -> tuple[list[float], np.ndarray]:
        model = Network()
        plan = planned(model)
        ps = dp.embedded(plan)
        with dp.Worker(plan, model, ps) as worker:
            losses = []
            for batch in random_batches(1, 5):
                if ahead:
                    worker.prefetch("click", a_batch([17], [[18]]))
                    worker.prefetch("click", batch)
                    worker.prefetch("click", a_batch([19], [[]]))
                losses.append(worker.step("click", batch).loss)
        return losses, rows_of(ps, "embedding", ["user", "item"])

    plain_losses, plain_rows = train(ahead=False)
    losses, rows = train(ahead=True)
    assert losses == plain_losses
    assert np.array_equal(rows, plain_rows)


def test_prefetched_rows_have_the_values_of_their_step() -> None:
    model = Network()
    plan = planned(model)
    ps = dp.embedded(plan)
    batches = [a_batch(), a_batch(), a_batch()]
    with dp.Worker(plan, model, ps) as worker:
        for batch in batches:
            worker.prefetch("click", batch)
        ahead = [worker.step("click", batch).loss for batch in batches]
    model = Network()
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        assert ahead == [worker.step("click", batch).loss for batch in batches]


def test_what_can_not_be_prefetched_stops_its_own_step_only() -> None:
    model = Network()
    plan = planned(model)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        worker.prefetch("click", dp.Batch(features={"user": [1]}, labels=[1]))
        assert worker.step("click", a_batch()).samples == 4


def test_phases_count_the_time_of_steps() -> None:
    model = Network()
    plan = planned(model)
    with dp.Worker(plan, model, dp.embedded(plan)) as worker:
        assert sum(worker.phases_s.values()) == 0.0
        seen = []
        for _ in range(3):
            worker.step("click", a_batch())
            seen.append(sum(worker.phases_s.values()))
        phases = {"wait for keys", "pull", "forward", "backward", "check", "push"}
        assert worker.phases_s.keys() == phases
        assert min(worker.phases_s.values()) > 0.0
    assert all(first < second for first, second in itertools.pairwise(seen))


def test_closing_leaves_the_tables_values_in_the_model() -> None:
    model = Network()
    plan = planned(model)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as worker:
        worker.step("click", a_batch())
    flat = torch.cat([model.out.bias, model.out.weight.flatten()]).detach().numpy()
    assert np.array_equal(flat, ps.pull_dense("dense.click"))


def test_a_second_worker_takes_the_weights_that_are_there() -> None:
    model, other = Network(), Network()
    torch.nn.init.ones_(other.out.weight)
    plan = planned(model)
    ps = dp.embedded(plan)
    with dp.Worker(plan, model, ps) as first, dp.Worker(plan, other, ps) as second:
        first.step("click", a_batch())
        expected = ps.pull_dense("dense.click")
        second.pull_dense()
        flat = torch.cat([other.out.bias, other.out.weight.flatten()]).detach().numpy()
    assert np.array_equal(flat, expected)


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        (
            {"scale_sparse_gradient_with_batch_size": True},
            0,
            "are infinite times the batch size, 4",
        ),
        ({"window": 2}, 1, "sum to infinity over 2 batches"),
    ],
)
def test_what_becomes_infinite_on_the_way_is_refused_before_anything_is_pushed(
    settings: dict[str, Any], steps: int, message: str
) -> None:
    def rows_and_bias(model: Any, batch: dp.Batch) -> torch.Tensor:
        scale = 1e38 if "window" not in settings else 1e-30
        return model.embedding(batch).sum() * scale * 1.0 + model.out.bias.sum() * 2e38

    model = Network()
    torch.nn.init.zeros_(model.out.bias)
    plan = planned(model, rows_and_bias, **{"sparse": dp.SGD(1e-30), "dense": dp.SGD(1e-30)},
                   **settings)  # fmt: skip
    ps = dp.embedded(plan)
    worker = dp.Worker(plan, model, ps)
    for _ in range(steps):
        worker.step("rows_and_bias", a_batch())

    def held() -> list[Any]:
        rows = rows_of(ps, "embedding", ["user", "item"])  # those that are not made yet, too
        return [ps.steps, rows.tolist(), ps.pull_dense("dense.rows_and_bias").tolist()]

    before = held()
    with pytest.raises(dp.NonFiniteError, match=message):
        worker.step("rows_and_bias", a_batch())
    assert held() == before


def steep(model: Any, batch: dp.Batch) -> torch.Tensor:
    """A gradient of 3e38 for the bias on a poisoned batch, and small ones for all rows."""
    return click(model, batch) + model.out.bias.sum() * (3e38 if poisoned(batch) else 0.0)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_step_that_leads_a_weight_to_infinity_moves_no_row(num_shards: int) -> None:
    def train(batches: list[dp.Batch]) -> dict[str, Any]:
        model = Network()
        plan = planned(model, steep, sparse=dp.Adam(0.1, weight_decay=0.1), dense=dp.Adam(0.1))
        ps = dp.embedded(plan, num_shards=num_shards)
        with dp.Worker(plan, model, ps) as worker:
            for batch in batches:
                if poisoned(batch):
                    message = r"'dense.steep': this push would make 'out.bias' infinite or NaN"
                    with pytest.raises(dp.NonFiniteError, match=message):
                        worker.step("steep", batch)
                else:
                    worker.step("steep", batch)
        return everything(ps)

    assert train([a_batch(), POISON, a_batch()]) == train([a_batch(), a_batch()])


def test_a_push_that_one_shard_refuses_is_taken_by_none() -> None:
    plan = planned(Network(init=dp.Constant(0.0)), click, sparse=dp.SGD(1.0))
    ps = dp.embedded(plan, num_shards=4)
    keys, grads = np.arange(40), np.ones((40, 4), np.float32)
    ps.push("embedding", keys, grads, feature="item")
    grads[17] = -3e38
    ps.push("embedding", keys, grads, feature="item")
    before = everything(ps)
    with pytest.raises(dp.NonFiniteError, match="this push would make the row of key"):
        ps.push("embedding", keys, grads, feature="item")
    assert everything(ps) == before
