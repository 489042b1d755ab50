"""The five kinds of use: each example's whole plan, and that it learns what plain torch learns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import downpour as dp
from benchmarks.quality_torch import load_example
from downpour.cli import main
from downpour.plan.plan import Plan
from tests.expected_plans import (
    FEATURES,
    LOOKUP,
    one_loss,
    several_losses,
    with_data_norm,
    with_file,
    with_strategy,
)
from tests.plain_training import PlainTraining, auc_of

if TYPE_CHECKING:
    import pyarrow as pa

LIMIT = 0.003  # the most by which AUC may differ from plain torch's
EPOCHS = 2

USES: dict[str, tuple[Any, dict[str, Any]]] = {
    "movielens": (one_loss, {}),
    "esmm": (several_losses, {}),
    "mmoe": (with_data_norm, {"scale": True}),
    "fleet_strategy": (with_strategy, {"scale": True}),
    "fleet_desc": (with_file, {"scale": True, "window": 2}),
}


@pytest.fixture
def run(
    request: pytest.FixtureRequest, ratings: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> dp.Run:
    """An example's run over fewer ratings."""
    example = load_example(request.param)
    monkeypatch.setattr(example, "load", lambda: ratings)
    torch.manual_seed(0)
    made: dp.Run = example.run()
    return made


def plan_of(run: dp.Run) -> dp.Plan:
    example = next(iter(run.data.batches()))
    return run.optimizer.minimize(
        run.losses, model=run.model, example=example, strategy=run.strategy
    )


@pytest.mark.parametrize(
    ("run", "expected"), [(use, USES[use][0]) for use in USES], indirect=["run"]
)
def test_the_plan_is_the_one_written_by_hand(run: dp.Run, expected: Any) -> None:
    assert plan_of(run) == expected()


@pytest.mark.parametrize(("run", "plain"), [(use, USES[use][1]) for use in USES], indirect=["run"])
def test_it_learns_as_plain_torch_does(
    run: dp.Run, plain: dict[str, Any], ratings: pa.Table
) -> None:
    plan = plan_of(run)
    every: Any = run.data.schema.batch(ratings).features  # type: ignore[attr-defined]
    keys = {name: np.unique(every[name].values) for name in FEATURES}
    theirs = PlainTraining(run.model, plan, keys, **plain)
    losses: dict[str, list[float]] = {name: [] for name in plan.programs}
    with dp.Worker(plan, run.model, dp.embedded(plan)) as worker:
        for epoch in range(EPOCHS):
            for batch in run.data.batches(epoch):
                for program in plan.programs:
                    losses[program].append(worker.step(program, batch).loss)
        worker.flush()
        worker.pull_dense()
        for epoch in range(EPOCHS):
            theirs.train(run.data.batches(epoch))
        ours, torchs = auc_of(run.model, run), auc_of(theirs.model, run)
    assert ours == pytest.approx(torchs, abs=LIMIT)
    assert ours > 0.65
    for values in losses.values():
        first, last = np.split(np.array(values), 2)
        assert last.mean() < first.mean()


def test_an_example_trains_from_the_command_line_and_plans_in_every_format(
    tmp_path: Any, ratings: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_example("mmoe")
    monkeypatch.setattr(example, "load", lambda: ratings.slice(0, 2000))
    target = "mmoe"
    done = CliRunner().invoke(main, ["plan", target])
    assert "PushDense    data_norm.liked" in done.stdout, done.output
    done = CliRunner().invoke(main, ["plan", target, "--format", "json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [(table["id"], table["kind"]) for table in said["tables"]] == [
        (0, "sparse"), (1, "dense"), (2, "data_norm"), (3, "dense"),
    ]  # fmt: skip
    assert [program["loss"] for program in said["programs"]] == ["liked", "five"]
    assert [pull["id"] for pull in said["programs"][1]["pulls"]] == [1, 2, 3, 0]
    assert said["programs"][0]["skipped_ops"] == list(LOOKUP)
    done = CliRunner().invoke(main, ["plan", target, "--format", "downpour"])
    assert done.exit_code == 0, done.output
    assert Plan.from_fleet_desc(done.stdout) == plan_of(example.run())
    done = CliRunner().invoke(
        main, ["train", target, "--epochs", "1", "--out", str(tmp_path / "run"), "--quiet"]
    )
    assert done.exit_code == 0, done.output
    assert dp.load(tmp_path / "run").client.stats()["embedding"].rows > 100
