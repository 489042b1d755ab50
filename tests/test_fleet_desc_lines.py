"""Each field of a text has its line, which what is wrong with it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import downpour as dp
from downpour.plan.fleet_desc import encode, read_file
from downpour.plan.fleet_desc.description import read_text
from downpour.plan.fleet_desc.scanning import scan
from downpour.plan.plan import Plan
from tests.plans import plain_table, plans, small_plan
from tests.test_fleet_desc_text import V1

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.prototxt"
    path.write_text(V1, encoding="utf-8")
    desc = read_file(path)
    assert desc.sparse[0].where == f"{path}:3"
    assert desc.dense[2].where == f"{path}:15"
    assert desc.trainers[1].where == f"{path}:23"
    line_of = desc.source.line_of
    assert line_of("trainer_param.program_config[1].push_dense_table_id") == f"{path}:45"
    assert line_of("trainer_param.sparse_table.slot_key[1]") == f"{path}:34"
    assert line_of("trainer_param.push_sparse_per_batch") == f"{path}:23"
    assert line_of("fs_client_param") == str(path)


@given(plans())
def test_every_field_of_a_text_is_found_on_its_line(plan: Plan) -> None:
    text = str(encode(plan))
    lines = text.split("\n")
    found = list(scan(text))
    assert len(found) == sum(1 for line in lines if line.strip() not in ("", "}"))
    assert all(lines[it.line - 1][it.column - 1 :].startswith(it.name) for it in found)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a: 1 b { c: 'x' 'y' d < e: -1.5e-3 > } # f: 2", "a b b.c b.d b.d.e"),
        ("a: [1, 2] a: 3; b: ['}' '{', \"#\"]", "a a[1] a[2] b b[1]"),
        ("a [{ b: 1 }, { b: 2 b: 3 }] c: true", "a a.b a[1] a[1].b a[1].b[1] c"),
        ("a { b: [] } c { }", "a c"),
        ("a: 'it\\'s' b: \"\\\"\" c: 1", "a b c"),
        ("a: } b", "a"),
        ("a { b: 1", "a a.b"),
        ("} ] , : a: 1", "a"),
    ],
)
def test_fields_are_found_however_they_are_written(text: str, paths: str) -> None:
    assert " ".join(it.path for it in scan(text)) == paths


# What protobuf refuses.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server_param {\n  a: 1\n}", "f:2: a: is no field of ServerParameter; it has: downpour_s"),
        ("fs_client_param {\n\n uris: ''}", "f:3: uris: is no field of FsClientParameter; did"),
        ("fs_client_param {\n uri: ''\n uri: ''\n}", "f:3: uri: is given twice; keep one"),
        ("fs_client_param { }\nfs_client_param {\n uri: ''\n}", "f:2: fs_client_param: is given"),
        ("trainer_param {\n push_dense_per_batch: 1.5 }",
            "f:2: push_dense_per_batch: must be a whole number from -2147483648 to 2147483647, g"),
        ("trainer_param {\n push_dense_per_batch: 9999999999 }",
            "f:2: push_dense_per_batch: must be a whole number from -2147483648 to 2147483647, g"),
        ("trainer_param {\n push_dense_per_batch: }", "f:2: push_dense_per_batch: must be a whol"),
        ("trainer_param { sparse_table { table_id: 08 } }", "f:1: table_id: must be a whole numb"),
        ("fs_client_param { fs_type: S3 }", "f:1: fs_type: must be one of HDFS, AFS, got S3"),
        ("fs_client_param { fs_type: 7 }", "f:1: fs_type: must be one of HDFS, AFS, got 7"),
        ("fs_client_param { fs_type: 'AFS' }", "f:1: fs_type: must be one of HDFS, AFS, got 'AFS'"),
        ("fs_client_param { buffer_size:\n '1' }", "f:2: buffer_size: must be a whole number fro"),
        ("fs_client_param {\n uri: 'a\n}", "f:2: uri: the text has no closing quote: 'a"),
        ("fs_client_param {\n uri: '\\xff' }", "f:2: uri: must be text in UTF-8, which these byt"),
        ("fs_client_param {\n uri: a }", "f:2: uri: must be text in quotes, got a"),
        ("fs_client_param {\n uri: 'a'\n", "f:2: fs_client_param: its closing } is missing"),
        ("fs_client_param <\n uri: 'a'\n", "f:2: fs_client_param: its closing > is missing"),
        ("fs_client_param\n 5", "f:2: fs_client_param: must be a message in braces, { ... }, got"),
        ("trainer_param {\n skip_op: ['a' 'b', }", "f:2: skip_op: must be text in quotes, got }"),
        ("trainer_param {\n skip_op: ['a' }", "f:2: skip_op: a list has commas between its items"),
        ("trainer_param {\n push_dense_per_batch 5 }", "f:2: push_dense_per_batch: a colon must"),
        ("[own.field]: 5", "f:1: field: no field has a name in brackets; write it without them"),
        ("clip { setting {\n truth: true whole: 1 } }", "f:2: whole: there is truth too, and a s"),
        ("clip { setting { truth: yes } }", "f:1: truth: must be true or false, got yes"),
        ("clip { setting { number: x } }", "f:1: number: must be a number, got x"),
        ("}", "f:1: the name of a field must stand here, got }"),
        ("@", "f:1: the name of a field must stand here, got @"),
    ],
)  # fmt: skip
def test_what_is_no_description_is_refused_with_line_and_field(text: str, message: str) -> None:
    with pytest.raises(dp.PlanError) as caught:
        read_text(text, "f")
    assert str(caught.value).startswith(message)


def test_half_a_character_is_refused_with_its_line() -> None:
    with pytest.raises(dp.PlanError, match=r"^f:2: '\\udcff' is no character; take it out"):
        read_text("fs_client_param {\n uri: '\udcff' }", "f")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dp.PlanError, match=r"fleet_desc_file '.*none' cannot be read: .*No such"):
        read_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(dp.PlanError, match=r"fleet_desc_file '.*binary' cannot be read: .*utf-8"):
        read_file(str(tmp_path / "binary"))


SCHEDULE = dp.Warmup(steps=3, after=dp.TorchSchedule(torch.optim.lr_scheduler.StepLR, step_size=2))
RULE = dp.Adam(0.1, betas=(0.5, 0.6), schedule=SCHEDULE, weight_decay=0.1)
TEXTS = [str(encode(plan)) for plan in (small_plan(), small_plan(plain_table(rule=RULE)))]
WORDS = ["0", "-1", "1e400", "nan", "7.5", "true", '"x"', "PS_DENSE_TABLE", "{", "}", "[", ""]
WORDS += ['"Summary"', '"scheduler"', '"self"', "truth: true", "tuple { }", '"\\xff"', "\udcff"]


@given(st.sampled_from(TEXTS), st.integers(0, 999), st.sampled_from(WORDS), st.booleans())
def test_a_line_that_is_wrong_is_a_plan_error_or_another_plan(
    text: str, number: int, word: str, twice: bool
) -> None:
    lines = text.split("\n")
    number %= len(lines)
    name, colon, _ = lines[number].partition(": ")
    changed = f"{name}{colon}{word}" if colon else word
    lines[number : number + 1] = [lines[number], changed] if twice else [changed]
    try:
        plan = Plan.from_fleet_desc("\n".join(lines))
    except dp.PlanError:
        return
    assert Plan.from_fleet_desc(plan.fleet_desc()) == plan
