"""The fleet strategy: every key is carried out or refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

import downpour as dp
from downpour.strategy import REFUSED

# The keys that the reference's third minimize hands its trainers (downpour_behaviour, section 9).
OPT_INFO = [
    "use_cvm", "no_cvm", "scale_sparse_gradient_with_batch_size", "worker_class", "stat_var_names",
    "local_tables", "async_tables", "scale_datanorm", "check_nan_var_names", "dump_slot",
    "dump_fields", "dump_file_num", "dump_fields_path", "dump_param", "user_define_dump_filename",
    "adjust_ins_weight", "copy_table", "loss_names", "fs_uri", "fs_user", "fs_passwd",
    "fs_hadoop_bin",
]  # fmt: skip


@pytest.mark.parametrize("key", OPT_INFO)
def test_every_key_of_the_reference_is_a_setting(key: str) -> None:
    assert key in {field.name for field in fields(dp.Strategy)}


def test_the_defaults_are_the_references() -> None:
    strategy = dp.Strategy()
    assert strategy.scale_sparse_gradient_with_batch_size is None  # True, unless DownpourSGD says
    assert (strategy.use_cvm, strategy.no_cvm, strategy.scale_datanorm) == (False, False, -1.0)


OTHERS: dict[str, Any] = {
    "trainer": "MultiTrainer",
    "device_worker": "Hogwild",
    "worker_class": "DownpourWorkerOpt",
    "stat_var_names": ["ctr"],
    "local_tables": ["a"],
    "async_tables": ["a"],
    "dump_fields": ["a"],
    "dump_file_num": 4,
    "dump_fields_path": "out",
    "dump_param": ["a"],
    "user_define_dump_filename": "name",
    "copy_table": {"need_copy": True},
    "use_ps_gpu": True,
}


def test_all_refused_keys_are_tried() -> None:
    assert OTHERS.keys() == REFUSED.keys()


@pytest.mark.parametrize("key", OTHERS)
def test_what_is_not_carried_out_is_refused_by_name(key: str) -> None:
    with pytest.raises(dp.SettingError, match=rf"strategy {key}=.* is not supported, only"):
        dp.Strategy.of({key: OTHERS[key]})
    default = getattr(dp.Strategy(), key)
    assert dp.Strategy.of({key: list(default) if default == () else default}) == dp.Strategy()


def test_other_keys_are_tables() -> None:
    strategy = dp.Strategy.of({"embedding": {"sparse_embedx_dim": 8}, "use_cvm": True})
    assert strategy == dp.Strategy(tables={"embedding": {"sparse_embedx_dim": 8}}, use_cvm=True)
    assert dp.Strategy.of(strategy) is strategy


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"use_cmv": True}, "no key 'use_cmv'; did you mean 'use_cvm'"),
        ({"embedding": 8}, "no key 'embedding'.*settings of a table are a dict, got 8"),
        ({"use_cvm": 1}, "use_cvm must be a bool, got 1"),
        ({"use_cvm": True, "no_cvm": True}, "exclude each other"),
        ({"scale_datanorm": -0.5}, r"scale_datanorm must be -1 \(off\) or >= 0, got -0.5"),
        ({"dense_table": "adam"}, "'dense_table' must be a dict of settings, got 'adam'"),
        ({"fs_uri": 3}, "fs_uri must be a text, got 3"),
        ({"fleet_desc_file": 3}, "fleet_desc_file must be a path, got 3"),
        ({"loss_names": "click"}, "loss_names must be a list of names, got 'click'"),
        ({"dump_slot": "yes"}, "dump_slot must be a bool, got 'yes'"),
        ({"adjust_ins_weight": 3}, "adjust_ins_weight must be a dict, got 3"),
        ({"adjust_ins_weight": {"need": True}}, "no key 'need'; it has: need_adjust"),
        ({"adjust_ins_weight": {"need_adjust": True}}, "nid_slot must be a feature's name"),
        (
            {"adjust_ins_weight": {"need_adjust": True, "nid_slot": "item"}},
            "nid_adjw_threshold must be > 0, got 0.0",
        ),
        (
            {"adjust_ins_weight": {"need_adjust": True, "ins_weight_slot": "w"}},
            "ins_weight_slot must be 'weights', got 'w'",
        ),
        ({"adjust_ins_weight": {"need_adjust": 1}}, "need_adjust must be a bool, got 1"),
        ({"tables": {"a": {}}, "a": {}}, "has settings of table 'a' twice"),
        ({"scale_datanorm": float("nan")}, "scale_datanorm must be"),
        ({"scale_sparse_gradient_with_batch_size": 1}, "must be a bool, got 1"),
        ({"tables": {"embedding": None}}, "'embedding' must be a dict of settings, got None"),
        ({"scale_datanorm": True}, "scale_datanorm must be .*, got True"),
        ({"tables": 3}, "tables must be a dict of settings by table, got 3"),
        (3, "must be a dict or a Strategy, got 3"),
    ],
)
def test_what_cannot_be_is_refused(strategy: Any, message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        dp.Strategy.of(strategy)


def test_the_references_adjust_ins_weight_is_read() -> None:
    adjust = {
        "need_adjust": True, "nid_slot": "item", "nid_adjw_threshold": 20.0, "nid_adjw_ratio": 0.1,
    }  # fmt: skip
    strategy = dp.Strategy.of({"adjust_ins_weight": adjust})
    expected = dp.AdjustInsWeight(feature="item", threshold=20.0, ratio=0.1)
    assert strategy.adjust_ins_weight == expected
    off = dp.Strategy.of({"adjust_ins_weight": {**adjust, "need_adjust": False}})
    assert off.adjust_ins_weight is None


def test_a_password_is_not_printed() -> None:
    assert "secret" not in repr(dp.Strategy(fs_passwd="secret"))


def test_tables_that_are_no_dict_are_refused() -> None:
    tables: Any = None
    with pytest.raises(dp.SettingError, match="tables must be a dict of settings by table"):
        dp.Strategy(tables=tables)
