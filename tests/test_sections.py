"""Dense tables in sections: which server has what, and that no result knows it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour import rules
from downpour.plan.plan import Plan
from downpour.plan.sections import Layout, Sections, moves_by_element, split
from downpour.plan.specs import DenseTableSpec
from downpour.schedules import Cosine
from downpour.server import Server
from downpour.tables.dense import sections_of
from downpour.transport import DenseStats
from tests.networks import everything

if TYPE_CHECKING:
    from downpour.plan.sections import Part

SHAPES = {"out.bias": (7,), "out.weight": (13, 7), "scale": (), "deep": (5, 2, 3), "wide": (1, 40)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())
NUM_STEPS = 5

RULES: dict[str, Any] = {
    "sgd": rules.SGD(0.1),
    "sgd decay": rules.SGD(0.1, weight_decay=0.3, batch_l2=0.1, schedule=Cosine(steps=9, end=0.1)),
    "momentum": rules.Momentum(0.1, weight_decay=0.3, batch_l2=0.1),
    "adagrad": rules.Adagrad(0.1, lr_decay=0.2, initial_accumulator_value=0.5),
    "adam": rules.Adam(0.01),
    "adam decay": rules.Adam(0.01, weight_decay=0.1, batch_l2=0.1),
    "uncorrected adam": rules.UncorrectedAdam(0.1, weight_decay=0.3, batch_l2=0.1),
    "adam d2sum": rules.AdamD2Sum(0.1, mom_decay=0.5),
    "ftrl": rules.Ftrl(0.1, l1=0.01, l2=0.1),
    "summary": rules.Summary(0.75),
}


def unit_norm(weight: Any, state: Any, grad: Any, hyper: Any) -> None:
    total = 0.0
    for i in range(weight.size):
        total += grad[i] * grad[i]
    for i in range(weight.size):
        weight[i] -= hyper[0] * grad[i] / np.sqrt(total)


@dataclass(frozen=True, kw_only=True)
class UnitNorm(rules.BaseRule):
    """Each step of a parameter is as long as the learning rate."""

    update = staticmethod(unit_norm)


@dataclass(frozen=True, kw_only=True)
class Counted(rules.Adam):
    """A number beside the moments that all elements share."""

    def state_dim(self, dim: int) -> int:
        return 2 * dim + 1


def table(rule: Any = RULES["sgd"], shapes: Any = None, **settings: Any) -> DenseTableSpec:
    own = sections_of(SHAPES if shapes is None else shapes)
    return DenseTableSpec(**{"id": 1, "name": "dense", "rule": rule, "sections": own, **settings})


def plan_of(*tables: DenseTableSpec) -> Plan:
    return Plan(sparse=(), dense=tables, programs={})


def layouts(parts: tuple[Part, ...]) -> list[tuple[str, int, tuple[int, ...], int]]:
    return [(part.name, part.offset, part.shape, part.server) for part in parts]


shapes = st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=6).map(
    lambda given: {f"p{i}": shape for i, shape in enumerate(given)}
)
sectioned = st.builds(
    Sections, min_size=st.integers(1, 200), placement=st.sampled_from(["round_robin", "hash"])
)


@given(shapes=shapes, num_servers=st.integers(1, 9), sections=sectioned)
def test_parts_cover_each_parameter_once_in_order(
    shapes: dict[str, tuple[int, ...]], num_servers: int, sections: Sections
) -> None:
    spec = table(shapes=shapes)
    parts = split(spec, num_servers, sections)
    assert np.array_equal(
        np.concatenate([np.arange(spec.size)[part.span] for part in parts]), np.arange(spec.size)
    )
    for section in spec.sections:
        own = [part for part in parts if part.parameter == section.name]
        assert [part.index for part in own] == list(range(len(own)))
        assert (own[0].offset, sum(part.size for part in own)) == (section.offset, section.size)
    assert len({part.name for part in parts}) == len(parts)


@given(shapes=shapes, num_servers=st.integers(1, 9), sections=sectioned)
def test_parts_are_whole_rows_of_one_size_but_for_the_last(
    shapes: dict[str, tuple[int, ...]], num_servers: int, sections: Sections
) -> None:
    spec = table(shapes=shapes)
    parts = split(spec, num_servers, sections)
    assert {part.server for part in parts} <= {*range(num_servers)}
    for section in spec.sections:
        own = [part for part in parts if part.parameter == section.name]
        sizes = [part.size for part in own]
        assert 1 <= len(own) <= num_servers
        assert len({*sizes[:-1]}) <= 1
        assert sizes[-1] <= sizes[0]
        assert min(sizes[:-1], default=sections.min_size) >= sections.min_size
        for part in own:
            assert math.prod(part.shape) == part.size
            assert part.shape[1:] == section.shape[1:]


@pytest.mark.parametrize(
    ("shape", "num_servers", "min_size", "sizes"),
    [
        # Paddle: split_count = min(servers, floor(numel / min_size)); a block is whole rows
        ((1000,), 3, 8192, [1000]),
        ((16384,), 3, 8192, [8192, 8192]),
        ((10,), 3, 3, [4, 4, 2]),
        ((9, 10), 4, 10, [30, 30, 30]),
        ((3, 1000), 2, 8, [2000, 1000]),
        ((1, 100_000), 5, 8192, [100_000]),
        ((2, 5, 3), 2, 1, [15, 15]),
        ((), 4, 1, [1]),
        ((0, 4), 4, 1, [0]),
        ((4, 0), 4, 1, [0]),
    ],
)
def test_sizes_are_the_references(
    shape: tuple[int, ...], num_servers: int, min_size: int, sizes: list[int]
) -> None:
    parts = split(table(shapes={"w": shape}), num_servers, Sections(min_size=min_size))
    assert [part.size for part in parts] == sizes
    assert [part.name for part in parts] == (
        ["w"] if len(sizes) == 1 else [f"w:{i}" for i in range(len(sizes))]
    )


def test_parts_go_to_the_servers_in_turn_from_the_tables_id_on() -> None:
    spec = table(shapes={"a": (4,), "b": (2, 3), "c": ()}, id=5)
    assert layouts(split(spec, 3, Sections(min_size=2))) == [
        ("a:0", 0, (2,), 2),
        ("a:1", 2, (2,), 0),
        ("b:0", 4, (1, 3), 1),
        ("b:1", 7, (1, 3), 2),
        ("c", 10, (), 0),
    ]
    small = [split(table(shapes={"a": ()}, id=number), 3)[0].server for number in range(6)]
    assert small == [0, 1, 2, 0, 1, 2]


def test_a_hash_places_a_part_by_its_name_alone() -> None:
    by_hash = Sections(min_size=8, placement="hash")
    parts = split(table(), 7, by_hash)
    again = split(table(shapes=dict(reversed(SHAPES.items())), id=9), 7, by_hash)
    assert {it.name: it.server for it in parts} == {it.name: it.server for it in again}
    assert len({part.server for part in parts}) > 3


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_splits_alike_and_needs_no_torch(seed: str) -> None:
    program = f"""
import sys
from downpour.plan.sections import Sections, split
from downpour.plan.specs import DenseTableSpec
from downpour.rules import SGD
from downpour.tables.dense import sections_of
spec = DenseTableSpec(id=1, name="dense", rule=SGD(0.1), sections=sections_of({SHAPES}))
for placement in ("round_robin", "hash"):
    parts = split(spec, 5, Sections(min_size=8, placement=placement))
    print([(part.name, part.offset, part.shape, part.server) for part in parts])
assert "torch" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    both = [Sections(min_size=8), Sections(min_size=8, placement="hash")]
    assert run.stdout.splitlines() == [str(layouts(split(table(), 5, it))) for it in both]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sections(min_size=0), r"Sections.min_size must be an int >= 1, got 0"),
        (lambda: Sections(min_size=True), r"int >= 1, got True"),
        (lambda: Sections(placement="even"), r"one of round_robin, hash, got 'even'"),  # type: ignore[arg-type]
        (lambda: split(table(), 0), r"num_servers must be an int >= 1, got 0"),
    ],
)
def test_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(dp.SettingError, match=message):
        make()


def test_a_rule_that_looks_at_a_whole_parameter_keeps_it_whole() -> None:
    assert all(moves_by_element(rule) for rule in RULES.values())
    for rule in (UnitNorm(0.1), Counted(0.1)):
        assert not moves_by_element(rule)
        assert len(split(table(rule), 5, Sections(min_size=1))) == len(SHAPES)


def trained(rule: Any, num_shards: int, sections: Sections, dtype: str = "float32") -> dp.Client:
    """A dense table after some steps, in each of which some parameters have a gradient."""
    plan = plan_of(table(rule, dtype=dtype))
    ps = dp.embedded(plan, num_shards=num_shards, sections=sections)
    rng = np.random.default_rng(0)
    assert ps.init_dense("dense", rng.standard_normal(SIZE).astype(dtype))
    for step in range(NUM_STEPS):
        names = [name for i, name in enumerate(SHAPES) if (i + step) % 3]
        ps.push_dense("dense", rng.standard_normal(SIZE).astype(dtype), names)
    return ps


WHOLE = Sections()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("placement", ["round_robin", "hash"])
@pytest.mark.parametrize("name", [*RULES, "unit norm"])
def test_no_split_changes_a_bit(name: str, placement: Any, dtype: str) -> None:
    rule = UnitNorm(0.1) if name == "unit norm" else RULES[name]
    expected = everything(trained(rule, 1, WHOLE, dtype))
    for num_shards in (1, 2, 3, 7):
        for min_size in (1, 10, 8192):
            sections = Sections(min_size=min_size, placement=placement)
            assert everything(trained(rule, num_shards, sections, dtype)) == expected


@pytest.mark.parametrize("num_shards", [1, 2, 5])
@pytest.mark.parametrize("name", RULES)
def test_what_three_servers_had_goes_on_at_any_number(name: str, num_shards: int) -> None:
    first = trained(RULES[name], 3, Sections(min_size=4))
    sections = Sections(min_size=9, placement="hash")
    second = dp.embedded(first.plan, num_shards=num_shards, sections=sections)
    second.restore_dense("dense", first.export_dense("dense"))
    assert everything(second) == everything(first)
    for ps in (first, second):
        ps.push_dense("dense", np.ones(SIZE, np.float32), list(SHAPES))
    assert np.array_equal(first.pull_dense("dense"), second.pull_dense("dense"))
    assert not second.init_dense("dense", np.zeros(SIZE, np.float32))


def test_state_is_exported_by_parameter() -> None:
    exported = trained(RULES["adam d2sum"], 3, Sections(min_size=4)).export_dense("dense")
    assert list(exported.state) == list(exported.updates) == list(SHAPES)
    assert {name: it.size for name, it in exported.state.items()} == {
        name: 3 * math.prod(shape) for name, shape in SHAPES.items()
    }
    assert exported.step == NUM_STEPS


def test_a_server_holds_its_own_parts_and_no_others() -> None:
    spec, sections = table(RULES["adam"]), Sections(min_size=16)
    servers = [Server(plan_of(spec), shard=i, num_shards=3, sections=sections) for i in range(3)]
    for shard, server in enumerate(servers):
        own = [part for part in split(spec, 3, sections) if part.server == shard]
        size = sum(part.size for part in own)
        assert server.init_dense("dense", np.arange(size, dtype=np.float32))
        server.push_dense(
            "dense", np.ones(size, np.float32), step=1, lr=0.1, names={"out.weight", "scale"}
        )
        exported = server.export_dense("dense")
        assert exported.updates == {
            part.name: int(part.parameter in ("out.weight", "scale")) for part in own
        }
        assert [state.size for state in exported.state.values()] == [2 * it.size for it in own]
        with pytest.raises(dp.TableError, match=r"no section 'head', it has: out.bias"):
            server.push_dense("dense", np.ones(size, np.float32), step=2, lr=0.1, names=["head"])


def test_a_server_without_a_part_is_not_asked() -> None:
    plan = plan_of(table(shapes={"scale": ()}))
    ps = dp.embedded(plan, num_shards=3)
    with pytest.raises(dp.TableError, match=r"no table 'dense' here; there are: none"):
        ps.servers[0].pull_dense("dense", np.empty(1, np.float32))
    assert ps.init_dense("dense", np.ones(1, np.float32))
    ps.push_dense("dense", np.ones(1, np.float32), ["scale"])
    assert ps.stats() == {"dense": DenseStats(size=1, bytes=4)}


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_stats_are_those_of_all_parts(num_shards: int) -> None:
    ps = trained(RULES["adam"], num_shards, Sections(min_size=1))
    assert ps.stats() == {"dense": DenseStats(size=SIZE, bytes=3 * SIZE * 4)}


def test_weights_are_first_ones_only_where_every_server_takes_them() -> None:
    ps = dp.embedded(plan_of(table()), num_shards=3, sections=Sections(min_size=16))
    own = sum(part.size for part in split(table(), 3, Sections(min_size=16)) if part.server == 2)
    assert ps.servers[2].init_dense("dense", np.zeros(own, np.float32))
    assert not ps.init_dense("dense", np.ones(SIZE, np.float32))
    assert np.count_nonzero(ps.pull_dense("dense") == 1.0) == SIZE - own


def test_what_one_server_would_refuse_no_server_takes() -> None:
    ps = trained(RULES["adam"], 3, Sections(min_size=4))
    before, exported = everything(ps), ps.export_dense("dense")
    bad = np.ones(SIZE, np.float32)
    bad[-1] = np.nan  # of "wide", the last
    lacking = {name: state for name, state in exported.state.items() if name != "wide"}
    for call, error in [
        (lambda: ps.push_dense("dense", bad, list(SHAPES)), dp.NonFiniteError),
        (lambda: ps.push_dense("dense", bad, ["scale", "head"]), dp.TableError),
        (lambda: ps.init_dense("dense", bad), dp.NonFiniteError),
        (lambda: ps.restore_dense("dense", replace(exported, weights=bad)), dp.NonFiniteError),
        (lambda: ps.restore_dense("dense", replace(exported, state=lacking)), dp.TableError),
        (lambda: ps.restore_dense("dense", replace(exported, updates={})), dp.TableError),
    ]:
        with pytest.raises(error, match=r"wide|head|out.bias"):
            call()
        assert everything(ps) == before
    ps.push_dense("dense", bad, ["scale"])  # what it holds for the others is not read


@pytest.mark.parametrize("num_shards", [1, 4])
def test_neighbours_on_a_server_move_as_one_piece(num_shards: int) -> None:
    spec = table(shapes={f"p{i}": (3, 2) for i in range(2000)})
    ps = dp.embedded(plan_of(spec), num_shards=num_shards)
    flat = np.arange(spec.size, dtype=np.float32)
    assert ps.init_dense("dense", flat)
    assert np.array_equal(ps.pull_dense("dense"), flat)
    runs = [share.run for share in Layout(spec, num_shards, WHOLE).shares]
    assert runs == ([slice(0, spec.size)] if num_shards == 1 else [None] * num_shards)
