"""The dicts of a fleet strategy are read with the reference's keys and defaults, and no others."""

from __future__ import annotations

from typing import Any

import pytest

import downpour as dp
from downpour.accessor import CtrAccessor, EmbeddingAccessor, Lifecycle
from downpour.plan.fleet_desc import (
    data_norm_of_strategy,
    dense_of_strategy,
    sparse_of_strategy,
)
from downpour.plan.specs import TableFiles
from downpour.rules import Summary

COMPRESSOR = "(scripts/xbox_compressor_mf.py | bin/xbox_pb_converter)"
DECOMPRESSOR = "(bin/xbox_pb_deconverter | scripts/xbox_decompressor_mf.awk)"
FILES = TableFiles(converters=((1, COMPRESSOR, DECOMPRESSOR), (2, COMPRESSOR, DECOMPRESSOR)))
BOUNDS = (-10.0, 10.0)
VALUE = "DownpourSparseValueAccessor"
UNIT = "DownpourUnitAccessor"
ONE_ADAGRAD = {
    "sparse_table_class": "DownpourSparseTable",
    "sparse_accessor_class": "DownpourFeatureValueAccessor",
    "sparse_compress_in_save": False,
    "sparse_shard_num": 10,
    "sparse_enable_cache": False,
    "sparse_cache_rate": 0.5,
    "sparse_cache_file_num": 2,
    "sparse_embedx_dim": 4,
    "sparse_fea_dim": 7,
    "sparse_converter": "zip",
    "sparse_deconverter": "unzip",
    "sparse_learning_rate": 0.1,
    "sparse_initial_g2sum": 1,
    "sparse_initial_range": 0.2,
    "sparse_weight_bounds": [-1, 1],
    "sparse_embedx_threshold": 5,
    "sparse_nonclk_coeff": 0.3,
    "sparse_click_coeff": 2,
    "sparse_base_threshold": 0.2,
    "sparse_delta_threshold": 0.15,
    "sparse_delta_keep_days": 31,
    "sparse_delete_after_unseen_days": 60,
    "sparse_ssd_unseenday_threshold": 3,
    "sparse_show_click_decay_rate": 0.999,
    "sparse_delete_threshold": 0.7,
}


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    return dict(sparse_of_strategy("embedding", given).settings)


def test_an_empty_strategy_has_the_defaults_of_the_reference() -> None:
    table = sparse_of_strategy("embedding", {})
    assert (table.id, table.name, table.kind, table.embedx_dim) == (None, "embedding", "ctr", None)
    assert (table.files, table.where) == (FILES, "strategy['embedding']")
    rule = dp.G2SumAdagrad(0.05, initial_g2sum=3.0)
    assert table.settings == {
        "rule": rule,
        "init": dp.Constant(),
        "bounds": BOUNDS,
        "embedx_rule": rule,
        "embedx_init": dp.Uniform(1e-4),
        "embedx_bounds": BOUNDS,
        "embedx_threshold": 10.0,
        "nonclk_coeff": 0.1,
        "click_coeff": 1.0,
        "show_scale": True,
        "slots": True,
        "lifecycle": Lifecycle(),
    }
    assert table.accessor() == CtrAccessor(rule=rule)


def test_each_setting_of_an_accessor_with_one_adagrad_is_read() -> None:
    table = sparse_of_strategy("embedding", ONE_ADAGRAD)
    rule = dp.G2SumAdagrad(0.1, initial_g2sum=1.0)
    assert table.accessor() == CtrAccessor(
        embedx_dim=4,
        rule=rule,
        bounds=(-1.0, 1.0),
        embedx_init=dp.Uniform(0.2),
        embedx_threshold=5.0,
        nonclk_coeff=0.3,
        click_coeff=2.0,
        slots=False,
        lifecycle=Lifecycle(
            base_threshold=0.2,
            delta_threshold=0.15,
            delta_keep_days=31.0,
            show_click_decay_rate=0.999,
            delete_threshold=0.7,
            delete_after_unseen_days=60.0,
            ssd_unseenday_threshold=3,
        ),
    )
    assert table.files == TableFiles(
        shard_num=10,
        compress=False,
        cache=False,
        cache_rate=0.5,
        cache_file_num=2,
        converters=((1, "zip", "unzip"), (2, "zip", "unzip")),
    )


@pytest.mark.parametrize(
    ("given", "rule", "init", "bounds"),
    [
        ({}, dp.RowAdam(0.001), 1e-4, BOUNDS),
        (
            {
                "sparse_beta1_decay_rate": 0.5,
                "sparse_beta2_decay_rate": 0.6,
                "sparse_ada_epsilon": 1,
            },
            dp.RowAdam(0.001, betas=(0.5, 0.6), eps=1.0),
            1e-4,
            BOUNDS,
        ),
        ({"sparse_optimizer": "naive"}, dp.SGD(0.05), 1e-4, BOUNDS),
        (
            {
                "sparse_optimizer": "naive",
                "sparse_initial_range": 0.1,
                "sparse_weight_bounds": [0, 1],
            },
            dp.SGD(0.05),
            0.1,
            (0.0, 1.0),
        ),
        ({"sparse_optimizer": "adagrad"}, dp.G2SumAdagrad(0.05), 1e-4, BOUNDS),
        (
            {"sparse_optimizer": "adagrad", "sparse_initial_g2sum": 2, "sparse_learning_rate": 1},
            dp.G2SumAdagrad(1.0, initial_g2sum=2.0),
            1e-4,
            BOUNDS,
        ),
    ],
)
def test_rows_without_show_and_click(
    given: dict[str, Any], rule: Any, init: float, bounds: tuple[float, float]
) -> None:
    table = sparse_of_strategy("embedding", {"sparse_accessor_class": VALUE, **given})
    assert (table.kind, table.files) == ("embedding", FILES)
    assert table.accessor() == EmbeddingAccessor(
        dim=1, rule=rule, init=dp.Uniform(init), bounds=bounds
    )


def test_w_and_embedx_have_the_defaults_of_the_reference() -> None:
    settings = settings_of({"sparse_accessor_class": UNIT})
    assert settings["rule"] == settings["embedx_rule"] == dp.G2SumAdagrad(0.05)
    assert (settings["init"], settings["embedx_init"]) == (dp.Constant(), dp.Uniform(1e-4))
    assert settings["bounds"] == settings["embedx_bounds"] == BOUNDS
    assert settings["lifecycle"] == Lifecycle()
    assert not settings["show_scale"]
    assert settings_of({"sparse_accessor_class": "DownpourDoubleUnitAccessor"})["show_scale"]


@pytest.mark.parametrize(
    ("optimizer", "rule", "init"),
    [
        ("naive", dp.SGD(0.05), dp.Uniform(1e-4)),
        ("adagrad", dp.G2SumAdagrad(0.05), dp.Constant()),
        ("std_adagrad", dp.G2SumAdagrad(0.05, per_element=True), dp.Constant()),
        ("adam", dp.RowAdam(0.001), dp.Uniform(1e-4)),
    ],
)
def test_w_and_embedx_have_a_rule_each(optimizer: str, rule: Any, init: Any) -> None:
    given = {"sparse_accessor_class": UNIT}
    of_w = settings_of({**given, "embed_sparse_optimizer": optimizer})
    assert (of_w["rule"], of_w["init"]) == (rule, init)
    of_embedx = settings_of({**given, "embedx_sparse_optimizer": optimizer})
    assert (of_embedx["embedx_rule"], of_embedx["embedx_init"]) == (rule, dp.Uniform(1e-4))


def test_each_setting_of_w_and_embedx_is_read() -> None:
    settings = settings_of(
        {
            "sparse_accessor_class": UNIT,
            "embed_sparse_learning_rate": 0.1,
            "embed_sparse_initial_g2sum": 1,
            "embed_sparse_initial_range": 0,  # as recipes have it
            "embed_sparse_weight_bounds": [-1, 1],
            "embedx_sparse_optimizer": "adam",
            "embedx_sparse_learning_rate": 0.2,
            "embedx_sparse_initial_range": 0.3,
            "embedx_sparse_weight_bounds": (-2, 2),
            "embedx_sparse_beta1_decay_rate": 0.5,
            "embedx_sparse_beta2_decay_rate": 0.6,
        }
    )
    assert settings["rule"] == dp.G2SumAdagrad(0.1, initial_g2sum=1.0)
    assert settings["bounds"] == (-1.0, 1.0)
    assert settings["embedx_rule"] == dp.RowAdam(0.2, betas=(0.5, 0.6))
    assert settings["embedx_init"] == dp.Uniform(0.3)
    assert settings["embedx_bounds"] == (-2.0, 2.0)


def test_none_is_the_default() -> None:
    assert settings_of(
        {"sparse_weight_bounds": None, "sparse_accessor_class": None}
    ) == settings_of({})


def test_fea_dim_says_embedx_dim() -> None:
    assert sparse_of_strategy("embedding", {"sparse_fea_dim": 11}).embedx_dim == 8


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sparse_learning_rat": 1},
            r"strategy\['e'\] has no key 'sparse_learning_rat'; did you mean 'sparse_learning"),
        ({"lr": 1}, r"strategy\['e'\] has no key 'lr'; it has: sparse_table_class, sparse_accesso"),
        ({"embed_sparse_ada_epsilon": 1}, "has no key 'embed_sparse_ada_epsilon'; did you mean"),
        ({"sparse_optimizer": "adam"}, r"\['sparse_optimizer'\]: DownpourCtrAccessor does not rea"),
        ({"embed_sparse_learning_rate": 1}, "DownpourCtrAccessor does not read it; it reads: spar"),
        ({"sparse_accessor_class": UNIT, "sparse_learning_rate": 1}, "DownpourUnitAccessor does n"),
        ({"sparse_accessor_class": UNIT, "sparse_ssd_unseenday_threshold": 1}, "does not read it"),
        ({"sparse_accessor_class": VALUE, "sparse_initial_g2sum": 1}, f"{VALUE} does not read it"),
        ({"sparse_accessor_class": VALUE, "sparse_embedx_threshold": 1}, f"{VALUE} does not read "),
        ({"sparse_accessor_class": VALUE, "sparse_optimizer": "std_adagrad"}, "must be one of nai"),
        ({"sparse_accessor_class": UNIT, "embedx_sparse_optimizer": "ftrl"}, "one of naive, adagr"),
        ({"sparse_accessor_class": UNIT, "embed_sparse_initial_range": 0.1},
            r"\['embed_sparse_initial_range'\]: the reference's adagrad begins w at 0 whatever"),
        ({"sparse_accessor_class": "DownpourCtrDymfAccessor"},
            r"strategy\['e'\]\['sparse_accessor_class'\]: 'DownpourCtrDymfAccessor' is not suppor"),
        ({"sparse_table_class": "DownpourSparseSSDTable"},
            r"strategy\['e'\]\['sparse_table_class'\]: 'DownpourSparseSSDTable' is not supported:"),
        ({"sparse_table_class": "DownpourDenseTable"},
            "must be one of DownpourSparseTable, MemorySparseTable here, got"),
        ({"sparse_learning_rate": -1}, r"\['sparse_learning_rate'\]: G2SumAdagrad.lr must be a fi"),
        ({"sparse_learning_rate": "x"}, r"\['sparse_learning_rate'\] must be a finite number, go"),
        ({"sparse_shard_num": 0}, r"\['sparse_shard_num'\]: TableFiles.shard_num must be an int >"),
        ({"sparse_embedx_dim": 0}, r"\['sparse_embedx_dim'\]: CtrAccessor.embedx_dim must be an i"),
        ({"sparse_embedx_dim": 8, "sparse_fea_dim": 9}, r"\['sparse_fea_dim'\]: must be embedx_di"),
        ({"sparse_embedx_threshold": 7.5},
            r"\['sparse_embedx_threshold'\] must be a whole number from 0 to 4294967295, got 7.5"),
        ({"sparse_weight_bounds": 10}, r"\['sparse_weight_bounds'\] must be two numbers, got 10"),
        ({"sparse_weight_bounds": [1, 0]}, r"\['sparse_weight_bounds'\]: CtrAccessor.bounds must"),
        ({"sparse_accessor_class": UNIT, "embed_sparse_weight_bounds": [1, 0]},
            r"\['embed_sparse_weight_bounds'\]: CtrAccessor.bounds must be finite"),
        ({"sparse_accessor_class": VALUE, "sparse_weight_bounds": [1, 0]},
            r"\['sparse_weight_bounds'\]: EmbeddingAccessor.bounds must be finite"),
        ({"sparse_weight_bounds": [1]}, r"\['sparse_weight_bounds'\]: must be two numbers"),
        ({"sparse_embedx_dim": True}, r"must be a finite number, got True; leave it out for the m"),
        ({"sparse_nonclk_coeff": True}, r"must be a finite number, got True; leave it out for the"),
        ({"sparse_compress_in_save": 2}, r"\['sparse_compress_in_save'\] must be True or False, g"),
        ({"sparse_nonclk_coeff": [1]}, r"\['sparse_nonclk_coeff'\] must be a finite number, go"),
        ({"sparse_show_click_decay_rate": 2}, r"\['sparse_show_click_decay_rate'\]: Lifecycle.sho"),
        ({"sparse_base_threshold": 1e39}, r"\['sparse_base_threshold'\]: must be a finite number,"),
        ({"sparse_converter": 1}, r"\['sparse_converter'\] must be a text, got 1"),
    ],
)  # fmt: skip
def test_settings_of_rows_that_cannot_be_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(dp.SettingError, match=match):
        sparse_of_strategy("e", given)


def test_dense_tables_have_the_defaults_of_the_reference() -> None:
    table = dense_of_strategy({})
    assert table.rule == dp.AdamD2Sum(5e-6, ada_decay=0.9999, mom_decay=0.99, eps=1e-8)
    assert (table.id, table.fea_dim, table.files) == (None, None, TableFiles())
    assert table.where == "strategy['dense_table']"
    assert dense_of_strategy({"dense_optimizer": "naive"}).rule == dp.SGD(0.0002)


def test_each_setting_of_dense_tables_is_read() -> None:
    table = dense_of_strategy(
        {
            "dense_table_class": "DownpourDenseTable",
            "dense_accessor_class": "DownpourDenseValueAccessor",
            "dense_compress_in_save": False,
            "dense_learning_rate": 0.1,
            "dense_avg_decay": 0.999993,
            "dense_ada_decay": 0.5,
            "dense_ada_epsilon": 1e-3,
            "dense_mom_decay": 0.6,
        }
    )
    assert table.rule == dp.AdamD2Sum(0.1, ada_decay=0.5, eps=1e-3, mom_decay=0.6)
    assert not table.files.compress
    assert dense_of_strategy({"dense_optimizer": "naive", "dense_naive_lr": 1}).rule == dp.SGD(1.0)


def test_data_norm_tables_have_the_defaults_of_the_reference() -> None:
    table = data_norm_of_strategy({})
    assert (table.rule, table.files) == (Summary(0.999999), TableFiles())
    assert table.where == "strategy['datanorm_table']"
    given = {"datanorm_operation": "summary", "datanorm_decay_rate": 0.9}
    assert data_norm_of_strategy(given).rule == Summary(0.9)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"dense_lr": 1}, r"strategy\['dense_table'\] has no key 'dense_lr'; it has: dense_ta"),
        ({"dense_optimizer": "summary"}, r"\['dense_optimizer'\] must be one of adam, naive, got "),
        ({"dense_naive_lr": 1}, "dense_optimizer 'adam' does not read it; it reads: dense_table_c"),
        ({"dense_optimizer": "naive", "dense_learning_rate": 1}, "'naive' does not read it; it re"),
        ({"dense_avg_decay": "x"}, r"\['dense_avg_decay'\] must be a finite number, got 'x'"),
        ({"dense_mom_decay": 1}, r"\['dense_mom_decay'\]: AdamD2Sum.mom_decay must be a finite nu"),
        ({"dense_accessor_class": "Own"}, r"\['dense_accessor_class'\]: 'Own' is not supported on"),
        ({"dense_table_class": "Own"}, r"\['dense_table_class'\]: 'Own' is not supported; take Do"),
    ],
)  # fmt: skip
def test_settings_of_dense_tables_that_cannot_be_are_refused(
    given: dict[str, Any], match: str
) -> None:
    with pytest.raises(dp.SettingError, match=match):
        dense_of_strategy(given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"datanorm_decay": 1}, "has no key 'datanorm_decay'; did you mean 'datanorm_decay_rate'"),
        ({"datanorm_operation": "adam"}, r"\['datanorm_operation'\] must be one of summary, got "),
        ({"datanorm_decay_rate": 2}, r"\['datanorm_decay_rate'\]: Summary.decay must be at most 1"),
    ],
)  # fmt: skip
def test_settings_of_data_norm_tables_that_cannot_be_are_refused(
    given: dict[str, Any], match: str
) -> None:
    with pytest.raises(dp.SettingError, match=match):
        data_norm_of_strategy(given)
