"""Shards on a server's disk: what is written comes back, and nothing half is ever under a name."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

from downpour.deployment import Deployment
from downpour.errors import RefusedError, SavedRunError
from downpour.manifest import sealed
from downpour.plan.sections import Sections
from downpour.serving.hosted import Hosted
from downpour.serving.shard_files import (
    drop_shard,
    keep_shard,
    load_shard,
    read_manifest,
    save_shard,
    shard_folder,
    shards_of,
)
from downpour.tables import shard_of
from tests.ctr_tables import some_keys, some_pushes
from tests.damage import unsealed
from tests.staged import bits, block, grads, plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECTIONS = Sections(min_size=2, placement="hash")


def hosted(shard: int = 0, num_shards: int = 1, dtype: str = "float64", **settings: Any) -> Hosted:
    """A shard of tables of each kind, empty."""
    made = Deployment(plan=plan(dtype, **settings), num_shards=num_shards, sections=SECTIONS)
    return Hosted(made, shard)


def trained(shard: int = 0, num_shards: int = 1, dtype: str = "float64") -> Hosted:
    """One whose tables have been pushed to."""
    made = hosted(shard, num_shards, dtype)
    server, all_keys = made.server, some_keys(400)
    keys = all_keys[shard_of(all_keys, num_shards) == shard]
    for table, pushes, lr in (
        ("plain", grads(len(keys), dtype=dtype), (0.1,)),
        ("ctr", some_pushes(len(keys), dtype=dtype), (0.1, 0.05)),
    ):
        for step in (1, 2, 3):
            rows = server.locate(table, keys, create=True)
            server.update(table, rows, pushes, step=step, lr=lr)
    for name, own in server.dense.items():
        server.init_dense(name, block(dtype=dtype)[: own.size])
        some = [parameter for parameter, parts in server.parts[name].items() if parts][:1]
        server.push_dense(name, block(1, dtype)[: own.size], step=1, lr=0.1, names=some)
    return made


def saved(
    root: Path, own: Hosted, name: str = "monday", *, save_id: str = "a1", replaces: Any = None
) -> Path:
    folder = shard_folder(root, name, own)
    save_shard(folder, own, 77, save_id)
    keep_shard(folder, save_id, replaces)
    return folder


def visible(folder: Path) -> list[str]:
    """The names in a folder; none if there is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shard", "num_shards"), [(0, 1), (1, 3), (2, 3)], ids=["1/1", "2/3", "3/3"]
)
def test_what_is_saved_comes_back_bit_for_bit(
    shard: int, num_shards: int, dtype: str, tmp_path: Path
) -> None:
    own = trained(shard, num_shards, dtype)
    folder = saved(tmp_path / "saves", own)
    assert folder == tmp_path / "saves" / "monday" / f"shard-{shard}-of-{num_shards}"
    loaded = load_shard(folder, hosted(shard, num_shards, dtype))
    assert bits(loaded) == bits(own.server)
    assert [loaded.has_weights(name) for name in loaded.dense] == [True] * len(loaded.dense)
    assert visible(tmp_path / "saves") == ["monday"]


def test_empty_tables_come_back_empty(tmp_path: Path) -> None:
    loaded = load_shard(saved(tmp_path, hosted()), hosted())
    assert loaded.is_new


def test_any_reader_can_read_the_files(tmp_path: Path) -> None:
    own = trained()
    folder = saved(tmp_path, own)
    assert visible(folder) == [
        "ctr.1.parquet", "dense.safetensors", "manifest.json", "plain.0.parquet",
    ]  # fmt: skip
    keys, weights, *_ = own.server.sparse["ctr"].export()
    rows = parquet.read_table(folder / "ctr.1.parquet")
    assert rows.column_names == [
        "key", "weights", "state", "show", "click", "delta_score", "unseen_days", "slot",
        "has_embedx",
    ]  # fmt: skip
    assert rows["key"].to_pylist() == keys.tolist()
    assert rows["weights"].to_pylist() == weights.tolist()
    values = load_file(folder / "dense.safetensors")
    assert (
        values["parameter/dense/weight"].tolist() == own.server.dense["dense"].pull()[1:].tolist()
    )
    assert values["state/dense/bias"].shape == (2,)


def test_the_manifest_says_whose_shard_it_is(tmp_path: Path) -> None:
    own = trained(1, 3)
    manifest = json.loads((saved(tmp_path, own) / "manifest.json").read_text())
    files, sparse, dense = (manifest.pop(name) for name in ("files", "sparse", "dense"))
    assert len(manifest.pop("checksum")) == 64
    assert manifest == {
        "format": 2,
        "save": "a1",
        "incarnation": 77,
        "fingerprint": own.deployment.fingerprint,
        "shard": 1,
        "num_shards": 3,
        "sections": {"min_size": 2, "placement": "hash"},
    }
    table = own.server.sparse["plain"]
    assert sparse["plain"] == {
        "file": "plain.0.parquet", "rows": len(table), "step": 3, "log_decay": table.log_decay,
    }  # fmt: skip
    assert {name: (it["step"], it["updates"]) for name, it in dense.items()} == {
        name: (it.step, it.steps) for name, it in own.server.dense.items()
    }
    assert files.keys() == {"ctr.1.parquet", "dense.safetensors", "plain.0.parquet"}


# Names.


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/etc", "a\\b", "a b", "a\n", "\u00e9", "a" * 101, "a\0"],
    ids=repr,
)
def test_a_name_is_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"name of a save must be 1 to 100 of the characters"):
        shard_folder(tmp_path, name, hosted())
    for good in ("monday", "2026-11-25", "a.b", "_x", "-"):
        assert shard_folder(tmp_path, good, hosted()).parent == tmp_path / good


def test_without_a_folder_for_saves_there_are_none() -> None:
    with pytest.raises(RefusedError, match=r"no folder for saves; .*--save-root DIR"):
        shard_folder(None, "monday", hosted())


def test_a_name_is_given_once(tmp_path: Path) -> None:
    own = trained()
    before = {path: path.stat().st_mtime_ns for path in saved(tmp_path, own).iterdir()}
    with pytest.raises(RefusedError, match=r"'monday' exists already, with shard 0 of 1; save und"):
        saved(tmp_path, own, save_id="b2")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    drop_shard(shard_folder(tmp_path, "monday", own), "b2")
    saved(tmp_path, own, "tuesday")
    assert visible(tmp_path) == ["monday", "tuesday"]


def test_what_is_written_has_no_name_until_it_is_given_one(tmp_path: Path) -> None:
    own = trained()
    folder = shard_folder(tmp_path, "monday", own)
    for _ in range(2):  # a request that is made again
        save_shard(folder, own, 77, "a1")
        assert visible(tmp_path) == [".monday.shard-0-of-1.a1"]
        assert shards_of(folder.parent) == []
    for _ in range(2):
        keep_shard(folder, "a1", None)
        assert visible(tmp_path) == ["monday"]
    assert shards_of(folder.parent) == [(0, 1, "a1")]
    with pytest.raises(RefusedError, match=r"'monday' was not written here, or another save"):
        keep_shard(folder, "b2", "a1")


def test_a_shard_of_a_broken_save_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, trained(0, 2))
    own = trained(0, 2)
    own.server.clear("plain")
    folder = saved(tmp_path, own, save_id="b2", replaces="a1")
    assert shards_of(folder.parent) == [(0, 2, "b2")]
    assert bits(load_shard(folder, hosted(0, 2))) == bits(own.server)
    assert visible(tmp_path) == ["monday"]


@pytest.mark.parametrize("is_kept", [False, True], ids=["written", "kept"])
def test_a_save_that_is_dropped_leaves_nothing(is_kept: bool, tmp_path: Path) -> None:
    own, other = trained(0, 2), trained(1, 2)
    saved(tmp_path, other)
    folder = shard_folder(tmp_path, "monday", own)
    save_shard(folder, own, 77, "b2")
    if is_kept:
        keep_shard(folder, "b2", None)
    for _ in range(2):
        drop_shard(folder, "b2")
        assert visible(tmp_path) == ["monday"]
        assert shards_of(folder.parent) == [(1, 2, "a1")]
    drop_shard(shard_folder(tmp_path, "monday", other), "a1")
    assert visible(tmp_path) == []


def test_what_a_save_of_the_same_name_has_left_unfinished_is_removed(tmp_path: Path) -> None:
    own = trained()
    folder = shard_folder(tmp_path, "monday", own)
    save_shard(folder, own, 77, "a1")
    (tmp_path / ".monday.shard-0-of-1.c3.part").mkdir()
    (tmp_path / ".tuesday.shard-0-of-1.a1").mkdir()
    save_shard(folder, own, 77, "b2")
    assert visible(tmp_path) == [".monday.shard-0-of-1.b2", ".tuesday.shard-0-of-1.a1"]


def test_a_shard_of_another_save_is_not_loaded(tmp_path: Path) -> None:
    own = trained()
    folder = saved(tmp_path, own)
    assert bits(load_shard(folder, hosted(), "a1")) == bits(own.server)
    with pytest.raises(SavedRunError, match=r"of another save than a moment before; load again"):
        load_shard(folder, hosted(), "b2")


# What goes wrong on the way.


class Crash(BaseException):
    """The end of a process, as far as its files see it."""


@pytest.mark.parametrize("error", [OSError("disk full"), Crash()], ids=["error", "crash"])
@pytest.mark.parametrize("calls", range(9))
def test_a_save_that_ends_halfway_leaves_nothing_under_the_name(
    calls: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the points where bytes reach the disk."""
    own, left, fsync = trained(), [calls], os.fsync

    def failing(handle: int) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        if isinstance(error, Crash):  # nobody tidies up then
            patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        if calls < 8:
            with pytest.raises(type(error)):
                saved(tmp_path, own)
        else:
            saved(tmp_path, own)
    if not visible(tmp_path / "monday"):
        saved(tmp_path, own, save_id="b2")
    assert bits(load_shard(shard_folder(tmp_path, "monday", own), hosted())) == bits(own.server)
    assert visible(tmp_path) == ["monday"]


def change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["plain.0.parquet", "ctr.1.parquet", "dense.safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"has 0 bytes, written were"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"damaged: it has \d+ bytes, wri"),
        (change_a_byte, r"was damaged: it has another sha256"),
    ],
    ids=["missing", "cut", "changed"],
)
def test_damaged_files_are_named(
    file: str, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, trained())
    damage(folder / file)
    with pytest.raises(SavedRunError, match=f"{file} .*{message}|{file} {message}"):
        load_shard(folder, hosted())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"manifest.json is no JSON"),
        ("[]", r"must hold a JSON object, got a list"),
        ('{"format": 3}', r"has format 3, .* use the version of Downpour that wrote it"),
        ('{"format": 2}', r"was damaged: its checksum is not that of what it says"),
        (sealed({}), r"lacks 'save': it was damaged"),
    ],
    ids=["no JSON", "no object", "newer", "no checksum", "empty"],
)
def test_damaged_manifests_are_refused(text: str, message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, trained())
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SavedRunError, match=message):
        load_shard(folder, hosted())


def test_the_tables_of_another_plan_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, trained())
    with pytest.raises(
        RefusedError, match=r"shard 0 of 1 of the tables \w{12}, this is shard 0 of"
    ):
        read_manifest(folder, hosted(dtype="float32"))
    folder.rename(folder.with_name("shard-1-of-2"))
    with pytest.raises(
        RefusedError, match=r"shard-1-of-2 has shard 0 of 1 .*, this is shard 1 of 2"
    ):
        read_manifest(folder.with_name("shard-1-of-2"), hosted(1, 2))


def test_what_there_is_is_said_where_a_save_is_missing(tmp_path: Path) -> None:
    own = hosted()
    with pytest.raises(SavedRunError, match=r"no save 'friday' in .*; there are: none"):
        read_manifest(shard_folder(tmp_path / "nowhere", "friday", own), own)
    saved(tmp_path, own), saved(tmp_path, own, "tuesday")
    (tmp_path / "other").mkdir()
    with pytest.raises(SavedRunError, match=r"no save 'friday' in .*; there are: monday, tuesday$"):
        read_manifest(shard_folder(tmp_path, "friday", own), own)
    pair = hosted(1, 2)
    with pytest.raises(
        SavedRunError, match=r"'monday' has no shard-1-of-2, but shards 0 of 1; loa"
    ):
        read_manifest(shard_folder(tmp_path, "monday", pair), pair)


def test_keys_of_another_shard_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, trained(0, 2))
    manifest = json.loads((folder / "manifest.json").read_text())
    moved = shard_folder(tmp_path, "tuesday", hosted(1, 2))
    shutil.copytree(folder, moved)
    (moved / "manifest.json").write_text(sealed({**unsealed(manifest), "shard": 1}))
    with pytest.raises(SavedRunError, match=r"belongs to shard 0, this is shard 1"):
        load_shard(moved, hosted(1, 2))


def test_what_was_adopted_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    own, back = trained(), hosted()
    back.adopt(load_shard(saved(tmp_path, own), back))
    for each in (own, back):
        keys = some_keys(50, seed=4)
        rows = each.server.locate("ctr", keys, create=True)
        each.server.update("ctr", rows, some_pushes(50, 4), step=4, lr=(0.1, 0.05))
        each.server.push_dense("dense", block(3), step=2, lr=0.1, names=["bias", "weight"])
    assert bits(back.server) == bits(own.server)
    assert not np.array_equal(back.server.dense["dense"].pull(), block())
    with pytest.raises(RefusedError, match=r"shard 0 has been trained or filled already"):
        back.adopt(hosted().server)
