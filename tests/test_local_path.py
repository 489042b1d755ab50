"""Paths that users write: `~`, addresses of elsewhere, and folders in folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import downpour as dp
from downpour.local_path import local_path
from downpour.train import Trainer
from tests.small_runs import small_run

if TYPE_CHECKING:
    from collections.abc import Callable

USERS = dp.Schema(features=["user"])


def read(path: str | Path, **settings: Any) -> list[int]:
    batches = dp.Files(path, USERS, batch_size=9, **settings).batches()
    return [int(user) for batch in batches for user in batch.features["user"].values]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_home_of_the_user(home: Path) -> None:
    (home / "log.csv").write_text("user\n7\n")
    for path in ("~/log.csv", Path("~/log.csv"), "~/*.csv", "~", f"file://{home}/log.csv"):
        assert read(path) == [7]
    assert str(dp.Files("~/log.csv", USERS, batch_size=1)).startswith("Files(paths=('~/log.csv',)")
    Trainer(small_run(), "~/run", quiet=True).train()
    assert (home / "run" / "metrics.json").is_file()
    assert dp.load("~/run").schema is not None


def test_a_file_whose_name_looks_like_an_address_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s3:" / "log.csv"
    path.parent.mkdir()
    path.write_text("user\n7\n")
    assert read("s3://log.csv") == read("s3:/log.csv") == [7]


def test_the_home_of_a_user_that_there_is_not_is_refused() -> None:
    with pytest.raises(dp.SettingError, match=r"names a user whose home is not known.*write \./~"):
        local_path("~nobody-of-that-name/x", "load")


ELSEWHERE: dict[str, Callable[[str], object]] = {
    "Files.paths": lambda path: dp.Files([path], USERS, batch_size=1),
    "load": dp.load,
    "Trainer": lambda path: Trainer(small_run(), path, quiet=True),
    "load_job": dp.load_job,
    "Security.certificate": lambda path: dp.Security(certificate=Path(path), key=Path(path)),
}


@pytest.mark.parametrize("who", ELSEWHERE)
@pytest.mark.parametrize("address", ["s3://bucket/log", "gs://bucket/log", "hdfs://host:8020/log"])
def test_addresses_of_elsewhere_are_refused_by_name(who: str, address: str) -> None:
    scheme = address.partition(":")[0]
    rule = f": {scheme}:// is not supported, only paths of this machine are; (copy|name a folder)"
    with pytest.raises(dp.SettingError, match=f"^{who}: '{scheme}:/.*{rule}"):
        ELSEWHERE[who](address)


def hive(folder: Path) -> Path:
    for day in (1, 2):
        part = folder / f"day={day}" / "part-0.csv"
        part.parent.mkdir(parents=True)
        part.write_text(f"user\n{day}\n")
    return folder


def test_folders_in_a_folder_are_not_left_out_in_silence(tmp_path: Path) -> None:
    log = hive(tmp_path / "log")
    message = (
        r"has folders with data in it, as day=1/part-0.csv, which are not read with it; name them, "
        rf"for all of them '{log}/\*\*/\*.csv'; day of the folders' names is no column then"
    )
    with pytest.raises(dp.DataError, match=message):
        read(log)
    (log / "more.csv").write_text("user\n3\n")
    with pytest.raises(dp.DataError, match="folders with data in it"):
        read(log)
    assert sorted(read(log / "**" / "*.csv")) == [1, 2, 3]
    assert read(log / "day=2") == [2]
    for name in ("_temporary", ".hidden", "notes"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        (tmp_path / "flat" / name / "readme.txt").write_text("no data")
    (tmp_path / "flat" / "_temporary" / "part.csv").write_text("user\n9\n")
    (tmp_path / "flat" / "part.csv").write_text("user\n3\n")
    assert read(tmp_path / "flat") == [3]


def test_a_column_that_only_a_folder_names_is_refused(tmp_path: Path) -> None:
    log = hive(tmp_path / "log")
    data = dp.Files(log / "*" / "*.csv", dp.Schema(features=["user", "day"]), batch_size=9)
    with pytest.raises(
        dp.DataError,
        match=r"no column 'day' \(columns: user\); the folder's name says day=1, which",
    ):
        list(data.batches())
