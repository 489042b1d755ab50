"""Damaged saves are refused, by one type of error that names the file, or load as they were."""

from __future__ import annotations

import io
import itertools
import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

import downpour as dp
from downpour import checkpoint
from downpour.cli import main
from downpour.hashing import mix, space_salt
from downpour.serving.shard_files import load_shard
from downpour.serving.shard_files import read_manifest as read_shard
from downpour.train import Trainer
from tests import test_shard_files as shards
from tests.damage import flipped, replaced, resealed
from tests.networks import everything
from tests.small_runs import Net, batches, small_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = ["embedding.0.parquet", "dense.safetensors", "model.pickle"]
CTR = dp.DownpourSGD(sparse=dp.CtrAccessor(embedx_threshold=3.0), dense=dp.SGD(0.1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Trainer(small_run(), folder, quiet=True).train()
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def manifest_of(run: Path) -> Path:
    return run / "model" / "manifest.json"


def file_of(run: Path, name: str) -> Path:
    (path,) = (run / "model").glob(f"save-*/{name}")
    return path


def places(content: bytes, number: int) -> list[tuple[int, int]]:
    """Bytes of each region of a file, and a bit in each."""
    chance = random.Random(0)
    spread = np.linspace(0, len(content) - 1, min(number, len(content))).astype(int).tolist()
    return [(place, chance.randrange(8)) for place in spread]


def tried(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call gives, or how it refuses; with another error the test fails."""
    try:
        return call(), ""
    except dp.SavedRunError as error:
        return None, str(error)


def test_each_flipped_bit_of_a_manifest_is_refused_or_does_no_harm(run: Path) -> None:
    path = manifest_of(run)
    content, expected = path.read_bytes(), checkpoint.read_manifest(run / "model")
    harmless = 0
    for place, bit in places(content, len(content)):
        path.write_bytes(flipped(content, place, bit))
        read, refusal = tried(lambda: checkpoint.read_manifest(run / "model"))
        assert read == expected or "manifest.json" in refusal
        harmless += read == expected
    assert harmless < len(content) / 10  # spaces that became other white space


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_manifest_that_is_cut_off_is_refused(length: int, run: Path) -> None:
    path = manifest_of(run)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(dp.SavedRunError, match=r"manifest\.json is no JSON"):
        dp.load(run)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"NaN", b'"x"'])
def test_a_manifest_of_anything_is_refused(content: bytes, run: Path) -> None:
    manifest_of(run).write_bytes(content)
    with pytest.raises(dp.SavedRunError, match=r"manifest\.json"):
        dp.load(run)
    manifest_of(run).unlink()
    manifest_of(run).mkdir()
    with pytest.raises(dp.SavedRunError, match="cannot be read"):
        dp.load(run)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_in_a_file_is_refused(name: str, run: Path) -> None:
    path = file_of(run, name)
    content = path.read_bytes()
    for place, bit in places(content, 40):
        path.write_bytes(flipped(content, place, bit))
        with pytest.raises(dp.SavedRunError, match=f"{name} was damaged"):
            dp.load(run)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_with_the_right_checksum_is_refused_or_loads(name: str, run: Path) -> None:
    path = file_of(run, name)
    content = path.read_bytes()
    refused = 0
    for place, bit in places(content, 60):
        replaced(manifest_of(run), path, flipped(content, place, bit))
        refused += tried(lambda: dp.load(run))[0] is None
    for length in (0, 1, len(content) // 2, len(content) - 1):
        replaced(manifest_of(run), path, content[:length])
        with pytest.raises(dp.SavedRunError):
            dp.load(run)
    assert refused > 0


def changed(*where: str, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        *path, last = where
        inner: Any = manifest
        for name in path:
            inner = inner[name]
        if to is None:
            del inner[last]
        else:
            inner[last] = to

    return change


ROWS = ("sparse", "embedding")
CHANGES = [
    (changed(*ROWS, "step", to=-1), "'sparse' must be sparse tables with .* step >= 0"),
    (changed(*ROWS, "step", to=True), "'sparse' must be"),
    (changed(*ROWS, "step", to=2**70), "'sparse' must be"),
    (changed(*ROWS, "rows", to="50"), "'sparse' must be"),
    (changed(*ROWS, "rows", to=51), "has 50 rows, its manifest says 51"),
    (changed(*ROWS, "log_decay", to=0.5), "'sparse' must be .* log_decay <= 0"),
    (changed(*ROWS, "log_decay", to=float("nan")), "'sparse' must be"),
    (changed(*ROWS, "file", to="other.parquet"), r"lists no file 'other\.parquet'"),
    (changed(*ROWS, to=None), "has no sparse table 'embedding'; it has: none"),
    (changed("dense", "dense.click", to=None), r"has no dense table 'dense\.click'"),
    (changed("dense", "dense.click", "step", to=-1), "'dense' must be dense tables"),
    (changed("dense", "dense.click", "updates", "top.bias", to=-1), "'dense' must be"),
    (changed("dense", "dense.click", "updates", "top.bias", to=None), r"dense\.safetensors"),
    (changed("files", to={}), "'files' must be one or more files"),
    (changed("files", "model.pickle", to=None), r"lists no file 'model\.pickle'"),
    (changed("files", "model.pickle", "sha256", to="0"), "'files' must be"),
    (changed("files", "../../x", to={"bytes": 1, "sha256": "0" * 64}), "'files' must be"),
    (changed("folder", to="../model/save-0"), "'folder' must be the name of a folder"),
    (changed("folder", to="save-00000000"), "is missing"),
    (changed("import_paths", to=[1]), "'import_paths' must be a list of folders"),
    (changed("schema", to=None), "lacks 'schema'"),
    (changed("schema", to={"features": 5}), "manifest.json cannot be read"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=itertools.count())
def test_fields_that_cannot_be_are_refused_whatever_the_checksum(
    change: Callable[[dict[str, Any]], object], message: str, run: Path
) -> None:
    resealed(manifest_of(run), change)
    with pytest.raises(dp.SavedRunError, match=message):
        dp.load(run)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x05N.", b"\x80\x05}.", b"\x80\x04]."])
def test_a_pickle_of_anything_else_is_refused(content: bytes, run: Path) -> None:
    replaced(manifest_of(run), file_of(run, "model.pickle"), content)
    with pytest.raises(dp.SavedRunError, match=r"model\.pickle"):
        dp.load(run)


@pytest.fixture(scope="module")
def whole_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.saved(tmp_path_factory.mktemp("saves"), shards.trained())


@pytest.fixture
def shard(whole_shard: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole_shard, tmp_path / "monday" / whole_shard.name)


def test_each_flipped_bit_of_a_shards_manifest_is_refused_or_does_no_harm(shard: Path) -> None:
    own, path = shards.hosted(), shard / "manifest.json"
    content, expected = path.read_bytes(), read_shard(shard, own)
    for place, bit in places(content, len(content)):
        path.write_bytes(flipped(content, place, bit))
        read, refusal = tried(lambda: read_shard(shard, own))
        assert read == expected or "manifest.json" in refusal


@pytest.mark.parametrize("name", ["plain.0.parquet", "ctr.1.parquet", "dense.safetensors"])
def test_a_damaged_file_of_a_shard_is_refused(name: str, shard: Path) -> None:
    own, path = shards.hosted(), shard / name
    content = path.read_bytes()
    for place, bit in places(content, 20):
        path.write_bytes(flipped(content, place, bit))
        with pytest.raises(dp.SavedRunError, match=name):
            load_shard(shard, own)
    for place, bit in places(content, 20):
        replaced(shard / "manifest.json", path, flipped(content, place, bit))
        loaded, refusal = tried(lambda: load_shard(shard, own))
        assert loaded or name in refusal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("sparse", "plain", "step", to=-1), "'sparse' must be"),
        (changed("files", to={}), "'files' must be one or more files"),
        (changed("shard", to=-1), "'shard' must be a whole number"),
        (changed("sparse", "plain", to=None), "has no sparse table 'plain'"),
        (changed("dense", "other", to={"step": 1, "updates": {}}), r"dense\.safetensors"),
    ],
)
def test_fields_of_a_shard_that_cannot_be_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, shard: Path
) -> None:
    resealed(shard / "manifest.json", change)
    with pytest.raises(dp.SavedRunError, match=message):
        load_shard(shard, shards.hosted())


# Rows that hold NaN or infinity.


def spoil(run: Path, *rows: int) -> list[int]:
    """Make these rows of a save infinite; their stored keys."""
    path = file_of(run, "embedding.0.parquet")
    table = parquet.read_table(path)
    columns = table.to_pydict()
    for row in rows:
        columns["weights"][row][0] = float("inf") if row % 2 else float("nan")
    file = io.BytesIO()
    parquet.write_table(type(table).from_pydict(columns, schema=table.schema), file)
    replaced(manifest_of(run), path, file.getvalue())
    return [int(columns["key"][row]) for row in rows]


class OneSpace(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embedding.spaces = {"user": "item"}


@pytest.mark.parametrize("settings", [{}, {"make": OneSpace}, {"optimizer": CTR}])
def test_rows_that_are_not_finite_are_left_out_and_named(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    if settings.get("optimizer") is CTR:
        settings = {"make": CtrNet, **settings}
    trainer = Trainer(small_run(**settings), tmp_path, quiet=True)
    trainer.train()
    rows = trainer.client.export("embedding")
    keys = spoil(tmp_path, 3, 10)
    said = rf"2 of {len(rows.keys)} rows of table 'embedding' hold NaN"
    with pytest.warns(UserWarning, match=said) as told:
        saved = dp.load(tmp_path)
    one_space = settings.get("make") is OneSpace
    ids = mix(np.array(keys, np.uint64), space_salt("item")).tolist() if one_space else keys
    named = f"({'ids of user' if one_space else 'keys'} {ids[0]}, {ids[1]})"
    assert named in str(told[0].message)
    assert saved.left_out["embedding"].tolist() == keys
    ours = saved.client.export("embedding")
    others = np.isin(rows.keys, keys, invert=True)
    assert np.array_equal(ours.keys, rows.keys[others])
    assert np.array_equal(ours.weights, rows.weights[others])
    assert (ours.step, ours.log_decay) == (rows.step, rows.log_decay)
    assert np.isfinite(saved.predict(batches(1)[0])).all()


class CtrNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = dp.SparseEmbedding(("user", "item"), dim=4, use_cvm=False)


def test_a_save_of_finite_rows_loads_without_a_word(run: Path) -> None:
    assert dp.load(run).left_out == {}


def test_the_command_says_it_in_a_line(run: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    spoil(run, 3)
    (tmp_path / "new.csv").write_text("user,item,click\n1,2,1\n3,4,0\n")
    done = CliRunner().invoke(main, ["eval", str(run), str(tmp_path / "new.csv"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["samples"] == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Warning: {run}: 1 of 50 rows of table 'embedding' hold NaN")


def test_a_parameter_that_is_not_finite_is_refused_by_name(run: Path) -> None:
    path = file_of(run, "dense.safetensors")
    tensors = load_file(path)
    tensors["parameter/top.bias"][0] = np.nan
    save_file(tensors, path)
    replaced(manifest_of(run), path, path.read_bytes())
    with pytest.raises(dp.SavedRunError, match=r"dense\.safetensors .*'top\.bias'"):
        dp.load(run)


def test_a_save_that_loads_is_the_one_that_was_written(run: Path) -> None:
    trainer = Trainer(small_run(), quiet=True)
    trainer.train()
    assert everything(dp.load(run).client) == everything(trainer.client)
