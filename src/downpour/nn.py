"""The torch side of a sparse table: a module that reads rows by key and pools them in bags."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, get_args

import numpy as np
import torch
from torch._compile import _disable_dynamo

from downpour.accessor import NUM_COUNTS
from downpour.errors import DataError, PlanError, SettingError
from downpour.init import Uniform
from downpour.plan.specs import plan_name
from downpour.pooling import BagLayout, pool
from downpour.transfer import placed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from downpour.client import Client
    from downpour.features import Batch
    from downpour.init import Init
    from downpour.lookup import Bag, TableKeys

Pooling: TypeAlias = Literal["sum", "mean", "none"]
Keep: TypeAlias = Literal["oldest", "newest"]
DEFAULT_INIT = Uniform(0.01)
ELSEWHERE = "elsewhere"
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class RowSource(Protocol):
    """Who gives a module its rows: a worker, a loaded run, or the planner."""

    def rows(
        self, table: str, features: tuple[str, ...], batch: Batch
    ) -> tuple[torch.Tensor, TableKeys]:
        """Return the rows [num_unique, dim] of the batch's keys, and where each id's row is."""


@dataclass(frozen=True, slots=True)
class JaggedRows:
    """The unpooled rows of one feature: `values` [num_ids, dim], `offsets` [batch + 1] int64.

    Both are on the model's device.
    """

    values: torch.Tensor
    offsets: torch.Tensor

    def to_padded(
        self, max_length: int | None = None, *, keep: Keep = "oldest"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows [batch, max_length, dim], padded with zeros, and a mask [batch, max_length].

        max_length: ids that are kept of a bag; None, the longest bag's number. keep: of a longer
        bag, "oldest" keeps the first ids and "newest" the last ones, in their order: a history that
        was written in order of time has its newest ids last. Padding comes behind the ids either
        way. Raises SettingError for another `keep` or a negative length.
        """
        if keep not in get_args(Keep):
            raise SettingError(f"to_padded: keep must be one of {get_args(Keep)}, got {keep!r}")
        if max_length is not None and max_length < 0:
            raise SettingError(f"to_padded: max_length must be at least 0, got {max_length}")
        lengths = self.offsets.diff()
        if max_length is None:
            max_length = int(lengths.max()) if len(lengths) else 0
        within = torch.arange(max_length, device=lengths.device)
        mask = within < lengths.unsqueeze(1)
        first = self.offsets[:-1]
        if keep == "newest":
            first = self.offsets[1:] - lengths.clamp(max=max_length)
        place = (first.unsqueeze(1) + within)[mask]
        padded = self.values.new_zeros(len(lengths), max_length, self.values.shape[1])
        return padded.masked_scatter(mask.unsqueeze(-1), self.values[place]), mask


class SparseEmbedding(torch.nn.Module):
    """Rows of a sparse table for some features of a batch; there is no vocabulary size.

    Args:
        features: the features to read, one or several; each may have any number of ids a sample.
        dim: the width of a row as the model sees it. Where the table's rows are those of a
            `CtrAccessor`, that is embedx_dim + 3 with `use_cvm` and embedx_dim + 1 without.
        pooling: how a feature's rows are reduced in a sample: "sum", "mean" (weighted by the ids'
            weights if it has them: sum of w * row over sum of w), or "none". An empty bag is zero.
        table: the table's name; modules that give the same one share its rows. By default it is
            the module's own name in the model.
        spaces: the id space of features that do not have one of their own, as
            `{"history": "item"}`; None takes all ids as globally unique.
        padding_key: an id that only fills space and is never looked up; -1 is 2**64 - 1, as in
            int64 ids.
        init: the initial values of a row.
        bounds: limits of a weight, applied after each update.
        use_cvm: begin each row with log(show + 1) and log(click + 1) - log(show + 1) of the pooled
            show and click of CTR rows; without, the two are dropped. No gradient goes there.
        dtype: torch.float32 or torch.float64.

    `forward(batch)` returns a tensor [batch, num_features, dim] or, without pooling,
    a dict of `JaggedRows` by feature.
    """

    # The client whose rows it was trained with; ELSEWHERE for a copy or a pickle of such a module.
    trained_with: Client | str | None = None

    def __init__(
        self,
        features: str | Sequence[str],
        dim: int,
        *,
        pooling: Pooling = "sum",
        table: str | None = None,
        spaces: Mapping[str, str] | None = {},
        padding_key: int | None = None,
        init: Init = DEFAULT_INIT,
        bounds: tuple[float, float] | None = None,
        use_cvm: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.features = (features,) if isinstance(features, str) else tuple(features)
        self.dim, self.pooling, self.table = dim, pooling, table
        self.spaces = None if spaces is None else dict(spaces)
        self.padding_key, self.init, self.bounds = padding_key, init, bounds
        self.use_cvm = use_cvm
        self.dtype = _DTYPES.get(dtype, "")
        self._check(dtype)
        self.source: RowSource | None = None

    def _check(self, dtype: torch.dtype) -> None:
        named = all(type(feature) is str and feature for feature in self.features)
        if not self.features or not named or len(set(self.features)) < len(self.features):
            raise SettingError(
                f"SparseEmbedding.features must be one or more different names, got {self.features}"
            )
        if type(self.dim) is not int or self.dim < 1:
            raise SettingError(f"SparseEmbedding.dim must be an int >= 1, got {self.dim!r}")
        if self.padding_key is not None:
            if type(self.padding_key) is not int or not -(2**63) <= self.padding_key < 2**64:
                raise SettingError(
                    f"SparseEmbedding.padding_key must be an int of 64 bits, got "
                    f"{self.padding_key!r}"
                )
            self.padding_key %= 2**64
        if self.pooling not in get_args(Pooling):
            raise SettingError(
                f"SparseEmbedding.pooling must be one of {get_args(Pooling)}, got {self.pooling!r}"
            )
        if type(self.use_cvm) is not bool:
            raise SettingError(f"SparseEmbedding.use_cvm must be a bool, got {self.use_cvm!r}")
        if not self.dtype:
            raise SettingError(
                f"SparseEmbedding.dtype must be torch.float32 or torch.float64, got {dtype}"
            )
        unknown = set(self.spaces or ()) - set(self.features)
        if unknown:
            raise SettingError(
                f"SparseEmbedding.spaces names {sorted(unknown)}, which are not among its features "
                f"{self.features}"
            )

    def connect(self, source: RowSource | None) -> None:
        """Read rows from `source` from now on; None disconnects."""
        self.source = source

    def space_of(self, feature: str) -> str | None:
        """Return the id space of a feature."""
        return None if self.spaces is None else self.spaces.get(feature, feature)

    def forward(self, batch: Batch) -> torch.Tensor | dict[str, JaggedRows]:
        """Read and pool the rows of the batch."""
        if torch.compiler.is_dynamo_compiling():
            return _uncompiled(self, batch)
        return self._read(batch)

    def _read(self, batch: Batch) -> torch.Tensor | dict[str, JaggedRows]:
        if self.source is None:
            raise PlanError(
                f"SparseEmbedding {self.features} is not connected to a table: give its model to "
                "downpour.Worker, or load a saved run with downpour.load"
            )
        rows, keys = self.source.rows(cast("str", self.table), self.features, batch)
        bags = [keys.bags[feature] for feature in self.features]
        if self.pooling == "none":
            seen = self._seen(rows)
            return {
                feature: _unpooled(seen, keys, bag)
                for feature, bag in zip(self.features, bags, strict=True)
            }
        return self._seen(pool(rows, _layout(keys, bags, self)))

    def _seen(self, rows: torch.Tensor) -> torch.Tensor:
        """What the model sees of rows [..., pull_dim], which begin with show and click in a CTR
        table: [..., dim].
        """
        if self.use_cvm:
            return cvm(rows)
        return rows if rows.shape[-1] == self.dim else rows[..., NUM_COUNTS:]

    def extra_repr(self) -> str:
        """Say what the module reads."""
        cvm = ", use_cvm=True" if self.use_cvm else ""
        return f"features={self.features}, dim={self.dim}, pooling={self.pooling!r}{cvm}"

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle is not connected, but it still knows that rows belong to it."""
        trained_with = None if self.trained_with is None else ELSEWHERE
        return {**self.__dict__, "source": None, "trained_with": trained_with}


# A compiled model calls this as it is: numpy and kernels have no place in a graph. The lazy form of
# torch.compiler.disable, which would import the compiler, a second or so, for those without it too.
_uncompiled = _disable_dynamo(SparseEmbedding._read)


def cvm(rows: torch.Tensor) -> torch.Tensor:
    """Replace show and click, at the head of rows [..., 2 + k], by the logarithms of the reference.

    y0 = log(show + 1), y1 = log(click + 1) - log(show + 1) (Paddle, cvm_op.h 00444507). The two get
    no gradient: a push brings the counts themselves.
    """
    show, click = rows[..., :NUM_COUNTS].detach().clamp_min(0.0).log1p().unbind(-1)
    return torch.cat([torch.stack([show, click - show], -1), rows[..., NUM_COUNTS:]], -1)


def sparse_embeddings(model: torch.nn.Module) -> Iterator[SparseEmbedding]:
    """Yield each SparseEmbedding of a model once; one without a table takes its own name's."""
    for name, module in model.named_modules():
        if isinstance(module, SparseEmbedding):
            if module.table is None:
                module.table = plan_name(name) or "embedding"
            yield module


@contextlib.contextmanager
def connected(model: torch.nn.Module, source: RowSource) -> Iterator[None]:
    """Let a model's SparseEmbeddings read from `source`, and then from where they did before."""
    modules = list(sparse_embeddings(model))
    before = [module.source for module in modules]
    for module in modules:
        module.connect(source)
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.connect(was)


def _unpooled(rows: torch.Tensor, keys: TableKeys, bag: Bag) -> JaggedRows:
    inverse = placed(keys.inverse[bag.start : bag.stop], rows.device)
    values = torch.nn.functional.embedding(inverse, rows)
    if bag.weights is not None:
        values = values * placed(bag.weights, rows.device).to(rows.dtype).unsqueeze(1)
    offsets = np.arange(keys.batch_size + 1) if bag.offsets is None else bag.offsets
    return JaggedRows(values, placed(offsets, rows.device))


def _layout(keys: TableKeys, bags: list[Bag], module: SparseEmbedding) -> BagLayout:
    jagged = [bag.offsets for bag in bags if bag.offsets is not None]
    sizes = [0 if bag.offsets is None else len(bag.offsets) for bag in bags]
    ends = np.cumsum(sizes)
    return BagLayout(
        batch_size=keys.batch_size,
        inverse=keys.inverse,
        starts=np.array([bag.start for bag in bags], dtype=np.int64),
        offset_at=np.where(np.array(sizes) == 0, -1, ends - sizes).astype(np.int64),
        offsets=np.concatenate(jagged) if jagged else np.zeros(0, dtype=np.int64),
        scale=_scale(keys, bags, module),
    )


def _scale(keys: TableKeys, bags: list[Bag], module: SparseEmbedding) -> NDArray[np.floating]:
    """Return the factor of each id in its bag's sum; empty where every factor is 1."""
    mean = module.pooling == "mean" and any(bag.offsets is not None for bag in bags)
    if not mean and all(bag.weights is None for bag in bags):
        return np.zeros(0, dtype=module.dtype)
    scale = np.ones(len(keys.inverse), dtype=module.dtype)
    for feature, bag in zip(module.features, bags, strict=True):
        factors = scale[bag.start : bag.stop]
        if bag.weights is not None:
            factors[:] = bag.weights
        if module.pooling == "mean":
            _divide_by_bag(factors, bag, feature)
    return scale


def _divide_by_bag(factors: NDArray[np.floating], bag: Bag, feature: str) -> None:
    """Divide each id's factor by the sum of its bag's, in place; a bag that sums to 0 gives 0."""
    if bag.weights is not None and (bag.weights < 0).any():
        raise DataError(
            f"feature {feature!r}: a weighted mean needs weights of at least 0, got "
            f"{bag.weights.min()}; use pooling='sum' where weights may be negative"
        )
    if bag.offsets is None:
        factors[:] = factors > 0
        return
    lengths = np.diff(bag.offsets)
    total = np.bincount(np.repeat(np.arange(len(lengths)), lengths), factors, len(lengths))
    with np.errstate(divide="ignore"):
        inverse = np.where(total > 0, 1.0 / total, 0.0)
    factors *= np.repeat(inverse, lengths)
