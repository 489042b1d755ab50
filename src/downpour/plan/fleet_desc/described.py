"""What a description says, as frozen values: the parts that `minimize` merges into its plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.errors import PlanError
from downpour.plan.fleet_desc.places import Place, Source
from downpour.plan.specs import DenseTableSpec, Launch, Service, SparseTableSpec, TableFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.accessor import Accessor
    from downpour.clip import Clip
    from downpour.plan.program import Program
    from downpour.plan.specs import FeatureSpec, FsClient
    from downpour.rules import Rule

Kind: TypeAlias = Literal["ctr", "embedding"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Desc:
    """What is said somewhere: `where` is the file and line, `at` a field, for messages."""

    place: Place = field(compare=False, repr=False)

    @property
    def where(self) -> str:
        """The file and line, for messages."""
        return self.place.where

    def at(self, field: str, index: int = 0) -> str:
        """A field, such as `accessor.fea_dim`, as the subject of a sentence.

        `f.prototxt:12: fea_dim`, `strategy['t']['sparse_fea_dim']`, `fleet_desc: path` of a message
        without text. The line is that of the innermost message around what is not written.
        """
        return self.place.at(field, index)

    def require_same(self, facts: Mapping[str, tuple[Any, Any]]) -> None:
        """Raise PlanError where a description that a plan wrote is of another model's plan.

        `facts`: by field, what is said and what the model has.
        """
        for name, (said, own) in facts.items():
            if said not in (None, own):
                raise PlanError(
                    f"{self.at(name)} is {said!r}, and the model's is {own!r}; correct it, or "
                    "leave it out"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseTableDesc(_Desc):
    """What is said of a table of rows.

    Attributes:
        id: None where a strategy says it, whose tables `minimize` numbers.
        kind: whether its rows count show and click.
        embedx_dim: the width of embedx, or of the whole row; None where it is not said.
        settings: keyword arguments of CtrAccessor or EmbeddingAccessor, without width and dtype.
        name, features, padding_key, seed, dtype, use_cvm: None where only a model says them, which
            is so in every description but a plan's own.
    """

    id: int | None
    kind: Kind
    embedx_dim: int | None
    settings: Mapping[str, Any]
    files: TableFiles
    name: str | None = None
    features: tuple[FeatureSpec, ...] | None = None
    padding_key: int | None = None
    seed: int | None = None
    dtype: str | None = None
    use_cvm: bool | None = None

    @property
    def fea_dim(self) -> int | None:
        """The numbers of a row that a pull of the reference's gives."""
        extra = 3 if self.kind == "ctr" else 0
        return None if self.embedx_dim is None else self.embedx_dim + extra

    def accessor(self) -> Accessor:
        """Make the accessor; a width that is not said is 1. Raises SettingError."""
        return accessor_of(self.kind, self.embedx_dim, self.settings, self.dtype)

    def spec(self) -> SparseTableSpec:
        """Make the table of a plan, or raise PlanError for what a model alone says."""
        if self.id is None or self.name is None or self.features is None or self.seed is None:
            _refuse_part(self.where, "name, features and seed of its tables")
        if self.embedx_dim is None:
            _refuse_part(self.where, "embedx_dim of its tables")
        return SparseTableSpec(
            id=self.id,
            name=self.name,
            accessor=self.accessor(),
            features=self.features,
            padding_key=self.padding_key,
            seed=self.seed,
            use_cvm=bool(self.use_cvm),
            files=self.files,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTableDesc(_Desc):
    """What is said of a dense or data-norm table; see SparseTableDesc.

    `fea_dim`: its elements, None where it is not said. `name`, `shapes` by parameter, `dtype`:
    None where only a model says them.
    """

    id: int | None
    rule: Rule
    fea_dim: int | None
    files: TableFiles
    name: str | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    dtype: str | None = None

    def spec(self) -> DenseTableSpec:
        """Make the table of a plan, or raise PlanError for what a model alone says."""
        if self.id is None or self.name is None or self.shapes is None or self.dtype is None:
            _refuse_part(self.where, "name and sections of its tables")
        from downpour.tables.dense import sections_of  # it loads numba

        return DenseTableSpec(
            id=self.id,
            name=self.name,
            rule=self.rule,
            sections=sections_of(self.shapes),
            dtype=self.dtype,
            files=self.files,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerDesc(_Desc):
    """What is said of a program: its windows, and what it pulls and pushes.

    A trainer_param with several program_config, as of the second version, is one of these for each.

    Attributes:
        skip_ops: kinds of op that do not run in a worker.
        push_dense_per_batch, pull_dense_per_batch: None where not said.
        sparse: features (slot_key) by table.
        dense: parameters (dense_variable_name) by table.
        pull_sparse, push_sparse, pull_dense, push_dense: the ids of its program_config.
        program_id: the name in its program_config; None where it has none.
        program: the ops, None where the tables have no names, as in a file written by hand.
        config, entries: where its program_config and its entries of tables are.
    """

    skip_ops: tuple[str, ...]
    push_dense_per_batch: int | None
    pull_dense_per_batch: int | None
    sparse: Mapping[int, tuple[str, ...]]
    dense: Mapping[int, tuple[str, ...]]
    pull_sparse: tuple[int, ...]
    push_sparse: tuple[int, ...]
    pull_dense: tuple[int, ...]
    push_dense: tuple[int, ...]
    program_id: str | None
    program: Program | None
    config: Place | None = field(compare=False, repr=False)
    entries: Mapping[tuple[str, int], Place] = field(compare=False, repr=False)

    @property
    def names_tables(self) -> bool:
        """Whether its program_config has the id of a table."""
        return any((self.pull_sparse, self.push_sparse, self.pull_dense, self.push_dense))

    def at_table(self, kind: Literal["sparse", "dense"], number: int, field: str) -> str:
        """A field of its entry of a table, such as `slot_key`; see `at`.

        Of the trainer where it has no entry of that table.
        """
        return self.entries.get((kind, number), self.place).at(field)

    def at_config(self, field: str, index: int = 0) -> str:
        """A field of its program_config; see `at`. Of the trainer where it has none."""
        return (self.config or self.place).at(field, index)


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetDesc:
    """A description: its tables by id, its programs in order, and what is around them.

    `source` has the line of each field, such as `trainer_param.skip_op[1]`.
    """

    sparse: Mapping[int, SparseTableDesc]
    dense: Mapping[int, DenseTableDesc]
    trainers: tuple[TrainerDesc, ...]
    service: Service = field(default_factory=Service)
    fs_client: FsClient | None = None
    launch: Launch = field(default_factory=Launch)
    clip: Clip | None = None
    source: Source = field(default_factory=lambda: Source("fleet_desc"), compare=False, repr=False)


def accessor_of(
    kind: Kind, embedx_dim: int | None, settings: Mapping[str, Any], dtype: str | None
) -> Accessor:
    """Make the accessor of a SparseTableDesc. Raises SettingError."""
    given = {**settings, "dtype": dtype or "float32"}
    if kind == "ctr":
        return CtrAccessor(embedx_dim=embedx_dim, **given)
    return EmbeddingAccessor(dim=1 if embedx_dim is None else embedx_dim, **given)


def _refuse_part(where: str, lacking: str) -> NoReturn:
    raise PlanError(
        f"{where}: a plan is read from what Plan.fleet_desc wrote, and this has no {lacking}; "
        "minimize(strategy={'fleet_desc_file': path}) takes them from the model"
    )
