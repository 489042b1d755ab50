"""What a strategy and its description file say of a plan that is made: taken in, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from downpour.accessor import CtrAccessor
from downpour.errors import PlanError
from downpour.plan.specs import FsClient
from downpour.plan.trainers import described_programs

if TYPE_CHECKING:
    from downpour.optimizer import DownpourSGD
    from downpour.plan.fleet_desc import DenseTableDesc, FleetDesc
    from downpour.plan.plan import Plan
    from downpour.plan.specs import DenseTableSpec
    from downpour.strategy import Strategy


def merged(
    plan: Plan, optimizer: DownpourSGD, strategy: Strategy | None, desc: FleetDesc | None
) -> Plan:
    """Take in the description and check what the strategy says of the whole. Raises PlanError."""
    if strategy is None:
        return plan
    if desc is not None:
        plan = _with_description(plan, optimizer, desc)
    plan = replace(plan, fs_client=_fs_client(plan.fs_client, strategy))
    _refuse_spare(plan, optimizer, strategy, desc)
    _check_names(plan, strategy)
    _check_slots(plan, strategy)
    _refuse_unused(plan, strategy)
    return plan


def _with_description(plan: Plan, optimizer: DownpourSGD, desc: FleetDesc) -> Plan:
    _refuse_other_tables(plan, desc)
    dense = tuple(_dense(table, desc.dense.get(table.id)) for table in plan.dense)
    if None not in (desc.clip, plan.clip) and desc.clip != plan.clip:
        raise PlanError(
            f"{desc.source.subject('clip')} is {desc.clip!r}, and DownpourSGD.clip is "
            f"{plan.clip!r}; keep one"
        )
    plan = replace(
        plan,
        dense=dense,
        clip=desc.clip or plan.clip,
        service=desc.service,
        fs_client=desc.fs_client or FsClient(),
    )
    return replace(plan, programs=described_programs(plan, desc, optimizer.window))


def _refuse_other_tables(plan: Plan, desc: FleetDesc) -> None:
    """A table of the file must be one that the losses have, and of its kind."""
    kinds = {table.id: "sparse" for table in plan.sparse} | {t.id: "dense" for t in plan.dense}
    for kind, tables in (("sparse", desc.sparse), ("dense", desc.dense)):
        for number, table in tables.items():
            if kinds.get(number) == kind:
                continue
            known = ", ".join(f"{it}: {of}" for it, of in kinds.items())
            raise PlanError(
                f"{table.at('table_id')} is {number}, of a {kind} table, and the losses have none "
                f"of that number and kind (theirs are {known})"
            )


def _refuse_spare(
    plan: Plan, optimizer: DownpourSGD, strategy: Strategy, desc: FleetDesc | None
) -> None:
    """A setting of all tables of a kind must be left one that is not set by its own name or id."""
    of_sparse = None if optimizer.named_tables() else optimizer.sparse
    by_id = {} if desc is None else {**desc.sparse, **desc.dense}
    norms = [table for table in plan.dense if table.is_data_norm]
    others = [table for table in plan.dense if not table.is_data_norm]
    for setting, given, tables in (
        ("DownpourSGD.sparse", of_sparse, plan.sparse),
        ("DownpourSGD.dense", optimizer.dense, others),
        ("DownpourSGD.data_norm", optimizer.data_norm, norms),
        ("strategy dense_table", strategy.dense_table, others),
        ("strategy datanorm_table", strategy.datanorm_table, norms),
    ):
        own = [it.id in by_id or it.name in strategy.tables for it in tables]
        if given is not None and own and all(own):
            where = [by_id[it.id].where for it in tables if it.id in by_id] or ["the strategy"]
            raise PlanError(
                f"{setting} is {given!r}, and all tables that it is of are set by {where[0]}; "
                "keep one"
            )


def _dense(table: DenseTableSpec, desc: DenseTableDesc | None) -> DenseTableSpec:
    if desc is None:
        return table
    if desc.fea_dim not in (None, table.size):
        raise PlanError(
            f"{desc.at('accessor.fea_dim')} is {desc.fea_dim}, and the parameters of table "
            f"{table.id} have {table.size} elements; write fea_dim: {table.size}, or leave it out"
        )
    shapes = {section.name: section.shape for section in table.sections}
    desc.require_same(
        {
            "dense.name": (desc.name, table.name),
            "dense.section": (desc.shapes, shapes),
            "dense.dtype": (desc.dtype, table.dtype),
        }
    )
    made = replace(table, rule=desc.rule, files=desc.files)
    if made.is_data_norm != table.is_data_norm:
        holds = "data-norm statistics" if table.is_data_norm else "parameters"
        raise PlanError(
            f"{desc.at('accessor.dense_sgd_param.name')} is of {type(desc.rule).__name__}, and "
            f"table {table.id} holds {holds}; 'summary' is the rule of data-norm tables and of no "
            "other"
        )
    return made


def _fs_client(own: FsClient, strategy: Strategy) -> FsClient:
    given: dict[str, Any] = {
        "uri": strategy.fs_uri,
        "user": strategy.fs_user,
        "passwd": strategy.fs_passwd,
        "hadoop_bin": strategy.fs_hadoop_bin,
    }
    said = {name: value for name, value in given.items() if value is not None}
    for name, value in said.items():
        if getattr(own, name) not in ("", value):
            raise PlanError(
                f"strategy fs_{name} and fs_client_param of the description differ; keep one"
            )
    return replace(own, **said)


def _check_names(plan: Plan, strategy: Strategy) -> None:
    """Names in a strategy must be those of the plan."""
    if strategy.loss_names and {*strategy.loss_names} != {*plan.programs}:
        raise PlanError(
            f"strategy loss_names is {', '.join(strategy.loss_names)}, and the losses are "
            f"{', '.join(plan.programs)}"
        )
    known = {*plan.programs}
    known |= {section.name for table in plan.dense for section in table.sections}
    for table in plan.sparse:
        known |= {table.name, *(feature.name for feature in table.features)}
    for name in strategy.check_nan_var_names:
        if name not in known:
            raise PlanError(
                f"strategy check_nan_var_names has {name!r}, which is no loss, parameter, table or "
                "feature of the plan; leave it out: everything is checked"
            )


def _check_slots(plan: Plan, strategy: Strategy) -> None:
    slots = any(
        isinstance(table.accessor, CtrAccessor) and table.accessor.slots for table in plan.sparse
    )
    if strategy.dump_slot not in (None, slots):
        raise PlanError(
            f"strategy dump_slot={strategy.dump_slot}, and rows keep {'their' if slots else 'no'} "
            "slot; CtrAccessor(slots=) and the accessor class say whether they do"
        )


def _refuse_unused(plan: Plan, strategy: Strategy) -> None:
    """What is said of rows or tables that the plan does not have would be passed over."""
    counts = any(isinstance(table.accessor, CtrAccessor) for table in plan.sparse)
    norms = any(table.is_data_norm for table in plan.dense)
    dense = any(not table.is_data_norm for table in plan.dense)
    for setting, is_said, is_used, lacking in (
        ("use_cvm=True", strategy.use_cvm, counts, "rows that count show and click"),
        ("click_name", strategy.click_name is not None, counts, "rows that count show and click"),
        ("scale_datanorm", strategy.scale_datanorm >= 0, norms, "DataNorm that a loss trains"),
        ("datanorm_table", strategy.datanorm_table is not None, norms, "DataNorm of a loss"),
        ("dense_table", strategy.dense_table is not None, dense, "dense parameter of a loss"),
    ):
        if is_said and not is_used:
            raise PlanError(f"strategy has {setting}, and the plan has no {lacking}; take it out")
