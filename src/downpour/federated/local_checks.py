"""What a client cannot train, and what no step of it may do: refused before anything is sent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from downpour.accessor import CtrAccessor
from downpour.errors import NonFiniteError, PlanError, SettingError
from downpour.plan.program import PullDense, PushSparse
from downpour.plan.specs import plan_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from downpour.federated.local_rows import LocalRows
    from downpour.plan.plan import Plan
    from downpour.plan.program import Program
    from downpour.step import Lookup, Step


def refuse_plan(plan: Plan) -> None:
    """Raise SettingError for tables that are no weights, and for what workers alone do in steps."""
    for spec in plan.sparse:
        if isinstance(spec.accessor, CtrAccessor):
            raise SettingError(
                f"table {spec.name!r} has the rows of a CtrAccessor: their show and click are "
                "counts, and clients send by how much weights have changed; give "
                "DownpourSGD(sparse=...) a rule, such as SGD(lr=1.0)"
            )
    for block in plan.dense:
        if block.is_data_norm:
            raise SettingError(
                f"table {block.name!r} has the statistics of DataNorms, which are sums, and "
                "clients send by how much weights have changed; use torch.nn.LayerNorm"
            )
    ops = [op for program in plan.programs.values() for op in program.ops]
    said = {
        "clip": plan.clip is not None,
        "window": any(isinstance(op, PullDense) and op.every > 1 for op in ops),
        "scale_sparse_gradient_with_batch_size": any(
            isinstance(op, PushSparse) and op.times_batch_size for op in ops
        ),
    }
    for setting, is_said in said.items():
        if is_said:
            raise SettingError(
                f"DownpourSGD.{setting} is of steps whose gradients go to servers, and a client "
                "steps by its own torch optimizer; plan without it"
            )


def refuse_model(model: torch.nn.Module) -> None:
    """Raise SettingError for running statistics, which are no parameters."""
    for name, module in model.named_modules():
        if (
            isinstance(module, torch.nn.modules.batchnorm._NormBase)
            and module.track_running_stats
            and module.running_mean is not None
        ):
            raise SettingError(
                f"module {plan_name(name)!r} is a {type(module).__name__} with running statistics, "
                "which are no parameters: they would stay with each client. Use LayerNorm or "
                "GroupNorm, or track_running_stats=False"
            )


def refuse_unknown(program: Program, lookup: Lookup) -> None:
    """Raise PlanError for keys that are not among those of the round."""
    unknown = lookup.located.rows[0] < 0
    if unknown.any():
        raise PlanError(
            f"program {program.name!r} reads {int(unknown.sum())} ids of feature "
            f"{', '.join(lookup.features_of(unknown))} (table {lookup.op.table!r}) that are in no "
            "batch that the round began with: a client trains rows of its own batches only. Let a "
            "loss that samples ids take them from its batch, as those of other samples"
        )


def check_loss(loss: str, value: float) -> None:
    """Raise NonFiniteError for NaN or infinity."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"loss {loss!r} is {value}; the client made no step with it, and sent nothing. A "
            "smaller learning rate of its optimizer may help"
        )


def refuse_unplanned(work: Step, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Raise PlanError for gradients that the program does not have in its plan."""
    program = work.program
    planned = {*program.parameters, *program.no_grad}
    for name, parameter in parameters.items():
        if parameter.grad is not None and name not in planned:
            raise PlanError(
                f"program {program.name!r} reaches parameter {name!r}, which it did not on the "
                "example batch that it was planned with; the client made no step with it"
            )
    pushed = {(op.table, op.features) for op in program.ops_of(PushSparse)}
    for lookup in work.all_lookups():
        if (lookup.op.table, lookup.op.features) in pushed or not lookup.is_reached:
            continue
        reached = _of_rows(lookup).ne(0).any(dim=1).cpu().numpy()
        if reached.any():
            raise PlanError(
                f"program {program.name!r} reaches feature "
                f"{', '.join(lookup.features_of(reached))} of table {lookup.op.table!r}, which it "
                "did not on the example batch that it was planned with; the client made no step "
                "with it. Plan with an example, as a larger batch, on which it does"
            )


def check_gradients(
    loss: str,
    parameters: Mapping[str, torch.nn.Parameter],
    rows: Iterable[tuple[LocalRows, list[Lookup]]],
) -> None:
    """Raise NonFiniteError, which names the parameter or feature, for NaN or infinity."""
    grads = {name: it.grad for name, it in parameters.items() if it.grad is not None}
    read = [(it, it.weight.grad, own) for it, own in rows if it.weight.grad is not None]
    every = [*grads.values(), *(grad for _, grad, _ in read)]
    # A sum is not finite where an element is not. One may be too large as well, so look then.
    if not every or bool(torch.isfinite(torch.stack([it.sum() for it in every])).all()):
        return
    for name, grad in grads.items():
        if not bool(torch.isfinite(grad).all()):
            raise _non_finite(loss, f"parameter {name!r}")
    for own, grad, lookups in read:
        bad = (~torch.isfinite(grad).all(dim=1)).cpu().numpy()
        for lookup in lookups:
            if names := lookup.features_of(bad[lookup.located.rows[0]]):
                raise _non_finite(loss, f"feature {', '.join(names)} (table {own.spec.name!r})")


def _non_finite(loss: str, where: str) -> NonFiniteError:
    return NonFiniteError(
        f"loss {loss!r}: the gradient of {where} holds NaN or infinity; the client made no step "
        "with it"
    )


def _of_rows(lookup: Lookup) -> torch.Tensor:
    assert lookup.rows is not None
    assert lookup.rows.grad is not None
    return lookup.rows.grad
