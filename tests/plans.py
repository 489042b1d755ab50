"""Plans for tests: made as values, of every rule and setting, without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

import downpour as dp
from downpour.accessor import CtrAccessor, EmbeddingAccessor, Lifecycle
from downpour.plan.plan import Plan
from downpour.plan.program import (
    Compute,
    Program,
    PullDense,
    PullSparse,
    PushDense,
    PushSparse,
    WeighSamples,
)
from downpour.plan.specs import (
    DenseTableSpec,
    FeatureSpec,
    FsClient,
    Service,
    SparseTableSpec,
    TableFiles,
)
from downpour.rules import Summary
from downpour.tables.dense import sections_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downpour.plan.program import Op

SKIPPED = ("lookup_table", "lookup_table_grad")


def ctr_table(**settings: Any) -> SparseTableSpec:
    accessor = {"embedx_dim": 8, "rule": dp.G2SumAdagrad(0.05), "click": "label"}
    return SparseTableSpec(
        id=0,
        name="embedding",
        accessor=CtrAccessor(**{**accessor, **settings}),
        features=(
            FeatureSpec(name="user", space="user", slot=0),
            FeatureSpec(name="item", space="goods", slot=1),
        ),
        padding_key=0,
        use_cvm=True,
    )


def plain_table(**settings: Any) -> SparseTableSpec:
    accessor = {"dim": 4, "rule": dp.SGD(0.1)}
    return SparseTableSpec(
        id=0,
        name="embedding",
        accessor=EmbeddingAccessor(**{**accessor, **settings}),
        features=(
            FeatureSpec(name="user", space="user"),
            FeatureSpec(name="item", space=None),
        ),
    )


def dense_table(**settings: Any) -> DenseTableSpec:
    sections = sections_of({"out.bias": (1,), "out.weight": (1, 8)})
    given = {"id": 1, "name": "dense.click", "rule": dp.AdamD2Sum(), "sections": sections}
    return DenseTableSpec(**{**given, **settings})


def small_plan(table: SparseTableSpec | None = None, **settings: Any) -> Plan:
    """A plan of one loss that reads two features of a table and trains one."""
    table = ctr_table() if table is None else table
    counts = ("item",) if isinstance(table.accessor, CtrAccessor) else ()
    dense = dense_table()
    ops: tuple[Op, ...] = (
        PullDense(dense.name, 2),
        PullSparse(table.name, ("item",)),
        PullSparse(table.name, ("user",)),
        Compute("click"),
        PushSparse(table.name, ("item",), times_batch_size=True, counts=counts),
        PushDense(dense.name, ("out.bias", "out.weight"), 2),
    )
    program = Program("click", ops, SKIPPED)
    given = {"sparse": (table,), "dense": (dense,), "programs": {"click": program}}
    return Plan(**{**given, **settings})


# Any plan: what hypothesis draws.

NAMES = st.one_of(st.sampled_from("abcdef"), st.text(min_size=1, max_size=6))
COUNTS = st.integers(1, 10**6)
RATES = st.one_of(st.sampled_from([0.05, 0.001, 5e-6, 1.0]), st.floats(1e-12, 1e3))
PLAIN = st.one_of(st.sampled_from([0.0, 0.1, 0.98, 10.0]), st.floats(0.0, 1e300))
SHARES = st.one_of(st.sampled_from([0.0, 0.1, 0.9]), st.floats(0.0, 1.0, exclude_max=True))
BOUNDS = st.one_of(
    st.none(),
    st.just((-10.0, 10.0)),
    st.tuples(st.floats(-1e300, -1e-300), st.floats(1e-300, 1e300)),
)


def torch_schedules() -> st.SearchStrategy[dp.TorchSchedule]:
    of = torch.optim.lr_scheduler
    return st.one_of(
        st.builds(dp.TorchSchedule, st.just(of.OneCycleLR), max_lr=RATES, total_steps=COUNTS),
        st.builds(
            dp.TorchSchedule,
            st.just(of.MultiStepLR),
            milestones=st.lists(COUNTS, max_size=3),
            last_epoch=st.just(-1),
        ),
        st.just(
            dp.TorchSchedule(of.OneCycleLR, max_lr=1.0, three_phase=True, final=(1, None, "a"))
        ),
    )


def schedules() -> st.SearchStrategy[Any]:
    ends = st.one_of(
        st.builds(dp.Linear, steps=COUNTS, end=PLAIN),
        st.builds(dp.Cosine, steps=COUNTS, end=PLAIN),
        st.builds(dp.StepDecay, every=COUNTS, factor=SHARES),
        st.builds(dp.Exponential, factor=st.floats(0.5, 1.0)),
        torch_schedules(),
    )
    return st.recursive(
        ends,
        lambda after: st.builds(dp.Warmup, steps=COUNTS, start=SHARES, after=after),
        max_leaves=2,
    )


def rule(of: Callable[..., Any], decays: bool, **settings: Any) -> st.SearchStrategy[Any]:
    given = {"lr": RATES, "schedule": st.none() | schedules(), **settings}
    if decays:
        given |= {"weight_decay": SHARES.map(lambda it: it / 1e4), "batch_l2": PLAIN}
    return st.builds(of, **given)


def dense_rules() -> st.SearchStrategy[Any]:
    betas = st.tuples(SHARES, SHARES)
    return st.one_of(
        rule(dp.SGD, True),
        rule(dp.Momentum, True, momentum=SHARES),
        rule(dp.Adagrad, True, eps=PLAIN, lr_decay=PLAIN, initial_accumulator_value=PLAIN),
        rule(dp.Adam, True, betas=betas, eps=PLAIN),
        rule(dp.UncorrectedAdam, True, betas=betas, tau=RATES),
        rule(dp.Ftrl, False, l1=PLAIN, l2=PLAIN, beta=PLAIN),
        rule(dp.AdamD2Sum, True, ada_decay=st.floats(0.1, 0.9999), mom_decay=SHARES, eps=RATES),
        st.builds(Summary, st.floats(0.01, 1.0)),
    )


def sparse_rules(decays: bool) -> st.SearchStrategy[Any]:
    betas = st.tuples(SHARES, SHARES)
    return st.one_of(
        rule(dp.SGD, decays),
        rule(dp.Momentum, decays, momentum=SHARES),
        rule(dp.Adagrad, decays, eps=PLAIN),
        rule(dp.RowwiseAdagrad, decays, initial_accumulator_value=PLAIN),
        rule(dp.G2SumAdagrad, decays, initial_g2sum=RATES, per_element=st.booleans()),
        rule(dp.Adam, decays, betas=betas, eps=PLAIN),
        rule(dp.RowAdam, decays, betas=betas, eps=PLAIN),
        rule(dp.SharedAdam, decays, betas=betas, eps=PLAIN),
        rule(dp.UncorrectedAdam, decays, betas=betas, tau=RATES),
        rule(dp.Ftrl, False, l1=PLAIN, l2=PLAIN, beta=PLAIN),
    )


def inits() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(dp.Uniform, PLAIN),
        st.builds(dp.Uniform, low=st.floats(-1e9, 0.0), high=st.floats(0.0, 1e9)),
        st.builds(dp.Normal, PLAIN, st.floats(-1e9, 1e9)),
        st.builds(dp.Constant, st.floats(-1e9, 1e9)),
    )


@st.composite
def ctr_accessors(draw: Any) -> CtrAccessor:
    of_w = draw(sparse_rules(False))
    bounds = draw(BOUNDS)
    share = draw(st.booleans())
    numbers = dict.fromkeys(Lifecycle.__slots__, PLAIN) | {
        "show_click_decay_rate": SHARES, "ssd_unseenday_threshold": COUNTS,
    }  # fmt: skip
    return CtrAccessor(
        embedx_dim=draw(COUNTS),
        rule=of_w,
        init=draw(st.just(dp.Constant()) | inits()),
        bounds=bounds,
        embedx_rule=None if share else draw(sparse_rules(False)),
        embedx_init=draw(inits()),
        embedx_bounds=None if share else draw(BOUNDS),
        embedx_threshold=draw(PLAIN),
        nonclk_coeff=draw(PLAIN),
        click_coeff=draw(PLAIN),
        show_scale=draw(st.booleans()),
        slots=draw(st.booleans()),
        click=draw(st.none() | NAMES),
        counted_by=draw(st.none() | NAMES),
        lifecycle=draw(st.just(Lifecycle()) | st.builds(Lifecycle, **numbers)),
        dtype=draw(st.sampled_from(["float32", "float64"])),
    )


def embedding_accessors() -> st.SearchStrategy[EmbeddingAccessor]:
    return st.builds(
        EmbeddingAccessor,
        dim=COUNTS,
        rule=sparse_rules(True),
        init=inits(),
        bounds=BOUNDS,
        dtype=st.sampled_from(["float32", "float64"]),
    )


def table_files() -> st.SearchStrategy[TableFiles]:
    converters = st.tuples(st.integers(0, 9), st.text(max_size=5), st.text(max_size=5))
    return st.builds(
        TableFiles,
        shard_num=COUNTS,
        compress=st.booleans(),
        cache=st.booleans(),
        cache_rate=st.floats(0.0, 1.0),
        cache_file_num=COUNTS,
        converters=st.lists(converters, max_size=2, unique_by=lambda it: it[0]).map(tuple),
    )


def features() -> st.SearchStrategy[tuple[FeatureSpec, ...]]:
    one = st.builds(
        FeatureSpec, name=NAMES, space=st.none() | NAMES, slot=st.none() | st.integers(0, 2**40)
    )
    return st.lists(one, min_size=1, max_size=4, unique_by=lambda it: it.name).map(tuple)


def sparse_tables() -> st.SearchStrategy[SparseTableSpec]:
    return st.builds(
        SparseTableSpec,
        id=st.just(0),
        name=NAMES,
        accessor=ctr_accessors() | embedding_accessors(),
        features=features(),
        padding_key=st.none() | st.integers(0, 2**64 - 1),
        seed=st.integers(-(2**63), 2**63 - 1),
        use_cvm=st.booleans(),
        files=table_files(),
    )


def dense_tables() -> st.SearchStrategy[DenseTableSpec]:
    shapes = st.lists(st.integers(0, 50), max_size=3).map(tuple)
    return st.builds(
        DenseTableSpec,
        id=st.just(0),
        name=NAMES,
        rule=dense_rules(),
        sections=st.dictionaries(NAMES, shapes, max_size=3).map(sections_of),
        dtype=st.sampled_from(["float32", "float64"]),
        files=table_files(),
    )


@st.composite
def programs(
    draw: Any, name: str, sparse: Sequence[SparseTableSpec], dense: Sequence[DenseTableSpec]
) -> Program:
    pulls: list[Op] = [PullDense(it.name, draw(COUNTS)) for it in dense if draw(st.booleans())]
    pushes: list[Op] = []
    for table in sparse:
        names = draw(st.lists(st.sampled_from(table.features), unique=True))
        read = [feature.name for feature in names]
        cut = draw(st.integers(0, len(read)))
        groups = (tuple(read[:cut]), tuple(read[cut:]))
        pulls += [PullSparse(table.name, group) for group in groups if group]
        if groups[0]:
            counts = draw(st.lists(st.sampled_from(groups[0]), unique=True).map(tuple))
            pushes.append(PushSparse(table.name, groups[0], draw(st.booleans()), counts))
    if sparse and draw(st.booleans()):
        pulls.append(WeighSamples(sparse[0].name, draw(NAMES), draw(PLAIN), draw(PLAIN)))
    for block in dense:
        if draw(st.booleans()):
            own = tuple(section.name for section in block.sections)
            pushes.append(PushDense(block.name, own, draw(COUNTS), draw(st.none() | PLAIN)))
    names = st.lists(NAMES, max_size=2).map(tuple)
    compute = Compute(name, no_grad=draw(names), detached=draw(names))
    return Program(name, (*pulls, compute, *pushes), draw(st.sampled_from([(), SKIPPED])))


@st.composite
def plans(draw: Any) -> Plan:
    """Any plan whose programs have their ops in the order of `minimize`."""
    sparse = draw(st.lists(sparse_tables(), max_size=3, unique_by=lambda it: it.name))
    dense = draw(st.lists(dense_tables(), max_size=3, unique_by=lambda it: it.name))
    sparse = [replace(table, id=number) for number, table in enumerate(sparse)]
    taken = {table.name for table in sparse}
    dense = [table for table in dense if table.name not in taken]
    dense = [replace(table, id=len(sparse) + number) for number, table in enumerate(dense)]
    losses = draw(st.lists(NAMES, max_size=3, unique=True))
    return Plan(
        sparse=tuple(sparse),
        dense=tuple(dense),
        programs={name: draw(programs(name, sparse, dense)) for name in losses},
        clip=draw(st.sampled_from([None, dp.ClipByNorm(1.0), dp.ClipByValue(0.3)])),
        service=draw(
            st.builds(Service, start_server_port=st.integers(0, 65535), server_thread_num=COUNTS)
        ),
        fs_client=draw(
            st.builds(
                FsClient,
                fs_type=st.sampled_from(["HDFS", "AFS"]),
                uri=st.text(max_size=5),
                passwd=st.text(max_size=5),
                buffer_size=st.integers(0, 10**6),
            )
        ),
    )
