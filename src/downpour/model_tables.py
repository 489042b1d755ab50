"""Which tables a model was trained with: it goes on with all of them, or it is refused.

A model's parameters are in the model, its rows are in tables beside it. So a trained model that is
given to a new worker brings its parameters along, and must bring its rows too.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from downpour.client import Client
from downpour.errors import PlanError
from downpour.nn import ELSEWHERE, sparse_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from downpour.nn import RowSource, SparseEmbedding
    from downpour.plan.plan import Plan
    from downpour.plan.specs import DenseTableSpec, SparseTableSpec

NUMBERING = ("id", "files", "features")  # fields in which two plans of one table may differ
WAYS_OUT = (
    "To go on with both, train with the client that has the rows: dp.Worker(plan, model, client), "
    "with saved = dp.load(...) saved.model and saved.client. To begin anew, build a new model; "
    "startup=model.state_dict() gives it the trained parameters and new rows"
)


def note_trained(model: torch.nn.Module, client: Client) -> None:
    """Note that a model was trained with the rows of this client."""
    for module in sparse_embeddings(model):
        module.trained_with = client


def refuse_new_rows(plan: Plan, model: torch.nn.Module, client: Client) -> None:
    """Raise PlanError for a trained model whose rows these tables do not have."""
    planned = {spec.name for spec in plan.sparse}
    for module in sparse_embeddings(model):
        table, known = str(module.table), module.trained_with
        if known is None or known is client or table not in planned or client.holds(table):
            continue
        if isinstance(known, Client) and known.is_embedded and not known.holds(table):
            continue  # its rows were cleared
        raise PlanError(
            f"the model was trained with rows of table {table!r}, and the table it is given now is "
            f"empty: its parameters would go on from where they are and its rows begin anew. "
            f"{WAYS_OUT}"
        )


def refuse_trained(model: torch.nn.Module, what: str) -> None:
    """Raise PlanError for a trained model where `what` always begins with empty tables."""
    for module in sparse_embeddings(model):
        if module.trained_with is not None:
            raise PlanError(
                f"the model was trained with rows of table {module.table!r}, and {what} begins "
                "with empty tables: its parameters would go on from where they are and its rows "
                "begin anew. Build a new model; startup=model.state_dict() gives it the trained "
                "parameters and new rows. Or train in one process, which goes on with both"
            )


def tables_to_go_on_with(plan: Plan, model: torch.nn.Module) -> Client | None:
    """The client of this process whose rows a model was trained with, None for a new model.

    Raises PlanError where its tables are not those of the plan, or are not in this process, and
    where the plan's `startup` would change the parameters alone.
    """
    known = {id(it): it for m in sparse_embeddings(model) if (it := m.trained_with) is not None}
    if not known:
        return None
    client, *others = known.values()
    if others or client == ELSEWHERE or not isinstance(client, Client) or not client.is_embedded:
        raise PlanError(
            "the model was trained with rows that are not in this process (it is a copy, or was "
            "unpickled, or trained on servers): its parameters would go on from where they are and "
            f"its rows begin anew. {WAYS_OUT}"
        )
    require_tables(plan, client, exactly=True)
    if plan.startup is not None:
        raise PlanError(
            "the model was trained already and goes on with its tables, which have their values: "
            "startup, which gives first values, would be passed over. Leave it out, or build a new "
            "model"
        )
    return client


def require_tables(plan: Plan, client: Client, *, exactly: bool = False) -> None:
    """Raise PlanError unless a client has the tables of a plan, by the same rules.

    exactly: and no others.
    """
    if plan is client.plan:
        return
    for ours, theirs in ((plan.sparse, client.plan.sparse), (plan.dense, client.plan.dense)):
        known = {spec.name: spec for spec in theirs}
        for spec in ours:
            if spec.name not in known:
                raise PlanError(
                    f"the plan has table {spec.name!r}, and the tables of this client are "
                    f"{', '.join(known) or 'none'}; plan with the losses and the model that they "
                    "were made for, or make new tables: dp.embedded(plan)"
                )
            if difference := _difference(spec, known[spec.name]):
                raise PlanError(
                    f"table {spec.name!r} of this client has {difference}; plan with the settings "
                    "that it was made with, or make new tables for a new model: dp.embedded(plan)"
                )
        missing = [name for name in known if name not in {spec.name for spec in ours}]
        if exactly and missing:
            raise PlanError(
                f"the model was trained with table {missing[0]!r}, which the plan does not have; "
                "plan with all the losses that it was trained with, or build a new model"
            )


def _difference(
    plan: SparseTableSpec | DenseTableSpec, client: SparseTableSpec | DenseTableSpec
) -> str:
    """The first setting in which a plan's table is another than a client's, "" where there is none.

    A plan may read a table by fewer features.
    """
    for field in fields(plan):
        ours, theirs = getattr(plan, field.name), getattr(client, field.name)
        if field.name not in NUMBERING and ours != theirs:
            return f"{field.name} {theirs!r}, and the plan {ours!r}"
    own = {it.name: it for it in getattr(client, "features", ())}
    for feature in getattr(plan, "features", ()):
        if own.get(feature.name) != feature:
            return f"{own.get(feature.name, 'no such feature')!r}, and the plan {feature!r}"
    return ""


def require_connected(
    modules: Iterable[SparseEmbedding], source: RowSource, client: Client
) -> None:
    """Let modules read from this source again, if another one of the same tables came between.

    Raises PlanError where they read other tables now: the step would train parameters alone.
    """
    for module in modules:
        if module.source is source or module.source is None:  # None: it says so when it is read
            continue
        if getattr(module.source, "client", None) is not client:
            raise PlanError(
                f"the model's table {module.table!r} is read by another worker now, from other "
                "tables; train the model by the worker that was made last, or give each worker a "
                "model of its own"
            )
        module.connect(source)
