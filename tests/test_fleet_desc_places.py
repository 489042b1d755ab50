"""What is said of a description names the line, the key or the path of the field it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import downpour as dp
from downpour.errors import SettingError
from downpour.plan.fleet_desc import dense_of_strategy, read_file, sparse_of_strategy
from downpour.plan.fleet_desc.description import read_text
from downpour.plan.fleet_desc.fleet_desc_pb2 import SparseAdamSGDParameter
from downpour.plan.fleet_desc.places import Node, Place, Source
from tests.test_fleet_desc_text import V1, V2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLE = """\
server_param {
  downpour_server_param {
    downpour_table_param {
      table_class: 'DownpourSparseTable'
      accessor {
        accessor_class: 'DownpourUnitAccessor'
        embed_sgd_param { naive { } }
        embedx_sgd_param { name: 'adam' adam { } }
        downpour_accessor_param { }
      }
      sparse { exact { } }
    }
  }
}
"""


@pytest.mark.parametrize(
    ("number", "field", "said"),
    [
        (0, "table_id", "f:4: table_id"),
        (0, "accessor.accessor_class", "f:5: accessor_class"),
        (0, "accessor.embedx_dim", "f:5: embedx_dim"),  # which is not written, as the next
        (0, "sparse.name", "f:3: name"),
        (1, "accessor.fea_dim", "f:12: fea_dim"),
        (1, "accessor.dense_sgd_param.adam.learning_rate", "f:11: learning_rate"),
        (1, "accessor.dense_sgd_param.adam.ada_epsilon", "f:11: ada_epsilon"),
        (1, "shard_num", "f:7: shard_num"),
        (2, "accessor.fea_dim", "f:17: fea_dim"),
    ],
)
def test_a_table_says_the_line_of_a_field(number: int, field: str, said: str) -> None:
    desc = read_text(V1, "f")
    table = {**desc.sparse, **desc.dense}[number]
    assert table.at(field) == said
    assert (table.where, desc.sparse[0].where) == (f"f:{[3, 7, 15][number]}", "f:3")


def test_a_trainer_says_the_line_of_a_field() -> None:
    first, second = read_text(V1.replace("'lookup_' 'table'", "['a',\n'b']"), "f").trainers
    assert first.at("push_dense_per_batch") == "f:38: push_dense_per_batch"
    assert (first.at("skip_op"), first.at("skip_op", 1)) == ("f:40: skip_op", "f:41: skip_op[1]")
    assert (first.at("no_grad"), second.where) == ("f:23: no_grad", "f:23")
    assert first.at_config("program_id") == "f:43: program_id"
    assert first.at_config("pull_dense_table_id", 1) == "f:42: pull_dense_table_id[1]"
    assert second.at_config("pull_dense_table_id", 1) == "f:46: pull_dense_table_id[1]"


def test_a_trainer_says_the_line_of_its_tables() -> None:
    first, second = read_text(V1, "f").trainers
    assert first.at_table("sparse", 0, "slot_key") == "f:34: slot_key"
    assert first.at_table("dense", 1, "dense_variable_name") == "f:26: dense_variable_name"
    assert second.at_table("dense", 2, "table_id") == "f:31: table_id"
    assert second.at_table("dense", 2, "dense_variable_name") == "f:31: dense_variable_name"
    assert second.at_table("sparse", 0, "slot_key") == "f:23: slot_key"  # it has none


def test_a_trainer_without_a_program_config_says_its_own_line() -> None:
    first, second = read_text(V2, "f").trainers
    assert first.at_config("program_id") == "f:40: program_id"
    assert second.at_config("push_dense_table_id", 1) == "f:41: push_dense_table_id[1]"


def test_a_description_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.prototxt"
    path.write_text(V1, encoding="utf-8")
    assert read_file(path).dense[1].at("accessor.fea_dim") == f"{path}:12: fea_dim"


def test_a_strategy_says_its_keys() -> None:
    table = sparse_of_strategy("embedding", {"sparse_embedx_dim": 8})
    assert table.at("accessor.embedx_dim") == "strategy['embedding']['sparse_embedx_dim']"
    assert table.at("accessor.fea_dim") == "strategy['embedding']['sparse_fea_dim']"
    assert table.at("sparse.name") == "strategy['embedding']: sparse.name"
    dense = dense_of_strategy({})
    assert dense.at("accessor.dense_sgd_param.adam.ada_epsilon") == (
        "strategy['dense_table']['dense_ada_epsilon']"
    )


def test_places_are_no_part_of_what_is_said() -> None:
    first, second = read_text(V1, "f"), read_text(f"\n{V1}", "g")
    assert first == second
    assert (first.sparse[0].where, second.sparse[0].where) == ("f:3", "g:4")
    assert "place" not in repr(first.sparse[0])


# What a value refuses is said of the field that is to blame, whatever its words are.


def refuse_if(is_wrong: Callable[[Node], bool]) -> Callable[[Node], str]:
    def make(node: Node) -> str:
        if is_wrong(node):
            raise SettingError(f"no, not {node.message}")
        return "made"

    return make


ADAM = SparseAdamSGDParameter(
    learning_rate=1, beta1_decay_rate=2, beta2_decay_rate=3, weight_bounds=[4, 5]
)


@pytest.mark.parametrize(
    ("is_wrong", "field"),
    [
        (lambda it: it.get("beta2_decay_rate") == 3, "beta2_decay_rate"),
        (lambda it: len(it.get("weight_bounds")) == 2, "weight_bounds"),
        (lambda it: it.get("learning_rate") * it.get("beta1_decay_rate") > 1, "beta1_decay_rate"),
        (lambda it: it.get("learning_rate") + it.get("beta1_decay_rate") > 1, "learning_rate"),
    ],
)
def test_the_field_that_is_to_blame_is_named(is_wrong: Callable[[Node], bool], field: str) -> None:
    with pytest.raises(dp.PlanError, match=rf"^f: x.{field}: no, not "):
        Node(ADAM, Place(Source("f"), "x")).made(refuse_if(is_wrong))


def test_where_no_field_is_to_blame_the_message_is_named() -> None:
    node = Node(ADAM, Place(Source("f"), "x"))
    with pytest.raises(dp.PlanError, match=r"^f: x: no, not"):
        node.made(refuse_if(lambda it: True))
    assert node.made(refuse_if(lambda it: False)) == "made"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{ naive { } }", "{ naive {\nlearning_rate: 0 } }", "8: learning_rate: SGD.lr must be"),
        ("adam { }", "adam { learning_rate: 1\nbeta1_decay_rate: 0\nbeta2_decay_rate: 1 }",
            "10: beta2_decay_rate: RowAdam.betas"),
        ("adam { }", "adam {\nweight_bounds: 1\nweight_bounds: 0 }", "9: weight_bounds: CtrAcc"),
        ("{ naive { } }", "{ naive { }\nextension {\nweight_decay: 0.1\n} }", "9: weight_decay: C"),
        ("{ naive { } }", "{ extension {\ninit { type: 'Constant' }\nrule {\ntype: 'Adagrad'\n"
            "setting { name: 'lr' number: 1 }\nsetting { name: 'batch_l2' number: 1 }\n} } }",
            "12: setting[1]: CtrAccessor: its rules take neither weight_decay nor batch_l2"),
        ("downpour_accessor_param { }", "downpour_accessor_param {\ndelta_keep_days: 1\n"
            "show_click_decay_rate: 1.5\n}", "11: show_click_decay_rate: Lifecycle"),
        ("downpour_accessor_param { }", "downpour_accessor_param {\nclick_coeff: -1 }", "10: clic"),
        ("downpour_accessor_param { }", "embedx_threshold: 1\nembedx_dim: 0", "10: embedx_dim: Ct"),
        ("exact { }", "seed: 1\ndtype: 'float16'", "12: dtype: CtrAccessor.dtype must be one of"),
        ("exact { }", "seed: 1\nclick: ''", "12: click: CtrAccessor.click must be a name or None"),
        ("sparse { exact { } }", "compress_in_save: true\nshared_num: 0", "12: shared_num: Tabl"),
    ],
)  # fmt: skip
def test_what_a_table_refuses_has_the_line_of_its_field(old: str, new: str, said: str) -> None:
    assert old in TABLE
    with pytest.raises(dp.PlanError) as caught:
        read_text(TABLE.replace(old, new), "f")
    assert str(caught.value).startswith(f"f:{said}")


def test_an_exact_number_that_is_refused_has_the_line_of_the_one_it_is_of() -> None:
    text = TABLE.replace("{ exact { } }", "{\nexact {\nshow_click_decay_rate: 1.5000000001 } }")
    text = text.replace("param { }\n", "param { show_click_decay_rate: 1.5 }\n")
    with pytest.raises(dp.PlanError, match=r"^f:9: show_click_decay_rate: Lifecycle.*got 1.5"):
        read_text(text, "f")
