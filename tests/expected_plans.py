"""The whole plans of the example models, written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.plan.plan import Plan
from downpour.plan.program import Compute, Program, PullDense, PullSparse, PushDense, PushSparse
from downpour.plan.specs import DenseTableSpec, FeatureSpec, SparseTableSpec, TableFiles
from downpour.tables import Section

FEATURES = ("item", "genres", "year", "age", "gender", "occupation")
LOOKUP = ("lookup_table", "lookup_table_grad")
CONVERTER = "(scripts/xbox_compressor_mf.py | bin/xbox_pb_converter)"
DECONVERTER = "(bin/xbox_pb_deconverter | scripts/xbox_decompressor_mf.awk)"


def features(*, slots: bool) -> tuple[FeatureSpec, ...]:
    return tuple(
        FeatureSpec(name=name, space=name, slot=place if slots else None)
        for place, name in enumerate(FEATURES)
    )


def sections(**shapes: tuple[int, ...]) -> tuple[Section, ...]:
    """Sections by name, `__` for a dot."""
    made, offset = [], 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        made.append(Section(name.replace("__", "."), offset, size, shape))
        offset += size
    return tuple(made)


def names(table: DenseTableSpec) -> tuple[str, ...]:
    return tuple(section.name for section in table.sections)


def dense(number: int, name: str, rule: Any, **shapes: tuple[int, ...]) -> DenseTableSpec:
    return DenseTableSpec(id=number, name=name, rule=rule, sections=sections(**shapes))


def embedding(accessor: Any, **settings: Any) -> SparseTableSpec:
    slots = isinstance(accessor, dp.CtrAccessor)
    own = features(slots=slots)
    return SparseTableSpec(id=0, name="embedding", accessor=accessor, features=own, **settings)


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """The sections of a torch.nn.Linear."""
    return {f"{name}__bias": (rows,), f"{name}__weight": (rows, columns)}


def push_rows(counts: tuple[str, ...] = FEATURES) -> PushSparse:
    """Gradients times the batch size, and what is counted."""
    return PushSparse("embedding", FEATURES, times_batch_size=True, counts=counts)


def one_loss() -> Plan:
    mlp = dense(
        1, "dense.like", dp.Adam(3e-4),
        **linear("mlp__0", 64, 98), **linear("mlp__2", 32, 64), **linear("mlp__4", 1, 32),
    )  # fmt: skip
    ops = (
        PullDense("dense.like"),
        PullSparse("embedding", FEATURES),
        Compute("like"),
        PushSparse("embedding", FEATURES),
        PushDense("dense.like", names(mlp)),
    )
    return Plan(
        sparse=(
            embedding(EmbeddingAccessor(dim=17, rule=dp.Adagrad(0.01), init=dp.Uniform(0.01))),
        ),
        dense=(mlp,),
        programs={"like": Program("like", ops, LOOKUP)},
    )


def several_losses() -> Plan:
    first, second = (
        dense(
            number, f"dense.{task}", dp.Adam(3e-4),
            **linear(f"{task}__0", 32, 50), **linear(f"{task}__2", 1, 32),
        )
        for number, task in ((1, "liked"), (2, "five"))
    )  # fmt: skip
    liked = (
        PullDense("dense.liked"),
        PullSparse("embedding", FEATURES),
        Compute("liked"),
        PushSparse("embedding", FEATURES),
        PushDense("dense.liked", names(first)),
    )
    five = (
        PullDense("dense.liked"),
        PullDense("dense.five"),
        PullSparse("embedding", FEATURES),
        Compute("five"),
        PushSparse("embedding", FEATURES),
        PushDense("dense.liked", names(first)),
        PushDense("dense.five", names(second)),
    )
    return Plan(
        sparse=(embedding(EmbeddingAccessor(dim=8, rule=dp.Adagrad(0.01), init=dp.Uniform(0.05))),),
        dense=(first, second),
        programs={
            "liked": Program("liked", liked, LOOKUP),
            "five": Program("five", five, LOOKUP),
        },
    )


def counted_rows() -> dp.CtrAccessor:
    """The rows of mmoe, each setting written out."""
    return dp.CtrAccessor(
        embedx_dim=8,
        rule=dp.G2SumAdagrad(0.05, initial_g2sum=3.0),
        init=dp.Constant(0.0),
        bounds=(-10.0, 10.0),
        embedx_init=dp.Uniform(0.01),
        embedx_threshold=5.0,
        nonclk_coeff=0.1,
        click_coeff=1.0,
        show_scale=True,
        slots=True,
        click="liked",
    )


def mixture() -> tuple[DenseTableSpec, DenseTableSpec, DenseTableSpec]:
    """The dense tables of mmoe: the experts are the first loss's."""
    experts: dict[str, tuple[int, ...]] = {}
    for number in range(3):
        experts |= linear(f"experts__{number}", 32, 70)
    liked, five = (
        dense(
            number, f"dense.{task}", dp.Adam(1e-3),
            **own, **linear(f"gates__{task}", 3, 70), **linear(f"heads__{task}", 1, 32),
        )
        for number, task, own in ((1, "liked", experts), (3, "five", {}))
    )  # fmt: skip
    statistics = {f"norm__{name}": (4,) for name in ("batch_size", "batch_square_sum", "batch_sum")}
    return liked, dense(2, "data_norm.liked", dp.Summary(0.9999), **statistics), five


def with_data_norm() -> Plan:
    first, norm, second = mixture()
    shared = tuple(name for name in names(first) if name.startswith("experts"))
    liked = (
        PullDense("dense.liked"),
        PullDense("data_norm.liked"),
        PullSparse("embedding", FEATURES),
        Compute("liked"),
        push_rows(),
        PushDense("dense.liked", names(first)),
        PushDense("data_norm.liked", names(norm)),
    )
    five = (
        PullDense("dense.liked"),
        PullDense("data_norm.liked"),
        PullDense("dense.five"),
        PullSparse("embedding", FEATURES),
        Compute("five"),
        push_rows(counts=()),
        PushDense("dense.liked", shared),
        PushDense("data_norm.liked", names(norm)),
        PushDense("dense.five", names(second)),
    )
    return Plan(
        sparse=(embedding(counted_rows(), use_cvm=True),),
        dense=(first, norm, second),
        programs={
            "liked": Program("liked", liked, LOOKUP),
            "five": Program("five", five, LOOKUP),
        },
    )


def fleet(mlp: DenseTableSpec, window: int, **settings: Any) -> Plan:
    """One loss over the rows that a strategy or a file describes."""
    rows = dp.CtrAccessor(
        embedx_dim=8,
        rule=dp.G2SumAdagrad(0.05, initial_g2sum=3.0),
        embedx_init=dp.Uniform(0.01),
        embedx_threshold=5.0,
        click="liked",
    )
    ops = (
        PullDense("dense.like", window),
        PullSparse("embedding", FEATURES),
        Compute("like"),
        push_rows(),
        PushDense("dense.like", names(mlp), window),
    )
    return Plan(
        sparse=(embedding(rows, **settings),),
        dense=(mlp,),
        programs={"like": Program("like", ops, LOOKUP)},
    )


def fleet_mlp(inputs: int, files: TableFiles) -> DenseTableSpec:
    rule = dp.AdamD2Sum(0.001, ada_decay=0.9999, mom_decay=0.99, eps=1e-8)
    own = sections(**linear("mlp__0", 64, inputs), **linear("mlp__2", 1, 64))
    return DenseTableSpec(id=1, name="dense.like", rule=rule, sections=own, files=files)


def with_strategy() -> Plan:
    converters = ((1, CONVERTER, DECONVERTER), (2, CONVERTER, DECONVERTER))
    files = TableFiles(converters=converters)
    return fleet(fleet_mlp(68, TableFiles()), window=1, use_cvm=True, files=files)


def with_file() -> Plan:
    files = TableFiles(shard_num=100, compress=False)
    return fleet(fleet_mlp(56, TableFiles(compress=False)), window=2, files=files)
