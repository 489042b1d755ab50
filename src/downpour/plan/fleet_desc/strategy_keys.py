"""The keys of the reference's fleet strategy that are about tables, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

# By key, the field of the table's message that it sets, and the reference's default; a default of
# None leaves the field to the model.
Keys: TypeAlias = Mapping[str, tuple[str, Any]]

SPARSE: Keys = {
    "sparse_table_class": ("table_class", "DownpourSparseTable"),
    "sparse_accessor_class": ("accessor.accessor_class", "DownpourCtrAccessor"),
    "sparse_compress_in_save": ("compress_in_save", True),
    "sparse_shard_num": ("shard_num", 1000),
    "sparse_enable_cache": ("enable_sparse_table_cache", True),
    "sparse_cache_rate": ("sparse_table_cache_rate", 0.00055),
    "sparse_cache_file_num": ("sparse_table_cache_file_num", 16),
    "sparse_embedx_dim": ("accessor.embedx_dim", None),
    "sparse_fea_dim": ("accessor.fea_dim", None),
}
CONVERTERS: Keys = {
    "sparse_converter": ("converter", "(scripts/xbox_compressor_mf.py | bin/xbox_pb_converter)"),
    "sparse_deconverter": (
        "deconverter",
        "(bin/xbox_pb_deconverter | scripts/xbox_decompressor_mf.awk)",
    ),
}
SAVE_PARAMS = (1, 2)  # the save modes that the converters are for
_STATISTICS = "accessor.downpour_accessor_param"
CTR: Keys = {
    "sparse_embedx_threshold": ("accessor.embedx_threshold", 10),
    "sparse_nonclk_coeff": (f"{_STATISTICS}.nonclk_coeff", 0.1),
    "sparse_click_coeff": (f"{_STATISTICS}.click_coeff", 1),
    "sparse_base_threshold": (f"{_STATISTICS}.base_threshold", 1.5),
    "sparse_delta_threshold": (f"{_STATISTICS}.delta_threshold", 0.25),
    "sparse_delta_keep_days": (f"{_STATISTICS}.delta_keep_days", 16),
    "sparse_delete_after_unseen_days": (f"{_STATISTICS}.delete_after_unseen_days", 30),
    "sparse_show_click_decay_rate": (f"{_STATISTICS}.show_click_decay_rate", 0.98),
    "sparse_delete_threshold": (f"{_STATISTICS}.delete_threshold", 0.8),
}
SHARED: Keys = {
    **CTR,
    "sparse_ssd_unseenday_threshold": (f"{_STATISTICS}.ssd_unseenday_threshold", 1),
    "sparse_learning_rate": ("accessor.sparse_sgd_param.learning_rate", 0.05),
    "sparse_initial_g2sum": ("accessor.sparse_sgd_param.initial_g2sum", 3),
    "sparse_initial_range": ("accessor.sparse_sgd_param.initial_range", 1e-4),
    "sparse_weight_bounds": ("accessor.sparse_sgd_param.weight_bounds", (-10, 10)),
}
# By the name of a rule, its message and the defaults of its numbers.
_ADAGRAD = {"learning_rate": 0.05, "initial_g2sum": 3, "initial_range": 1e-4}
_RULES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "naive": ("naive", {"learning_rate": 0.05, "initial_range": 1e-4}),
    "adagrad": ("adagrad", _ADAGRAD),
    "std_adagrad": ("adagrad", _ADAGRAD),
    "adam": (
        "adam",
        {
            "learning_rate": 0.001,
            "initial_range": 1e-4,
            "beta1_decay_rate": 0.9,
            "beta2_decay_rate": 0.999,
            "ada_epsilon": 1e-8,
        },
    ),
}
# By the part of a row that a rule moves: its message, the rules there are, the one by default.
PARTS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "": ("sparse_commonsgd_param", ("naive", "adagrad", "adam"), "adam"),
    "embed_": ("embed_sgd_param", tuple(_RULES), "adagrad"),
    "embedx_": ("embedx_sgd_param", tuple(_RULES), "adagrad"),
}

_DENSE_RULE = "accessor.dense_sgd_param"
DENSE: Keys = {
    "dense_table_class": ("table_class", "DownpourDenseTable"),
    "dense_accessor_class": ("accessor.accessor_class", "DownpourDenseValueAccessor"),
    "dense_compress_in_save": ("compress_in_save", True),
    "dense_optimizer": (f"{_DENSE_RULE}.name", "adam"),
}
DENSE_RULES: Mapping[str, Keys] = {
    "adam": {
        "dense_learning_rate": (f"{_DENSE_RULE}.adam.learning_rate", 5e-6),
        "dense_avg_decay": (f"{_DENSE_RULE}.adam.avg_decay_rate", 0.999993),
        "dense_ada_decay": (f"{_DENSE_RULE}.adam.ada_decay_rate", 0.9999),
        "dense_ada_epsilon": (f"{_DENSE_RULE}.adam.ada_epsilon", 1e-8),
        "dense_mom_decay": (f"{_DENSE_RULE}.adam.mom_decay_rate", 0.99),
    },
    "naive": {"dense_naive_lr": (f"{_DENSE_RULE}.naive.learning_rate", 0.0002)},
}
DATA_NORM: Keys = {
    "datanorm_table_class": ("table_class", "DownpourDenseTable"),
    "datanorm_accessor_class": ("accessor.accessor_class", "DownpourDenseValueAccessor"),
    "datanorm_compress_in_save": ("compress_in_save", True),
    "datanorm_operation": (f"{_DENSE_RULE}.name", "summary"),
    "datanorm_decay_rate": (f"{_DENSE_RULE}.summary.summary_decay_rate", 0.999999),
}


def part_keys(part: str, rule: str) -> Keys:
    """The keys of the rule of a part of a row: `embed_sparse_learning_rate` and the like."""
    message = f"accessor.{PARTS[part][0]}"
    block, numbers = _RULES[rule]
    keys = {
        f"{part}sparse_{name}": (f"{message}.{block}.{name}", default)
        for name, default in {**numbers, "weight_bounds": (-10, 10)}.items()
        if not (part and name == "ada_epsilon")  # which a strategy has for whole rows alone
    }
    if part == "embed_" and block == "adagrad":  # w begins at 0
        keys["embed_sparse_initial_range"] = (f"{message}.{block}.initial_range", 0)
    return keys


def every_key() -> list[str]:
    """All keys that the settings of a sparse table can have."""
    keys = [*SPARSE, *CONVERTERS, *SHARED]
    for part, (_, names, _) in PARTS.items():
        keys.append(f"{part}sparse_optimizer")
        keys += [key for rule in names for key in part_keys(part, rule)]
    return list(dict.fromkeys(keys))
