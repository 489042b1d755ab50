"""What is not supported, and what contradicts itself, is refused with its line and its field.

Each case is a file of three lines: a sparse table's own fields, its accessor, and the rest.
"""

from __future__ import annotations

import pytest

import downpour as dp
from downpour.plan.fleet_desc.description import read_text

CTR = "accessor_class: 'DownpourCtrAccessor'"
PLAIN = "accessor_class: 'DownpourSparseValueAccessor'"
UNIT = "accessor_class: 'DownpourUnitAccessor' embedx_sgd_param { naive { } }"
DENSE = "accessor_class: 'DownpourDenseValueAccessor'"
SPARSE_TABLE = "table_class: 'DownpourSparseTable'"
DENSE_TABLE = "table_class: 'DownpourDenseTable'"


def refusal(table: str, accessor: str, rest: str = "") -> str:
    """What is said of a file of one table."""
    text = (
        f"server_param {{ downpour_server_param {{ downpour_table_param {{ {table}\n"
        f"accessor {{ {accessor} }} }} }} }}\n{rest}"
    )
    with pytest.raises(dp.PlanError) as caught:
        read_text(text, "f")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DownpourSparseSSDTable", ": rows are in memory, not on disk"),
        ("SSDSparseTable", ": rows are in memory, not on disk"),
        ("MemorySparseGeoTable", ": rows are pushed as gradients, not as differences"),
        ("CommonSparseTable", ": its rules are in a message of older versions"),
        ("GraphTable", ""),
        ("TensorTable", ""),
        ("DenseTensorTable", ""),
        ("GlobalStepTable", ""),
        ("BarrierTable", ""),
        ("", ""),
    ],
)
def test_a_table_that_is_not_supported_is_refused(name: str, why: str) -> None:
    said = refusal(f"table_class: '{name}'", CTR)
    assert said == (
        f"f:1: table_class: {name!r} is not supported{why}; take DownpourSparseTable or "
        "MemorySparseTable or DownpourDenseTable or MemoryDenseTable"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DownpourCtrDymfAccessor", ": its embedx has another width for each feature"),
        ("CtrDymfAccessor", ": its embedx has another width for each feature"),
        ("CommMergeAccessor", ": the rule of its rows is not in this message"),
        ("DownpourDenseValueAccessor", ""),
        ("Own", ""),
    ],
)
def test_an_accessor_that_is_not_supported_is_refused(name: str, why: str) -> None:
    said = refusal(SPARSE_TABLE, f"accessor_class: '{name}'")
    assert said.startswith(f"f:2: accessor_class: {name!r} is not supported{why}; take DownpourCtr")


@pytest.mark.parametrize(
    ("table", "accessor", "said"),
    [
        (f"{SPARSE_TABLE} type: PS_DENSE_TABLE", CTR, "f:1: type: must be PS_SPARSE_TABLE for Do"),
        (f"{DENSE_TABLE} type: PS_SPARSE_TABLE", DENSE, "f:1: type: must be PS_DENSE_TABLE for Do"),
        (f"{SPARSE_TABLE} shard_num: 0", CTR, "f:1: shard_num: TableFiles.shard_num must be an"),
        (f"{SPARSE_TABLE} shard_num: 1 shared_num: 1", CTR, "f:1: shared_num: is the first versio"),
        (f"{SPARSE_TABLE} sparse_table_cache_rate: 2", CTR, "f:1: sparse_table_cache_rate: TableF"),
        (f"{SPARSE_TABLE} sparse {{ exact {{ embedx_threshold: inf }} }}", CTR,
            "f:1: embedx_threshold: must be a finite number, got inf"),
        (SPARSE_TABLE, "accessor_class: 'CtrCommonAccessor' embedx_sgd_param { naive { } } "
            "embed_sgd_param { naive { } extension { init { type: 'Constant' } } }",
            "f:2: init: w begins at 0 by CtrCommonAccessor or zero_init; take one of the two out"),
        (f"{SPARSE_TABLE} dense {{ }}", CTR, "f:1: dense: DownpourSparseTable does not read it"),
        (f"{DENSE_TABLE} sparse {{ }}", DENSE, "f:1: sparse: DownpourDenseTable does not read it"),
        (SPARSE_TABLE, f"{CTR} embedx_dim: 0", "f:2: embedx_dim: CtrAccessor.embedx_dim must be"),
        (SPARSE_TABLE, f"{PLAIN} embedx_dim: 0 sparse_commonsgd_param {{ naive {{ }} }}",
            "f:2: embedx_dim: EmbeddingAccessor.dim must be an int >= 1, got 0"),
        (SPARSE_TABLE, f"{CTR} embedx_dim: 8 fea_dim: 12", "f:2: fea_dim: must be embedx_dim + 3,"),
        (SPARSE_TABLE, f"{CTR} fea_dim: 3", "f:2: fea_dim: must be embedx_dim + 3, at least 4, go"),
        (SPARSE_TABLE, f"{PLAIN} embedx_dim: 8 fea_dim: 11", "f:2: fea_dim: must be embedx_dim, 8"),
        (SPARSE_TABLE, f"{CTR} ctr_accessor_param {{ }} downpour_accessor_param {{ }}",
            "f:2: ctr_accessor_param: is the_one_ps's name of downpour_accessor_param; keep one"),
        (SPARSE_TABLE, f"{CTR} dense_sgd_param {{ }}", "f:2: dense_sgd_param: DownpourCtrAccessor"),
        (SPARSE_TABLE, f"{CTR} embed_sgd_param {{ }}", "f:2: embed_sgd_param: DownpourCtrAccessor"),
        (SPARSE_TABLE, f"{UNIT} sparse_sgd_param {{ }}", "f:2: sparse_sgd_param: DownpourUnitAcce"),
        (SPARSE_TABLE, f"{PLAIN} embedx_threshold: 1", "f:2: embedx_threshold: DownpourSparseValu"),
        (SPARSE_TABLE, f"{PLAIN} downpour_accessor_param {{ }}", "f:2: downpour_accessor_param: D"),
        (DENSE_TABLE, f"{DENSE} embedx_dim: 1", "f:2: embedx_dim: DownpourDenseValueAccessor does"),
        (DENSE_TABLE, CTR, "f:2: accessor_class: 'DownpourCtrAccessor' is not supported on a dens"),
        (f"{SPARSE_TABLE} sparse {{ slots: true }}",
            "accessor_class: 'DownpourFeatureValueAccessor'",
            "f:1: slots: DownpourFeatureValueAccessor keeps no slots; take DownpourCtrAccessor"),
    ],
)  # fmt: skip
def test_a_table_that_contradicts_itself_is_refused(table: str, accessor: str, said: str) -> None:
    assert refusal(table, accessor).startswith(said)


@pytest.mark.parametrize(
    ("accessor", "said"),
    [
        ("sparse_sgd_param { learning_rate: 0 }", "learning_rate: G2SumAdagrad.lr must be a finit"),
        ("sparse_sgd_param { learning_rate: inf }", "learning_rate: G2SumAdagrad.lr must be a fin"),
        ("sparse_sgd_param { initial_g2sum: -1 }", "initial_g2sum: G2SumAdagrad.initial_g2sum mus"),
        ("sparse_sgd_param { initial_range: -1 }", "initial_range: must be finite and >= 0, got -"),
        ("sparse_sgd_param { initial_range: nan }", "initial_range: must be finite and >= 0, got "),
        ("sparse_sgd_param { weight_bounds: 1 }", "weight_bounds: must be two numbers, or none fo"),
        ("sparse_sgd_param { weight_bounds: [1, 1] }", "weight_bounds: CtrAccessor.bounds must"),
        ("sparse_sgd_param { weight_bounds: [-inf, 1] }", "weight_bounds: CtrAccessor.bounds must"),
        ("sparse_sgd_param { extension { rule { } } }", "rule: the one Adagrad of a row does not "),
        ("embedx_threshold: 7.5", "embedx_threshold: must be a whole number from 0 to 4294967295,"),
        ("downpour_accessor_param { nonclk_coeff: -1 }", "nonclk_coeff: CtrAccessor.nonclk_coeff "),
        ("downpour_accessor_param { base_threshold: 1e39 }", "base_threshold: must be a finite nu"),
        ("downpour_accessor_param { show_click_decay_rate: 1.5 }",
            "show_click_decay_rate: Lifecycle.show_click_decay_rate must be at most 1, got 1.5"),
        ("downpour_accessor_param { ssd_unseenday_threshold: -1 }", "ssd_unseenday_threshold: Lif"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused(accessor: str, said: str) -> None:
    assert refusal(SPARSE_TABLE, f"{CTR} {accessor}").startswith(f"f:2: {said}")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "name: must be one of naive, adagrad, std_adagrad, adam, SparseNaive"),
        ("naive { } adam { }", "name: must be one of naive, adagrad"),
        ("name: 'SparseAdaGradV2SGDRule'", "name: must be one of naive, adagrad, std_adagrad"),
        ("name: 'naive' adam { }", "adam: rule 'naive' does not read it; take it out"),
        ("name: 'adam' adam { beta2_decay_rate: 1 }", "beta2_decay_rate: RowAdam.betas[1] must be"),
        ("name: 'adam' adam { ada_epsilon: -1 }", "ada_epsilon: RowAdam.eps must be a finite"),
        ("naive { } extension { weight_decay: 100 }", "weight_decay: SGD: lr * weight_decay m"),
        ("naive { initial_range: 1 } extension { init { type: 'Constant' } }",
            "initial_range: there is an extension { init {...} } too; keep one"),
        ("naive { } extension { rule { type: 'SGD' } }", "naive: a rule of Downpour's own does no"),
        ("extension { rule { type: 'Own' } }", "type: must be one of SGD, Adagrad, Adam, Ftrl"),
        ("extension { rule { type: 'AdamD2Sum' } }", "type: must be one of SGD, Adagrad, Adam, Ft"),
        ("extension { rule { type: 'SGD' } init { type: 'Constant' } }",
            "type: SGD needs a setting of name 'lr'"),
        ("extension { rule { type: 'SGD' setting { name: 'lr' number: 1 } } }",
            "init: is missing: the first value, by a rule of Downpour's own"),
    ],
)  # fmt: skip
def test_a_rule_of_rows_that_cannot_be_is_refused(rule: str, said: str) -> None:
    assert refusal(SPARSE_TABLE, f"{PLAIN} sparse_commonsgd_param {{ {rule} }}").startswith(
        f"f:2: {said}"
    )


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "name: must be one of adam, naive, summary, got ''"),
        ("name: 'moving_average'", "name: no formula of 'moving_average' is known; take adam or n"),
        ("moving_average { }", "name: no formula of 'moving_average' is known; take adam or naive"),
        ("name: 'sgd'", "name: must be one of adam, naive, summary, got 'sgd'"),
        ("adam { avg_decay_rate: inf }", "avg_decay_rate: must be a finite number, got inf"),
        ("naive { avg_decay_rate: nan }", "avg_decay_rate: must be a finite number, got nan"),
        ("adam { mom_decay_rate: 1 }", "mom_decay_rate: AdamD2Sum.mom_decay must be a finite numb"),
        ("summary { summary_decay_rate: 2 }", "summary_decay_rate: Summary.decay must be at most "),
        ("naive { } extension { init { } }", "init: the rule of a dense table does not read it"),
        ("extension { rule { type: 'RowAdam' } }", "type: must be one of SGD, Adagrad, Adam, Adam"),
        ("adam { } extension { rule { type: 'SGD' } }", "adam: a rule of Downpour's own does not "),
    ],
)  # fmt: skip
def test_a_rule_of_dense_tables_that_cannot_be_is_refused(rule: str, said: str) -> None:
    accessor = f"{DENSE} dense_sgd_param {{ {rule} }}"
    assert refusal(DENSE_TABLE, accessor).startswith(f"f:2: {said}")


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("trainer_param { push_sparse_per_batch: 2 }", "push_sparse_per_batch: must be 1, got 2: "),
        ("trainer_param { push_dense_per_batch: 0 }", "push_dense_per_batch: must be at least 1, "),
        ("trainer_param { pull_dense_per_batch: -1 }", "pull_dense_per_batch: must be at least 1,"),
        ("trainer_param { sparse_table { table_id: 7 } }", "table_id: there is no sparse table 7;"),
        ("trainer_param { dense_table { table_id: 0 } }", "table_id: there is no dense table 0; t"),
        ("trainer_param { sparse_table { } sparse_table { } }", "table_id: 0 is given twice; keep"),
        ("trainer_param { sparse_table { feature_dim: 9 } }", "feature_dim: must be 11, the fea_d"),
        ("trainer_param { sparse_table { slot_key: 'a' slot_value: ['b', 'c'] } }",
            "slot_value: must be 1, as slot_key, got 2"),
        ("trainer_param { sparse_table { slot_gradient: 'a' } }", "slot_gradient: must be at most"),
        ("trainer_param { program_config { } }", "program_id: is missing: the program's name"),
        ("trainer_param { program_config { program_id: 'a' pull_sparse_table_id: [0, 1] } }",
            "pull_sparse_table_id[1]: there is no sparse table 1; there are 0"),
        ("trainer_param { program_config { program_id: 'a' push_dense_table_id: 0 } }",
            "push_dense_table_id: there is no dense table 0; there are none"),
        ("trainer_param { sparse_table { } program_config { program_id: 'a' } }",
            "table_id: no program_config names table 0; name it there"),
        ("trainer_param { no_grad: 'a' }", "no_grad: is of a plan's own description, whose tables"),
        ("trainer_param { detached: 'a' }", "detached: is of a plan's own description, whose tabl"),
        ("trainer_param { sparse_table { counts: 'a' } }", "counts: is of a plan's own descripti"),
        ("fs_client_param { fs_type: HDFS } clip { type: 'SGD' }", "type: must be one of ClipByNo"),
        ("worker_param { downpour_worker_param { downpour_table_param { table_id: 9 } } }",
            "table_id: 9 differs from the server's table of that id"),
    ],
)  # fmt: skip
def test_what_is_around_the_tables_is_refused(rest: str, said: str) -> None:
    accessor = f"{CTR} embedx_dim: 8"
    assert refusal(SPARSE_TABLE, accessor, rest).startswith(f"f:3: {said}")


@pytest.mark.parametrize("name", ["server_class", "client_class", "service_class"])
def test_a_class_of_the_service_that_is_not_the_references_is_refused(name: str) -> None:
    text = f"server_param {{ downpour_server_param {{ service_param {{\n{name}: 'Own'"
    with pytest.raises(dp.PlanError, match=rf"f:2: {name}: must be one of Downpour.*, got 'Own'"):
        read_text(f"{text} }} }} }}", "f")


@pytest.mark.parametrize("name", ["start_server_port: 65536", "server_thread_num: 0"])
def test_a_service_that_cannot_be_is_refused(name: str) -> None:
    text = f"server_param {{ downpour_server_param {{ service_param {{\n{name} }} }} }}"
    with pytest.raises(dp.PlanError, match=rf"f:2: {name.partition(':')[0]}: Service\..* must be"):
        read_text(text, "f")


def test_two_tables_of_one_id_are_refused() -> None:
    tables = [
        f"downpour_table_param {{ table_id: 3 {SPARSE_TABLE} accessor {{ {CTR} }} }}",
        f"downpour_table_param {{\ntable_id: 3 {DENSE_TABLE} accessor {{ {DENSE} }} }}",
    ]
    text = f"server_param {{ downpour_server_param {{\n{tables[0]}\n{tables[1]} }} }}"
    with pytest.raises(
        dp.PlanError, match=r"f:4: table_id: 3 is the id of another table too \(f:2\)"
    ):
        read_text(text, "f")


@pytest.mark.parametrize("fea_dim", [8, 9])
def test_the_width_of_a_dense_table_is_that_of_its_trainer(fea_dim: int) -> None:
    accessor = f"{DENSE} fea_dim: 9 dense_sgd_param {{ naive {{ }} }}"
    text = (
        f"server_param {{ downpour_server_param {{ downpour_table_param {{ {DENSE_TABLE}\n"
        f"accessor {{ {accessor} }} }} }} }}\n"
        f"trainer_param {{ dense_table {{ fea_dim: {fea_dim} }} }}"
    )
    if fea_dim == 9:
        assert read_text(text, "f").dense[0].fea_dim == 9
        return
    with pytest.raises(dp.PlanError, match="f:3: fea_dim: must be 9, the fea_dim of its table"):
        read_text(text, "f")


def test_gradients_stand_beside_their_parameters() -> None:
    accessor = f"{DENSE} dense_sgd_param {{ naive {{ }} }}"
    names = "dense_variable_name: ['a', 'b'] dense_gradient_variable_name: 'a@GRAD'"
    said = refusal(DENSE_TABLE, accessor, f"trainer_param {{ dense_table {{ {names} }} }}")
    assert said == "f:3: dense_gradient_variable_name: must be 2, as dense_variable_name, got 1"
