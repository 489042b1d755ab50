"""What a strategy and its description file say of a plan that is made: taken in, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from downpour.accessor import CtrAccessor
from downpour.errors import PlanError
from downpour.plan.described_dense import described_dense
from downpour.plan.specs import FsClient
from downpour.plan.trainers import described_programs, refuse_other_gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from downpour.optimizer import DownpourSGD
    from downpour.plan.fleet_desc import FleetDesc
    from downpour.plan.numbers import DenseNumber
    from downpour.plan.plan import Plan
    from downpour.plan.told import Told
    from downpour.strategy import Strategy


def merged(
    plan: Plan,
    numbers: Sequence[DenseNumber],
    said: Told,
    optimizer: DownpourSGD,
    strategy: Strategy | None,
    desc: FleetDesc | None,
) -> Plan:
    """Take in the description and check what the strategy says of the whole.

    `numbers` are those of the dense tables, `said` is what optimizer and strategy say together.
    Raises PlanError.
    """
    if strategy is None:
        return plan
    if desc is not None:
        plan = _with_description(plan, numbers, said, desc)
    plan = replace(plan, fs_client=_fs_client(plan.fs_client, strategy))
    _refuse_spare(plan, optimizer, strategy, desc)
    _check_names(plan, strategy)
    _check_slots(plan, strategy)
    _refuse_unused(plan, strategy)
    return plan


def _with_description(
    plan: Plan, numbers: Sequence[DenseNumber], said: Told, desc: FleetDesc
) -> Plan:
    refuse_other_gradients(plan, desc)
    _refuse_other_tables(plan, numbers, desc)
    dense = described_dense(plan.dense, numbers, desc)
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
        launch=desc.launch,
        fs_client=desc.fs_client or FsClient(),
    )
    return replace(plan, programs=described_programs(plan, desc, numbers, said))


def _refuse_other_tables(plan: Plan, numbers: Sequence[DenseNumber], desc: FleetDesc) -> None:
    """A table of the file must be one that the losses have, and of its kind."""
    kinds = {table.id: "sparse" for table in plan.sparse} | {it.id: "dense" for it in numbers}
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
