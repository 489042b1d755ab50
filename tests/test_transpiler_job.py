"""A job written as folders: what each process reads there is what was transpiled."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.errors import SavedRunError, SettingError
from downpour.transpile.job import load_job, write_job
from tests.transpiled import SERVERS, transpiled, two_losses

if TYPE_CHECKING:
    from pathlib import Path

METHODS = [
    None,
    dp.FedAvg(local_steps=3, weighting="equal"),
    dp.FedProx(mu=0.5),
    dp.FedAvgM(momentum=0.3),
    dp.FedAdam(betas=(0.8, 0.95)),
]


def click(model: Any, batch: dp.Batch) -> Any:
    return model(batch)


def buy(model: Any, batch: dp.Batch) -> Any:
    return model(batch)


@pytest.mark.parametrize("method", METHODS, ids=lambda it: type(it).__name__)
def test_each_process_reads_what_was_transpiled_for_it(method: Any, tmp_path: Path) -> None:
    done = transpiled(two_losses(), trainers=3, federation=method, min_block_size=100)
    write_job(done, tmp_path / "job")
    for number in range(3):
        assert load_job(tmp_path / f"job/trainer{number}") == replace(done, trainer_id=number)
    for number, endpoint in enumerate(SERVERS):
        own = load_job(tmp_path / f"job/server{number}")
        assert own == replace(done, current_endpoint=endpoint)
        assert own.pserver_program(endpoint) == done.pserver_program(endpoint)


def test_an_async_job_is_read_as_one(tmp_path: Path) -> None:
    done = transpiled(two_losses(), sync_mode=False, split_method="HashName", slice_var_up=False)
    write_job(done, tmp_path)
    assert load_job(tmp_path / "server1").config == done.config
    assert not load_job(tmp_path / "trainer0").sync_mode


def test_folders_show_the_programs_to_people(tmp_path: Path) -> None:
    done = transpiled(two_losses(), trainers=2)
    write_job(done, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "server0", "server1", "trainer0", "trainer1", "split.txt",
    }  # fmt: skip
    texts = {path.name: path.read_text() for path in (tmp_path / "trainer1").glob("*.txt")}
    assert texts == {
        f"{program.name}.txt": f"{program}\n"
        for program in (done.trainer_startup, *done.trainer_programs)
    }
    shown = (tmp_path / "server1/pserver.txt").read_text()
    assert shown == f"{done.pserver_program(SERVERS[1])}\n"
    assert (tmp_path / "split.txt").read_text() == f"{done.split}\n"


def test_a_trainer_brings_its_losses(tmp_path: Path) -> None:
    write_job(transpiled(two_losses()), tmp_path)
    loaded = load_job(tmp_path / "trainer0", [click, buy])
    assert loaded.plan.loss("buy") is buy
    with pytest.raises(SettingError, match=r"those of the job, click, buy, got click"):
        load_job(tmp_path / "trainer0", [click])


def test_a_folder_that_has_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingError, match=r"is there already"):
        write_job(transpiled(two_losses()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, r"has format 2, this Downpour reads format 1"),
        ({"trainers": 0}, r"holds no job"),
        ({"endpoints": 7}, r"holds no job"),
        ({"plan": ["no plan"]}, r"holds no job"),
        ({"federation": {"method": "FedSomething"}}, r"holds no job"),
        ({"split_method": "Random"}, r"holds no job.*split_method"),
    ],
    ids=lambda it: str(it)[:30],
)
def test_a_damaged_job_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_job(transpiled(two_losses()), tmp_path)
    path = tmp_path / "server0/job.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SavedRunError, match=reason):
        load_job(path.parent)


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", "{"], ids=["none", "empty", "list", "no key", "cut"]
)
def test_what_is_no_job_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "job.json").write_text(text)
    with pytest.raises(SavedRunError, match=r"job.json (holds no job|cannot be read)"):
        load_job(tmp_path)
