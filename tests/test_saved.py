"""A run that was trained, loaded again: the same scores, and no rows made."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import downpour as dp
from downpour.train import Trainer
from tests.small_runs import FEATURES, SCHEMA, Net, batches, click, columns, frame, small_run

ROOT = Path(__file__).parents[1]


class Wide(torch.nn.Module):
    """Buffers, a frozen and two tied parameters, and a lazy one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(FEATURES, dim=4, pooling="mean")
        self.norm = torch.nn.BatchNorm1d(8)
        self.lazy = torch.nn.LazyLinear(8)
        self.frozen = torch.nn.Linear(8, 8).requires_grad_(False)
        self.tied = torch.nn.Linear(8, 8)
        self.tied.weight = self.lazy_twin = torch.nn.Parameter(torch.eye(8) / 2)
        self.register_buffer("scale", torch.rand(()), persistent=False)
        self.plain = torch.rand(8)

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        x = self.lazy(self.norm(self.embedding(batch).flatten(1)))
        logits: torch.Tensor = self.frozen(self.tied(x) @ self.lazy_twin)
        return logits @ self.plain * self.scale


class PartlyCompiled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(FEATURES, dim=4)
        self.top = torch.compile(torch.nn.Linear(8, 1), backend="eager")

    def forward(self, batch: dp.Batch) -> torch.Tensor:
        logits: torch.Tensor = self.top(self.embedding(batch).flatten(1)).squeeze(1)
        return logits


def compiled() -> Any:
    return torch.compile(Net(), backend="eager")


def tanh_score(model: torch.nn.Module, batch: dp.Batch) -> torch.Tensor:
    return (torch.tanh(model(batch)) + 1) / 2


def halved(step: int) -> float:
    return 0.5**step


def train(folder: Path, **settings: Any) -> Trainer:
    trainer = Trainer(small_run(**settings), folder, quiet=True)
    trainer.train()
    return trainer


def scores(run: dp.Run, batch: dp.Batch) -> np.ndarray:
    run.model.eval()
    with torch.no_grad():
        found: np.ndarray = run.predict(run.model, batch).numpy()
    return found


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
@pytest.mark.parametrize("make", [Net, Wide, PartlyCompiled, compiled])
def test_scores_are_the_same_to_the_bit(make: Any, tmp_path: Path) -> None:
    trainer = train(tmp_path, make=make, predict=tanh_score)
    saved = dp.load(tmp_path)
    for batch in batches(3, seed=5):
        assert np.array_equal(saved.predict(batch), scores(trainer.run, batch))


def test_tensors_are_as_they_were(tmp_path: Path) -> None:
    ours = train(tmp_path, make=Wide).run.model
    theirs = dp.load(tmp_path).model
    state = theirs.state_dict()
    assert list(state) == list(ours.state_dict())
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    assert {n: p.requires_grad for n, p in theirs.named_parameters()} == {
        n: p.requires_grad for n, p in ours.named_parameters()
    }
    assert theirs.tied.weight is theirs.lazy_twin
    assert int(state["norm.num_batches_tracked"]) == 8


def unknown_ids(num: int = 16) -> dp.Batch:
    ids = np.arange(10**6, 10**6 + num)
    return dp.Batch(features={"user": ids, "item": ids}, labels={"click": ids % 2})


def test_using_a_model_makes_no_rows(tmp_path: Path) -> None:
    trainer = train(tmp_path, eval_data=frame(seed=3))
    saved = dp.load(tmp_path)
    stats = saved.client.stats()["embedding"]
    assert stats == trainer.client.stats()["embedding"]
    unknown = unknown_ids()
    first = saved.predict(unknown)
    assert np.array_equal(saved.predict(unknown), first)
    assert saved.evaluate([unknown]).samples == 16
    assert [len(part) for part in saved.predict_all([unknown, unknown])] == [16, 16]
    assert saved.client.stats()["embedding"] == stats


def test_evaluating_while_training_makes_no_rows(tmp_path: Path) -> None:
    def rows(**settings: Any) -> int:
        trainer = Trainer(small_run(**settings), quiet=True)
        return trainer.train()["tables"]["embedding"]["rows"]

    strange = dp.Frame(columns(64) | {"item": np.arange(64) + 10**6}, SCHEMA, batch_size=8)
    assert rows() == rows(eval_data=strange, eval_every=2)


def test_unknown_ids_have_the_rows_that_training_would_have_begun_with(tmp_path: Path) -> None:
    train(tmp_path, seed=7)
    saved = dp.load(tmp_path)
    fresh = Trainer(small_run(seed=7), quiet=True).client
    ids = np.arange(10**6, 10**6 + 5)
    pulled = saved.client.pull("embedding", ids, feature="item")
    assert np.array_equal(pulled, fresh.pull("embedding", ids, feature="item"))


def test_evaluating_gives_what_training_gave(tmp_path: Path) -> None:
    held_back = frame(seed=3)
    metrics = train(tmp_path, eval_data=held_back).metrics()
    results = dp.load(tmp_path).evaluate(held_back.batches()).results
    assert results == {name: metrics["final"][name] for name in results}


def test_a_schedule_and_predict_come_back(tmp_path: Path) -> None:
    rule = dp.Adagrad(0.1, schedule=halved)
    train(tmp_path, optimizer=dp.DownpourSGD(sparse=rule), predict=tanh_score)
    saved = dp.load(tmp_path)
    assert saved.client.plan.sparse[0].accessor.rule == rule
    assert saved.predict_with is tanh_score


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.never = torch.nn.LazyLinear(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predict": lambda model, batch: model(batch)}, "lambda.*at the top level of a module"),
        (
            {"optimizer": dp.DownpourSGD(sparse=dp.SGD(0.1, schedule=lambda step: 1.0))},
            "lambda.*at the top level of a module",
        ),
        ({"make": Unused}, "'never.weight' has no shape, as no loss uses its module; remove it"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_training(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer = Trainer(small_run(**settings), tmp_path / "run", quiet=True)
    with pytest.raises(dp.SettingError, match=f"could not be saved once trained.*{message}"):
        trainer.train()
    assert trainer.history.step == 0
    assert not (tmp_path / "run").exists()


def test_parametrized_modules_are_refused_before_training(tmp_path: Path) -> None:
    model = Net()
    torch.nn.utils.parametrizations.weight_norm(model.top)
    trainer = Trainer(small_run(model=model), tmp_path / "run", quiet=True)
    with pytest.raises(dp.SettingError, match="could not be saved once trained"):
        trainer.train()


def test_the_reading_of_the_data_comes_back(tmp_path: Path) -> None:
    log = tmp_path / "clicks.log"
    rows = zip(*columns(64).values(), strict=True)
    log.write_text("".join(f"{user}|{item}|{click}\n" for user, item, click in rows))
    settings: dict[str, Any] = {"delimiter": "|", "column_names": ("user", "item", "click")}
    data = dp.Files(log, SCHEMA, batch_size=8, format="csv", **settings)
    train(tmp_path / "run", data=data)
    saved = dp.load(tmp_path / "run")
    assert saved.schema == SCHEMA
    source = saved.files([log], batch_size=16, labels=True)
    assert source == replace(data, batch_size=16)
    assert saved.evaluate(source.batches()).samples == 64
    csv = saved.files([tmp_path / "new.csv"], batch_size=16, labels=False)
    assert (csv.format, csv.delimiter, csv.schema.labels) == (None, "|", ())


def test_a_source_without_a_schema_reads_no_files(tmp_path: Path) -> None:
    class Own:
        def batches(self, epoch: int = 0) -> Any:
            return iter(batches(3))

        def num_batches(self) -> int:
            return 3

    train(tmp_path, data=Own())
    saved = dp.load(tmp_path)
    assert len(saved.predict(batches(1)[0])) == 8
    with pytest.raises(dp.DataError, match="trained on a Source without a schema"):
        saved.files(["clicks.csv"], batch_size=8, labels=False)


MODULE = """
import sys
sys.path.insert(0, {root!r})
import torch
from tests.small_runs import Net, small_run

class Mine(Net):
    pass

def run():
    return small_run(make=Mine)
"""


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def write_package(folder: Path) -> str:
    """Write a package into `src`, no folder that Python looks in; give what trains its model."""
    (folder / "src" / "mine").mkdir(parents=True)
    (folder / "src" / "mine" / "__init__.py").write_text(MODULE.format(root=str(ROOT)))
    return (
        "from downpour.target import load_run; from downpour.train import Trainer\n"
        f"sys.path.insert(0, {str(folder / 'src')!r})\n"
        f"Trainer(load_run('mine'), {str(folder / 'run')!r}, quiet=True).train()\n"
        f"sys.path.remove({str(folder / 'src')!r}); del sys.modules['mine']\n"
    )


def test_the_model_is_found_where_it_was_or_said_to_be_gone(tmp_path: Path) -> None:
    assert python(tmp_path, write_package(tmp_path)).stderr == ""
    manifest = json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())
    assert str(tmp_path / "src") in manifest["import_paths"]
    load = "import downpour as dp; print(type(dp.load('run').model).__qualname__)"
    assert python(tmp_path, load).stdout == "Mine\n"
    (tmp_path / "src" / "mine").rename(tmp_path / "moved")
    last = python(tmp_path, load).stderr.splitlines()[-1]
    assert "SavedRunError: run: the model cannot be made: No module named 'mine'" in last
    assert f"imported from {tmp_path / 'src'}" in last
    (tmp_path / "moved").rename(tmp_path / "mine")
    on_path = f"sys.path.insert(0, {str(tmp_path)!r}); {load}"
    assert python(tmp_path, on_path).stdout == "Mine\n"


def test_another_module_of_the_same_name_is_refused(tmp_path: Path) -> None:
    train = write_package(tmp_path / "one") + write_package(tmp_path / "two")
    load = "import downpour as dp; dp.load('one/run'); dp.load('two/run')"
    last = python(tmp_path, f"{train}{load}").stderr.splitlines()[-1]
    assert "SavedRunError: two/run: its model is defined in" in last
    assert f"imported another module 'mine' from {tmp_path / 'one' / 'src'}" in last


def test_a_model_of_a_script_says_where_to_load_it(tmp_path: Path) -> None:
    code = f"{MODULE.format(root=str(ROOT))}\nfrom downpour.train import Trainer\n"
    (tmp_path / "script.py").write_text(f"{code}Trainer(run(), 'run', quiet=True).train()")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    with pytest.raises(dp.SavedRunError, match="defined in a script that ran itself: load it from"):
        dp.load(tmp_path / "run")


def test_the_loss_is_not_needed(tmp_path: Path) -> None:
    train(tmp_path, losses={"click": lambda model, batch: click(model, batch)})
    assert len(dp.load(tmp_path).predict(batches(1)[0])) == 8


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dp.SavedRunError, match="give the folder that `downpour train` named"):
        dp.load(tmp_path)
