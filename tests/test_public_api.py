"""What `import downpour` gives, and that it takes next to nothing to do so."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import downpour as dp
from tests.networks import Network, planned


def by_kind(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as linters sort them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_exports_are_sorted_and_there() -> None:
    assert dp.__all__ == sorted(set(dp.__all__), key=by_kind)
    assert {*dp.__all__} <= {*dir(dp)}


@pytest.mark.parametrize("name", dp.__all__)
def test_each_export_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(dp, name)
    assert value.__name__ == name
    assert value.__doc__
    assert value.__module__.startswith("downpour.")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_each_lazy_name_is_an_export() -> None:
    assert sorted(dp._HOME_OF) == sorted(dp.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'downpour' has no attribute 'Downpour'"):
        dp.Downpour  # noqa: B018


def test_version_is_that_of_the_installed_package() -> None:
    assert dp.__version__ == metadata.version("downpour-ps")
    assert "__version__" in dir(dp)


def test_version_of_a_source_folder_that_is_not_installed_says_how_to_install_it() -> None:
    source = str(Path(dp.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); import downpour; downpour.__version__"
    command = [sys.executable, "-I", "-S", "-c", code]  # -S: without site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "as the package downpour-ps is not installed; install it with" in done.stderr


def test_every_error_is_of_one_tree() -> None:
    errors = [getattr(dp, name) for name in dp.__all__ if name.endswith("Error")]
    assert len(errors) == 14
    assert all(issubclass(error, dp.DownpourError) for error in errors)


def modules_after(code: str, *arguments: str) -> set[str]:
    """The modules that a new Python has imported after `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {*done.stdout.split()}


def test_importing_downpour_imports_no_large_library() -> None:
    imported = modules_after("import downpour\ndir(downpour)")
    assert not {"torch", "numba", "pyarrow", "numpy", "matplotlib", "rich"} & imported


def test_rules_and_errors_need_neither_torch_nor_numba() -> None:
    imported = modules_after("from downpour import Adagrad, PlanError; Adagrad(0.1)")
    assert not {"torch", "numba", "pyarrow"} & imported


def test_a_server_of_a_plan_needs_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "plan"
    file.write_bytes(pickle.dumps(planned(Network(), clip=dp.ClipByNorm(1.0))))
    code = """
import pickle
from downpour import embedded
with open(sys.argv[1], "rb") as file:
    ps = embedded(pickle.load(file), num_shards=2)
ps.push("embedding", [1, 2], [[1.0] * 4] * 2, feature="user")
assert ps.steps["embedding"] == 1
"""
    assert "torch" not in modules_after(code, str(file))


def test_a_model_that_is_not_compiled_is_planned_without_a_compiler() -> None:
    code = """
import torch, downpour as dp
model = dp.SparseEmbedding("user", 2)
example = dp.Batch(features={"user": [1]})
dp.DownpourSGD().minimize({"sum": lambda m, b: m(b).sum()}, model=model, example=example)
"""
    assert "torch._dynamo" not in modules_after(code)
