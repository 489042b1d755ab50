from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TableType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PS_SPARSE_TABLE: _ClassVar[TableType]
    PS_DENSE_TABLE: _ClassVar[TableType]

class FsApiType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HDFS: _ClassVar[FsApiType]
    AFS: _ClassVar[FsApiType]

class PsCmdID(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PS_PULL_DENSE_TABLE: _ClassVar[PsCmdID]
    PS_PUSH_DENSE_TABLE: _ClassVar[PsCmdID]
    PS_PULL_SPARSE_TABLE: _ClassVar[PsCmdID]
    PS_PUSH_SPARSE_TABLE: _ClassVar[PsCmdID]
    PS_SHRINK_TABLE: _ClassVar[PsCmdID]
    PS_SAVE_ONE_TABLE: _ClassVar[PsCmdID]
    PS_SAVE_ALL_TABLE: _ClassVar[PsCmdID]
    PS_LOAD_ONE_TABLE: _ClassVar[PsCmdID]
    PS_LOAD_ALL_TABLE: _ClassVar[PsCmdID]
    PS_CLEAR_ONE_TABLE: _ClassVar[PsCmdID]
    PS_CLEAR_ALL_TABLE: _ClassVar[PsCmdID]
    PS_PUSH_DENSE_PARAM: _ClassVar[PsCmdID]
    PS_STOP_SERVER: _ClassVar[PsCmdID]
    PS_SAVE_ONE_CACHE_TABLE: _ClassVar[PsCmdID]
    PS_GET_CACHE_THRESHOLD: _ClassVar[PsCmdID]
    PS_CACHE_SHUFFLE: _ClassVar[PsCmdID]
    PS_COPY_TABLE: _ClassVar[PsCmdID]
    PS_COPY_TABLE_BY_FEASIGN: _ClassVar[PsCmdID]
    PS_PULL_SPARSE_TABLE_WITH_DEPENDENCY: _ClassVar[PsCmdID]
    PS_PUSH_SPARSE_TABLE_WITH_DEPENDENCY: _ClassVar[PsCmdID]
    PS_PRINT_TABLE_STAT: _ClassVar[PsCmdID]
    PS_SAVE_ONE_TABLE_PREFIX: _ClassVar[PsCmdID]
    PS_SAVE_MEM_CACHE_TABLE: _ClassVar[PsCmdID]
    PS_S2S_MSG: _ClassVar[PsCmdID]
    PS_C2C_PULL_SPARSE_TABLE: _ClassVar[PsCmdID]
PS_SPARSE_TABLE: TableType
PS_DENSE_TABLE: TableType
HDFS: FsApiType
AFS: FsApiType
PS_PULL_DENSE_TABLE: PsCmdID
PS_PUSH_DENSE_TABLE: PsCmdID
PS_PULL_SPARSE_TABLE: PsCmdID
PS_PUSH_SPARSE_TABLE: PsCmdID
PS_SHRINK_TABLE: PsCmdID
PS_SAVE_ONE_TABLE: PsCmdID
PS_SAVE_ALL_TABLE: PsCmdID
PS_LOAD_ONE_TABLE: PsCmdID
PS_LOAD_ALL_TABLE: PsCmdID
PS_CLEAR_ONE_TABLE: PsCmdID
PS_CLEAR_ALL_TABLE: PsCmdID
PS_PUSH_DENSE_PARAM: PsCmdID
PS_STOP_SERVER: PsCmdID
PS_SAVE_ONE_CACHE_TABLE: PsCmdID
PS_GET_CACHE_THRESHOLD: PsCmdID
PS_CACHE_SHUFFLE: PsCmdID
PS_COPY_TABLE: PsCmdID
PS_COPY_TABLE_BY_FEASIGN: PsCmdID
PS_PULL_SPARSE_TABLE_WITH_DEPENDENCY: PsCmdID
PS_PUSH_SPARSE_TABLE_WITH_DEPENDENCY: PsCmdID
PS_PRINT_TABLE_STAT: PsCmdID
PS_SAVE_ONE_TABLE_PREFIX: PsCmdID
PS_SAVE_MEM_CACHE_TABLE: PsCmdID
PS_S2S_MSG: PsCmdID
PS_C2C_PULL_SPARSE_TABLE: PsCmdID

class PSParameter(_message.Message):
    __slots__ = ("worker_class", "server_class", "instance_class", "init_gflags", "worker_param", "server_param", "trainer_param", "fs_client_param", "clip")
    WORKER_CLASS_FIELD_NUMBER: _ClassVar[int]
    SERVER_CLASS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_CLASS_FIELD_NUMBER: _ClassVar[int]
    INIT_GFLAGS_FIELD_NUMBER: _ClassVar[int]
    WORKER_PARAM_FIELD_NUMBER: _ClassVar[int]
    SERVER_PARAM_FIELD_NUMBER: _ClassVar[int]
    TRAINER_PARAM_FIELD_NUMBER: _ClassVar[int]
    FS_CLIENT_PARAM_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    worker_class: str
    server_class: str
    instance_class: str
    init_gflags: str
    worker_param: WorkerParameter
    server_param: ServerParameter
    trainer_param: _containers.RepeatedCompositeFieldContainer[DownpourTrainerParameter]
    fs_client_param: FsClientParameter
    clip: Value
    def __init__(self, worker_class: _Optional[str] = ..., server_class: _Optional[str] = ..., instance_class: _Optional[str] = ..., init_gflags: _Optional[str] = ..., worker_param: _Optional[_Union[WorkerParameter, _Mapping]] = ..., server_param: _Optional[_Union[ServerParameter, _Mapping]] = ..., trainer_param: _Optional[_Iterable[_Union[DownpourTrainerParameter, _Mapping]]] = ..., fs_client_param: _Optional[_Union[FsClientParameter, _Mapping]] = ..., clip: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...

class WorkerParameter(_message.Message):
    __slots__ = ("downpour_worker_param",)
    DOWNPOUR_WORKER_PARAM_FIELD_NUMBER: _ClassVar[int]
    downpour_worker_param: DownpourWorkerParameter
    def __init__(self, downpour_worker_param: _Optional[_Union[DownpourWorkerParameter, _Mapping]] = ...) -> None: ...

class ServerParameter(_message.Message):
    __slots__ = ("downpour_server_param",)
    DOWNPOUR_SERVER_PARAM_FIELD_NUMBER: _ClassVar[int]
    downpour_server_param: DownpourServerParameter
    def __init__(self, downpour_server_param: _Optional[_Union[DownpourServerParameter, _Mapping]] = ...) -> None: ...

class DownpourWorkerParameter(_message.Message):
    __slots__ = ("downpour_table_param",)
    DOWNPOUR_TABLE_PARAM_FIELD_NUMBER: _ClassVar[int]
    downpour_table_param: _containers.RepeatedCompositeFieldContainer[TableParameter]
    def __init__(self, downpour_table_param: _Optional[_Iterable[_Union[TableParameter, _Mapping]]] = ...) -> None: ...

class DownpourServerParameter(_message.Message):
    __slots__ = ("downpour_table_param", "service_param")
    DOWNPOUR_TABLE_PARAM_FIELD_NUMBER: _ClassVar[int]
    SERVICE_PARAM_FIELD_NUMBER: _ClassVar[int]
    downpour_table_param: _containers.RepeatedCompositeFieldContainer[TableParameter]
    service_param: ServerServiceParameter
    def __init__(self, downpour_table_param: _Optional[_Iterable[_Union[TableParameter, _Mapping]]] = ..., service_param: _Optional[_Union[ServerServiceParameter, _Mapping]] = ...) -> None: ...

class ServerServiceParameter(_message.Message):
    __slots__ = ("server_class", "client_class", "service_class", "start_server_port", "server_thread_num")
    SERVER_CLASS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CLASS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    START_SERVER_PORT_FIELD_NUMBER: _ClassVar[int]
    SERVER_THREAD_NUM_FIELD_NUMBER: _ClassVar[int]
    server_class: str
    client_class: str
    service_class: str
    start_server_port: int
    server_thread_num: int
    def __init__(self, server_class: _Optional[str] = ..., client_class: _Optional[str] = ..., service_class: _Optional[str] = ..., start_server_port: _Optional[int] = ..., server_thread_num: _Optional[int] = ...) -> None: ...

class DownpourTrainerParameter(_message.Message):
    __slots__ = ("dense_table", "sparse_table", "push_sparse_per_batch", "push_dense_per_batch", "skip_op", "program_config", "pull_dense_per_batch", "no_grad", "weigh_samples", "detached")
    DENSE_TABLE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TABLE_FIELD_NUMBER: _ClassVar[int]
    PUSH_SPARSE_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    PUSH_DENSE_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    SKIP_OP_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_CONFIG_FIELD_NUMBER: _ClassVar[int]
    PULL_DENSE_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    NO_GRAD_FIELD_NUMBER: _ClassVar[int]
    WEIGH_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    dense_table: _containers.RepeatedCompositeFieldContainer[DenseTableParameter]
    sparse_table: _containers.RepeatedCompositeFieldContainer[SparseTableParameter]
    push_sparse_per_batch: int
    push_dense_per_batch: int
    skip_op: _containers.RepeatedScalarFieldContainer[str]
    program_config: _containers.RepeatedCompositeFieldContainer[ProgramConfig]
    pull_dense_per_batch: int
    no_grad: _containers.RepeatedScalarFieldContainer[str]
    weigh_samples: _containers.RepeatedCompositeFieldContainer[WeighSamples]
    detached: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dense_table: _Optional[_Iterable[_Union[DenseTableParameter, _Mapping]]] = ..., sparse_table: _Optional[_Iterable[_Union[SparseTableParameter, _Mapping]]] = ..., push_sparse_per_batch: _Optional[int] = ..., push_dense_per_batch: _Optional[int] = ..., skip_op: _Optional[_Iterable[str]] = ..., program_config: _Optional[_Iterable[_Union[ProgramConfig, _Mapping]]] = ..., pull_dense_per_batch: _Optional[int] = ..., no_grad: _Optional[_Iterable[str]] = ..., weigh_samples: _Optional[_Iterable[_Union[WeighSamples, _Mapping]]] = ..., detached: _Optional[_Iterable[str]] = ...) -> None: ...

class ProgramConfig(_message.Message):
    __slots__ = ("program_id", "push_sparse_table_id", "push_dense_table_id", "pull_sparse_table_id", "pull_dense_table_id")
    PROGRAM_ID_FIELD_NUMBER: _ClassVar[int]
    PUSH_SPARSE_TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    PUSH_DENSE_TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    PULL_SPARSE_TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    PULL_DENSE_TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    program_id: str
    push_sparse_table_id: _containers.RepeatedScalarFieldContainer[int]
    push_dense_table_id: _containers.RepeatedScalarFieldContainer[int]
    pull_sparse_table_id: _containers.RepeatedScalarFieldContainer[int]
    pull_dense_table_id: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, program_id: _Optional[str] = ..., push_sparse_table_id: _Optional[_Iterable[int]] = ..., push_dense_table_id: _Optional[_Iterable[int]] = ..., pull_sparse_table_id: _Optional[_Iterable[int]] = ..., pull_dense_table_id: _Optional[_Iterable[int]] = ...) -> None: ...

class DenseTableParameter(_message.Message):
    __slots__ = ("table_id", "dense_variable_name", "dense_gradient_variable_name", "fea_dim", "pull_every", "push_every", "scale_datanorm")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    DENSE_VARIABLE_NAME_FIELD_NUMBER: _ClassVar[int]
    DENSE_GRADIENT_VARIABLE_NAME_FIELD_NUMBER: _ClassVar[int]
    FEA_DIM_FIELD_NUMBER: _ClassVar[int]
    PULL_EVERY_FIELD_NUMBER: _ClassVar[int]
    PUSH_EVERY_FIELD_NUMBER: _ClassVar[int]
    SCALE_DATANORM_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    dense_variable_name: _containers.RepeatedScalarFieldContainer[str]
    dense_gradient_variable_name: _containers.RepeatedScalarFieldContainer[str]
    fea_dim: int
    pull_every: int
    push_every: int
    scale_datanorm: float
    def __init__(self, table_id: _Optional[int] = ..., dense_variable_name: _Optional[_Iterable[str]] = ..., dense_gradient_variable_name: _Optional[_Iterable[str]] = ..., fea_dim: _Optional[int] = ..., pull_every: _Optional[int] = ..., push_every: _Optional[int] = ..., scale_datanorm: _Optional[float] = ...) -> None: ...

class SparseTableParameter(_message.Message):
    __slots__ = ("table_id", "feature_dim", "slot_key", "slot_value", "slot_gradient", "times_batch_size", "counts")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_DIM_FIELD_NUMBER: _ClassVar[int]
    SLOT_KEY_FIELD_NUMBER: _ClassVar[int]
    SLOT_VALUE_FIELD_NUMBER: _ClassVar[int]
    SLOT_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    TIMES_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    feature_dim: int
    slot_key: _containers.RepeatedScalarFieldContainer[str]
    slot_value: _containers.RepeatedScalarFieldContainer[str]
    slot_gradient: _containers.RepeatedScalarFieldContainer[str]
    times_batch_size: bool
    counts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, table_id: _Optional[int] = ..., feature_dim: _Optional[int] = ..., slot_key: _Optional[_Iterable[str]] = ..., slot_value: _Optional[_Iterable[str]] = ..., slot_gradient: _Optional[_Iterable[str]] = ..., times_batch_size: bool = ..., counts: _Optional[_Iterable[str]] = ...) -> None: ...

class WeighSamples(_message.Message):
    __slots__ = ("table_id", "feature", "threshold", "ratio")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    RATIO_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    feature: str
    threshold: float
    ratio: float
    def __init__(self, table_id: _Optional[int] = ..., feature: _Optional[str] = ..., threshold: _Optional[float] = ..., ratio: _Optional[float] = ...) -> None: ...

class TableParameter(_message.Message):
    __slots__ = ("table_id", "table_class", "shard_num", "accessor", "type", "compress_in_save", "enable_sparse_table_cache", "sparse_table_cache_rate", "sparse_table_cache_file_num", "sparse_table_mem_cache_rate", "shared_num", "sparse", "dense")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    TABLE_CLASS_FIELD_NUMBER: _ClassVar[int]
    SHARD_NUM_FIELD_NUMBER: _ClassVar[int]
    ACCESSOR_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_IN_SAVE_FIELD_NUMBER: _ClassVar[int]
    ENABLE_SPARSE_TABLE_CACHE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TABLE_CACHE_RATE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TABLE_CACHE_FILE_NUM_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TABLE_MEM_CACHE_RATE_FIELD_NUMBER: _ClassVar[int]
    SHARED_NUM_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    DENSE_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    table_class: str
    shard_num: int
    accessor: TableAccessorParameter
    type: TableType
    compress_in_save: bool
    enable_sparse_table_cache: bool
    sparse_table_cache_rate: float
    sparse_table_cache_file_num: int
    sparse_table_mem_cache_rate: float
    shared_num: int
    sparse: SparseTable
    dense: DenseTable
    def __init__(self, table_id: _Optional[int] = ..., table_class: _Optional[str] = ..., shard_num: _Optional[int] = ..., accessor: _Optional[_Union[TableAccessorParameter, _Mapping]] = ..., type: _Optional[_Union[TableType, str]] = ..., compress_in_save: bool = ..., enable_sparse_table_cache: bool = ..., sparse_table_cache_rate: _Optional[float] = ..., sparse_table_cache_file_num: _Optional[int] = ..., sparse_table_mem_cache_rate: _Optional[float] = ..., shared_num: _Optional[int] = ..., sparse: _Optional[_Union[SparseTable, _Mapping]] = ..., dense: _Optional[_Union[DenseTable, _Mapping]] = ...) -> None: ...

class SparseTable(_message.Message):
    __slots__ = ("name", "feature", "padding_key", "seed", "dtype", "use_cvm", "slots", "click", "counted_by", "exact")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    PADDING_KEY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    USE_CVM_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CLICK_FIELD_NUMBER: _ClassVar[int]
    COUNTED_BY_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    name: str
    feature: _containers.RepeatedCompositeFieldContainer[Feature]
    padding_key: int
    seed: int
    dtype: str
    use_cvm: bool
    slots: bool
    click: str
    counted_by: str
    exact: ExactNumbers
    def __init__(self, name: _Optional[str] = ..., feature: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ..., padding_key: _Optional[int] = ..., seed: _Optional[int] = ..., dtype: _Optional[str] = ..., use_cvm: bool = ..., slots: bool = ..., click: _Optional[str] = ..., counted_by: _Optional[str] = ..., exact: _Optional[_Union[ExactNumbers, _Mapping]] = ...) -> None: ...

class Feature(_message.Message):
    __slots__ = ("name", "space", "unique_ids", "slot")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_IDS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    name: str
    space: str
    unique_ids: bool
    slot: int
    def __init__(self, name: _Optional[str] = ..., space: _Optional[str] = ..., unique_ids: bool = ..., slot: _Optional[int] = ...) -> None: ...

class ExactNumbers(_message.Message):
    __slots__ = ("embedx_threshold", "nonclk_coeff", "click_coeff", "base_threshold", "delta_threshold", "delta_keep_days", "show_click_decay_rate", "delete_threshold", "delete_after_unseen_days")
    EMBEDX_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NONCLK_COEFF_FIELD_NUMBER: _ClassVar[int]
    CLICK_COEFF_FIELD_NUMBER: _ClassVar[int]
    BASE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DELTA_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DELTA_KEEP_DAYS_FIELD_NUMBER: _ClassVar[int]
    SHOW_CLICK_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    DELETE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DELETE_AFTER_UNSEEN_DAYS_FIELD_NUMBER: _ClassVar[int]
    embedx_threshold: float
    nonclk_coeff: float
    click_coeff: float
    base_threshold: float
    delta_threshold: float
    delta_keep_days: float
    show_click_decay_rate: float
    delete_threshold: float
    delete_after_unseen_days: float
    def __init__(self, embedx_threshold: _Optional[float] = ..., nonclk_coeff: _Optional[float] = ..., click_coeff: _Optional[float] = ..., base_threshold: _Optional[float] = ..., delta_threshold: _Optional[float] = ..., delta_keep_days: _Optional[float] = ..., show_click_decay_rate: _Optional[float] = ..., delete_threshold: _Optional[float] = ..., delete_after_unseen_days: _Optional[float] = ...) -> None: ...

class DenseTable(_message.Message):
    __slots__ = ("name", "dtype", "section")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    section: _containers.RepeatedCompositeFieldContainer[Section]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., section: _Optional[_Iterable[_Union[Section, _Mapping]]] = ...) -> None: ...

class Section(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class TableAccessorParameter(_message.Message):
    __slots__ = ("accessor_class", "sparse_sgd_param", "dense_sgd_param", "fea_dim", "embedx_dim", "embedx_threshold", "downpour_accessor_param", "table_accessor_save_param", "sparse_commonsgd_param", "embed_sgd_param", "embedx_sgd_param", "ctr_accessor_param")
    ACCESSOR_CLASS_FIELD_NUMBER: _ClassVar[int]
    SPARSE_SGD_PARAM_FIELD_NUMBER: _ClassVar[int]
    DENSE_SGD_PARAM_FIELD_NUMBER: _ClassVar[int]
    FEA_DIM_FIELD_NUMBER: _ClassVar[int]
    EMBEDX_DIM_FIELD_NUMBER: _ClassVar[int]
    EMBEDX_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DOWNPOUR_ACCESSOR_PARAM_FIELD_NUMBER: _ClassVar[int]
    TABLE_ACCESSOR_SAVE_PARAM_FIELD_NUMBER: _ClassVar[int]
    SPARSE_COMMONSGD_PARAM_FIELD_NUMBER: _ClassVar[int]
    EMBED_SGD_PARAM_FIELD_NUMBER: _ClassVar[int]
    EMBEDX_SGD_PARAM_FIELD_NUMBER: _ClassVar[int]
    CTR_ACCESSOR_PARAM_FIELD_NUMBER: _ClassVar[int]
    accessor_class: str
    sparse_sgd_param: SparseSGDRuleParameter
    dense_sgd_param: DenseSGDRuleParameter
    fea_dim: int
    embedx_dim: int
    embedx_threshold: int
    downpour_accessor_param: DownpourTableAccessorParameter
    table_accessor_save_param: _containers.RepeatedCompositeFieldContainer[TableAccessorSaveParameter]
    sparse_commonsgd_param: SparseCommonSGDRuleParameter
    embed_sgd_param: SparseCommonSGDRuleParameter
    embedx_sgd_param: SparseCommonSGDRuleParameter
    ctr_accessor_param: DownpourTableAccessorParameter
    def __init__(self, accessor_class: _Optional[str] = ..., sparse_sgd_param: _Optional[_Union[SparseSGDRuleParameter, _Mapping]] = ..., dense_sgd_param: _Optional[_Union[DenseSGDRuleParameter, _Mapping]] = ..., fea_dim: _Optional[int] = ..., embedx_dim: _Optional[int] = ..., embedx_threshold: _Optional[int] = ..., downpour_accessor_param: _Optional[_Union[DownpourTableAccessorParameter, _Mapping]] = ..., table_accessor_save_param: _Optional[_Iterable[_Union[TableAccessorSaveParameter, _Mapping]]] = ..., sparse_commonsgd_param: _Optional[_Union[SparseCommonSGDRuleParameter, _Mapping]] = ..., embed_sgd_param: _Optional[_Union[SparseCommonSGDRuleParameter, _Mapping]] = ..., embedx_sgd_param: _Optional[_Union[SparseCommonSGDRuleParameter, _Mapping]] = ..., ctr_accessor_param: _Optional[_Union[DownpourTableAccessorParameter, _Mapping]] = ...) -> None: ...

class DownpourTableAccessorParameter(_message.Message):
    __slots__ = ("nonclk_coeff", "click_coeff", "base_threshold", "delta_threshold", "delta_keep_days", "show_click_decay_rate", "delete_threshold", "delete_after_unseen_days", "ssd_unseenday_threshold", "show_scale", "zero_init")
    NONCLK_COEFF_FIELD_NUMBER: _ClassVar[int]
    CLICK_COEFF_FIELD_NUMBER: _ClassVar[int]
    BASE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DELTA_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DELTA_KEEP_DAYS_FIELD_NUMBER: _ClassVar[int]
    SHOW_CLICK_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    DELETE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DELETE_AFTER_UNSEEN_DAYS_FIELD_NUMBER: _ClassVar[int]
    SSD_UNSEENDAY_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SHOW_SCALE_FIELD_NUMBER: _ClassVar[int]
    ZERO_INIT_FIELD_NUMBER: _ClassVar[int]
    nonclk_coeff: float
    click_coeff: float
    base_threshold: float
    delta_threshold: float
    delta_keep_days: float
    show_click_decay_rate: float
    delete_threshold: float
    delete_after_unseen_days: float
    ssd_unseenday_threshold: int
    show_scale: bool
    zero_init: bool
    def __init__(self, nonclk_coeff: _Optional[float] = ..., click_coeff: _Optional[float] = ..., base_threshold: _Optional[float] = ..., delta_threshold: _Optional[float] = ..., delta_keep_days: _Optional[float] = ..., show_click_decay_rate: _Optional[float] = ..., delete_threshold: _Optional[float] = ..., delete_after_unseen_days: _Optional[float] = ..., ssd_unseenday_threshold: _Optional[int] = ..., show_scale: bool = ..., zero_init: bool = ...) -> None: ...

class TableAccessorSaveParameter(_message.Message):
    __slots__ = ("param", "converter", "deconverter")
    PARAM_FIELD_NUMBER: _ClassVar[int]
    CONVERTER_FIELD_NUMBER: _ClassVar[int]
    DECONVERTER_FIELD_NUMBER: _ClassVar[int]
    param: int
    converter: str
    deconverter: str
    def __init__(self, param: _Optional[int] = ..., converter: _Optional[str] = ..., deconverter: _Optional[str] = ...) -> None: ...

class SparseSGDRuleParameter(_message.Message):
    __slots__ = ("learning_rate", "initial_g2sum", "initial_range", "weight_bounds", "extension")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_G2SUM_FIELD_NUMBER: _ClassVar[int]
    INITIAL_RANGE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    initial_g2sum: float
    initial_range: float
    weight_bounds: _containers.RepeatedScalarFieldContainer[float]
    extension: RuleExtension
    def __init__(self, learning_rate: _Optional[float] = ..., initial_g2sum: _Optional[float] = ..., initial_range: _Optional[float] = ..., weight_bounds: _Optional[_Iterable[float]] = ..., extension: _Optional[_Union[RuleExtension, _Mapping]] = ...) -> None: ...

class SparseCommonSGDRuleParameter(_message.Message):
    __slots__ = ("name", "naive", "adagrad", "adam", "extension")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAIVE_FIELD_NUMBER: _ClassVar[int]
    ADAGRAD_FIELD_NUMBER: _ClassVar[int]
    ADAM_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    naive: SparseNaiveSGDRuleParameter
    adagrad: SparseAdagradSGDRuleParameter
    adam: SparseAdamSGDParameter
    extension: RuleExtension
    def __init__(self, name: _Optional[str] = ..., naive: _Optional[_Union[SparseNaiveSGDRuleParameter, _Mapping]] = ..., adagrad: _Optional[_Union[SparseAdagradSGDRuleParameter, _Mapping]] = ..., adam: _Optional[_Union[SparseAdamSGDParameter, _Mapping]] = ..., extension: _Optional[_Union[RuleExtension, _Mapping]] = ...) -> None: ...

class SparseNaiveSGDRuleParameter(_message.Message):
    __slots__ = ("learning_rate", "initial_range", "weight_bounds")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_RANGE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    initial_range: float
    weight_bounds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, learning_rate: _Optional[float] = ..., initial_range: _Optional[float] = ..., weight_bounds: _Optional[_Iterable[float]] = ...) -> None: ...

class SparseAdagradSGDRuleParameter(_message.Message):
    __slots__ = ("learning_rate", "initial_g2sum", "initial_range", "weight_bounds")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_G2SUM_FIELD_NUMBER: _ClassVar[int]
    INITIAL_RANGE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    initial_g2sum: float
    initial_range: float
    weight_bounds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, learning_rate: _Optional[float] = ..., initial_g2sum: _Optional[float] = ..., initial_range: _Optional[float] = ..., weight_bounds: _Optional[_Iterable[float]] = ...) -> None: ...

class SparseAdamSGDParameter(_message.Message):
    __slots__ = ("learning_rate", "initial_range", "beta1_decay_rate", "beta2_decay_rate", "ada_epsilon", "weight_bounds")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_RANGE_FIELD_NUMBER: _ClassVar[int]
    BETA1_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA2_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    ADA_EPSILON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    initial_range: float
    beta1_decay_rate: float
    beta2_decay_rate: float
    ada_epsilon: float
    weight_bounds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, learning_rate: _Optional[float] = ..., initial_range: _Optional[float] = ..., beta1_decay_rate: _Optional[float] = ..., beta2_decay_rate: _Optional[float] = ..., ada_epsilon: _Optional[float] = ..., weight_bounds: _Optional[_Iterable[float]] = ...) -> None: ...

class DenseSGDRuleParameter(_message.Message):
    __slots__ = ("name", "adam", "naive", "summary", "moving_average", "extension")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADAM_FIELD_NUMBER: _ClassVar[int]
    NAIVE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    MOVING_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    adam: AdamSGDParameter
    naive: NaiveSGDParameter
    summary: SummarySGDParameter
    moving_average: MovingAverageRuleParameter
    extension: RuleExtension
    def __init__(self, name: _Optional[str] = ..., adam: _Optional[_Union[AdamSGDParameter, _Mapping]] = ..., naive: _Optional[_Union[NaiveSGDParameter, _Mapping]] = ..., summary: _Optional[_Union[SummarySGDParameter, _Mapping]] = ..., moving_average: _Optional[_Union[MovingAverageRuleParameter, _Mapping]] = ..., extension: _Optional[_Union[RuleExtension, _Mapping]] = ...) -> None: ...

class AdamSGDParameter(_message.Message):
    __slots__ = ("learning_rate", "avg_decay_rate", "ada_decay_rate", "ada_epsilon", "mom_decay_rate")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    AVG_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    ADA_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    ADA_EPSILON_FIELD_NUMBER: _ClassVar[int]
    MOM_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    avg_decay_rate: float
    ada_decay_rate: float
    ada_epsilon: float
    mom_decay_rate: float
    def __init__(self, learning_rate: _Optional[float] = ..., avg_decay_rate: _Optional[float] = ..., ada_decay_rate: _Optional[float] = ..., ada_epsilon: _Optional[float] = ..., mom_decay_rate: _Optional[float] = ...) -> None: ...

class NaiveSGDParameter(_message.Message):
    __slots__ = ("learning_rate", "avg_decay_rate")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    AVG_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    avg_decay_rate: float
    def __init__(self, learning_rate: _Optional[float] = ..., avg_decay_rate: _Optional[float] = ...) -> None: ...

class SummarySGDParameter(_message.Message):
    __slots__ = ("summary_decay_rate",)
    SUMMARY_DECAY_RATE_FIELD_NUMBER: _ClassVar[int]
    summary_decay_rate: float
    def __init__(self, summary_decay_rate: _Optional[float] = ...) -> None: ...

class MovingAverageRuleParameter(_message.Message):
    __slots__ = ("momentum",)
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    momentum: float
    def __init__(self, momentum: _Optional[float] = ...) -> None: ...

class RuleExtension(_message.Message):
    __slots__ = ("rule", "init", "weight_bounds", "schedule", "weight_decay", "batch_l2")
    RULE_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    BATCH_L2_FIELD_NUMBER: _ClassVar[int]
    rule: Value
    init: Value
    weight_bounds: _containers.RepeatedScalarFieldContainer[float]
    schedule: Value
    weight_decay: float
    batch_l2: float
    def __init__(self, rule: _Optional[_Union[Value, _Mapping]] = ..., init: _Optional[_Union[Value, _Mapping]] = ..., weight_bounds: _Optional[_Iterable[float]] = ..., schedule: _Optional[_Union[Value, _Mapping]] = ..., weight_decay: _Optional[float] = ..., batch_l2: _Optional[float] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("type", "setting")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    type: str
    setting: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, type: _Optional[str] = ..., setting: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("name", "truth", "whole", "number", "text", "value", "list", "tuple")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    TUPLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    truth: bool
    whole: int
    number: float
    text: str
    value: Value
    list: Settings
    tuple: Settings
    def __init__(self, name: _Optional[str] = ..., truth: bool = ..., whole: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ..., list: _Optional[_Union[Settings, _Mapping]] = ..., tuple: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("item",)
    ITEM_FIELD_NUMBER: _ClassVar[int]
    item: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, item: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class FsClientParameter(_message.Message):
    __slots__ = ("fs_type", "uri", "user", "passwd", "buffer_size", "hadoop_bin", "afs_conf")
    FS_TYPE_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    PASSWD_FIELD_NUMBER: _ClassVar[int]
    BUFFER_SIZE_FIELD_NUMBER: _ClassVar[int]
    HADOOP_BIN_FIELD_NUMBER: _ClassVar[int]
    AFS_CONF_FIELD_NUMBER: _ClassVar[int]
    fs_type: FsApiType
    uri: str
    user: str
    passwd: str
    buffer_size: int
    hadoop_bin: str
    afs_conf: str
    def __init__(self, fs_type: _Optional[_Union[FsApiType, str]] = ..., uri: _Optional[str] = ..., user: _Optional[str] = ..., passwd: _Optional[str] = ..., buffer_size: _Optional[int] = ..., hadoop_bin: _Optional[str] = ..., afs_conf: _Optional[str] = ...) -> None: ...

class PsRequestMessage(_message.Message):
    __slots__ = ("cmd_id", "table_id", "params", "client_id", "data")
    CMD_ID_FIELD_NUMBER: _ClassVar[int]
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    cmd_id: int
    table_id: int
    params: _containers.RepeatedScalarFieldContainer[bytes]
    client_id: int
    data: bytes
    def __init__(self, cmd_id: _Optional[int] = ..., table_id: _Optional[int] = ..., params: _Optional[_Iterable[bytes]] = ..., client_id: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PsResponseMessage(_message.Message):
    __slots__ = ("err_code", "err_msg", "data")
    ERR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERR_MSG_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    err_code: int
    err_msg: str
    data: bytes
    def __init__(self, err_code: _Optional[int] = ..., err_msg: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...
