"""Descriptions that people write: text of every version is read."""

from __future__ import annotations

import pytest

import downpour as dp
from downpour.accessor import CtrAccessor, Lifecycle
from downpour.plan.fleet_desc.description import read_text
from downpour.plan.specs import FsClient, Service, TableFiles
from downpour.rules import Summary

# The first version: no trainer_param, shared_num, an accessor without slots.
V0 = """\
server_param {
  downpour_server_param {
    downpour_table_param {
      table_id: 0
      table_class: "DownpourSparseTable"
      shared_num: 100
      accessor {
        accessor_class: "DownpourFeatureValueAccessor"
        sparse_sgd_param {
          learning_rate: 0.1
          initial_g2sum: 2
          initial_range: 0.001
          weight_bounds: -5
          weight_bounds: 5
        }
        fea_dim: 11
        embedx_dim: 8
        embedx_threshold: 5
        downpour_accessor_param {
          click_coeff: 2
          base_threshold: 0.2
          delta_threshold: 0.15
          delta_keep_days: 31
          show_click_decay_rate: 0.999
        }
      }
      type: PS_SPARSE_TABLE
      compress_in_save: true
    }
    service_param { start_server_port: 8000 server_thread_num: 4 }
  }
}
fs_client_param { uri: "hdfs://host:1" user: "u" passwd: "p" hadoop_bin: "/bin/hadoop" }
"""

# The second: one trainer_param with a program_config for each loss.
V1 = """\
# written by hand
server_param < downpour_server_param <
  downpour_table_param {
    table_id: 0, table_class: 'DownpourSparseTable'
    accessor { accessor_class: 'DownpourCtrAccessor' sparse_sgd_param { weight_bounds: [-1, 1] } }
  }
  downpour_table_param {
    table_id: 1; table_class: 'DownpourDenseTable'; type: PS_DENSE_TABLE
    accessor {
      accessor_class: 'DownpourDenseValueAccessor'
      dense_sgd_param { name: 'adam' adam { learning_rate: 1e-3 } naive { learning_rate: 0.1 } }
      fea_dim: 9
    }
  }
  downpour_table_param {
    table_id: 2; table_class: 'DownpourDenseTable'
    accessor {
      accessor_class: 'DownpourDenseValueAccessor'
      dense_sgd_param { summary { summary_decay_rate: 0.9 } }
    }
  }
> >
trainer_param {
  dense_table {
    table_id: 1
    dense_variable_name: 'fc_0.w_0'
    dense_variable_name: 'fc_0.b_0'
    dense_gradient_variable_name: 'fc_0.w_0@GRAD'
    dense_gradient_variable_name: 'fc_0.b_0@GRAD'
  }
  dense_table { table_id: 2 }
  sparse_table {
    table_id: 0
    slot_key: ['6001', '6002']
    slot_value: ['emb_0.tmp_0', 'emb_1.tmp_0']
    slot_gradient: 'emb_0.tmp_0@GRAD'
  }
  push_dense_per_batch: 3
  pull_dense_per_batch: 4
  skip_op: 'lookup_' 'table'
  program_config {
    program_id: '140'
    push_sparse_table_id: 0 push_dense_table_id: 1 pull_sparse_table_id: 0 pull_dense_table_id: 1
  }
  program_config { program_id: '150' pull_dense_table_id: [1, 2] push_dense_table_id: 2 }
}
"""

# The last, and the_one_ps's names.
V2 = """\
server_param { downpour_server_param {
  downpour_table_param {
    table_id: 0
    table_class: "DownpourSparseTable"
    accessor {
      accessor_class: "DownpourDoubleUnitAccessor"
      embedx_dim: 4
      embed_sgd_param { name: "naive" naive { learning_rate: 0.2 initial_range: 0 } }
      embedx_sgd_param { name: "adam" adam { initial_range: 0.5 weight_bounds: [-3, 3] } }
      table_accessor_save_param { param: 1 converter: "zip" deconverter: "unzip" }
    }
    enable_sparse_table_cache: false
  }
  downpour_table_param {
    table_id: 1
    table_class: "MemorySparseTable"
    accessor {
      accessor_class: "CtrCommonAccessor"
      fea_dim: 11
      embedx_threshold: 0
      ctr_accessor_param { base_threshold: 0 show_click_decay_rate: 1 show_scale: false }
      embed_sgd_param { name: "StdAdaGradSGDRule" adagrad { weight_bounds: [-1, 1] } }
      embedx_sgd_param { name: "SparseSharedAdamSGDRule" adam { ada_epsilon: 1e-5 } }
    }
  }
  downpour_table_param {
    table_id: 2
    table_class: "DownpourSparseTable"
    accessor {
      accessor_class: "DownpourSparseValueAccessor"
      sparse_commonsgd_param { name: "std_adagrad" adagrad { learning_rate: 0.3 } }
    }
  }
  downpour_table_param {
    table_id: 3
    table_class: "MemoryDenseTable"
    accessor { accessor_class: "CommMergeAccessor" dense_sgd_param { naive { } } }
  }
} }
trainer_param { skip_op: "pull_sparse" }
trainer_param { skip_op: "pull_sparse_v2" }
"""


def test_the_first_version_is_read() -> None:
    desc = read_text(V0)
    table = desc.sparse[0]
    settings = table.settings
    assert (table.kind, table.embedx_dim) == ("ctr", 8)
    assert settings["rule"] == settings["embedx_rule"] == dp.G2SumAdagrad(0.1, initial_g2sum=2.0)
    assert (settings["init"], settings["embedx_init"]) == (dp.Constant(), dp.Uniform(0.001))
    assert settings["bounds"] == settings["embedx_bounds"] == (-5.0, 5.0)
    assert (settings["slots"], settings["embedx_threshold"], settings["click_coeff"]) == (
        False,
        5,
        2,
    )
    assert settings["lifecycle"] == Lifecycle(
        base_threshold=0.2, delta_threshold=0.15, delta_keep_days=31, show_click_decay_rate=0.999
    )
    assert table.files == TableFiles(shard_num=100)
    assert desc.service == Service(start_server_port=8000, server_thread_num=4)
    assert desc.fs_client == FsClient(
        uri="hdfs://host:1", user="u", passwd="p", hadoop_bin="/bin/hadoop"
    )
    assert desc.trainers == ()


def test_the_second_version_is_read() -> None:
    desc = read_text(V1)
    table = desc.sparse[0]
    assert table.embedx_dim is None
    assert table.settings["rule"] == dp.G2SumAdagrad()
    assert table.settings["bounds"] == (-1.0, 1.0)
    assert not table.files.compress  # a table of the file wins whole, defaults and all
    assert (desc.dense[1].rule, desc.dense[1].fea_dim) == (dp.AdamD2Sum(1e-3), 9)
    assert (desc.dense[2].rule, desc.dense[2].fea_dim) == (Summary(0.9), None)
    assert (desc.service, desc.fs_client) == (Service(), None)


def test_programs_of_one_trainer_are_read_one_by_one() -> None:
    first, second = read_text(V1).trainers
    assert first.skip_ops == second.skip_ops == ("lookup_table",)
    assert (first.push_dense_per_batch, first.pull_dense_per_batch) == (3, 4)
    assert (first.sparse, second.sparse) == ({0: ("6001", "6002")}, {})
    assert (first.dense, second.dense) == (
        {1: ("fc_0.w_0", "fc_0.b_0")},
        {1: ("fc_0.w_0", "fc_0.b_0"), 2: ()},
    )
    assert (first.pull_sparse, first.push_dense, second.pull_dense) == ((0,), (1,), (1, 2))
    assert first.program is second.program is None


def test_the_last_version_is_read() -> None:
    desc = read_text(V2)
    unit = desc.sparse[0].settings
    assert (unit["rule"], unit["embedx_rule"]) == (dp.SGD(0.2), dp.RowAdam(0.001))
    assert (unit["init"], unit["embedx_init"]) == (dp.Constant(), dp.Uniform(0.5))
    assert (unit["bounds"], unit["embedx_bounds"]) == (None, (-3.0, 3.0))
    assert desc.sparse[0].files == TableFiles(
        compress=False, cache=False, converters=((1, "zip", "unzip"),)
    )
    assert [trainer.skip_ops for trainer in desc.trainers] == [
        ("pull_sparse",),
        ("pull_sparse_v2",),
    ]


def test_tables_by_the_names_of_the_one_ps_are_read() -> None:
    desc = read_text(V2)
    common = desc.sparse[1]
    assert (common.kind, common.embedx_dim) == ("ctr", 8)
    assert common.settings["rule"] == dp.G2SumAdagrad(per_element=True)
    assert common.settings["embedx_rule"] == dp.SharedAdam(0.001, eps=1e-5)
    assert common.settings["init"] == dp.Constant()  # zero_init, whatever its initial_range
    assert common.settings["embedx_bounds"] == (-3.4028234663852886e38, 3.4028234663852886e38)
    assert (common.settings["show_scale"], common.settings["embedx_threshold"]) == (False, 0)
    assert desc.dense[3].rule == dp.SGD(0.0002)


def test_a_table_without_show_and_click_is_read() -> None:
    table = read_text(V2).sparse[2]
    assert (table.kind, table.embedx_dim) == ("embedding", None)
    assert table.settings == {
        "rule": dp.G2SumAdagrad(0.3, per_element=True), "init": dp.Uniform(1e-4), "bounds": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DownpourCtrAccessor", {"slots": True, "show_scale": True}),
        ("DownpourCtrDoubleAccessor", {"slots": True, "show_scale": True}),
        ("DownpourFeatureValueAccessor", {"slots": False, "show_scale": True}),
    ],
)
def test_accessors_with_one_adagrad(name: str, settings: dict[str, bool]) -> None:
    accessor = f"accessor_class: '{name}' sparse_sgd_param {{ }}"
    table = read_text(sparse(accessor)).sparse[0]
    assert {key: table.settings[key] for key in settings} == settings


@pytest.mark.parametrize(
    ("name", "init", "scales"),
    [
        ("DownpourUnitAccessor", dp.Uniform(0.1), False),
        ("DownpourDoubleUnitAccessor", dp.Uniform(0.1), True),
        ("CtrCommonAccessor", dp.Constant(), True),
        ("CtrDoubleAccessor", dp.Constant(), True),
        ("SparseAccessor", dp.Constant(), True),
    ],
)
def test_accessors_with_a_rule_for_each_part(name: str, init: object, scales: bool) -> None:
    rules = "embed_sgd_param { naive { initial_range: 0.1 } } embedx_sgd_param { naive { } }"
    table = read_text(sparse(f"accessor_class: '{name}' {rules}")).sparse[0]
    assert (table.settings["init"], table.settings["show_scale"]) == (init, scales)
    assert table.use_cvm is (False if name == "SparseAccessor" else None)


@pytest.mark.parametrize("zero_init", [True, False])
def test_zero_init_says_whether_w_begins_at_zero(zero_init: bool) -> None:
    param = f"ctr_accessor_param {{ zero_init: {str(zero_init).lower()} }}"
    rules = "embed_sgd_param { naive { initial_range: 0.1 } } embedx_sgd_param { naive { } }"
    shared = "sparse_sgd_param { initial_range: 0.1 }"
    of_accessor = {
        "DownpourUnitAccessor": rules, "CtrCommonAccessor": rules, "DownpourCtrAccessor": shared,
    }  # fmt: skip
    for name, its_rules in of_accessor.items():
        table = read_text(sparse(f"accessor_class: '{name}' {param} {its_rules}")).sparse[0]
        assert table.settings["init"] == (dp.Constant() if zero_init else dp.Uniform(0.1))


def test_a_table_of_the_file_makes_the_accessor_that_it_describes() -> None:
    table = read_text(V0).sparse[0]
    assert isinstance(table.accessor(), CtrAccessor)
    assert table.accessor() == CtrAccessor(embedx_dim=8, **table.settings)
    assert (table.name, table.features, table.seed, table.dtype) == (None, None, None, None)


def test_a_workers_copy_of_the_tables_is_taken() -> None:
    tables = V0[V0.index("    downpour_table_param") : V0.index("    service_param")]
    text = V0 + f"worker_param {{ downpour_worker_param {{\n{tables} }} }}"
    assert read_text(text) == read_text(V0)
    with pytest.raises(
        dp.PlanError, match=r"fleet_desc:36: table_id: 0 differs from the server's table"
    ):
        read_text(text[::-1].replace("1.0 :etar_gninrael", "2.0 :etar_gninrael", 1)[::-1])


def sparse(accessor: str, table: str = "table_class: 'DownpourSparseTable'") -> str:
    """A file of one table, whose accessor is on line 2."""
    return (
        f"server_param {{ downpour_server_param {{ downpour_table_param {{ {table}\n"
        f"accessor {{ {accessor} }} }} }} }}"
    )
