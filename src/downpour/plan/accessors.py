"""What the rows of each sparse table hold: from optimizer, strategy, description and model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from downpour.accessor import Accessor, CtrAccessor, EmbeddingAccessor
from downpour.errors import DownpourError, PlanError
from downpour.nn import DEFAULT_INIT
from downpour.plan.fleet_desc import sparse_of_strategy
from downpour.rules import G2SumAdagrad

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.features import Batch
    from downpour.optimizer import DownpourSGD
    from downpour.plan.fleet_desc import FleetDesc, SparseTableDesc
    from downpour.plan.specs import FeatureSpec, SparseTableSpec
    from downpour.rules import Rule
    from downpour.strategy import Strategy


@dataclass(frozen=True, slots=True)
class _Said:
    """What is said of a table, and where: `dim` of embedx or of the whole row, None if not.

    `use_cvm`: what a plan's own description says of it.
    """

    where: str
    is_ctr: bool
    dim: int | None
    settings: Mapping[str, Any]
    use_cvm: bool | None = None


def planned_table(
    spec: SparseTableSpec,
    optimizer: DownpourSGD,
    strategy: Strategy | None,
    desc: FleetDesc | None,
    example: Batch,
) -> SparseTableSpec:
    """Give a numbered table its accessor, and its features their slots. Raises PlanError."""
    found = _desc_of(spec, optimizer, strategy, desc)
    said = _by_optimizer(spec, optimizer, strategy) if found is None else _by_desc(found)
    _check_cvm(spec, said, strategy)
    click_name = None if strategy is None else strategy.click_name
    try:
        accessor = _accessor(spec, said, optimizer, click_name, example)
    except DownpourError as error:
        raise type(error)(f"table {spec.name!r} ({said.where}): {error}") from error
    spec = replace(spec, accessor=accessor, features=_with_slots(spec, accessor))
    if found is None:
        return spec
    if found.seed not in (None, spec.seed):
        raise PlanError(
            f"{found.at('sparse.seed')} is {found.seed}, and the model's is {spec.seed}; give "
            f"minimize(seed={found.seed}), or correct it"
        )
    found.require_same(
        {
            "sparse.name": (found.name, spec.name),
            "sparse.feature": (found.features, spec.features),
            "sparse.padding_key": (found.padding_key, spec.padding_key),
            "sparse.use_cvm": (found.use_cvm, spec.use_cvm),
            "sparse.dtype": (found.dtype, accessor.dtype),
        }
    )
    return replace(spec, files=found.files)


def _desc_of(
    spec: SparseTableSpec,
    optimizer: DownpourSGD,
    strategy: Strategy | None,
    desc: FleetDesc | None,
) -> SparseTableDesc | None:
    """The table's description in the file or the strategy. PlanError where it is said twice."""
    given: dict[str, SparseTableDesc | None] = {}
    if spec.name in optimizer.named_tables():
        given["DownpourSGD.sparse"] = None
    if strategy is not None and spec.name in strategy.tables:
        given[f"strategy[{spec.name!r}]"] = sparse_of_strategy(
            spec.name, strategy.tables[spec.name]
        )
    if desc is not None and spec.id in desc.sparse:
        given[desc.sparse[spec.id].where] = desc.sparse[spec.id]
    if len(given) > 1:
        raise PlanError(
            f"table {spec.name!r} (id {spec.id}) is set by {' and by '.join(given)}; keep one"
        )
    return next(iter(given.values()), None)


def _by_optimizer(
    spec: SparseTableSpec, optimizer: DownpourSGD, strategy: Strategy | None
) -> _Said:
    """By `DownpourSGD.sparse`; a strategy's tables count shows unless a rule or no_cvm is given."""
    given = optimizer.sparse_of(spec.name)
    where = "DownpourSGD.sparse"
    if isinstance(given, CtrAccessor):
        settings = {it.name: getattr(given, it.name) for it in fields(given)}
        return _Said(where, True, settings.pop("embedx_dim"), settings)
    by_default = strategy is not None and not strategy.no_cvm and given is None
    settings = {} if given is None else {"rule": given}
    return _Said(where, spec.use_cvm or by_default, None, settings)


def _by_desc(desc: SparseTableDesc) -> _Said:
    return _Said(desc.where, desc.kind == "ctr", desc.embedx_dim, desc.settings, desc.use_cvm)


def _check_cvm(spec: SparseTableSpec, said: _Said, strategy: Strategy | None) -> None:
    """Model, strategy and accessor must agree on what the model sees of show and click."""
    if not said.is_ctr:
        if spec.use_cvm:
            raise PlanError(
                f"table {spec.name!r}: SparseEmbedding(use_cvm=True) shows what rows count, and "
                f"its rows count nothing ({said.where}); take DownpourSGD(sparse=CtrAccessor(...))"
            )
        return
    if strategy is None:
        return
    if strategy.no_cvm:
        raise PlanError(
            f"table {spec.name!r}: strategy no_cvm=True, and its rows count show and click "
            f"({said.where}); take DownpourSparseValueAccessor, or no_cvm=False"
        )
    if strategy.use_cvm != spec.use_cvm and not (said.use_cvm and spec.use_cvm):
        extra = 3 if strategy.use_cvm else 1
        dim = said.dim or _seen_dim(spec) - (3 if spec.use_cvm else 1)
        raise PlanError(
            f"table {spec.name!r}: strategy use_cvm={strategy.use_cvm}, and its SparseEmbedding "
            f"has use_cvm={spec.use_cvm}; write SparseEmbedding(..., dim={max(dim, 1) + extra}, "
            f"use_cvm={strategy.use_cvm}), or {{'use_cvm': {spec.use_cvm}}} in the strategy"
        )


def _accessor(
    spec: SparseTableSpec,
    said: _Said,
    optimizer: DownpourSGD,
    click_name: str | None,
    example: Batch,
) -> Accessor:
    dim = _checked_dim(spec, said)
    if not said.is_ctr:
        return _embedding(spec, dim, said, optimizer)
    own = said.settings.get("click")
    if None not in (own, click_name) and own != click_name:
        raise PlanError(f"CtrAccessor.click is {own!r}, and strategy click_name={click_name!r}")
    click = _click_label(own or click_name, example)
    return _ctr(spec, dim, said, optimizer, click)


def _checked_dim(spec: SparseTableSpec, said: _Said) -> int:
    """The width of embedx, or of the whole row: the model's less what stands before it."""
    extra = (3 if spec.use_cvm else 1) if said.is_ctr else 0
    seen = _seen_dim(spec)
    before = {0: "", 1: " less 1 (w)", 3: " less 3 (show, click, w)"}[extra]
    what = "embedx_dim" if said.is_ctr else "dim"
    if seen - extra < 1:
        raise PlanError(
            f"SparseEmbedding.dim must be at least {1 + extra}, embedx being dim{before}, got "
            f"{seen}"
        )
    if said.dim is not None and said.dim != seen - extra:
        raise PlanError(
            f"{what} is {said.dim}, and SparseEmbedding.dim {seen}{before} is {seen - extra}; "
            f"write {what} {seen - extra}, or SparseEmbedding(..., dim={said.dim + extra})"
        )
    return seen - extra


def _seen_dim(spec: SparseTableSpec) -> int:
    assert isinstance(spec.accessor, EmbeddingAccessor)
    return spec.accessor.dim


def _embedding(
    spec: SparseTableSpec, dim: int, said: _Said, optimizer: DownpourSGD
) -> EmbeddingAccessor:
    own = spec.accessor
    assert isinstance(own, EmbeddingAccessor)
    settings = {"rule": _default_rule(optimizer), **said.settings}
    _refuse_two_inits(spec, own, settings)
    return EmbeddingAccessor(
        **{"init": own.init, "bounds": own.bounds, **settings, "dim": dim, "dtype": own.dtype}
    )


def _ctr(
    spec: SparseTableSpec, dim: int, said: _Said, optimizer: DownpourSGD, click: str
) -> CtrAccessor:
    own = spec.accessor
    assert isinstance(own, EmbeddingAccessor)
    defaults = CtrAccessor()
    settings = {name: getattr(defaults, name) for name in ("init", "bounds")} | {**said.settings}
    _refuse_two_inits(spec, own, settings)
    if settings.get("rule") is None:
        settings["rule"] = _default_rule(optimizer)
    return CtrAccessor(**{**settings, "embedx_dim": dim, "click": click, "dtype": own.dtype})


def _default_rule(optimizer: DownpourSGD) -> Rule:
    return G2SumAdagrad(optimizer.learning_rate)


def _refuse_two_inits(
    spec: SparseTableSpec, own: EmbeddingAccessor, settings: Mapping[str, Any]
) -> None:
    """The first values and the bounds of a row are said by its accessor or by its module."""
    for name, default in (("init", DEFAULT_INIT), ("bounds", None)):
        by_module = getattr(own, name)
        if name in settings and by_module not in (default, settings[name]):
            raise PlanError(
                f"{name} is {settings[name]} by its accessor and {by_module} by "
                f"SparseEmbedding({name}=); say it in one place, for CTR rows with "
                f"CtrAccessor({name}=, embedx_{name}=)"
            )


def _click_label(name: str | None, example: Batch) -> str:
    """The label that counts as click: [batch], the only one unless named."""
    labels = example.labels
    if name is None and len(labels) == 1:
        name = next(iter(labels))
    if name is None or name not in labels:
        lacks = "no single label" if name is None else f"no label {name!r}"
        raise PlanError(
            f"its rows count clicks, and the batch has {lacks} (it has: "
            f"{', '.join(labels) or 'none'}); say which is the click with CtrAccessor(click=)"
        )
    if labels[name].ndim != 1:
        raise PlanError(f"the click label {name!r} must be [batch], got {list(labels[name].shape)}")
    return name


def _with_slots(spec: SparseTableSpec, accessor: Accessor) -> tuple[FeatureSpec, ...]:
    """Features with the numbers that rows keep of them: their places in the table's list."""
    if not (isinstance(accessor, CtrAccessor) and accessor.slots):
        return spec.features
    return tuple(replace(feature, slot=slot) for slot, feature in enumerate(spec.features))
