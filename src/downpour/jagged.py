"""A feature of one batch: a bag of keys for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downpour.arrow import Column, is_tensor
from downpour.bags import bag_weights, bags_of, cumulate
from downpour.errors import DataError
from downpour.hashing import as_keys
from downpour.ids import NULL_VALUES, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False)
class Jagged:
    """One bag of keys a sample: the bag of sample i is values[offsets[i]:offsets[i + 1]].

    values: uint64 [num_values]; integers of any width are taken by their bits, floats refused.
    offsets: int64 [batch + 1], from 0 to num_values, never falling; left out, each sample has one
    key. weights: float32 [num_values] or None, finite, and not negative unless
    `allow_negative=True`. is_single: every sample has exactly one key.

    Raises DataError. Arrays are shared with the caller where nothing is to convert: treat them as
    read-only.

    >>> Jagged([5, 7, 9], offsets=[0, 2, 2, 3]).to_list()
    [[5, 7], [], [9]]
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    is_single: bool

    def __init__(
        self,
        values: Column,
        offsets: Column | None = None,
        weights: Column | None = None,
        *,
        allow_negative: bool = False,
    ) -> None:
        keys = _writable(as_keys(values))
        if keys.ndim != 1:
            raise DataError(f"values must be [num_values], got shape {keys.shape}")
        ends = None if offsets is None else _checked_offsets(offsets, len(keys))
        single = ends is None or (len(ends) == len(keys) + 1 and bool(np.all(np.diff(ends) == 1)))
        if weights is not None:
            weights = _checked_weights(weights, len(keys), allow_negative)
        _fill(self, keys, one_each(len(keys)) if single else ends, weights, single)

    @classmethod
    def of(
        cls,
        data: Column,
        *,
        weights: Column | None = None,
        separator: str | None = None,
        hashed: bool | None = None,
        null_values: Sequence[str] = NULL_VALUES,
        allow_negative: bool = False,
    ) -> Jagged:
        """Make a feature of whatever holds it.

        data: a Jagged; one id or text a sample (list, numpy [batch], torch, Arrow, pandas,
        polars, categories); a bag a sample (lists of lists, Arrow lists, numpy or torch
        [batch, k], a torch nested tensor); or TorchRec's JaggedTensor. A missing entry (None, NaN,
        a blank text, one of `null_values`) is an empty bag, and left out of a bag that it is in.
        A number is one id however it is spelled, also as a text, and other texts are hashed;
        `hashed` says otherwise, as in `Feature`. `separator` splits each text into a bag first.
        weights: one an id, in the same form as data.

        Raises DataError: an entry that is no id, with its row; a missing weight, other lengths.

        >>> Jagged.of(["3 4", "", None, "5"], separator=" ").to_list()
        [[3, 4], [], [], [5]]
        """
        if isinstance(data, Jagged):
            if weights is None:
                return data
            return cls(data.values, data.offsets, weights, allow_negative=allow_negative)
        bags = bags_of(data, separator, Reading(hashed, tuple(null_values)))
        if weights is not None:
            weights = bag_weights(weights, bags, separator)
        elif hasattr(data, "weights_or_none"):
            weights = data.weights_or_none()
        return cls(bags.values, bags.offsets, weights, allow_negative=allow_negative)

    @classmethod
    def from_lengths(
        cls,
        values: Column,
        lengths: Column,
        weights: Column | None = None,
        *,
        allow_negative: bool = False,
    ) -> Jagged:
        """Make a feature of flat values [num_values] and the length [batch] of each bag."""
        sizes = _whole_numbers(lengths, "lengths")
        if sizes.size and sizes.min() < 0:
            row = int(sizes.argmin())
            raise DataError(f"lengths must not be negative, got {sizes[row]} at sample {row}")
        return cls(values, cumulate(sizes), weights, allow_negative=allow_negative)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.offsets) - 1

    def __getitem__(self, sample: int) -> NDArray[np.uint64]:
        """Give the keys of one sample, uint64 [k]."""
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample} of a feature of {len(self)} samples")
        sample %= len(self)
        return self.values[self.offsets[sample] : self.offsets[sample + 1]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Jagged):
            return NotImplemented
        if self.weights is None or other.weights is None:
            same_weights = self.weights is other.weights
        else:
            same_weights = np.array_equal(self.weights, other.weights)
        same_values = np.array_equal(self.values, other.values)
        return same_weights and same_values and np.array_equal(self.offsets, other.offsets)

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def __repr__(self) -> str:
        weighted = "" if self.weights is None else ", weighted"
        return f"Jagged({len(self)} samples, {len(self.values)} values{weighted})"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each bag, int64 [batch]."""
        return np.diff(self.offsets)

    @property
    def tensor(self) -> torch.Tensor:
        """View the values as torch int64 [num_values], the same bits."""
        return torch.from_numpy(self.values.view(np.int64))

    @property
    def offsets_tensor(self) -> torch.Tensor:
        """Give the offsets as torch int64 [batch + 1]."""
        if self.is_single:  # those are shared and read-only, which torch refuses
            return torch.arange(len(self) + 1)
        return torch.from_numpy(self.offsets)

    def to_list(self) -> list[list[int]]:
        """Give the bags as lists of Python integers, for eyes and tests."""
        flat, ends = self.values.tolist(), self.offsets.tolist()
        return [flat[ends[i] : ends[i + 1]] for i in range(len(self))]

    def slice(self, start: int, stop: int) -> Jagged:
        """Give samples start to stop, the values as views."""
        start, stop, _ = slice(start, stop).indices(len(self))
        stop = max(start, stop)
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        weights = None if self.weights is None else self.weights[first:last]
        offsets = (
            one_each(stop - start) if self.is_single else self.offsets[start : stop + 1] - first
        )
        return trusted(self.values[first:last], offsets, weights, single=self.is_single)

    def select(self, samples: NDArray[np.int64]) -> Jagged:
        """Give the samples of these numbers [n], in that order; numbers may repeat."""
        if self.is_single:
            places, offsets = samples, one_each(len(samples))
        else:
            starts = self.offsets[samples]
            lengths = self.offsets[1:][samples] - starts
            offsets = cumulate(lengths)
            places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        weights = None if self.weights is None else self.weights[places]
        return trusted(self.values[places], offsets, weights, single=self.is_single)

    def keep(self, mask: NDArray[np.bool_]) -> Jagged:
        """Give the bags without the ids whose place in `mask` [num_values] is false."""
        if mask.all():
            return self
        before = cumulate(mask.astype(np.int64))  # how many are kept before each place
        weights = None if self.weights is None else self.weights[mask]
        return trusted(self.values[mask], before[self.offsets], weights)

    @staticmethod
    def concat(parts: Sequence[Jagged]) -> Jagged:
        """Join the samples of several, one after another; weights left out of some are 1 there."""
        values = np.concatenate([part.values for part in parts])
        single = all(part.is_single for part in parts)
        offsets = (
            one_each(len(values))
            if single
            else cumulate(np.concatenate([p.lengths for p in parts]))
        )
        weights = None
        if any(part.weights is not None for part in parts):
            ones = (np.ones(len(part.values), np.float32) for part in parts)
            weights = np.concatenate(
                [
                    one if p.weights is None else p.weights
                    for p, one in zip(parts, ones, strict=True)
                ]
            )
        return trusted(values, offsets, weights, single=single)


@lru_cache(maxsize=64)
def one_each(num_samples: int) -> NDArray[np.int64]:
    """Offsets of a feature of one key a sample, int64 [num_samples + 1]; shared, read-only."""
    offsets = np.arange(num_samples + 1)
    offsets.flags.writeable = False
    return offsets


def trusted(
    values: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    weights: NDArray[np.float32] | None = None,
    *,
    single: bool = False,
) -> Jagged:
    """Make a feature of parts that are known to be good; nothing is checked."""
    jagged: Jagged = object.__new__(Jagged)
    _fill(jagged, values, offsets, weights, single)
    return jagged


def _fill(jagged: Jagged, values: Any, offsets: Any, weights: Any, single: bool) -> None:
    object.__setattr__(jagged, "values", values)
    object.__setattr__(jagged, "offsets", offsets)
    object.__setattr__(jagged, "weights", weights)
    object.__setattr__(jagged, "is_single", single)


def _checked_offsets(offsets: Column, num_values: int) -> NDArray[np.int64]:
    ends = _whole_numbers(offsets, "offsets")
    if len(ends) == 0 or ends[0] != 0 or ends[-1] != num_values:
        got = f"{ends[0]} to {ends[-1]}" if len(ends) else "none"
        raise DataError(f"offsets must run from 0 to num_values = {num_values}, got {got}")
    falls = np.flatnonzero(np.diff(ends) < 0)
    if falls.size:
        row = int(falls[0])
        raise DataError(f"offsets must not fall, got {ends[row]} then {ends[row + 1]} at {row}")
    return ends


def _checked_weights(weights: Column, num_values: int, allow_negative: bool) -> NDArray[np.float32]:
    numbers = weights.detach().cpu().numpy() if is_tensor(weights) else np.asarray(weights)
    if numbers.dtype.kind not in "iubf":
        raise DataError(f"weights must be numbers, got {numbers.dtype}")
    flat = _writable(numbers.astype(np.float32, copy=False))
    if flat.shape != (num_values,):
        raise DataError(f"weights must be [num_values] = [{num_values}], got shape {flat.shape}")
    finite = np.isfinite(flat)
    if not finite.all():
        at = int(finite.argmin())
        raise DataError(f"weights must be finite, got {flat[at]} at value {at}")
    if not allow_negative and flat.size and flat.min() < 0:
        at = int(flat.argmin())
        raise DataError(
            f"weights must not be negative, got {flat[at]} at value {at}; "
            f"say allow_negative=True if they may be"
        )
    return flat


def _whole_numbers(data: Column, what: str) -> NDArray[np.int64]:
    numbers = data.detach().cpu().numpy() if is_tensor(data) else np.asarray(data)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise DataError(f"{what} must be integers [n], got {numbers.dtype} {list(numbers.shape)}")
    return _writable(numbers.astype(np.int64, copy=False))


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Copy memory that is read-only (Arrow, pandas): torch would warn when it shares it."""
    return array if array.flags.writeable else array.copy()
