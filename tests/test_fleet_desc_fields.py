"""Our message has the fields of pslib's last version: numbers, types, labels and defaults.

The tables are transcribed from the facts, not from our file: this is how we know that it has them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from downpour.plan.fleet_desc import fleet_desc_pb2 as pb

# name=number:type, "rep" or "req" for a label, the default in brackets.
FIELDS = {
    "PSParameter": "worker_class=1:string server_class=2:string instance_class=3:string "
    "init_gflags=4:string('') worker_param=101:WorkerParameter server_param=102:ServerParameter "
    "trainer_param=301:rep.DownpourTrainerParameter fs_client_param=501:FsClientParameter",
    "WorkerParameter": "downpour_worker_param=1:DownpourWorkerParameter",
    "ServerParameter": "downpour_server_param=1:DownpourServerParameter",
    "DownpourWorkerParameter": "downpour_table_param=1:rep.TableParameter",
    "DownpourTrainerParameter": "dense_table=1:rep.DenseTableParameter "
    "sparse_table=2:rep.SparseTableParameter push_sparse_per_batch=3:int32 "
    "push_dense_per_batch=4:int32 skip_op=5:rep.string program_config=6:rep.ProgramConfig",
    "ProgramConfig": "program_id=1:req.string push_sparse_table_id=2:rep.int32 "
    "push_dense_table_id=3:rep.int32 pull_sparse_table_id=4:rep.int32 "
    "pull_dense_table_id=5:rep.int32",
    "DenseTableParameter": "table_id=1:int32 dense_variable_name=2:rep.string "
    "dense_gradient_variable_name=3:rep.string fea_dim=4:int32",
    "SparseTableParameter": "table_id=1:int32 feature_dim=2:int32 slot_key=3:rep.string "
    "slot_value=4:rep.string slot_gradient=5:rep.string",
    "DownpourServerParameter": "downpour_table_param=1:rep.TableParameter "
    "service_param=2:ServerServiceParameter",
    "ServerServiceParameter": "server_class=1:string('DownpourBrpcPsServer') "
    "client_class=2:string('DownpourBrpcPsClient') service_class=3:string('DownpourPsService') "
    "start_server_port=4:uint32(0) server_thread_num=5:uint32(12)",
    "TableParameter": "table_id=1:uint64 table_class=2:string shard_num=3:uint64(1000) "
    "accessor=4:TableAccessorParameter type=5:TableType compress_in_save=6:bool(False) "
    "enable_sparse_table_cache=7:bool(True) sparse_table_cache_rate=8:double(0.00055) "
    "sparse_table_cache_file_num=9:uint32(16) sparse_table_mem_cache_rate=10:double(0.5)",
    "TableAccessorParameter": "accessor_class=1:string sparse_sgd_param=2:SparseSGDRuleParameter "
    "dense_sgd_param=3:DenseSGDRuleParameter fea_dim=4:uint32(11) embedx_dim=5:uint32(8) "
    "embedx_threshold=6:uint32(10) downpour_accessor_param=7:DownpourTableAccessorParameter "
    "table_accessor_save_param=8:rep.TableAccessorSaveParameter "
    "sparse_commonsgd_param=9:SparseCommonSGDRuleParameter "
    "embed_sgd_param=10:SparseCommonSGDRuleParameter "
    "embedx_sgd_param=11:SparseCommonSGDRuleParameter",
    "DownpourTableAccessorParameter": "nonclk_coeff=1:float(0.1) click_coeff=2:float(1.0) "
    "base_threshold=3:float(1.5) delta_threshold=4:float(0.25) delta_keep_days=5:float(16.0) "
    "show_click_decay_rate=6:float(0.98) delete_threshold=7:float(0.8) "
    "delete_after_unseen_days=8:float(30.0) ssd_unseenday_threshold=9:int32(1)",
    "TableAccessorSaveParameter": "param=1:uint32 converter=2:string deconverter=3:string",
    "PsRequestMessage": "cmd_id=1:req.uint32 table_id=2:uint32 params=3:rep.bytes "
    "client_id=4:int32 data=5:bytes",
    "PsResponseMessage": "err_code=1:req.int32(0) err_msg=2:req.string('') data=3:bytes",
    "SparseSGDRuleParameter": "learning_rate=1:double(0.05) initial_g2sum=2:double(3.0) "
    "initial_range=3:double(0.0001) weight_bounds=4:rep.float",
    "SparseCommonSGDRuleParameter": "name=1:string naive=2:SparseNaiveSGDRuleParameter "
    "adagrad=3:SparseAdagradSGDRuleParameter adam=4:SparseAdamSGDParameter",
    "SparseNaiveSGDRuleParameter": "learning_rate=1:double(0.05) initial_range=2:double(0.0001) "
    "weight_bounds=3:rep.float",
    "SparseAdagradSGDRuleParameter": "learning_rate=1:double(0.05) initial_g2sum=2:double(3.0) "
    "initial_range=3:double(0.0001) weight_bounds=4:rep.float",
    "SparseAdamSGDParameter": "learning_rate=1:double(0.001) initial_range=2:double(0.0001) "
    "beta1_decay_rate=3:double(0.9) beta2_decay_rate=4:double(0.999) "
    "ada_epsilon=5:double(1e-08) weight_bounds=6:rep.float",
    "DenseSGDRuleParameter": "name=1:string adam=2:AdamSGDParameter naive=3:NaiveSGDParameter "
    "summary=4:SummarySGDParameter moving_average=5:MovingAverageRuleParameter",
    "AdamSGDParameter": "learning_rate=1:double(5e-06) avg_decay_rate=2:double(0.999993) "
    "ada_decay_rate=3:double(0.9999) ada_epsilon=4:double(1e-08) mom_decay_rate=5:double(0.99)",
    "NaiveSGDParameter": "learning_rate=1:double(0.0002) avg_decay_rate=2:double",
    "SummarySGDParameter": "summary_decay_rate=1:double(0.999999)",
    "MovingAverageRuleParameter": "momentum=1:double",
    "FsClientParameter": "fs_type=1:FsApiType(0) uri=2:string user=3:string passwd=4:string "
    "buffer_size=5:int32 hadoop_bin=51:string afs_conf=101:string",
}
ENUMS = {
    "TableType": "PS_SPARSE_TABLE=0 PS_DENSE_TABLE=1",
    "FsApiType": "HDFS=0 AFS=1",
    "PsCmdID": "PS_PULL_DENSE_TABLE=0 PS_PUSH_DENSE_TABLE=1 PS_PULL_SPARSE_TABLE=2 "
    "PS_PUSH_SPARSE_TABLE=3 PS_SHRINK_TABLE=4 PS_SAVE_ONE_TABLE=5 PS_SAVE_ALL_TABLE=6 "
    "PS_LOAD_ONE_TABLE=7 PS_LOAD_ALL_TABLE=8 PS_CLEAR_ONE_TABLE=9 PS_CLEAR_ALL_TABLE=10 "
    "PS_PUSH_DENSE_PARAM=11 PS_STOP_SERVER=12 PS_SAVE_ONE_CACHE_TABLE=13 "
    "PS_GET_CACHE_THRESHOLD=14 PS_CACHE_SHUFFLE=15 PS_COPY_TABLE=16 "
    "PS_COPY_TABLE_BY_FEASIGN=17 PS_PULL_SPARSE_TABLE_WITH_DEPENDENCY=18 "
    "PS_PUSH_SPARSE_TABLE_WITH_DEPENDENCY=19 PS_PRINT_TABLE_STAT=20 "
    "PS_SAVE_ONE_TABLE_PREFIX=21 PS_SAVE_MEM_CACHE_TABLE=22 PS_S2S_MSG=101 "
    "PS_C2C_PULL_SPARSE_TABLE=201",
}
OURS = {
    "DenseTable", "ExactNumbers", "Feature", "RuleExtension", "Section", "Setting", "Settings",
    "SparseTable", "Value", "WeighSamples",
}  # fmt: skip
TYPES = {
    1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string",
    12: "bytes", 13: "uint32",
}  # fmt: skip


CONSTANTS = {"true": "True", "false": "False", "HDFS": "0"}  # of the file, and in Python


def shown(field: Any) -> str:
    """A field of a descriptor, as the tables above have it."""
    kind = field.message_type or field.enum_type
    label = "rep." if field.is_repeated else "req." if field.is_required else ""
    default = field.default_value
    if field.type == field.TYPE_FLOAT and field.has_default_value:
        default = round(default, 6)
    tail = f"({default!r})" if field.has_default_value else ""
    return f"{field.name}={field.number}:{label}{kind.name if kind else TYPES[field.type]}{tail}"


@pytest.mark.parametrize("name", FIELDS)
def test_a_message_has_the_fields_of_pslib(name: str) -> None:
    fields = pb.DESCRIPTOR.message_types_by_name[name].fields
    assert " ".join(shown(field) for field in fields if field.number < 1000) == FIELDS[name]


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_values_of_pslib(name: str) -> None:
    values = pb.DESCRIPTOR.enum_types_by_name[name].values
    assert " ".join(f"{value.name}={value.number}" for value in values) == ENUMS[name]


def test_there_is_no_other_message_but_ours() -> None:
    assert {*pb.DESCRIPTOR.message_types_by_name} == {*FIELDS} | OURS
    assert {*pb.DESCRIPTOR.enum_types_by_name} == {*ENUMS}


def written(text: str) -> str:
    """A field of fleet_desc.proto, as `shown` has it."""
    found = re.fullmatch(r"(?:(\w+) )?(\w+) (\w+) = (\d+)(?: \[default = (.*)\])?;.*", text)
    assert found, text
    label, kind, name, number, default = found.groups()
    short = {"repeated": "rep.", "required": "req."}.get(label, "")
    if default in CONSTANTS:
        default = CONSTANTS[default]
    elif default is not None and kind in ("float", "double"):
        default = repr(float(default))
    elif default is not None and kind == "string":
        default = repr(ast.literal_eval(default))
    return f"{name}={number}:{short}{kind}" + (f"({default})" if default is not None else "")


def test_the_generated_code_is_that_of_the_file() -> None:
    """After a change of fleet_desc.proto: make proto."""
    text = Path(pb.__file__).with_name("fleet_desc.proto").read_text(encoding="utf-8")
    in_file = {
        name: [written(line) for line in re.findall(r"^ +(\w.* = \d+.*)", body, re.MULTILINE)]
        for name, body in re.findall(r"^message (\w+) {\n(.*?)^}", text, re.MULTILINE | re.DOTALL)
    }
    assert in_file == {
        name: [shown(field) for field in message.fields]
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }


def test_the_service_is_that_of_pslib() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    (method,) = service.methods
    assert (service.name, method.name) == ("PsService", "service")
    assert method.input_type.name == "PsRequestMessage"
    assert method.output_type.name == "PsResponseMessage"


def test_protobuf_is_not_loaded_before_a_description_is() -> None:
    script = "import sys, downpour.plan.plan, downpour.plan.fleet_desc; print(*sys.modules)"
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("google")]
