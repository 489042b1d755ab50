"""The fleet strategy of the reference's third `minimize`, as a frozen value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from downpour.errors import SettingError
from downpour.settings import default_of, is_number

ADJUST_KEYS = (
    "need_adjust", "nid_slot", "nid_adjw_threshold", "nid_adjw_ratio", "ins_weight_slot",
)  # fmt: skip
# What is not carried out, each with the way out; only the default is taken.
REFUSED = {
    "trainer": "a Trainer steps through the programs in order, as DistMultiTrainer does",
    "device_worker": "a Worker runs them, as the reference's DownpourSGD does",
    "worker_class": "there is one Worker",
    "stat_var_names": "Run(eval_data=) or Run(evaluate=) measures AUC",
    "local_tables": "every table is on the servers",
    "async_tables": "every table is on the servers",
    "dump_fields": "`downpour predict` writes scores",
    "dump_file_num": "`downpour predict` writes scores",
    "dump_fields_path": "`downpour predict` writes scores",
    "dump_param": "a saved run has all parameters, as safetensors",
    "user_define_dump_filename": "`downpour predict` writes scores",
    "copy_table": "`ps.pull` of one table and `ps.set` of another copy rows",
    "use_ps_gpu": "tables are in main memory",
}


@dataclass(frozen=True, kw_only=True)
class AdjustInsWeight:
    """The reference's adjust_ins_weight: samples whose id of `feature` was rarely shown weigh more.

    See `downpour.plan.program.WeighSamples`. `threshold` > 0, `ratio` >= 0.
    """

    feature: str
    threshold: float
    ratio: float

    def __post_init__(self) -> None:
        if type(self.feature) is not str or not self.feature:
            raise SettingError(
                f"adjust_ins_weight: nid_slot must be a feature's name, got {self.feature!r}"
            )
        if not (is_number(self.threshold) and self.threshold > 0.0):
            raise SettingError(
                f"adjust_ins_weight: nid_adjw_threshold must be > 0, got {self.threshold!r}"
            )
        if not (is_number(self.ratio) and self.ratio >= 0.0):
            raise SettingError(
                f"adjust_ins_weight: nid_adjw_ratio must be >= 0, got {self.ratio!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What a fleet strategy says, every key of the reference's as a field.

    Given to `DownpourSGD.minimize(strategy=...)`, as this value or as the reference's dict, where
    keys that are none of the fields are names of sparse tables. A key that Downpour does not carry
    out is refused unless it has its default. docs/paddle.md has the whole list.

    Args:
        use_cvm: the model sees log(show + 1) and log(click + 1) - log(show + 1); its
            SparseEmbeddings must say so too.
        no_cvm: rows have no show and click.
        click_name: the label that counts as click, of the reference's fleet_embedding; None is the
            batch's only one.
        scale_sparse_gradient_with_batch_size: multiply gradients of rows by the number of samples;
            None is what DownpourSGD says, or True.
        scale_datanorm: see `PushDense.scale_datanorm`; -1 is off.
        tables: settings of sparse tables by name, with the reference's keys (`sparse_embedx_dim`).
        dense_table, datanorm_table: settings of the dense and data-norm tables, likewise.
        fleet_desc_file: a description in protobuf's text form; its tables and programs win.
        adjust_ins_weight: weigh samples of rarely shown ids more.
        check_nan_var_names: names that must be in the plan; everything is checked always.
        loss_names: the programs there must be.
        dump_slot: whether rows keep the feature that pushed them; must agree with the accessor.
        fs_uri, fs_user, fs_passwd, fs_hadoop_bin: of the description's fs_client_param.

    Raises SettingError.
    """

    use_cvm: bool = False
    no_cvm: bool = False
    click_name: str | None = None
    scale_sparse_gradient_with_batch_size: bool | None = None
    scale_datanorm: float = -1.0
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dense_table: Mapping[str, Any] | None = None
    datanorm_table: Mapping[str, Any] | None = None
    fleet_desc_file: str | Path | None = None
    adjust_ins_weight: AdjustInsWeight | None = None
    check_nan_var_names: tuple[str, ...] = ()
    loss_names: tuple[str, ...] = ()
    dump_slot: bool | None = None
    fs_uri: str | None = None
    fs_user: str | None = None
    fs_passwd: str | None = field(default=None, repr=False)
    fs_hadoop_bin: str | None = None
    trainer: str = "DistMultiTrainer"
    device_worker: str = "DownpourSGD"
    worker_class: str = "DownpourWorker"
    stat_var_names: tuple[str, ...] = ()
    local_tables: tuple[str, ...] = ()
    async_tables: tuple[str, ...] = ()
    dump_fields: tuple[str, ...] = ()
    dump_file_num: int = 16
    dump_fields_path: str = ""
    dump_param: tuple[str, ...] = ()
    user_define_dump_filename: str = ""
    copy_table: Mapping[str, Any] = field(default_factory=dict)
    use_ps_gpu: bool = False

    def __post_init__(self) -> None:
        defaults = {it.name: default_of(it) for it in fields(self)}
        for name in ("check_nan_var_names", "loss_names", *REFUSED):
            value = getattr(self, name)
            if isinstance(defaults[name], tuple):
                object.__setattr__(self, name, _names(name, value))
        for name, way_out in REFUSED.items():
            value = getattr(self, name)
            if type(value) is not type(defaults[name]) or value != defaults[name]:
                raise SettingError(
                    f"strategy {name}={value!r} is not supported, only {defaults[name]!r}: "
                    f"{way_out}"
                )
        self._check_flags()
        self._check_tables()
        adjust: object = self.adjust_ins_weight
        if isinstance(adjust, Mapping):
            object.__setattr__(self, "adjust_ins_weight", _adjustment(adjust))
        elif not isinstance(adjust, AdjustInsWeight | None):
            raise SettingError(f"strategy adjust_ins_weight must be a dict, got {adjust!r}")

    @classmethod
    def of(cls, strategy: Strategy | Mapping[str, Any]) -> Strategy:
        """Read the reference's dict; keys that are no fields are names of sparse tables."""
        if isinstance(strategy, Strategy):
            return strategy
        if not isinstance(strategy, Mapping):
            raise SettingError(f"strategy must be a dict or a Strategy, got {strategy!r}")
        known = [field.name for field in fields(cls)]
        own = {key: value for key, value in strategy.items() if key in known}
        tables = _by_name("tables", own.pop("tables", {}))
        for key, value in strategy.items():
            if key in known:
                continue
            if not isinstance(value, Mapping):
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known)}."
                raise SettingError(
                    f"strategy has no key {key!r}; {hint} The settings of a table are a dict, got "
                    f"{value!r}"
                )
            if key in tables:
                raise SettingError(f"strategy has settings of table {key!r} twice; keep one")
            tables[str(key)] = value
        return cls(tables=tables, **own)

    def _check_flags(self) -> None:
        may_be_none = ("scale_sparse_gradient_with_batch_size", "dump_slot")
        for name in ("use_cvm", "no_cvm", *may_be_none):
            value = getattr(self, name)
            if type(value) is not bool and not (value is None and name in may_be_none):
                raise SettingError(f"strategy {name} must be a bool, got {value!r}")
        if self.use_cvm and self.no_cvm:
            raise SettingError("strategy has use_cvm=True and no_cvm=True; they exclude each other")
        scale = self.scale_datanorm
        if not (is_number(scale) and (scale == -1 or scale >= 0.0)):
            raise SettingError(f"strategy scale_datanorm must be -1 (off) or >= 0, got {scale!r}")
        for name in ("click_name", "fs_uri", "fs_user", "fs_passwd", "fs_hadoop_bin"):
            if not isinstance(getattr(self, name), str | None):
                raise SettingError(f"strategy {name} must be a text, got {getattr(self, name)!r}")
        if not isinstance(self.fleet_desc_file, str | Path | None):
            raise SettingError(
                f"strategy fleet_desc_file must be a path, got {self.fleet_desc_file!r}"
            )

    def _check_tables(self) -> None:
        settings = {"dense_table": self.dense_table, "datanorm_table": self.datanorm_table}
        given = {name: value for name, value in settings.items() if value is not None}
        for name, value in {**given, **_by_name("tables", self.tables)}.items():
            if not isinstance(value, Mapping):
                raise SettingError(f"strategy {name!r} must be a dict of settings, got {value!r}")


def _adjustment(settings: Mapping[str, Any]) -> AdjustInsWeight | None:
    """Read the reference's dict; None where it does not ask for it."""
    for key in settings:
        if key not in ADJUST_KEYS:
            raise SettingError(
                f"adjust_ins_weight has no key {key!r}; it has: {', '.join(ADJUST_KEYS)}"
            )
    if type(settings.get("need_adjust", False)) is not bool:
        raise SettingError(
            f"adjust_ins_weight: need_adjust must be a bool, got {settings['need_adjust']!r}"
        )
    if not settings.get("need_adjust", False):
        return None
    slot = settings.get("ins_weight_slot", "")
    if slot not in ("", "weights"):
        raise SettingError(
            f"adjust_ins_weight: ins_weight_slot must be 'weights', got {slot!r}: the weight of a "
            "sample is Batch.weights, which Schema(weights=) reads from a column"
        )
    return AdjustInsWeight(
        feature=settings.get("nid_slot", ""),
        threshold=settings.get("nid_adjw_threshold", 0.0),
        ratio=settings.get("nid_adjw_ratio", 0.0),
    )


def _by_name(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(f"strategy {key} must be a dict of settings by table, got {value!r}")
    return {**value}


def _names(key: str, value: object) -> tuple[str, ...]:
    listed = (
        tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else ()
    )
    if (not listed and value not in ((), [])) or not all(type(name) is str for name in listed):
        raise SettingError(f"strategy {key} must be a list of names, got {value!r}")
    return listed
