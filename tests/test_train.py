"""The trainer: what it learns, measures and writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import downpour as dp
from downpour.train import Trainer
from downpour.warm import is_compiled
from tests.small_runs import FEATURES, Net, Stream, batches, click, frame, small_run
from tests.test_events import read_scalars

HELD_BACK = frame(rows=200, seed=1)


def trained(**settings: Any) -> tuple[Trainer, dict[str, Any]]:
    trainer = Trainer(small_run(**settings), quiet=True)
    return trainer, trainer.train()


class DenseOnly(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = torch.nn.Linear(1, 1)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        ids = torch.from_numpy(batch.features["item"].values.astype(np.float32) % 2)
        logits: torch.Tensor = self.top(ids.unsqueeze(1)).squeeze(1)
        return logits


class SparseOnly(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = dp.SparseEmbedding(FEATURES, dim=1)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.weight(batch).sum(dim=(1, 2))
        return logits


def evaluated(model: torch.nn.Module) -> dict[str, float]:
    assert not model.training
    return {"steps": 1.0, "loss": 2.0, "bad": float("nan")}


def quadratic(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    return (torch.sigmoid(model(batch)) - batch.label).square().mean()


@pytest.mark.parametrize("make", [Net, DenseOnly, SparseOnly])
def test_it_learns(make: type[torch.nn.Module]) -> None:
    trainer, metrics = trained(make=make, epochs=6, eval_data=HELD_BACK)
    losses = [epoch["loss"] for epoch in metrics["epochs"]]
    assert losses[-1] < losses[0] - 0.01
    assert metrics["final"]["auc"] > 0.7
    kinds = {table["kind"] for table in metrics["tables"].values()}
    assert kinds == {Net: {"sparse", "dense"}, DenseOnly: {"dense"}, SparseOnly: {"sparse"}}[make]
    assert trainer.folder is None


def require_finite(value: Any) -> None:
    """Fail at anything that JSON or a reader cannot hold."""
    if isinstance(value, dict):
        assert all(isinstance(name, str) for name in value)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            require_finite(each)
    else:
        assert value is None or isinstance(value, (str, int)) or np.isfinite(value)


def test_metrics_are_complete(tmp_path: Path) -> None:
    run = small_run(epochs=2, eval_data=HELD_BACK)
    metrics = Trainer(run, tmp_path / "run", quiet=True).train()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    require_finite(metrics)
    assert (metrics["format"], metrics["name"], metrics["stopped"]) == (1, "run", "finished")
    assert metrics["settings"]["epochs"] == 2
    assert [epoch["samples"] for epoch in metrics["epochs"]] == [256, 256]
    assert [epoch["steps"] for epoch in metrics["epochs"]] == [8, 8]
    assert set(metrics["final"]) >= {"auc", "auc_bucketed", "logloss", "copc", "samples"}
    assert metrics["epochs"][1]["eval"] == metrics["final"]
    assert metrics["samples_per_s"] > 0
    assert metrics["staleness"] == {"mean": 0.0, "max": 0}
    assert len(metrics["curves"]["loss"]) == 16
    assert metrics["curves"]["auc"][1] == [16, metrics["final"]["auc"]]
    assert metrics["features"]["user"] == {"keys": 512, "unique": 20, "samples": 512}
    assert metrics["calibration"]


def test_metrics_tell_time_and_tables() -> None:
    _, metrics = trained(eval_data=HELD_BACK)
    phases = {"read", "compile", "pull", "forward", "backward", "push", "evaluate"}
    assert set(metrics["phases_s"]) >= phases
    embedding = metrics["tables"]["embedding"]
    assert (embedding["kind"], embedding["rows"]) == ("sparse", 50)
    assert embedding["bytes"] > 0
    assert metrics["tables"]["dense.click"]["size"] == 9
    assert metrics["curves"]["rows"]["embedding"][-1] == [8, 50]
    assert metrics["plan"].startswith("plan: 1 sparse, 1 dense")


def halved(step: int) -> float:
    return 0.5**step


def test_learning_rates_and_gradient_norms_are_noted_now_and_then(tmp_path: Path) -> None:
    norms: list[float] = []

    def measured(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
        loss = click(model, batch)
        if torch.is_grad_enabled():
            grads = torch.autograd.grad(loss, list(model.top.parameters()), retain_graph=True)
            norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        return loss

    optimizer = dp.DownpourSGD(
        sparse=dp.Adagrad(0.1, schedule=halved), dense=dp.Adam(0.01), clip=dp.ClipByNorm(1e-3)
    )
    run = small_run(losses={"click": measured}, data=frame(32 * 25), epochs=2, optimizer=optimizer)
    metrics = Trainer(run, tmp_path, quiet=True).train()
    rates, measured_norms = (metrics["curves"][it] for it in ("learning_rate", "gradient_norm"))
    steps = [1, 11, 21, 25, 31, 41, 50]
    assert rates["embedding"] == [[step, 0.1 * 0.5**step] for step in steps]
    assert rates["dense.click"] == [[step, 0.01] for step in steps]
    last = [1, 11, 21, 21, 31, 41, 41]  # of every tenth step, before clipping
    expected = [norms[step] for step in last]  # norms[0] is planning's
    assert [step for step, _ in measured_norms["dense.click"]] == steps
    np.testing.assert_allclose([n for _, n in measured_norms["dense.click"]], expected, rtol=1e-4)
    (events,) = (tmp_path / "events").iterdir()
    tags = {tag for _, tag, _ in read_scalars(events)}
    assert {"learning_rate/embedding", "gradient_norm/dense.click"} <= tags


def test_both_learning_rates_of_ctr_rows_are_noted() -> None:
    sparse = dp.CtrAccessor(rule=dp.G2SumAdagrad(0.1), embedx_rule=dp.G2SumAdagrad(0.2))
    _, metrics = trained(optimizer=dp.DownpourSGD(sparse=sparse, dense=dp.SGD(0.1)))
    rates = metrics["curves"]["learning_rate"]
    assert (rates["embedding"][-1], rates["embedding (embedx)"][-1]) == ([8, 0.1], [8, 0.2])


def test_a_run_writes_its_folder(tmp_path: Path) -> None:
    trainer = Trainer(small_run(eval_data=HELD_BACK), tmp_path, quiet=True)
    metrics = trainer.train()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.json", "plan.txt", "report.html", "events", "model"}
    assert (tmp_path / "plan.txt").read_text() == f"{trainer.plan}\n"
    assert "Trained to its end" in (tmp_path / "report.html").read_text()
    (events,) = (tmp_path / "events").iterdir()
    scalars = read_scalars(events)
    losses = [value for _, tag, value in scalars if tag == "train/loss"]
    assert losses == pytest.approx([loss for _, loss in metrics["curves"]["loss"]])
    assert (8, "eval/auc", pytest.approx(metrics["final"]["auc"])) in scalars


def test_an_earlier_run_is_replaced_only_by_one_that_can_be_planned(tmp_path: Path) -> None:
    Trainer(small_run(), tmp_path, quiet=True).train()
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / "metrics.json").read_text()
    with pytest.raises(dp.DataError, match="trained on nothing"):
        Trainer(small_run(data=Stream([])), tmp_path, quiet=True)
    with pytest.raises(dp.SettingError, match="at the top level of a module"):
        Trainer(small_run(predict=lambda model, batch: model(batch)), tmp_path, quiet=True).train()
    assert (tmp_path / "metrics.json").read_text() == before
    Trainer(small_run(epochs=2), tmp_path, quiet=True).train()
    assert len(json.loads((tmp_path / "metrics.json").read_text())["epochs"]) == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "events").iterdir())) == 1


def test_a_folder_of_something_else_is_refused_before_planning(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(dp.SettingError, match="holds other files"):
        Trainer(small_run(data=Stream([])), tmp_path, quiet=True)


def state_of(trainer: Trainer) -> list[np.ndarray]:
    rows, dense = trainer.client.export("embedding"), trainer.client.export_dense("dense.click")
    return [rows.keys, rows.weights, rows.state, dense.weights, *dense.state.values()]


def test_one_seed_gives_one_result_to_the_bit() -> None:
    one, first = trained(epochs=2, seed=3)
    two, second = trained(epochs=2, seed=3)
    _, other = trained(epochs=2, seed=4)
    assert first["curves"]["loss"] == second["curves"]["loss"] != other["curves"]["loss"]
    for ours, theirs in zip(state_of(one), state_of(two), strict=True):
        assert np.array_equal(ours, theirs)


def test_evaluating_changes_nothing_that_is_learned() -> None:
    one, _ = trained(epochs=2)
    two, _ = trained(epochs=2, eval_data=frame(seed=9), eval_every=3)
    for ours, theirs in zip(state_of(one), state_of(two), strict=True):
        assert np.array_equal(ours, theirs)


def test_eval_every_evaluates_between_and_once_a_step() -> None:
    _, metrics = trained(epochs=2, eval_data=HELD_BACK, eval_every=4)
    assert [step for step, _ in metrics["curves"]["auc"]] == [4, 8, 12, 16]
    _, metrics = trained(epochs=2, eval_data=HELD_BACK, eval_every=6)
    assert [step for step, _ in metrics["curves"]["auc"]] == [6, 8, 12, 16]


class Falling:
    """An evaluation that gives these values, after the one that is tried before the first step."""

    def __init__(self, values: list[float]) -> None:
        self.values = [0.0, *values]

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        return {"score": self.values.pop(0)}


@pytest.mark.parametrize(
    ("values", "settings", "epochs", "stopped"),
    [
        ([3, 2, 1, 0], {}, 2, "early_stop"),
        ([3, 2, 1, 0], {"patience": 2}, 3, "early_stop"),
        ([1, 2, 3, 4], {}, 4, "finished"),
        ([1, 2, 3, 4], {"mode": "min"}, 2, "early_stop"),
        ([1, float("nan"), 3, 3], {"patience": 2}, 4, "finished"),
        ([1, 1, 1, 1], {}, 2, "early_stop"),
    ],
)
def test_early_stop(
    values: list[float], settings: dict[str, Any], epochs: int, stopped: str
) -> None:
    stop = dp.EarlyStop(metric="score", **settings)
    _, metrics = trained(epochs=4, evaluate=Falling(values.copy()), early_stop=stop)
    assert len(metrics["epochs"]) == epochs
    assert metrics["stopped"] == stopped


def test_early_stop_within_an_epoch_keeps_what_was_trained() -> None:
    stop = dp.EarlyStop(metric="score")
    _, metrics = trained(epochs=4, evaluate=Falling([2.0, 1.0]), early_stop=stop, eval_every=3)
    assert metrics["stopped"] == "early_stop"
    assert [epoch["steps"] for epoch in metrics["epochs"]] == [6]
    assert metrics["epochs"][0]["eval"]["score"] == 1.0


def test_an_evaluation_of_ones_own() -> None:
    _, metrics = trained(evaluate=evaluated)
    assert metrics["final"]["steps"] == 1.0
    assert metrics["final"]["eval_loss"] == 2.0  # `loss` is the training's
    assert metrics["final"]["bad"] is None
    _, metrics = trained(evaluate=evaluated, eval_data=HELD_BACK)
    assert {"auc", "steps"} <= set(metrics["final"])


def test_early_stop_on_what_is_not_evaluated_is_refused() -> None:
    stop = dp.EarlyStop(metric="recall")
    with pytest.raises(dp.SettingError, match=r"'recall' is not evaluated; there are: steps"):
        trained(evaluate=evaluated, early_stop=stop)
    with pytest.raises(dp.SettingError, match="must give a dict of numbers by name, got 5"):
        trained(evaluate=lambda model: 5)


def test_epochs_of_unknown_length_and_empty_batches() -> None:
    there = batches(5)
    empty = there[0].slice(0, 0)
    _, plain = trained(data=Stream(there), epochs=2)
    _, mixed = trained(data=Stream([empty, *there[:2], empty, empty, *there[2:], empty]), epochs=2)
    assert [epoch["steps"] for epoch in plain["epochs"]] == [5, 5]
    assert mixed["curves"]["loss"] == plain["curves"]["loss"]
    assert mixed["features"] == plain["features"]


def test_two_losses_are_told_apart() -> None:
    _, metrics = trained(losses=[click, quadratic])
    (epoch,) = metrics["epochs"]
    assert set(epoch["losses"]) == {"click", "quadratic"}
    assert epoch["loss"] == pytest.approx(sum(epoch["losses"].values()))
    assert epoch["steps"] == 8


def test_a_window_ends_with_its_epoch() -> None:
    optimizer = dp.DownpourSGD(window=3, sparse=dp.SGD(0.1), dense=dp.SGD(0.1))
    trainer, metrics = trained(optimizer=optimizer, epochs=2, eval_data=HELD_BACK)
    assert trainer.client.export_dense("dense.click").step == 6  # 8 steps: windows of 3, 3 and 2
    assert metrics["final"]["auc"] > 0.5


def test_the_console_tells_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    Trainer(small_run(epochs=2, eval_data=HELD_BACK), console=console).train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("8 steps in" in line and "auc 0." in line for line in lines)


def with_dropout() -> torch.nn.Module:
    return torch.nn.Sequential(Net(), torch.nn.Dropout())


def test_dropout_repeats_by_seed() -> None:
    seeds = (0, 0, 1)
    curves = [trained(make=with_dropout, seed=seed)[1]["curves"]["loss"] for seed in seeds]
    assert curves[0] == curves[1] != curves[2]


def test_kernels_are_compiled_by_now() -> None:
    trained()
    assert is_compiled()
