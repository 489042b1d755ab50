"""The command line: from a target to a run's folder, and from that to scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

import downpour as dp
from downpour.cli import main
from tests.small_runs import columns

TARGET = "tests.small_runs:small_run"


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def ok(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def write_csv(path: Path, table: pa.Table) -> None:
    csv.write_csv(table, path)


def write_parquet(path: Path, table: pa.Table) -> None:
    parquet.write_table(table, path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    ok("train", TARGET, "--out", folder, "--quiet")
    return folder


def test_plan_prints_tables_and_programs() -> None:
    text = ok("plan", TARGET)
    assert text.startswith("plan: 1 sparse, 1 dense\n")
    assert "PullSparse   embedding: user item" in text


def test_train_tells_each_epoch_and_names_the_folder_last(tmp_path: Path) -> None:
    lines = ok("train", TARGET, "--out", tmp_path / "run", "--epochs", 2).splitlines()
    assert [line[:9] for line in lines[-4:-2]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[-2].startswith("finished  ")
    assert lines[-1] == f"{tmp_path}/run/ (report.html, metrics.json, plan.txt, events/, model/)"


def test_train_says_no_word_too_many_when_quiet(tmp_path: Path) -> None:
    assert len(ok("train", TARGET, "--out", tmp_path / "run", "--quiet").splitlines()) == 1


@pytest.mark.parametrize("is_cold", [True, False])
def test_compiling_is_told_of_when_it_happens(
    is_cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downpour.warm.is_compiled", lambda: not is_cold)
    text = ok("train", TARGET, "--out", tmp_path / "run")
    assert ("compiles its kernels" in text) == is_cold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--servers", 0), "--servers must be an int >= 1, got 0"),
        (("--servers", 1, "--workers", 0), "--workers must be an int >= 1, got 0"),
        (("--workers", 2), "--workers and --metrics-port need --servers or --connect"),
        (("--metrics-port", 0), "--workers and --metrics-port need --servers or --connect"),
        (("--servers", 1, "--connect", "localhost:1"), "--servers starts servers, --connect names"),
        (("--connect", "here"), "must be HOST:PORT"),
    ],
)
def test_train_refuses_clusters_that_cannot_be(
    options: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    result = call("train", TARGET, "--out", tmp_path / "run", *options)
    assert result.exit_code != 0
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_train_takes_seed_and_epochs(tmp_path: Path) -> None:
    ok("train", TARGET, "--out", tmp_path / "run", "--epochs", 3, "--seed", 5)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["settings"]["epochs"], metrics["settings"]["seed"]) == (3, 5)
    assert len(metrics["epochs"]) == 3


def test_train_chooses_a_new_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("small_runs", "small_runs-2"):
        assert ok("train", TARGET, "--quiet").startswith(f"runs/{name}/ (")
        assert (tmp_path / "runs" / name / "metrics.json").is_file()


def test_report_is_written_anew(run_dir: Path) -> None:
    (run_dir / "report.html").unlink()
    assert ok("report", run_dir) == f"{run_dir}/report.html\n"
    assert (run_dir / "report.html").is_file()


FORMATS = [("new.csv", write_csv), ("new.csv.gz", None), ("new.parquet", write_parquet)]


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_predict_scores_each_row_of_a_file(
    name: str, write: Callable[[Path, pa.Table], None] | None, run_dir: Path, tmp_path: Path
) -> None:
    table = pa.table(columns(100, seed=4)).drop_columns("click")
    if write is None:
        with pa.CompressedOutputStream(str(tmp_path / name), "gzip") as stream:
            csv.write_csv(table, stream)
    else:
        write(tmp_path / name, table)
    out = tmp_path / "scores.parquet"
    text = ok("predict", run_dir, tmp_path / name, "--out", out)
    assert text == f"{out}: 100 scores\n"
    scores = polars.read_parquet(out)
    assert scores.schema == {"score": polars.Float32}
    batch = dp.Batch.from_frame(table, dp.Schema(features=("user", "item")))
    np.testing.assert_array_equal(scores["score"].to_numpy(), dp.load(run_dir).predict(batch))
    assert {path.name for path in tmp_path.iterdir()} == {name, "scores.parquet"}


@pytest.mark.parametrize(("name", "write"), [FORMATS[0], FORMATS[2]])
def test_eval_measures_files(
    name: str, write: Callable[[Path, pa.Table], None], run_dir: Path, tmp_path: Path
) -> None:
    write(tmp_path / name, pa.table(columns(200, seed=4)))
    results = json.loads(ok("eval", run_dir, tmp_path / name, "--json"))
    assert set(results) == {"auc", "auc_bucketed", "logloss", "copc", "samples"}
    assert results["samples"] == 200
    text = ok("eval", run_dir, tmp_path / name, "--batch-size", 64)
    assert text.startswith(f"auc {results['auc']:.4f}  auc_bucketed")
    assert text.endswith("samples 200\n")
    both = json.loads(ok("eval", run_dir, tmp_path / name, tmp_path / name, "--json"))
    assert both["samples"] == 400


def test_eval_of_one_class_is_json(run_dir: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "new.csv", pa.table(columns(10) | {"click": np.ones(10, np.int64)}))
    results = json.loads(ok("eval", run_dir, tmp_path / "new.csv", "--json"))
    assert results["auc"] is None
    why = "all labels are of one class"
    assert results["undefined"] == {"auc": why, "auc_bucketed": why}


def test_eval_says_what_is_not_defined_for_the_labels(run_dir: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "new.csv", pa.table(columns(10) | {"click": np.full(10, 7)}))
    result = call("eval", run_dir, tmp_path / "new.csv")
    assert (result.exit_code, result.stdout) == (0, "samples 10\n")
    first, second, third = result.stderr.splitlines()
    assert first == "auc, auc_bucketed are not defined: labels must be 0 or 1, got 7.0"
    assert second == "logloss, copc are not defined: labels must be from 0 to 1, got 7.0"
    assert third.startswith(
        "rmse, mae are not defined: labels must be from 0 to 1, got 7.0, as pre"
    )


def refused(*words: object) -> str:
    """The only line of an error: no traceback."""
    result = call(*words)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "missing.py"], "there is no file missing.py"),
        (["plan", "tests.small_runs:SCHEMA"], "has no function 'SCHEMA'"),
        (["train", "missing.module"], "no module 'missing.module'"),
        (["train", TARGET, "--epochs", "0"], "--epochs must be an int >= 1, got 0"),
        (["train", TARGET, "--seed", "-3"], "--seed must be an int >= 0"),
        (["train", TARGET, "--out", "/dev/null"], "--out /dev/null is a file; name a folder"),
        (["train", TARGET, "--out", "/etc"], "--out /etc holds other files"),
        (["train", TARGET, "--out", "/dev/null/run"], "Not a directory"),
        (["report", "/nowhere"], "/nowhere/metrics.json does not exist"),
        (["eval", "/nowhere", "x.csv"], "/nowhere/model holds no trained model"),
        (["predict", "/nowhere", "x.csv", "--out", "/tmp/x.csv"], "holds no trained model"),
    ],
)
def test_a_known_error_is_one_line(words: list[str], message: str) -> None:
    assert message in refused(*words)


@pytest.mark.parametrize("name", ["s.csv", "s.tsv", "s.arrow", "s.feather", "s.pq", "s.csv.gz"])
def test_predict_writes_what_the_suffix_says(name: str, run_dir: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "new.csv", pa.table(columns(50)))
    ok("predict", run_dir, tmp_path / "new.csv", "--out", tmp_path / "scores.parquet")
    assert ok("predict", run_dir, tmp_path / "new.csv", "--out", tmp_path / name).endswith(
        f"{name}: 50 scores\n"
    )
    (batch,) = dp.Files(tmp_path / name, dp.Schema(dense=["score"]), batch_size=99).batches()
    expected = parquet.read_table(tmp_path / "scores.parquet")["score"].to_numpy()
    np.testing.assert_array_equal(batch.dense["score"].numpy(), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "scores.parquet", name}


def test_what_scores_cannot_be_written_to_is_refused_before_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "new.csv").write_text("user,item\n1,2\n")
    (tmp_path / "dir.csv").mkdir()
    words = {
        "scores.txt": "its suffix must be one of .csv, .tsv,",
        "scores": "its suffix must be one of",
        "scores.parquet.gz": "its suffix must be one of",
        "dir.csv": "which is a directory; name a file",
        "none/scores.csv": f"there is no directory {tmp_path}/none",
        "new.csv": "scores would replace",
    }
    for name, message in words.items():  # /nowhere is no run, which would be said otherwise
        assert message in refused(
            "predict", "/nowhere", tmp_path / "new.csv", "--out", tmp_path / name
        )
    assert (tmp_path / "new.csv").read_text() == "user,item\n1,2\n"
    result = call("predict", "/nowhere", "x.csv", "--out", "s3://bucket/scores.csv")
    assert result.exit_code == 2
    assert "--out: 's3://bucket/scores.csv': s3:// is not supported, only" in result.stderr


def test_predict_takes_several_files_and_any_batch_size(run_dir: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        write_csv(tmp_path / f"{number}.csv", pa.table(columns(50, seed=number)))
    one, two, both = (tmp_path / f"{name}.parquet" for name in ("one", "two", "both"))
    ok("predict", run_dir, tmp_path / "1.csv", "--out", one)
    ok("predict", run_dir, tmp_path / "2.csv", "--out", two)
    ok("predict", run_dir, tmp_path / "1.csv", tmp_path / "2.csv", "--out", both, "--batch-size", 7)
    scores = [polars.read_parquet(path)["score"].to_numpy() for path in (one, two, both)]
    np.testing.assert_allclose(scores[2], np.concatenate(scores[:2]), rtol=1e-5)


def test_wrong_files_are_one_line(run_dir: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "new.csv", tmp_path / "scores.parquet"
    assert "no file matches" in refused("eval", run_dir, path)
    path.write_text("user,items\n1,2\n")
    assert "did you mean 'items'?" in refused("predict", run_dir, path, "--out", out)
    write_csv(path, pa.table(columns(10) | {"click": np.full(10, np.nan)}))
    assert "missing, NaN or infinite at row 0" in refused("eval", run_dir, path)
    write_csv(path, pa.table(columns(10)))
    assert "directory" in refused("predict", run_dir, path, "--out", tmp_path)


def test_a_failed_predict_leaves_the_file_before(run_dir: Path, tmp_path: Path) -> None:
    good, bad, out = tmp_path / "good.csv", tmp_path / "good2.csv", tmp_path / "scores.parquet"
    write_csv(good, pa.table(columns(50)))
    bad.write_text("user\n1\n")
    ok("predict", run_dir, good, "--out", out)
    before = out.read_bytes()
    assert "good2.csv" in refused("predict", run_dir, good, bad, "--out", out, "--batch-size", 10)
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failure_amidst_training_says_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import small_runs

    broken: Any = small_runs.Stream(small_runs.batches(4), dp.DataError("bad\n  row"))
    monkeypatch.setattr(small_runs, "frame", lambda: broken)
    line = refused("train", TARGET, "--out", tmp_path / "run")
    assert line == f"Error: bad row; what was trained until then is kept in {tmp_path}/run/"
    dp.load(tmp_path / "run")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_ends_in_what_the_command_takes(name: str) -> None:
    text = ok(name, "--help")
    example, _, options = text.partition("Options:")
    assert f"Example: downpour {name} " in example.strip().splitlines()[-1]
    assert "--help" in options


def test_version() -> None:
    assert ok("--version").startswith("downpour, version ")
