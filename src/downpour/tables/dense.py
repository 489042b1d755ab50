"""Dense tables: one flat block of parameters, a section for each."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from downpour.errors import NonFiniteError, SettingError, TableError
from downpour.jit import kernel
from downpour.tables.batches import is_finite
from downpour.tables.callback import address_of
from downpour.tables.finite import all_finite
from downpour.tables.memory import call
from downpour.tables.read_write_lock import ReadWriteLock
from downpour.tables.undo import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from downpour.rules.base import Rule


@dataclass(frozen=True, slots=True)
class Section:
    """One parameter's part of a flat block: elements offset to offset + size, seen as `shape`."""

    name: str
    offset: int
    size: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.offset < 0 or self.size != math.prod(self.shape):
            raise SettingError(
                f"Section {self.name!r}: size must be the product of the shape and offset >= 0, "
                f"got size={self.size}, shape={self.shape}, offset={self.offset}"
            )

    @property
    def span(self) -> slice:
        """Its elements in the block."""
        return slice(self.offset, self.offset + self.size)


def sections_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Section, ...]:
    """Sections one after the other, in the order of the mapping."""
    sections, offset = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        sections.append(Section(name, offset, size, tuple(shape)))
        offset += size
    return tuple(sections)


@kernel
def _update_block(
    weight: np.ndarray,
    state: np.ndarray,
    grad: np.ndarray,
    function: np.uint64,
    hyper: np.ndarray,
    keep: np.floating,
    batch_l2: np.floating,
) -> bool:
    """Decay by `keep`, add the penalty to a copy of the gradient, apply the rule.

    Returns whether weight and state are finite then.
    """
    if keep != 1.0:
        for i in range(weight.size):
            weight[i] *= keep
    if batch_l2 != 0.0:
        grad = grad.copy()
        for i in range(weight.size):
            grad[i] += batch_l2 * weight[i]
    call(function, weight, state, grad, hyper)
    return all_finite(weight) and all_finite(state)


class DenseTable:
    """Flat parameters [size] with a rule, updated section by section.

    Each section counts its own updates, as an optimizer does whose step skips a parameter without
    a gradient: its Adam correction follows that count, and it does not move or decay. `batch_l2`
    is the ordinary L2 penalty here, `weight_decay` the decoupled one. dtype: "float32" or
    "float64". Raises SettingError for a rule that is for sparse tables only and for sections that
    overlap or leave gaps.

    Calls may come from any thread: whoever changes the table has `lock` alone, readers share it.
    """

    def __init__(
        self, name: str, sections: Sequence[Section], rule: Rule, dtype: str = "float32"
    ) -> None:
        if not rule.on_dense:
            raise SettingError(
                f"dense table {name!r}: {type(rule).__name__} updates sparse tables only; take "
                "SGD, Adagrad, Adam or AdamD2Sum"
            )
        end = 0
        for section in sections:
            if section.offset != end:
                raise SettingError(
                    f"dense table {name!r}: section {section.name!r} must begin at {end}, got "
                    f"{section.offset}"
                )
            end += section.size
        self.name = name
        self.rule = rule
        self.size = end
        self.step = 0
        self.sections = {section.name: section for section in sections}
        if len(self.sections) != len(sections):
            raise SettingError(f"dense table {name!r}: two sections have one name")
        self._dtype: np.dtype[np.floating] = np.dtype(dtype)
        self._address = address_of(rule.update, self._dtype)
        ends = np.cumsum([self.size, *(rule.state_dim(section.size) for section in sections)])
        self._values = np.zeros(ends[-1], self._dtype)  # weights, then the state of each section
        self._weights, *states = np.split(self._values, ends[:-1])
        self._state = dict(zip(self.sections, states, strict=True))
        for section in sections:
            self._state[section.name][:] = rule.initial_state(section.size)
        self.steps = dict.fromkeys(self.sections, 0)
        self.lock = ReadWriteLock()
        self._before: np.ndarray | None = None  # the values before the push under way

    def __repr__(self) -> str:
        return f"DenseTable({self.name!r}, size={self.size}, step={self.step})"

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of weights and gradients."""
        return self._dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and rule state; the first push adds a second copy, to undo by."""
        return self._values.nbytes

    def pull(self, out: np.ndarray | None = None) -> np.ndarray:
        """A copy of all weights, [size]."""
        if out is None:
            out = np.empty_like(self._weights)
        with self.lock.read():
            np.copyto(out, self._weights)
        return out

    def view(self, name: str) -> np.ndarray:
        """A section's weights in its shape, read-only, as they are now and will be."""
        section = self._section(name)
        view = self._weights[section.span].reshape(section.shape)
        view.flags.writeable = False
        return view

    def set(self, flat: np.ndarray, names: Collection[str] | None = None) -> None:
        """Replace the weights of these parameters by those of flat [size] (None: all).

        The rule's state stays. Raises TableError or NonFiniteError, and then nothing has changed.
        """
        flat = self._checked("weights", flat, check_finite=False)
        chosen = [self._section(name) for name in (self.sections if names is None else names)]
        for section in chosen:
            self._check_finite("weights", section, flat)
        with self.lock.write():
            for section in chosen:
                self._weights[section.span] = flat[section.span]

    def push(
        self,
        grad: np.ndarray,
        *,
        step: int,
        lr: float,
        names: Collection[str] | None = None,
        within: Transaction | None = None,
    ) -> None:
        """Apply one step of gradients [size]; `names` are the parameters that have one (None: all).

        What grad holds for the others is not read. With `within` it is a part of that transaction.
        Raises TableError, MemoryError, and NonFiniteError, also if a weight or the rule's state
        would become infinite or NaN; then nothing has changed.
        """
        if step < 1 or not (math.isfinite(lr) and lr >= 0.0):
            raise TableError(
                f"dense table {self.name!r}: step counts from 1 and lr is finite and >= 0, got "
                f"step={step}, lr={lr}"
            )
        grad = self._checked("gradients", grad, check_finite=False)
        keep = 1.0 - lr * self.rule.weight_decay
        if keep <= 0.0:
            raise SettingError(
                f"dense table {self.name!r}: lr * weight_decay must be < 1, got {lr} * "
                f"{self.rule.weight_decay}"
            )
        chosen = [self._section(name) for name in (self.sections if names is None else names)]
        for section in chosen:
            self._check_finite("gradient", section, grad)
        with Transaction() if within is None else nullcontext(within) as changes:
            if changes.lock(self.lock):
                changes.on_undo(self._remember())
            for section in chosen:
                self._update(section, grad[section.span], lr, keep)
            self.step = max(self.step, step)

    def _remember(self) -> Callable[[], None]:
        """Copy all values, and return what puts them back."""
        if self._before is None:
            self._before = np.empty_like(self._values)
        np.copyto(self._before, self._values)
        return partial(self._undo, self._before, dict(self.steps), self.step)

    def _undo(self, values: np.ndarray, steps: dict[str, int], step: int) -> None:
        np.copyto(self._values, values)
        self.steps, self.step = steps, step

    def _update(self, section: Section, grad: np.ndarray, lr: float, keep: float) -> None:
        self.steps[section.name] += 1
        hyper = self.rule.dense_hyper(self.steps[section.name], lr)
        is_finite = _update_block(
            self._weights[section.span],
            self._state[section.name],
            grad,
            self._address,
            np.array(hyper, self._dtype),
            self._dtype.type(keep),
            self._dtype.type(self.rule.batch_l2),
        )
        if not is_finite:
            raise NonFiniteError(
                f"dense table {self.name!r}: this push would make {section.name!r} infinite or NaN,"
                " its weights or what their rule keeps; nothing was applied. A smaller learning "
                "rate, clipping or an eps above 0 may help"
            )

    def export(self) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, int]]:
        """Copies: weights [size], rule state by section, update counts by section."""
        with self.lock.read():
            state = {name: values.copy() for name, values in self._state.items()}
            return self._weights.copy(), state, dict(self.steps)

    def restore(
        self,
        weights: np.ndarray,
        state: Mapping[str, np.ndarray],
        steps: Mapping[str, int],
        *,
        step: int,
    ) -> None:
        """Become what `export` and `step` gave of a table of the same sections and rule."""
        weights = self._checked("weights", weights)
        for name, own in self._state.items():
            if name not in state or name not in steps or state[name].shape != own.shape:
                raise TableError(
                    f"dense table {self.name!r}: state of {name!r} must be {list(own.shape)} with "
                    "its update count; was it saved with another rule?"
                )
        with self.lock.write():
            self._weights[:] = weights
            for name, own in self._state.items():
                own[:] = state[name]
                self.steps[name] = int(steps[name])
            self.step = step

    def _section(self, name: str) -> Section:
        if name not in self.sections:
            raise TableError(
                f"dense table {self.name!r} has no section {name!r}, it has: "
                f"{', '.join(self.sections)}"
            )
        return self.sections[name]

    def _checked(self, what: str, flat: np.ndarray, *, check_finite: bool = True) -> np.ndarray:
        flat = np.asarray(flat)
        if flat.dtype != self._dtype or flat.shape != (self.size,):
            raise TableError(
                f"dense table {self.name!r}: {what} must be {self._dtype} [{self.size}], got "
                f"{flat.dtype} {list(flat.shape)}"
            )
        if check_finite:
            for section in self.sections.values():
                self._check_finite(what, section, flat)
        return np.ascontiguousarray(flat)

    def _check_finite(self, what: str, section: Section, flat: np.ndarray) -> None:
        if not is_finite(flat[section.span]):
            raise NonFiniteError(
                f"dense table {self.name!r}: the {what} of {section.name!r} hold NaN or infinity; "
                "nothing was applied"
            )
