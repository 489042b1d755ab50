"""One batch of samples: bags of keys by feature, dense columns, labels and sample weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from downpour.errors import DataError
from downpour.floats import as_floats, as_weights, require_binary
from downpour.jagged import Jagged
from downpour.transfer import HOST, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from downpour.arrow import Column

__all__ = ["Batch", "Jagged", "TableReader", "require_binary"]


class TableReader(Protocol):
    """What makes a batch of a table: `downpour.data.Schema`."""

    def batch(self, frame: Any) -> Batch:
        """Read every row of an Arrow, pandas or polars frame."""
        ...


@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False)
class Batch:
    """Samples of one step, checked once when made.

    features: {name: Jagged}, made by `Jagged.of` of whatever is given. dense and labels: {name:
    [batch] or [batch, k]}. weights: one finite, non-negative weight a sample, [batch], or None.
    These are CPU tensors until `to`: float32 and float64 tensors keep their type, all else becomes
    float32. size: number of samples, the same everywhere.

    Raises DataError naming the feature or column: other lengths, floats as ids, NaN, infinity or
    missing values in dense columns, labels or weights, negative weights.

    >>> Batch(features={"user": [5, 7], "genre": [["comedy", "drama"], []]}, labels=[1, 0])
    Batch(2 samples, features=[user, genre], labels=[label])
    """

    features: Mapping[str, Jagged]
    dense: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    weights: Tensor | None
    size: int

    def __init__(
        self,
        *,
        features: Mapping[str, Column] | None = None,
        dense: Mapping[str, Column] | None = None,
        labels: Mapping[str, Column] | Column | None = None,
        weights: Column | None = None,
    ) -> None:
        """Make a batch; labels given without a name are called "label"."""
        if labels is None:
            labels = {}
        elif not isinstance(labels, Mapping):
            labels = {"label": labels}
        bags = _made("feature", Jagged.of, features or {})
        floats = _made("dense column", as_floats, dense or {})
        targets = _made("label", as_floats, labels)
        own = None
        if weights is not None:
            own = _made("sample weights", as_weights, {"weights": weights})["weights"]
        _fill(self, bags, floats, targets, own, _common_size(bags, floats, targets, own))

    @classmethod
    def from_frame(cls, frame: Any, schema: TableReader) -> Batch:
        """Make a batch of an Arrow, pandas or polars frame by a `downpour.data.Schema`."""
        return schema.batch(frame)

    @classmethod
    def from_kjt(
        cls,
        kjt: Any,
        *,
        dense: Mapping[str, Column] | None = None,
        labels: Mapping[str, Column] | Column | None = None,
        weights: Column | None = None,
        allow_negative: bool = False,
    ) -> Batch:
        """Make a batch of TorchRec's KeyedJaggedTensor, or of anything with its methods.

        Its weights per id are kept (negative ones with `allow_negative`); `weights` are the
        samples'. Raises DataError where the keys have bags of unlike numbers.
        """
        names = list(kjt.keys())
        values, offsets = kjt.values().detach().cpu().numpy(), kjt.offsets().cpu().numpy()
        per_id = kjt.weights_or_none()
        size, rest = divmod(len(offsets) - 1, max(1, len(names)))
        if rest or len({*getattr(kjt, "stride_per_key", list)()}) > 1:
            raise DataError(f"every key of a KeyedJaggedTensor must have one bag a sample: {names}")

        def feature(place: int) -> Jagged:
            ends = offsets[place * size : (place + 1) * size + 1]
            bounds = slice(int(ends[0]), int(ends[-1]))
            own = None if per_id is None else per_id[bounds]
            return Jagged(values[bounds], ends - ends[0], own, allow_negative=allow_negative)

        features = _made("feature", feature, {name: i for i, name in enumerate(names)})
        return cls(features=features, dense=dense, labels=labels, weights=weights)

    def __len__(self) -> int:
        """Count the samples."""
        return self.size

    def __repr__(self) -> str:
        kinds = {"features": self.features, "dense": self.dense, "labels": self.labels}
        lists = [f"{kind}=[{', '.join(columns)}]" for kind, columns in kinds.items() if columns]
        weighted = [] if self.weights is None else ["weighted"]
        return f"Batch({', '.join([f'{self.size} samples', *lists, *weighted])})"

    @property
    def label(self) -> Tensor:
        """The only label; DataError where there is none, or where there are several."""
        if len(self.labels) == 1:
            return next(iter(self.labels.values()))
        if not self.labels:
            raise DataError("batch.label: this batch has no labels")
        raise DataError(
            f"batch.label: this batch has the labels {', '.join(self.labels)}; "
            f"say which with batch.labels[name]"
        )

    @property
    def device(self) -> torch.device:
        """Where its dense columns, labels and weights are."""
        return next((tensor.device for tensor in self._tensors()), HOST)

    def to(self, device: str | torch.device) -> Batch:
        """Give the batch with dense columns, labels and weights on a device; itself if they are.

        Features stay where tables are, in the memory of the host. A GPU computes on in order, and
        the host does not wait for the copy.
        """
        target = torch.device(device)
        if all(tensor.device == target for tensor in self._tensors()):
            return self
        return _mapped(self, self.size, lambda jagged: jagged, lambda it: moved(it, target))

    def slice(self, start: int, stop: int) -> Batch:
        """Give samples start to stop, as views."""
        start, stop, _ = slice(start, stop).indices(self.size)
        stop = max(start, stop)
        return _mapped(
            self, stop - start, lambda jagged: jagged.slice(start, stop), lambda it: it[start:stop]
        )

    def select(self, samples: Column) -> Batch:
        """Give samples by number [n], from 0, in that order and repeated as said; or by mask.

        samples: integers, or a boolean for each sample. Raises DataError where there is no such
        sample.
        """
        places = _places(samples, self.size)
        return _mapped(
            self,
            len(places),
            lambda jagged: jagged.select(places),
            lambda it: _taken(it, places),
        )

    def reweighted(self, weights: Column) -> Batch:
        """Give the same samples with other weights [batch]. Raises DataError."""
        own = _made("sample weights", as_weights, {"weights": weights})["weights"]
        if len(own) != self.size:
            raise DataError(f"sample weights must be [{self.size}], got {list(own.shape)}")
        return _trusted(self.features, self.dense, self.labels, own.to(self.device), self.size)

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """Join batches of the same columns, one after another. Raises DataError."""
        if not batches:
            raise DataError("Batch.concat needs at least one batch, got none")
        first = batches[0]
        for other in batches[1:]:
            _require_same_columns(first, other)
        if len(batches) == 1:
            return first
        weights = [batch.weights for batch in batches if batch.weights is not None]
        return _trusted(
            {name: Jagged.concat([it.features[name] for it in batches]) for name in first.features},
            {name: _joined([it.dense[name] for it in batches]) for name in first.dense},
            {name: _joined([it.labels[name] for it in batches]) for name in first.labels},
            _joined(weights) if weights else None,
            sum(batch.size for batch in batches),
        )

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.dense.values()
        yield from self.labels.values()
        if self.weights is not None:
            yield self.weights


def _made(what: str, make: Callable[[Any], Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Convert columns, naming in the error the one that fails."""
    made = {}
    for name, column in columns.items():
        try:
            made[name] = make(column)
        except DataError as error:
            raise DataError(f"{what} {name!r}: {error}") from error
    return made


def _common_size(
    features: Mapping[str, Jagged],
    dense: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    weights: Tensor | None,
) -> int:
    sizes = {f"feature {name!r}": len(jagged) for name, jagged in features.items()}
    sizes |= {f"dense column {name!r}": len(column) for name, column in dense.items()}
    sizes |= {f"label {name!r}": len(column) for name, column in labels.items()}
    if weights is not None:
        sizes["sample weights"] = len(weights)
    if not sizes:
        raise DataError("a batch needs a feature, a dense column or a label, got none")
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise DataError(f"every column of a batch must have as many samples; got {got}")
    return next(iter(sizes.values()))


def _require_same_columns(first: Batch, other: Batch) -> None:
    for kind in ("features", "dense", "labels"):
        ours, theirs = list(getattr(first, kind)), list(getattr(other, kind))
        if set(ours) != set(theirs):
            raise DataError(f"Batch.concat: {kind} must be the same, got {ours} and {theirs}")
    if (first.weights is None) != (other.weights is None):
        raise DataError("Batch.concat: one batch has sample weights and another has none")


def _places(samples: Column, size: int) -> NDArray[np.int64]:
    """Check numbers of samples, or turn a mask into them."""
    places = np.asarray(samples)
    if places.dtype == bool and places.shape == (size,):
        return np.flatnonzero(places)
    if places.ndim != 1 or (places.size and places.dtype.kind not in "iu"):
        raise DataError(
            f"select: samples must be integers [n] or booleans [{size}], "
            f"got {places.dtype} {list(places.shape)}"
        )
    if places.size and not 0 <= places.min() <= places.max() < size:
        raise DataError(f"select: samples must be from 0 to {size - 1}, got {places}")
    return places.astype(np.int64)


def _taken(column: Tensor, places: NDArray[np.int64]) -> Tensor:
    """The samples of these numbers; on the CPU by numpy, as in `_joined`."""
    if not column.is_cpu:
        return column[torch.from_numpy(places).to(column.device)]
    return torch.from_numpy(column.numpy()[places])


def _joined(columns: Sequence[Tensor]) -> Tensor:
    """Join along samples; on the CPU by numpy, since torch would wake its threads for it."""
    if not all(column.is_cpu for column in columns):
        return torch.cat([*columns])
    return torch.from_numpy(np.concatenate([column.numpy() for column in columns]))


def _mapped(
    batch: Batch,
    size: int,
    bags: Callable[[Jagged], Jagged],
    columns: Callable[[Tensor], Tensor],
) -> Batch:
    return _trusted(
        {name: bags(jagged) for name, jagged in batch.features.items()},
        {name: columns(column) for name, column in batch.dense.items()},
        {name: columns(column) for name, column in batch.labels.items()},
        None if batch.weights is None else columns(batch.weights),
        size,
    )


def _trusted(
    features: Mapping[str, Jagged],
    dense: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    weights: Tensor | None,
    size: int,
) -> Batch:
    """Make a batch of columns that are known to be good."""
    batch: Batch = object.__new__(Batch)
    _fill(batch, features, dense, labels, weights, size)
    return batch


def _fill(
    batch: Batch,
    features: Mapping[str, Jagged],
    dense: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    weights: Tensor | None,
    size: int,
) -> None:
    object.__setattr__(batch, "features", features)
    object.__setattr__(batch, "dense", dense)
    object.__setattr__(batch, "labels", labels)
    object.__setattr__(batch, "weights", weights)
    object.__setattr__(batch, "size", size)
