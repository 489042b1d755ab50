"""The dict that the reference's `minimize` hands its trainers, derived from a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from downpour.accessor import CtrAccessor
from downpour.plan.fleet_desc import encode
from downpour.plan.program import PullDense, PullSparse, PushDense, PushSparse, WeighSamples

if TYPE_CHECKING:
    from downpour.plan.plan import Plan
    from downpour.plan.program import Program
    from downpour.plan.specs import FsClient

T = TypeVar("T")


def opt_info(plan: Plan) -> dict[str, Any]:
    """See Plan.opt_info."""
    ctr = [it.accessor for it in plan.sparse if isinstance(it.accessor, CtrAccessor)]
    return {
        "trainer": "DistMultiTrainer",
        "device_worker": "DownpourSGD",
        "optimizer": "DownpourSGD",
        "fleet_desc": encode(plan),
        "worker_skipped_ops": list(plan.skipped_ops),
        "program_configs": {name: _ids(plan, it) for name, it in plan.programs.items()},
        "use_cvm": any(table.use_cvm for table in plan.sparse),
        "no_cvm": bool(plan.sparse) and not ctr,
        "scale_sparse_gradient_with_batch_size": any(
            op.times_batch_size for op in _ops(plan, PushSparse)
        ),
        "scale_datanorm": _scale_datanorm(plan),
        "dump_slot": any(accessor.slots for accessor in ctr),
        "adjust_ins_weight": _adjust_ins_weight(plan),
        "loss_names": list(plan.programs),
        **_files(plan.fs_client),
    }


def _ops(plan: Plan, kind: type[T]) -> list[T]:
    return [op for program in plan.programs.values() for op in program.ops_of(kind)]


def _ids(plan: Plan, program: Program) -> dict[str, list[int]]:
    """The tables that a program pulls and pushes."""
    kinds = {
        "pull_sparse": PullSparse,
        "push_sparse": PushSparse,
        "pull_dense": PullDense,
        "push_dense": PushDense,
    }
    ids = plan.ids
    return {verb: [ids[name] for name in program.tables(kind)] for verb, kind in kinds.items()}


def _scale_datanorm(plan: Plan) -> float:
    """The reference has one for all tables, and -1 for none."""
    scales = (op.scale_datanorm for op in _ops(plan, PushDense))
    return next((scale for scale in scales if scale is not None), -1)


def _adjust_ins_weight(plan: Plan) -> dict[str, Any]:
    """The reference has one for all programs, and an empty dict for none."""
    for op in _ops(plan, WeighSamples):
        return {
            "need_adjust": True,
            "nid_slot": op.feature,
            "nid_adjw_threshold": op.threshold,
            "nid_adjw_ratio": op.ratio,
            "ins_weight_slot": "weights",
        }
    return {}


def _files(client: FsClient) -> dict[str, str]:
    names = ("uri", "user", "passwd", "hadoop_bin")
    return {f"fs_{name}": getattr(client, name) for name in names if getattr(client, name)}
