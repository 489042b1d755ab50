"""A run with an early stop ends with the model of its best evaluation, to the bit."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

import downpour as dp
from downpour import saved
from downpour.engine.chief import Chief
from downpour.engine.cluster import Cluster
from downpour.target import load_run
from downpour.train import Trainer
from tests import cluster_run
from tests.networks import everything, weights_of
from tests.servers import servers
from tests.small_runs import SCHEMA, Stream, batches, click, columns, frame, small_run

if TYPE_CHECKING:
    from pathlib import Path

    import torch

DECAYING = dp.DownpourSGD(
    sparse=dp.Adagrad(0.1, weight_decay=0.01), dense=dp.Adam(0.01, weight_decay=0.01)
)
COUNTING = dp.DownpourSGD(
    sparse=dp.CtrAccessor(rule=dp.G2SumAdagrad(0.1), embedx_threshold=3.0), dense=dp.Adam(0.01)
)
HERE = cluster_run.__file__


class Scores:
    """An evaluation of the user's own: these values one after the other."""

    def __init__(self, *values: float) -> None:
        self.values = [0.0, *values]  # the first is of the trial before training

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        return {"score": self.values.pop(0)}


def stopping(*values: float, patience: int = 9, **settings: Any) -> dict[str, Any]:
    """A run that is evaluated with these scores."""
    stop = dp.EarlyStop(metric="score", patience=patience, **settings)
    return {"evaluate": Scores(*values), "early_stop": stop, "epochs": len(values)}


def trained(folder: Path | None = None, **settings: Any) -> Trainer:
    trainer = Trainer(small_run(cluster_run.Norm, **settings), folder, quiet=True)
    trainer.train()
    return trainer


def same(ours: Trainer | dp.SavedRun, theirs: Trainer) -> None:
    """Tables and model, parameters and buffers, are equal to the bit."""
    assert everything(ours.client) == everything(theirs.client)
    model = ours.run.model if isinstance(ours, Trainer) else ours.model
    expected = weights_of(theirs.run.model)
    for name, value in weights_of(model).items():
        assert np.array_equal(value, expected[name]), name


@pytest.mark.parametrize("in_folder", [True, False], ids=["folder", "memory"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": DECAYING},
        {"optimizer": COUNTING},
        {"optimizer": dp.DownpourSGD(sparse=dp.Adam(0.01), dense=dp.Adam(0.01), window=3)},
    ],
    ids=["plain", "decay", "counting", "window"],
)
def test_the_best_epoch_is_what_is_left(
    settings: dict[str, Any], in_folder: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run" if in_folder else None
    ours = trained(folder, **settings, **stopping(1.0, 3.0, 2.0, 2.5))
    theirs = trained(**settings, epochs=2)
    same(ours, theirs)
    metrics = ours.metrics()
    assert (metrics["stopped"], len(metrics["epochs"])) == ("finished", 4)
    assert metrics["final"]["score"] == 3.0
    assert metrics["best"] == {
        "metric": "score", "mode": "max", "value": 3.0, "epoch": 2, "step": 16, "undefined": 0,
    }  # fmt: skip
    if folder is not None:
        same(dp.load(folder), theirs)
        assert json.loads((folder / "metrics.json").read_text()) == metrics
        assert metrics["model"] == {"epoch": 2, "step": 16, "is_best": True}


@pytest.mark.parametrize(
    ("values", "settings", "best", "stopped"),
    [
        ([1.0, 3.0, 2.0, 1.0], {"patience": 1}, 2, "early_stop"),
        ([3.0, 1.0, 2.0], {"mode": "min"}, 2, "finished"),
        ([1.0, 2.0, 3.0], {}, 3, "finished"),
        ([2.0, 2.0, 2.0], {}, 1, "finished"),
    ],
)
def test_of_which_evaluation_the_model_is(
    values: list[float], settings: dict[str, Any], best: int, stopped: str, tmp_path: Path
) -> None:
    ours = trained(tmp_path, **stopping(*values, **settings))
    assert ours.metrics()["stopped"] == stopped
    same(ours, trained(epochs=best))
    same(dp.load(tmp_path), trained(epochs=best))
    assert len([*(tmp_path / "model").glob("save-*")]) == 1


@pytest.mark.parametrize("window", [1, 3])
def test_the_best_evaluation_within_an_epoch(window: int, tmp_path: Path) -> None:
    optimizer = dp.DownpourSGD(sparse=dp.Adagrad(0.1), dense=dp.Adam(0.01), window=window)
    settings = stopping(3.0, 2.0, 1.0) | {"epochs": 1, "eval_every": 3}
    ours = trained(tmp_path, optimizer=optimizer, **settings)
    theirs = trained(optimizer=optimizer, data=Stream([*frame().batches(0)][:3]))
    same(ours, theirs)
    same(dp.load(tmp_path), theirs)
    assert ours.metrics()["best"]["step"] == 3


def test_the_last_model_is_kept_where_the_best_is_not_wanted(tmp_path: Path) -> None:
    ours = trained(tmp_path, **stopping(3.0, 2.0, 1.0, restore_best=False))
    same(ours, trained(epochs=3))
    same(dp.load(tmp_path), trained(epochs=3))
    metrics = ours.metrics()
    assert (metrics["best"]["epoch"], metrics["final"]["score"]) == (1, 1.0)
    assert metrics["model"] == {"epoch": 3, "step": 24, "is_best": False}


def test_a_best_model_that_cannot_be_saved_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saves, save = [0], saved.save

    def full(*args: Any) -> None:
        saves[0] += 1
        if saves[0] == 2:
            raise OSError(28, "No space left on device", "/runs/it")
        save(*args)

    monkeypatch.setattr("downpour.saved.save", full)
    run = small_run(cluster_run.Norm, **stopping(1.0, 2.0, 1.5))
    ours = Trainer(run, tmp_path, console=Console(width=400))
    assert ours.train()["stopped"] == "finished"
    said = capsys.readouterr().out
    assert "the best model so far could not be saved: [Errno 28] No space left on device" in said
    same(ours, trained(epochs=3))
    same(dp.load(tmp_path), trained(epochs=3))
    assert ours.metrics()["model"] == {"epoch": 3, "step": 24, "is_best": False}


def test_a_model_that_went_back_to_its_best_trains_on() -> None:
    ours, theirs = trained(**stopping(3.0, 1.0)), trained(epochs=1)
    for trainer in (ours, theirs):
        Trainer(small_run(model=trainer.run.model), quiet=True).train()
    same(ours, theirs)


def test_evaluation_is_that_of_the_model_that_is_left(tmp_path: Path) -> None:
    held_back = frame(seed=3)
    optimizer = dp.DownpourSGD(sparse=dp.SGD(3.0), dense=dp.SGD(3.0))
    stop = dp.EarlyStop(metric="logloss", mode="min", patience=2)
    ours = trained(
        tmp_path, eval_data=held_back, optimizer=optimizer, early_stop=stop, epochs=6, eval_every=2
    )
    metrics = ours.metrics()
    curve = [value for _, value in metrics["curves"]["logloss"]]
    assert curve[-1] != min(curve)
    results = dp.load(tmp_path).evaluate(held_back.batches()).results
    assert results == {name: metrics["final"][name] for name in results}
    assert results["logloss"] == metrics["best"]["value"] == min(curve)


@pytest.mark.parametrize("values", [[np.nan] * 3, [1.0, np.nan, np.inf]])
def test_a_metric_that_is_not_defined_is_neither_worse_nor_better(
    values: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(**stopping(*values, patience=1))
    metrics = Trainer(run, console=Console(width=400)).train()
    assert (metrics["stopped"], len(metrics["epochs"])) == ("finished", 3)
    assert metrics["best"]["undefined"] == sum(not np.isfinite(value) for value in values)
    assert metrics["best"]["epoch"] == (1 if values[0] == 1.0 else None)
    assert capsys.readouterr().out.count("EarlyStop: score is not defined") == 1


def test_labels_of_one_class_do_not_stop_a_run() -> None:
    ones = dp.Frame(columns(64) | {"click": np.ones(64, np.int64)}, SCHEMA, batch_size=32)
    run = small_run(eval_data=ones, early_stop=dp.EarlyStop(metric="auc"), epochs=3)
    assert len(Trainer(run, quiet=True).train()["epochs"]) == 3


def test_an_error_leaves_the_best_and_says_so(tmp_path: Path) -> None:
    class Breaking(Stream):
        def batches(self, epoch: int = 0) -> Any:
            self.error = OSError("gone") if epoch == 2 else None
            return super().batches(epoch)

    data = Breaking(batches(4))
    run = small_run(cluster_run.Norm, data=data, **stopping(3.0, 2.0, 1.0))
    ours = Trainer(run, tmp_path, quiet=True)
    with pytest.raises(OSError, match="gone") as caught:
        ours.train()
    assert caught.value.__notes__ == [
        f"the model of the best evaluation (epoch 1, step 4) is kept in {tmp_path}/"
    ]
    theirs = trained(data=Stream(batches(4)))
    same(ours, theirs)
    same(dp.load(tmp_path), theirs)


def interrupting(model: Any, batch: dp.Batch) -> torch.Tensor:
    source = model.embedding.source
    if getattr(getattr(source, "client", None), "steps", {}).get("embedding") == 10:
        signal.raise_signal(signal.SIGINT)
    return click(model, batch)


def test_ctrl_c_leaves_the_best(tmp_path: Path) -> None:
    run = small_run(cluster_run.Norm, losses={"click": interrupting}, **stopping(3.0, 2.0, 1.0))
    ours = Trainer(run, tmp_path, quiet=True)
    assert ours.train()["stopped"] == "interrupted"
    same(dp.load(tmp_path), trained())
    same(ours, trained())


class Twice:
    """Raises at step 10 what a second Ctrl-C raises."""

    def __call__(self, model: Any, batch: dp.Batch) -> torch.Tensor:
        if (
            getattr(getattr(model.embedding.source, "client", None), "steps", {}).get("embedding")
            == 10
        ):
            raise KeyboardInterrupt
        return click(model, batch)


def test_a_second_ctrl_c_leaves_what_was_saved_before(tmp_path: Path) -> None:
    run = small_run(cluster_run.Norm, losses={"click": Twice()}, **stopping(3.0, 2.0, 1.0))
    with pytest.raises(KeyboardInterrupt):
        Trainer(run, tmp_path, quiet=True).train()
    same(dp.load(tmp_path), trained())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["stopped"].endswith("the model of the best evaluation (epoch 1, step 8) is kept")


def test_servers_that_run_on_are_left_with_the_best_too(tmp_path: Path) -> None:
    target = f"{HERE}:best_is_first"
    with servers(2) as addresses:
        cluster = Cluster(addresses=tuple(addresses), worker_timeout_s=30.0)
        chief = Chief(target, load_run(target), tmp_path / "run", cluster=cluster, quiet=True)
        metrics = chief.train()
        one = Trainer(cluster_run.best_is_first(), quiet=True)
        one.train()
        with dp.connect(one.plan, addresses) as client:
            assert everything(client) == everything(one.client)
    same(dp.load(tmp_path / "run"), one)
    for name, value in weights_of(one.run.model).items():
        assert np.array_equal(weights_of(chief.run.model)[name], value), name
    assert metrics["best"]["epoch"] == 1
    assert len(metrics["epochs"]) == 3


def test_a_server_that_dies_leaves_the_best(tmp_path: Path) -> None:
    target = f"{HERE}:best_is_first"
    run: Any = load_run(target)
    cluster = Cluster(deadline_s=2.0, worker_timeout_s=5.0)
    chief = Chief(target, run, tmp_path / "run", cluster=cluster, quiet=True)
    run.evaluate.at[2] = chief._children.servers[0].kill
    with pytest.raises((dp.ServerError, dp.WorkerLostError)) as caught:
        chief.train()
    assert (
        "the model of the best evaluation (epoch 1, step 22) is kept" in caught.value.__notes__[0]
    )
    stopped = json.loads((tmp_path / "run" / "metrics.json").read_text())["stopped"]
    assert "the model of the best evaluation (epoch 1, step 22) is kept" in stopped
    same(dp.load(tmp_path / "run"), trained(data=frame(700)))
