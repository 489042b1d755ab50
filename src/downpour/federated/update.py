"""By how much a client's weights have changed in a round: all that ever leaves it of its training.

Between a client's training and its sending an update goes through the functions of `outgoing`, one
after the other. What is done to an update before it leaves belongs there: clipping (`ClipUpdate`),
the noise of differential privacy, the masks of secure aggregation, which cancel out where servers
add the updates up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from downpour.errors import NonFiniteError, SettingError
from downpour.settings import is_number
from downpour.tables.batches import is_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from downpour.transport import Floats, Keys

    Change: TypeAlias = Callable[["Update"], "Update"]

SPARE = 2.0 * float(np.finfo(np.float32).eps)  # what rounding to float32 may add to a norm


@dataclass(frozen=True, slots=True)
class Update:
    """The change of a client's weights in a round, and the samples that it has trained on.

    dense: by table, [size]. rows: by table, different keys uint64 [n] and their changes [n, dim],
    those that a step of the round has read. Raises SettingError for other shapes.
    """

    dense: Mapping[str, Floats]
    rows: Mapping[str, tuple[Keys, Floats]]
    samples: int

    def __post_init__(self) -> None:
        if type(self.samples) is not int or self.samples < 0:
            raise SettingError(f"Update.samples must be an int >= 0, got {self.samples!r}")
        for table, change in self.dense.items():
            if np.ndim(change) != 1:
                raise SettingError(
                    f"Update.dense: table {table!r} must be [size], got {list(np.shape(change))}"
                )
        for table, (keys, change) in self.rows.items():
            if np.ndim(keys) != 1 or np.ndim(change) != 2 or len(keys) != len(change):
                raise SettingError(
                    f"Update.rows: table {table!r} must be keys [n] and changes [n, dim], got "
                    f"{list(np.shape(keys))} and {list(np.shape(change))}"
                )

    @property
    def norm(self) -> float:
        """The L2 norm of all changes together, in float64."""
        squares = 0.0
        for _, change in self.changes():
            wide = np.asarray(change, np.float64).ravel()
            squares += float(np.vdot(wide, wide))
        return math.sqrt(squares)

    def scaled(self, factor: float) -> Update:
        """The update with every change multiplied by a number."""
        factor = float(factor)  # of another type it would change theirs
        return Update(
            {table: change * factor for table, change in self.dense.items()},
            {table: (keys, change * factor) for table, (keys, change) in self.rows.items()},
            self.samples,
        )

    def changes(self) -> Iterator[tuple[str, Floats]]:
        """Each table's name with the changes of its weights."""
        yield from self.dense.items()
        for table, (_, change) in self.rows.items():
            yield table, change


@dataclass(frozen=True, slots=True)
class ClipUpdate:
    """Scale an update so that its norm, over all tables, is at most `max_norm`.

    McMahan et al. 2018 bound in this way what one client can add to a model.
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not (is_number(self.max_norm) and self.max_norm > 0):
            raise SettingError(
                f"ClipUpdate.max_norm must be a finite number above 0, got {self.max_norm!r}"
            )

    def __call__(self, update: Update) -> Update:
        """Give the update itself where it is short enough."""
        norm = update.norm
        if norm <= self.max_norm:
            return update
        return update.scaled(self.max_norm / norm * (1.0 - SPARE))


def sent_through(outgoing: Sequence[Change], update: Update) -> Update:
    """What the functions make of an update, one after the other, in the dtypes that tables have.

    Raises SettingError where one gives other tables, keys or shapes, NonFiniteError where the
    update holds NaN or infinity, or one makes it so.
    """
    require_finite(update, "the client's training; a smaller learning rate may help")
    for change in outgoing:
        update = _alike(change, update, change(update))
        require_finite(update, f"outgoing: {change!r}")
    return update


def require_finite(update: Update, source: str) -> None:
    """Raise NonFiniteError, which names the table and the source, for NaN or infinity."""
    for table, change in update.changes():
        if not is_finite(change):
            raise NonFiniteError(
                f"the update of table {table!r} holds NaN or infinity; nothing was sent. It is so "
                f"after {source}"
            )


def _alike(function: Change, given: Update, made: object) -> Update:
    if not isinstance(made, Update):
        raise SettingError(f"outgoing: {function!r} must give an Update, got {made!r}")
    for what, ours, theirs in (
        ("dense tables", _shapes(given.dense), _shapes(made.dense)),
        ("tables of rows", _row_shapes(given), _row_shapes(made)),
    ):
        if ours != theirs:
            raise SettingError(
                f"outgoing: {function!r} was given {what} {ours} and gave {theirs}; an update "
                "keeps its tables, keys and shapes"
            )
    for table, (keys, _) in given.rows.items():
        if not np.array_equal(keys, made.rows[table][0]):
            raise SettingError(
                f"outgoing: {function!r} gave other keys of table {table!r} than it was given; an "
                "update keeps its tables, keys and shapes"
            )
    return replace(
        made,
        dense={table: _like(it, made.dense[table]) for table, it in given.dense.items()},
        rows={
            table: (keys, _like(change, made.rows[table][1]))
            for table, (keys, change) in given.rows.items()
        },
    )


def _shapes(arrays: Mapping[str, Floats]) -> dict[str, list[int]]:
    return {table: list(np.shape(array)) for table, array in sorted(arrays.items())}


def _row_shapes(update: Update) -> dict[str, list[int]]:
    return _shapes({table: change for table, (_, change) in update.rows.items()})


def _like(given: Floats, made: Floats) -> Floats:
    """In the dtype that the table has; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        like: Floats = np.ascontiguousarray(made, given.dtype)
    return like
