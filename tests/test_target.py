"""What a TARGET on the command line may be."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import downpour as dp
from downpour.target import load_run

TEXT = """
from tests.small_runs import small_run, Net

def run():
    return small_run(epochs=1)

def longer():
    return small_run(epochs=7)

def as_it_comes():
    import torch
    return small_run(seed=int(torch.randint(1000, ())))

def wrong():
    return {"epochs": 1}

number = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: str, text: str = TEXT) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize(
    ("target", "epochs"),
    [
        ("deep/my_clicks.py", 1),
        ("deep/my_clicks.py:longer", 7),
        ("deep.my_clicks", 1),
        ("deep.my_clicks:longer", 7),
    ],
)
def test_a_file_or_a_module_and_its_function(target: str, epochs: int) -> None:
    write("deep/my_clicks.py")
    assert load_run(target).epochs == epochs
    assert load_run(target).epochs == epochs  # again, already imported


def test_a_file_finds_modules_beside_it() -> None:
    write("deep/my_model.py")
    write("deep/my_clicks.py", "from my_model import run")
    assert load_run("deep/my_clicks.py").epochs == 1


def test_random_numbers_are_the_same_each_time() -> None:
    write("my_clicks.py")
    first = load_run("my_clicks.py:as_it_comes").seed
    torch.rand(3)
    assert load_run("my_clicks.py:as_it_comes").seed == first


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing.py", "there is no file missing.py"),
        ("missing_module", "no module 'missing_module'; for a file say missing_module.py"),
        ("missing.module", "no module 'missing.module'"),
        ("my_clicks.py:gone", "my_clicks.py has no function 'gone'; give FILE:FUNCTION"),
        ("my_clicks.py:number", "has no function 'number'"),
        ("my_clicks.py:wrong", r"wrong\(\) must return a downpour.Run, got \{'epochs': 1\}"),
        (":run", "names no file or module"),
        ("", "names no file or module"),
    ],
)
def test_what_is_no_target_is_said(target: str, message: str) -> None:
    write("my_clicks.py")
    with pytest.raises(dp.SettingError, match=message):
        load_run(target)


@pytest.mark.parametrize("name", ["json.py", "random.py", "numpy.py", "sys.py", "my.clicks.py"])
def test_a_file_that_cannot_be_imported_by_its_name_is_refused(name: str) -> None:
    write(name)
    with pytest.raises(dp.SettingError, match=rf"{name} cannot be imported.*rename"):
        load_run(name)


def test_two_files_of_one_name_are_refused() -> None:
    write("one/my_clicks.py")
    write("two/my_clicks.py")
    load_run("one/my_clicks.py")
    with pytest.raises(dp.SettingError, match="a module of that name is there already"):
        load_run("two/my_clicks.py")


@pytest.mark.parametrize("target", ["my_clicks.py", "my_clicks"])
def test_an_import_that_fails_inside_is_told_as_it_is(target: str) -> None:
    write("my_clicks.py", "import my_clicks_helper_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="my_clicks_helper_that_is_missing"):
        load_run(target)
    write("my_clicks_too.py", "import my")  # its name begins like the target's
    with pytest.raises(ModuleNotFoundError, match="No module named 'my'"):
        load_run("my_clicks_too")
