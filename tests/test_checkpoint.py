"""What was trained, on disk: whole, or refused by name; and as it was before a crash."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

import downpour as dp
from downpour import checkpoint, row_batches
from downpour.manifest import sealed
from downpour.train import Trainer
from tests.damage import unsealed
from tests.small_runs import Net, click, frame, small_run

DECAYING = dp.DownpourSGD(
    sparse=dp.Adagrad(0.1, weight_decay=0.01), dense=dp.Adam(0.01, weight_decay=0.01)
)
COUNTING = dp.DownpourSGD(
    sparse=dp.CtrAccessor(rule=dp.G2SumAdagrad(0.1), embedx_threshold=3.0), dense=dp.SGD(0.1)
)


def trained(**settings: Any) -> Trainer:
    trainer = Trainer(small_run(**settings), quiet=True)
    trainer.train()
    return trainer


def save(folder: Path, trainer: Trainer) -> None:
    facts: dict[str, Any] = {"import_paths": [], "schema": None}
    checkpoint.save(folder, trainer.client, trainer.run.model, b"pickled", facts)


def restored(folder: Path, trainer: Trainer, num_shards: int = 1) -> dp.Client:
    client = dp.embedded(trainer.plan, num_shards=num_shards)
    checkpoint.restore(*checkpoint.read_manifest(folder), client)
    return client


def require_same(ours: dp.Client, theirs: dp.Client) -> None:
    """Fail unless all that is learned is the same, to the bit."""
    for table in ours.plan.sparse:
        a, b = ours.export(table.name), theirs.export(table.name)
        assert (a.step, a.log_decay) == (b.step, b.log_decay)
        for x, y in ((a.keys, b.keys), (a.weights, b.weights), (a.state, b.state)):
            assert np.array_equal(x, y)
        assert (a.statistics is None) == (b.statistics is None)
        if a.statistics is not None:
            assert a.statistics.tolist() == b.statistics.tolist()
    for block in ours.plan.dense:
        c, d = ours.export_dense(block.name), theirs.export_dense(block.name)
        assert (c.step, dict(c.updates)) == (d.step, dict(d.updates))
        assert np.array_equal(c.weights, d.weights)
        assert all(np.array_equal(c.state[name], d.state[name]) for name in c.state)
    assert ours.steps == theirs.steps


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize(
    "optimizer",
    [
        DECAYING,
        dp.DownpourSGD(sparse=dp.Adam(0.01), dense=dp.SGD(0.1)),
        dp.DownpourSGD(sparse=dp.SGD(0.1), dense=dp.AdamD2Sum(0.1)),
        dp.DownpourSGD(),
        COUNTING,
    ],
    ids=["decay", "adam", "no state", "default", "counting"],
)
def test_all_that_is_learned_comes_back(
    optimizer: dp.DownpourSGD, num_shards: int, tmp_path: Path
) -> None:
    trainer = trained(optimizer=optimizer)
    save(tmp_path, trainer)
    client = restored(tmp_path, trainer, num_shards)
    require_same(client, trainer.client)
    assert trainer.client.export("embedding").step == 8


def steps(trainer: Trainer, client: dp.Client) -> list[float]:
    """The losses of eight more steps."""
    with dp.Worker(trainer.plan, trainer.run.model, client) as worker:
        return [worker.step("click", batch).loss for batch in frame(seed=5).batches()]


@pytest.mark.parametrize("settings", [{}, {"optimizer": COUNTING}], ids=["plain", "counting"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_training_goes_on_as_if_it_had_not_been_saved(
    num_shards: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trained(**settings)
    save(tmp_path, trainer)
    client = restored(tmp_path, trainer, num_shards)
    assert steps(trainer, client) == steps(trainer, trainer.client)
    require_same(client, trainer.client)


def test_decay_goes_on_to_rounding(tmp_path: Path) -> None:
    trainer = trained(optimizer=DECAYING)
    save(tmp_path, trainer)
    client = restored(tmp_path, trainer)  # its rows have been rounded once more
    np.testing.assert_allclose(steps(trainer, client), steps(trainer, trainer.client), rtol=1e-5)
    ours, theirs = client.export("embedding"), trainer.client.export("embedding")
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5)
    assert (ours.step, ours.log_decay) == (theirs.step, theirs.log_decay)


def test_polars_opens_a_table(tmp_path: Path) -> None:
    trainer = trained()
    save(tmp_path, trainer)
    (path,) = tmp_path.glob("save-*/embedding.0.parquet")
    table = polars.read_parquet(path)
    rows = trainer.client.export("embedding")
    assert table.columns == ["key", "weights", "state"]
    assert table["key"].to_list() == sorted(rows.keys.tolist())
    assert np.array_equal(table["weights"].to_numpy(), rows.weights)


def test_a_large_table_is_written_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_ROWS", 7)
    trainer = trained()
    save(tmp_path, trainer)
    require_same(restored(tmp_path, trainer), trainer.client)


def test_an_empty_table_comes_back(tmp_path: Path) -> None:
    trainer = Trainer(small_run(), quiet=True)
    save(tmp_path, trainer)
    assert len(restored(tmp_path, trainer).export("embedding").keys) == 0


def odd_name() -> Net:
    net = Net()
    net.embedding.table = "../users & items/β"
    return net


def test_any_name_of_a_table_makes_a_file(tmp_path: Path) -> None:
    trainer = trained(make=odd_name)
    save(tmp_path / "model", trainer)
    require_same(restored(tmp_path / "model", trainer), trainer.client)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    save(tmp_path / "model", trained())
    expected = {path.is_dir(): mode(path) for path in (tmp_path / "plain", tmp_path / "plain/file")}
    made = [tmp_path / "model", *(tmp_path / "model").rglob("*")]
    assert len(made) == 6
    assert {path: mode(path) for path in made} == {path: expected[path.is_dir()] for path in made}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def raising(*args: object, **settings: object) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize("where", ["pathlib.Path.replace", "os.fsync", "downpour.checkpoint.sync"])
def test_a_crash_before_the_manifest_leaves_the_save_before(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = trained(), trained(epochs=2)
    save(tmp_path, first)
    with monkeypatch.context() as broken:
        broken.setattr(where, raising)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path, second)
    require_same(restored(tmp_path, first), first.client)
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["manif", "save-"]
    save(tmp_path, second)
    require_same(restored(tmp_path, second), second.client)
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["manif", "save-"]


def test_a_kill_amidst_a_save_leaves_the_save_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained()
    save(tmp_path, first)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *args, **settings: None)  # nobody cleans up
        killed.setattr("pathlib.Path.replace", raising)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path, trained(epochs=2))
    assert len(list(tmp_path.glob("save-*"))) == 2
    require_same(restored(tmp_path, first), first.client)
    save(tmp_path, first)
    assert len(list(tmp_path.glob("save-*"))) == 1


def test_an_error_after_the_manifest_leaves_the_new_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = trained(epochs=2)
    save(tmp_path, trained())
    replace, synced = Path.replace, []

    def replace_and_break(path: Path, target: Path) -> Path:
        synced.append(True)
        return replace(path, target)

    def sync(path: Path) -> None:
        if synced:
            raise OSError("cannot sync a folder")

    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.replace", replace_and_break)
        broken.setattr(checkpoint, "sync", sync)
        with pytest.raises(OSError, match="cannot sync"):
            save(tmp_path, second)
    require_same(restored(tmp_path, second), second.client)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("break_it", "message"), [(flip, "was damaged"), (cut, "was damaged"), (Path.unlink, "missing")]
)
@pytest.mark.parametrize("name", ["embedding.0.parquet", "dense.safetensors", "model.pickle"])
def test_a_file_that_is_not_as_written_is_refused(
    name: str, break_it: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    save(tmp_path, trained())
    (path,) = tmp_path.glob(f"save-*/{name}")
    break_it(path)
    with pytest.raises(dp.SavedRunError, match=f"{name}.*{message}"):
        checkpoint.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 3}', "format 3, this Downpour reads format 2; use the version"),
        ("{}", "format None"),
        ('{"format": 2}', "its checksum is not that of what it says"),
        (sealed({}), "lacks 'folder': it was damaged"),
        ("[1]", "must hold a JSON object, got a list"),
        ('{"format": 1, "fol', "is no JSON"),
        ("", "is no JSON"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(dp.SavedRunError, match=message):
        checkpoint.read_manifest(tmp_path)


def test_a_manifest_of_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    trainer = trained()
    save(tmp_path, trainer)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["sparse"]["embedding"]["rows"] += 1
    (tmp_path / "manifest.json").write_text(sealed(unsealed(manifest)))
    with pytest.raises(dp.SavedRunError, match="has 50 rows, its manifest says 51"):
        restored(tmp_path, trainer)


@pytest.mark.parametrize("path", ["nothing", "file"])
def test_a_folder_without_a_save_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(dp.SavedRunError, match=r"holds no trained model \(manifest.json is missi"):
        checkpoint.read_manifest(tmp_path / path)


def test_manifest_keeps_facts_and_passes_over_what_it_does_not_know(tmp_path: Path) -> None:
    trainer = trained()
    facts = {"import_paths": ["/a"], "schema": None, "from a later version": [1]}
    checkpoint.save(tmp_path, trainer.client, trainer.run.model, b"", facts)
    manifest, data = checkpoint.read_manifest(tmp_path)
    assert facts.items() <= manifest.items()
    assert manifest["sparse"]["embedding"]["features"] == {"user": "user", "item": "item"}
    assert torch.equal(
        checkpoint.load_tensors(data)["parameter/top.weight"], trainer.run.model.top.weight
    )
    assert click.__name__ in str(manifest["dense"])
