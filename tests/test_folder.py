"""Whose a run's folder may be."""

from pathlib import Path

import pytest

import downpour as dp
from downpour.folder import CONTENT, PLAN, default_folder, require_free, start_over


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("examples/movielens.py", "movielens"),
        ("movielens.py:small", "movielens"),
        ("my.package.model:small_run", "model"),
        ("model", "model"),
    ],
)
def test_the_default_is_named_after_the_target(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in (name, f"{name}-2", f"{name}-3"):
        folder = default_folder(target)
        assert folder == Path("runs") / expected
        folder.mkdir(parents=True)


def test_a_new_an_empty_and_a_runs_folder_are_free(tmp_path: Path) -> None:
    require_free(tmp_path / "new")
    require_free(tmp_path)
    (tmp_path / ".DS_Store").touch()
    require_free(tmp_path)
    (tmp_path / PLAN).touch()
    (tmp_path / "notes.txt").touch()
    require_free(tmp_path)


def test_other_folders_and_files_are_refused(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).touch()
    with pytest.raises(dp.SettingError, match=r"holds other files \(a, b, c, \.\.\.\) and no run"):
        require_free(tmp_path)
    with pytest.raises(dp.SettingError, match="is a file; name a folder"):
        require_free(tmp_path / "a")


def test_starting_over_removes_the_run_alone(tmp_path: Path) -> None:
    for name in CONTENT:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "model").rmdir()
    (tmp_path / "model").symlink_to(elsewhere)
    start_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (elsewhere / "kept").exists()


def test_starting_over_makes_the_folder(tmp_path: Path) -> None:
    start_over(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
