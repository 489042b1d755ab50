"""TorchRec's table in `train_step`: fbgemm's fused CPU table, bare and in its module wrapper."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.train_step_torch import DenseSide

if TYPE_CHECKING:
    from benchmarks.train_step_job import Batches, Job

warnings.filterwarnings("ignore")  # deprecations inside the two packages, hundreds of lines


class TorchRecSide(DenseSide, ABC):
    """What both ways share: the dense side of plain PyTorch, and ids feature after feature.

    That is the layout of a KeyedJaggedTensor; the table takes it without a conversion.
    """

    def __init__(self, job: Job, batches: Batches) -> None:
        super().__init__(job, batches)
        ids = torch.from_numpy(batches.ids)  # [num_batches, batch_size, num_features]
        self.values = ids.transpose(1, 2).reshape(job.num_batches, -1)

    @abstractmethod
    def lookup(self, index: int) -> Tensor:
        """Pooled rows [batch_size, num_features * dim]."""

    def step(self, index: int) -> float:
        self.adam.zero_grad()
        loss = self.loss(self.lookup(index), index)
        loss.backward()  # type: ignore[no-untyped-call]  # updates the table, too
        self.adam.step()
        return loss.item()

    def facts(self) -> dict[str, object]:
        packages = {"torchrec": "torchrec", "fbgemm": "fbgemm_gpu-cpu"}
        return {"versions": {name: metadata.version(package) for name, package in packages.items()}}


class FusedTable(TorchRecSide):
    """One `SplitTableBatchedEmbeddingBagsCodegen` on the host, all features on its one table."""

    def __init__(self, job: Job, batches: Batches) -> None:
        super().__init__(job, batches)
        from fbgemm_gpu import (  # type: ignore[import-not-found]
            split_table_batched_embeddings_ops_common as common,
        )
        from fbgemm_gpu import (
            split_table_batched_embeddings_ops_training as training,
        )
        from fbgemm_gpu.split_embedding_configs import (  # type: ignore[import-not-found]
            EmbOptimType,
        )

        location, device = common.EmbeddingLocation.HOST, training.ComputeDevice.CPU
        self.table = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(job.num_ids, job.dim, location, device)],
            feature_table_map=[0] * job.num_features,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=job.embedding_lr,
            eps=job.eps,
            bounds_check_mode=common.BoundsCheckMode.NONE,  # its best case: the ids are good
        )
        self.table.init_embedding_weights_uniform(-job.init_bound, job.init_bound)
        self.offsets = torch.arange(self.values.shape[1] + 1)

    def lookup(self, index: int) -> Tensor:
        rows: Tensor = self.table(self.values[index], self.offsets)
        return rows


class ModelParallel(TorchRecSide):
    """The same table behind `EmbeddingBagCollection` and `DistributedModelParallel`, one rank."""

    def __init__(self, job: Job, batches: Batches) -> None:
        super().__init__(job, batches)
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        features = [f"c{number}" for number in range(job.num_features)]
        self.collection = _shard(job, features)
        lengths = torch.ones(self.values.shape[1], dtype=torch.int64)
        self.bags = [KeyedJaggedTensor(features, values, lengths=lengths) for values in self.values]

    def lookup(self, index: int) -> Tensor:
        rows: Tensor = self.collection(self.bags[index]).values()
        return rows


def _shard(job: Job, features: list[str]) -> Any:
    """Return the collection as DistributedModelParallel runs it."""
    import torchrec
    from torch import distributed
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    config = torchrec.EmbeddingBagConfig(
        name="table",
        embedding_dim=job.dim,
        num_embeddings=job.num_ids,
        feature_names=features,
        weight_init_min=-job.init_bound,
        weight_init_max=job.init_bound,
    )
    collection = torchrec.EmbeddingBagCollection([config], device=torch.device("meta"))
    settings = {"lr": job.embedding_lr, "eps": job.eps}
    apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), settings)
    model = nn.ModuleList([collection])
    sharders = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=1, compute_device="cpu"))
    parallel = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=planner.plan(model, sharders),
        sharders=sharders,
    )
    return parallel.module[0]
