"""Where transpilers put variables: every element once, as servers have it, whatever the rule."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.accessor import EmbeddingAccessor
from downpour.federated.methods import FedAdam, FedAvg
from downpour.plan.sections import Layout, split
from downpour.transpile.ops import Apply, Average, Recv, Send
from tests.transpiled import SERVERS, Counted, UnitNorm, one_loss, sparse_table, transpiled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from downpour.transpile.ops import VariableSection
    from downpour.transpile.transpiler import Transpiled

# Each with the variables of its state.
RULES: dict[str, tuple[Any, int]] = {
    "sgd": (dp.SGD(0.1), 0),
    "adagrad": (dp.Adagrad(0.1), 1),
    "adam": (dp.Adam(0.1), 2),
    "adam d2sum": (dp.AdamD2Sum(0.1), 3),
    "ftrl": (dp.Ftrl(0.1), 2),
}

shapes = st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=5).map(
    lambda given: {f"p{number}": shape for number, shape in enumerate(given)}
)
rules = st.sampled_from([*(rule for rule, _ in RULES.values()), UnitNorm(0.1), Counted(0.1)])
configs = st.fixed_dictionaries(
    {
        "slice_var_up": st.booleans(),
        "min_block_size": st.integers(1, 200),
        "split_method": st.sampled_from(["RoundRobin", "HashName"]),
        "federation": st.sampled_from([None, FedAvg(local_steps=5), FedAdam()]),
    }
)


@st.composite
def any_transpiled(draw: Any) -> Transpiled:
    """Of any shapes and rule, on one to six servers."""
    servers = ",".join(f"10.0.0.{number}:6174" for number in range(draw(st.integers(1, 6))))
    return transpiled(one_loss(draw(rules), draw(shapes)), servers=servers, **draw(configs))


def places(sections: Iterable[VariableSection]) -> list[tuple[Any, ...]]:
    return [(it.offset, it.size, it.shape, it.endpoint) for it in sections]


@given(made=any_transpiled())
def test_every_element_of_every_variable_is_in_one_section(made: Transpiled) -> None:
    (table,) = made.plan.dense
    size_of = {section.name: section.size for section in table.sections}
    for name in made.split.variables:
        sections, own = made.split.variable(name), size_of[name.partition("@")[0]]
        elements = np.concatenate([np.arange(it.size) + it.offset for it in sections])
        is_state = sections[0].kind == "optimizer"
        size = table.rule.state_dim(own) if is_state and len(elements) != own else own
        assert np.array_equal(elements, np.arange(size))
        assert {it.endpoint for it in sections} <= {*made.endpoints}


@given(made=any_transpiled())
def test_sections_are_whole_rows(made: Transpiled) -> None:
    for whole in made.plan.dense[0].sections:
        for section in made.split.variable(whole.name):
            assert math.prod(section.shape) == section.size
            assert section.shape[1:] == whole.shape[1:]


@given(made=any_transpiled())
def test_sections_of_parameters_are_the_parts_of_the_servers_tables(made: Transpiled) -> None:
    (spec,) = made.plan.dense
    begin = {section.name: section.offset for section in spec.sections}
    expected = [
        (it.name, it.offset - begin[it.parameter], it.size, it.shape, made.endpoints[it.server])
        for it in split(spec, len(made.endpoints), made.config.sections)
    ]
    found = made.split.of_kind("parameter")
    assert [(it.name, *place) for it, place in zip(found, places(found), strict=True)] == expected
    for share in Layout(spec, len(made.endpoints), made.config.sections).shares:
        there = made.split.endpoint(made.endpoints[share.server])
        own = [it.name for it in there if it.kind == "parameter"]
        assert own == [part.name for part in share.parts]


@given(made=any_transpiled())
def test_what_is_sent_goes_to_where_its_parameter_comes_from(made: Transpiled) -> None:
    recv, _, send = made.trainer_programs
    received = [op.section for op in recv.ops_of(Recv)]
    sent = [op.section for op in send.ops_of(Send)]
    assert places(received) == places(sent)
    assert [it.name.replace(it.variable, it.variable.partition("@")[0]) for it in sent] == [
        it.name for it in received
    ]


@given(made=any_transpiled())
def test_each_section_is_averaged_and_applied_by_the_one_server_that_has_it(made: Any) -> None:
    applied, averaged = [], []
    for endpoint in made.endpoints:
        program = made.pserver_program(endpoint)
        applied += (own := [op.section for op in program.ops_of(Apply)])
        averaged += (sent := [op.section for op in program.ops_of(Average)])
        assert {it.endpoint for it in (*own, *sent)} <= {endpoint}
        assert places(own) == places(sent)
    kind = made.config.sent_kind
    assert sorted(it.name for it in applied) == sorted(
        it.name for it in made.split.of_kind("parameter")
    )
    assert sorted(it.name for it in averaged) == sorted(it.name for it in made.split.of_kind(kind))


@pytest.mark.parametrize("name", RULES)
def test_state_of_any_rule_is_split_as_its_parameter_is(name: str) -> None:
    rule, num_states = RULES[name]
    made = transpiled(one_loss(rule, {"w": (9, 10)}), min_block_size=10)
    states = [f"w@STATE.{number}" for number in range(num_states)]
    assert made.split.variables == ("w", *states, "w@GRAD")
    for state in states:
        assert places(made.split.variable(state)) == places(made.split.variable("w"))
        assert [it.name for it in made.split.variable(state)] == [f"{state}:0", f"{state}:1"]
        assert {it.kind for it in made.split.variable(state)} == {"optimizer"}


def test_a_rule_that_looks_at_a_whole_parameter_keeps_it_and_its_state_whole() -> None:
    made = transpiled(one_loss(Counted(0.1), {"w": (9, 10)}), min_block_size=10)
    (parameter,), (state,) = made.split.variable("w"), made.split.variable("w@STATE.0")
    assert (parameter.name, parameter.shape) == ("w", (9, 10))
    assert (state.offset, state.size, state.shape) == (0, 181, (181,))
    assert state.endpoint == parameter.endpoint
    assert transpiled(one_loss(UnitNorm(0.1), {"w": (4,)})).split.variables == ("w", "w@GRAD")


def test_a_federations_state_is_that_of_its_rule_on_servers() -> None:
    made = transpiled(federation=FedAdam(local_steps=5))
    assert made.split.variable("fc.weight@STATE.1")
    assert [it.kind for it in made.split.variable("fc.weight@UPDATE")] == ["update"] * 2
    with pytest.raises(dp.PlanError, match=r"no variable 'fc.weight@GRAD'"):
        made.split.variable("fc.weight@GRAD")


def test_variables_may_stay_whole() -> None:
    for method in ("RoundRobin", "HashName"):
        made = transpiled(slice_var_up=False, min_block_size=1, split_method=method)
        assert {it.name for it in made.split} == {*made.split.variables}


NAMES = [f"fc_{number}.{kind}" for number in range(6) for kind in ("bias", "weight")]


def test_whole_variables_take_turns_in_a_shuffled_order_as_in_paddle() -> None:
    """In the order of their names all biases would be on one of two servers."""
    plan = one_loss(dp.SGD(0.1), dict.fromkeys(NAMES, (8, 8)))
    order = [*NAMES]
    np.random.RandomState(0).shuffle(order)  # that of Paddle's transpiler
    made = transpiled(plan, slice_var_up=False)
    first = plan.dense[0].id  # whose turn is the first
    servers = {it.variable: SERVERS.index(it.endpoint) for it in made.split.of_kind("parameter")}
    assert servers == {name: (first + turn) % 2 for turn, name in enumerate(order)}
    assert [it.variable for it in made.split.of_kind("parameter")] == NAMES
    biases = {servers[name] for name in NAMES if name.endswith("bias")}
    assert biases == {0, 1}


# Where Paddle 2.6.2's own transpiler put the variables of six layers, on the second of two servers.
SECOND = {"fc_5.w_0", "fc_5.b_0", "fc_4.b_0", "fc_3.w_0", "fc_1.w_0", "fc_2.w_0"}


def test_whole_variables_are_where_paddle_put_them() -> None:
    names = [f"fc_{number}.{kind}_0" for number in range(6) for kind in "bw"]
    plan = one_loss(dp.SGD(0.1), dict.fromkeys(names, (8, 8)))
    plan = replace(plan, dense=(replace(plan.dense[0], id=0),))
    made = transpiled(plan, slice_var_up=False)
    assert {it.variable for it in made.split.endpoint(SERVERS[1])
            if it.kind == "parameter"} == SECOND  # fmt: skip


def test_sections_take_turns_in_their_order() -> None:
    plan = one_loss(dp.SGD(0.1), dict.fromkeys(NAMES, (8, 8)))
    servers = [it.endpoint for it in transpiled(plan).split.of_kind("parameter")]
    assert servers == [SERVERS[(plan.dense[0].id + turn) % 2] for turn in range(len(NAMES))]


@pytest.mark.parametrize("slice_var_up", [True, False])
def test_hash_name_hashes_the_name_of_a_section(slice_var_up: bool) -> None:
    plan = one_loss(dp.SGD(0.1), dict.fromkeys(NAMES, (8, 8)))
    made = transpiled(plan, slice_var_up=slice_var_up, min_block_size=32, split_method="HashName")
    sections = made.split.of_kind("parameter")
    assert len(sections) == len(NAMES) * (1 + slice_var_up)
    for section in sections:
        assert section.endpoint == SERVERS[zlib.crc32(section.name.encode()) % 2]


def test_a_parameter_of_several_losses_has_one_home() -> None:
    made = transpiled()
    assert {it.table for it in made.split.variable("fc.weight")} == {"dense.click"}
    sent = [op.section.variable for op in made.trainer_programs.send.ops_of(Send)]
    assert sent.count("fc.weight@GRAD") == 2  # its sections


def test_a_split_is_asked_by_variable_section_and_server() -> None:
    made = transpiled()
    first, second = made.split.variable("fc.weight")
    assert (first.name, second.name) == ("fc.weight:0", "fc.weight:1")
    assert made.split.section("fc.weight:1") is second
    assert made.split.section("fc.bias").variable == "fc.bias"
    assert [*made.split] == [*made.split.sections]
    assert len(made.split) == sum(len(made.split.endpoint(it)) for it in SERVERS)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda it: it.variable("fc.wieght"), r"no variable 'fc.wieght'; did you mean 'fc.weight'"),
        (lambda it: it.section("fc.weight:2"), r"no section 'fc.weight:2'; did you mean 'fc.w"),
        (lambda it: it.section("fc.weight"), r"no section 'fc.weight'; did you mean 'fc.weight:"),
        (lambda it: it.variable("x"), r"no variable 'x'; there are: fc.bias, fc.bias@GRAD, fc.w"),
        (lambda it: it.endpoint("[::1]:1"), r"no server '\[::1\]:1'; there are: 127.0.0.1:6174, "),
    ],
)
def test_what_a_split_does_not_have_is_refused_with_what_it_has(ask: Any, message: str) -> None:
    with pytest.raises(dp.PlanError, match=message):
        ask(transpiled().split)


@pytest.mark.parametrize(
    ("name", "clash"),
    [("w@GRAD", "w@GRAD"), ("w:1", "w:1")],
    ids=["variables", "sections"],
)
def test_names_that_clash_are_refused(name: str, clash: str) -> None:
    plan = one_loss(dp.SGD(0.1), {"w": (9, 10), name: (1,)})
    with pytest.raises(dp.PlanError, match=f"would be called '{clash}'; give a parameter"):
        transpiled(plan, min_block_size=10)


TABLE = """\
variable       kind       section        offset  size  shape      endpoint
w              parameter  w:0            0       8192  [128, 64]  127.0.0.1:6175
w              parameter  w:1            8192    8192  [128, 64]  127.0.0.1:6174
w@STATE.0      optimizer  w@STATE.0:0    0       8192  [128, 64]  127.0.0.1:6175
w@STATE.0      optimizer  w@STATE.0:1    8192    8192  [128, 64]  127.0.0.1:6174
w@GRAD         gradient   w@GRAD:0       0       8192  [128, 64]  127.0.0.1:6175
w@GRAD         gradient   w@GRAD:1       8192    8192  [128, 64]  127.0.0.1:6174
scale          parameter  scale          0       1     []         127.0.0.1:6175
scale@STATE.0  optimizer  scale@STATE.0  0       1     []         127.0.0.1:6175
scale@GRAD     gradient   scale@GRAD     0       1     []         127.0.0.1:6175
embedding      rows       shard 0                      [*, 4]     127.0.0.1:6174
embedding      rows       shard 1                      [*, 4]     127.0.0.1:6175"""


def test_a_split_prints_as_a_table_of_dense_variables_and_rows() -> None:
    rows = sparse_table(0, "embedding", EmbeddingAccessor(dim=4, rule=dp.SGD(0.1)), "user")
    plan = replace(one_loss(dp.Adagrad(0.1), {"w": (256, 64), "scale": ()}), sparse=(rows,))
    assert str(transpiled(plan).split) == TABLE
