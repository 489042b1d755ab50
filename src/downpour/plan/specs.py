"""What a plan says of each table, and of what is around it in the reference's description.

All frozen values: they print, compare, hash and travel by what they say.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from downpour.errors import PlanError, SettingError
from downpour.rules import Summary
from downpour.settings import require_choice

if TYPE_CHECKING:
    from downpour.accessor import Accessor
    from downpour.rules import Rule
    from downpour.tables.dense import Section

SIZE, SUM, SQUARE_SUM = "batch_size", "batch_sum", "batch_square_sum"  # of a DataNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """One feature that reads a table, and the id space that its ids live in.

    `slot` is its number in the table's CTR rows, None where they keep none.
    """

    name: str
    space: str | None  # None: the ids are globally unique
    slot: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFiles:
    """What pslib alone reads of a table: how it writes files and caches, and what it calls things.

    It is kept for the description; nothing here reads it. Raises SettingError.

    Attributes:
        converters: (param, converter, deconverter) of each of its save modes.
        table_class, accessor_class: as they were read, where a description of the same table would
            name others; empty where it would not.
        avg_decay: the rule's avg_decay_rate, which no formula reads; None is the default.
    """

    shard_num: int = 1000
    compress: bool = True
    cache: bool = True
    cache_rate: float = 0.00055
    cache_file_num: int = 16
    converters: tuple[tuple[int, str, str], ...] = ()
    mem_cache_rate: float = 0.5
    table_class: str = ""
    accessor_class: str = ""
    avg_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("shard_num", "cache_file_num"):
            value: object = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingError(f"TableFiles.{name} must be an int >= 1, got {value!r}")
        for name in ("cache_rate", "mem_cache_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingError(
                    f"TableFiles.{name} must be in [0, 1], got {getattr(self, name)!r}"
                )
        params = [param for param, _, _ in self.converters]
        if len({*params}) < len(params):
            raise SettingError(f"TableFiles.converters must have each param once, got {params}")

    def for_another_rule(self) -> TableFiles:
        """The same without what is said of a table of one rule alone."""
        return replace(self, accessor_class="", avg_decay=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseTableSpec:
    """A table of rows keyed by 64-bit ids.

    `use_cvm`: the model sees log(show + 1) and log(click + 1) - log(show + 1) of its CTR rows.
    """

    id: int
    name: str
    accessor: Accessor
    features: tuple[FeatureSpec, ...]
    padding_key: int | None = None
    seed: int = 0
    use_cvm: bool = False
    files: TableFiles = field(default_factory=TableFiles)

    def feature(self, name: str) -> FeatureSpec:
        """Return what is said of a feature of this table.

        Raises:
            PlanError: the feature does not read this table.
        """
        for spec in self.features:
            if spec.name == name:
                return spec
        names = ", ".join(spec.name for spec in self.features)
        raise PlanError(f"table {self.name!r} is not read by feature {name!r}; it is by: {names}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTableSpec:
    """A flat block that holds the parameters of a loss, one section each; or, by the rule
    `Summary`, the statistics of its `DataNorm`s.
    """

    id: int
    name: str
    rule: Rule
    sections: tuple[Section, ...]
    dtype: str = "float32"
    files: TableFiles = field(default_factory=TableFiles)

    @property
    def size(self) -> int:
        """Elements in the block."""
        return sum(section.size for section in self.sections)

    @property
    def is_data_norm(self) -> bool:
        """Whether it holds statistics and not parameters."""
        return isinstance(self.rule, Summary)


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """Where and with how many threads a server listens; 0: any free port.

    The classes are kept for the description, as they were read; empty ones are pslib's own.
    """

    start_server_port: int = 0
    server_thread_num: int = 12
    server_class: str = ""
    client_class: str = ""
    service_class: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start_server_port < 2**16:
            raise SettingError(
                f"Service.start_server_port must be in [0, 65535], got {self.start_server_port}"
            )
        if self.server_thread_num < 1:
            raise SettingError(
                f"Service.server_thread_num must be at least 1, got {self.server_thread_num}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """What the reference's launcher makes its processes of, kept for the description."""

    worker_class: str = ""
    server_class: str = ""
    instance_class: str = ""
    init_gflags: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FsClient:
    """The file system of the reference's fs_client_param, for the description."""

    fs_type: str = "HDFS"
    uri: str = ""
    user: str = ""
    passwd: str = field(default="", repr=False)
    buffer_size: int = 0
    hadoop_bin: str = ""
    afs_conf: str = ""

    def __post_init__(self) -> None:
        require_choice("FsClient.fs_type", self.fs_type, ("HDFS", "AFS"))


def plan_name(name: str) -> str:
    """What plans call a module, parameter or buffer: its name without what torch.compile adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def grad_name(name: str) -> str:
    """What the reference calls the gradient of a variable."""
    return f"{name}@GRAD"
