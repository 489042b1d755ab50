"""Which torch `make` installs, and what it says before it downloads anything."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
LIBRARY = 'nvidia-cudnn-cu13==9.20.0.48; platform_system != "none"'


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("downpour_install", ROOT / "tools" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


install = load()


def torch(version: str, *requires: str) -> Any:
    return install.Torch(version, list(requires))


def script(path: Path, text: str) -> str:
    """A program that stands in for a Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What pip is asked to do, in an environment without torch."""
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip", lambda *words: made.append(tuple(map(str, words))))
    monkeypatch.setattr(install.Torch, "installed", lambda: None)
    monkeypatch.setattr(install.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(install, "use", lambda folder: made.append(("use", str(folder))))
    return made


def test_range_is_that_of_the_package_and_has_the_constraint() -> None:
    assert install.torch_range().name == "torch"
    assert install.fits(torch("2.13.0+cpu"))
    assert not install.fits(torch("2.5.1"))
    pinned = [line for line in install.CONSTRAINTS.read_text().splitlines() if "torch==" in line]
    assert len(pinned) == 1
    assert install.fits(torch(pinned[0].partition("==")[2]))


def test_torch_for_gpus_is_announced_with_its_size_and_the_way_to_a_smaller_one() -> None:
    text = install.sizes_of(torch("2.13.0", LIBRARY), index_is_named=False)
    assert text.startswith("torch 2.13.0, with libraries for GPUs, will be installed: about 3 GB")
    assert "TORCH_INDEX=URL" in text
    assert "TORCH_INDEX" not in install.sizes_of(torch("2.13.0", LIBRARY), index_is_named=True)


@pytest.mark.parametrize(
    ("version", "requires", "is_for_gpus"),
    [
        ("2.13.0", ["filelock"], False),
        ("2.13.0+cpu", ["filelock"], False),
        ("2.6.0+cpu.cxx11.abi", [], False),
        ("2.13.0", [LIBRARY], True),
        ("2.13.0", ['nvidia-cudnn-cu13; platform_system == "none"'], False),
        ("2.13.0", ['cuda-bindings; extra == "cuda"'], False),
        ("2.9.0+cu128", [], True),
        ("2.9.0+rocm6.4", [], True),
    ],
)
def test_kind_of_a_torch(version: str, requires: list[str], is_for_gpus: bool) -> None:
    assert torch(version, *requires).is_for_gpus == is_for_gpus


def test_pip_names_the_torch_to_come_without_downloading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    index = tmp_path / "torch"
    index.mkdir()
    [pinned] = [line for line in install.CONSTRAINTS.read_text().splitlines() if "torch==" in line]
    version = f"{pinned.partition('==')[2]}+cpu"
    wheel = f"torch-{version}-py3-none-any.whl"
    (index / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    with zipfile.ZipFile(index / wheel, "w") as file:
        about = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\nRequires-Dist: sympy\n"
        file.writestr(f"torch-{version}.dist-info/METADATA", about)
        file.writestr(f"torch-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"torch-{version}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(install.sys, "prefix", str(tmp_path))
    found = install.torch_to_come(["--index-url", tmp_path.as_uri()])
    assert found == torch(version, "sympy")


def test_torch_of_the_environment_stays(
    calls: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install.Torch, "installed", lambda: torch("2.13.0+cpu"))
    assert install.prepare_torch(None, "https://wheels.example/cpu") == install.CONSTRAINTS
    assert calls == []
    assert "torch 2.13.0+cpu is installed already" in capsys.readouterr().out


def test_torch_of_the_python_that_was_given_is_used(
    calls: list[tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another version than the constraints': they are relaxed for it and what it needs."""
    abi = install.sysconfig.get_config_var("SOABI")
    said = {"version": "2.9.1+cu128", "requires": ["sympy>=1.13"], "folder": "/site", "abi": abi}
    python = script(tmp_path / "python", f"echo '{json.dumps(said)}'")
    constraints = install.prepare_torch(python, "")
    assert calls == [("use", "/site")]
    assert "SHARE_TORCH=no" in capsys.readouterr().out
    kept = {install.name_of(line) for line in constraints.read_text().splitlines()}
    given = {install.name_of(line) for line in install.CONSTRAINTS.read_text().splitlines()}
    assert given - kept == {"torch", "sympy"}


@pytest.mark.parametrize(
    "text",
    [
        "exit 1",
        """echo '{"version": "2.9.1", "requires": [], "folder": "/site", "abi": "other"}'""",
    ],
    ids=["no torch", "of another Python version"],
)
def test_python_without_a_usable_torch_has_none(text: str, tmp_path: Path) -> None:
    assert install.torch_of(script(tmp_path / "python", text)) is None


def test_this_python_has_the_torch_that_it_imports() -> None:
    import torch as imported

    found, folder = install.torch_of(sys.executable)
    assert install.fits(found)
    assert folder == Path(imported.__file__).parents[1]


def test_folder_of_a_torch_is_seen_after_the_environment_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(tmp_path))
    install.use(Path("/site"))
    [link] = tmp_path.glob("*.pth")
    assert link.read_text() == "/site\n"


def test_torch_is_taken_from_the_index_alone_and_without_what_it_needs(
    calls: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install, "torch_to_come", lambda source: torch("2.13.0+cpu", "sympy"))
    install.prepare_torch(None, "https://wheels.example/cpu")
    [words] = calls
    assert words[:4] == ("install", "--no-deps", "--index-url", "https://wheels.example/cpu")
    assert Requirement(words[-1]).name == "torch"
    assert "about 200 MB" in capsys.readouterr().out


def test_without_an_index_torch_comes_with_the_rest(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "torch_to_come", lambda source: torch("2.13.0", LIBRARY))
    monkeypatch.setattr(install.sys, "argv", ["install.py", "--group", "dev"])
    install.main()
    constraints = str(install.CONSTRAINTS)
    assert calls == [("install", "-c", constraints, "-e", ".", "--group", "dev")]


def test_index_that_is_no_url_is_refused(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.sys, "argv", ["install.py", "--torch-index", "cpu"])
    with pytest.raises(SystemExit, match=r"TORCH_INDEX must be the URL .* got 'cpu'"):
        install.main()
    assert calls == []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_refuses_another_python_than_the_environment_has(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "pip").touch()
    (folder / "python").symlink_to(sys.executable)
    python = script(tmp_path / "python", "echo 3.99")
    settings = [f"VENV={tmp_path}", f"PYTHON={python}"]
    command = ["make", "--no-print-directory", "asked_python", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"PYTHON={python} is 3.99: remove {tmp_path} to make it again" in done.stderr
