"""Pushes of sync training: kept until it is decided who takes part in a step, then applied as one.

Every worker of a run stages the gradients of its own batch of a global step on the servers. All
servers are then told the same `Commit`.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from downpour.errors import DownpourError, OutOfMemoryError, ServerError, SettingError, TableError
from downpour.serving.held import Account
from downpour.serving.merging import (
    BlockPush,
    Push,
    RowPush,
    Weighed,
    by_samples,
    checked_block,
    checked_rows,
    merge_blocks,
    merge_rows,
)
from downpour.tables import Transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from downpour.rules import Rule
    from downpour.server import Server
    from downpour.transport import Floats, Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Who takes part in a global step, and what it is to each table.

    step: from 1. samples: of each member's batch, by rank; 0 where it had no data. rates: of each
    table that is to be stepped, the number of its own step and its learning rates. over_touched:
    whether the mean of a row is over the members that have pushed it, not over all of them. Raises
    SettingError.
    """

    step: int
    samples: Mapping[int, int]
    rates: Mapping[str, tuple[int, tuple[float, ...]]]
    over_touched: bool = False

    def __post_init__(self) -> None:
        if self.step < 1:
            raise SettingError(f"Commit.step counts from 1, got {self.step}")
        for rank, samples in self.samples.items():
            if samples < 0:
                raise SettingError(
                    f"Commit.samples must be >= 0, got {samples} of rank {rank}; leave out a "
                    "worker that takes no part"
                )


Staged: TypeAlias = dict[str, dict[int, list[Push]]]  # by table and rank, in the order of staging


class Staging:
    """The pushes of the next step of a server's tables.

    A commit merges those of its members by rising rank, and of one member in the order in which
    they were staged, so that no result depends on when they arrived. A mean over a worker's
    samples counts by their share in the samples of all members, and not at all where it had none;
    a sum counts as it is. What others have staged is thrown away.

    Arrays are kept without a copy and must not change. Safe to call from many threads.

    `elsewhere` are the dense tables of which the server has no part: a commit may name them. None
    takes every table that the server does not have for one. What is staged has its room in
    `account`.
    """

    def __init__(
        self,
        server: Server,
        *,
        elsewhere: Collection[str] | None = None,
        account: Account | None = None,
    ) -> None:
        self.committed = 0  # the last step that is over, also if it was refused
        self._refusal: tuple[type[DownpourError], str] | None = None  # of that step
        self._account = account or Account()
        self._server = server
        self._elsewhere = elsewhere
        self._rows: Staged[RowPush] = {}
        self._blocks: Staged[BlockPush] = {}
        self._lock = threading.Lock()

    def stage(
        self, table: str, rank: int, step: int, keys: Keys, pushes: Floats, *, is_mean: bool
    ) -> None:
        """Keep pushes [n, push_dim] of keys uint64 [n]; those of one key are summed in order.

        Raises TableError, NonFiniteError, or RefusedError where there is no room, and then nothing
        of it is kept.
        """
        tables = self._server.sparse
        if table not in tables:
            raise TableError(f"no sparse table {table!r} here; there are: {_listed(tables)}")
        push = checked_rows(tables[table], keys, pushes, is_mean=is_mean)
        with self._lock:
            self._check_next(step)
            self._account.add(push.num_bytes)
            _add(self._rows, table, rank, push)

    def stage_dense(
        self,
        table: str,
        rank: int,
        step: int,
        grad: Floats,
        names: Collection[str],
        *,
        is_mean: bool,
    ) -> None:
        """Keep the gradients of these parameters; grad is the server's share of the table, [size].

        What grad holds for the others is not read. Raises TableError, NonFiniteError, or
        RefusedError where there is no room, and then nothing of it is kept.
        """
        tables = self._server.dense
        if table not in tables:
            raise TableError(f"no part of a dense table {table!r} here, but of: {_listed(tables)}")
        own, names = tables[table], dict.fromkeys(names).keys()
        sections = [own.sections[part] for part in self._parts(table, names)]
        push = checked_block(own, grad, names, sections, is_mean=is_mean)
        with self._lock:
            self._check_next(step)
            self._account.add(push.num_bytes)
            _add(self._blocks, table, rank, push)

    def discard(self, rank: int) -> None:
        """Throw away what a rank has staged."""
        with self._lock:
            thrown: list[RowPush | BlockPush] = []
            for rows in self._rows.values():
                thrown += rows.pop(rank, [])
            for blocks in self._blocks.values():
                thrown += blocks.pop(rank, [])
            self._account.drop(sum(push.num_bytes for push in thrown))

    def commit(self, commit: Commit) -> bool:
        """Apply a step; False if it was committed before.

        Of the tables that have rates and no pushes a sparse one lets its step pass, as other
        servers may have rows of it, and a dense one stays as it is.

        Raises TableError or SettingError for a commit that every server would refuse; then no table
        has changed and all that was staged is kept. Raises NonFiniteError if a row or a weight
        would become infinite or NaN, and OutOfMemoryError; then no table has changed either, but
        other servers may have applied the step, so it is over here as well: what was staged for it
        is thrown away, and committing it again raises the same error.
        """
        with self._lock:
            if commit.step == self.committed and self._refusal is not None:
                kind, text = self._refusal
                raise kind(text)
            if commit.step <= self.committed:
                return False
            self._check_next(commit.step)
            for table, (step, rates) in commit.rates.items():
                self._check_rates(table, step, rates)
            rows, blocks = _weighed(self._rows, commit), _weighed(self._blocks, commit)
            try:
                self._apply(commit, rows, blocks)
                self._refusal = None
            except Exception as error:
                # Not the error itself: it would keep the frames that it came through.
                kind, text = self._refusal = _refusal(error, commit.step)
                raise kind(text) from error
            finally:
                self._rows, self._blocks = {}, {}
                self._account.clear()
                self.committed = commit.step
            return True

    def _apply(
        self,
        commit: Commit,
        weighed_rows: Mapping[str, Weighed[RowPush]],
        weighed_blocks: Mapping[str, Weighed[BlockPush]],
    ) -> None:
        """Merge the pushes of each table that is stepped, and apply them all or none."""
        server = self._server
        rows = {
            name: merge_rows(table, weighed_rows.get(name, []), over_touched=commit.over_touched)
            for name, table in server.sparse.items()
            if name in commit.rates
        }
        blocks = {name: merge_blocks(server.dense[name], it) for name, it in weighed_blocks.items()}
        # All rows are made before any table is locked: there may be no memory for them.
        places = {name: server.locate(name, keys, create=True) for name, (keys, _) in rows.items()}
        with Transaction() as changes:
            for name, (_, pushes) in rows.items():
                step, rates = commit.rates[name]
                server.update(name, places[name], pushes, step=step, lr=rates, within=changes)
            for name, (grad, names) in blocks.items():
                step, (lr,) = commit.rates[name]
                server.push_dense(name, grad, step=step, lr=lr, names=names, within=changes)

    def _parts(self, table: str, names: Iterable[str]) -> list[str]:
        """The parts here of parameters of a dense table."""
        parts = self._server.parts[table]
        for name in names:
            if name not in parts:
                raise TableError(
                    f"dense table {table!r} has no section {name!r}, it has: {_listed(parts)}"
                )
        return [part for name in names for part in parts[name]]

    def _check_next(self, step: int) -> None:
        if step != self.committed + 1:
            raise TableError(
                f"step {step} cannot be staged or committed: step {self.committed} was the last, "
                f"the next one is {self.committed + 1}; nothing was changed"
            )

    def _check_rates(self, table: str, step: int, rates: Sequence[float]) -> None:
        sparse, dense = self._server.sparse, self._server.dense
        if table in sparse:
            _check_rates(table, step, rates, sparse[table].accessor.rules)
        elif table in dense:
            _check_rates(table, step, rates, (dense[table].rule,))
        elif self._elsewhere is not None and table not in self._elsewhere:
            known = _listed((*sparse, *dense, *self._elsewhere))
            raise TableError(f"no table {table!r} to commit; there are: {known}")


def _refusal(error: Exception, step: int) -> tuple[type[DownpourError], str]:
    """The error that everyone gets who commits a step that was refused."""
    if isinstance(error, DownpourError):
        return type(error), f"step {step}: {error}"
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return OutOfMemoryError, (
            f"step {step}: there is no memory to apply it ({why}); nothing was applied here. Use "
            "more servers, or machines with more memory"
        )
    return ServerError, f"step {step}: {why}"


def _add(staged: Staged[Push], table: str, rank: int, push: Push) -> None:
    staged.setdefault(table, {}).setdefault(rank, []).append(push)


def _weighed(staged: Staged[Push], commit: Commit) -> dict[str, Weighed[Push]]:
    """Of each table that has any, the pushes that count, by rising rank.

    TableError where they are of a table that has no rates.
    """
    total = sum(commit.samples.values())
    weighed: dict[str, Weighed[Push]] = {}
    for table, by_rank in staged.items():
        for rank in sorted(commit.samples.keys() & by_rank.keys()):
            counted = by_samples(by_rank[rank], commit.samples[rank], total)
            if not counted:
                continue
            if table not in commit.rates:
                raise TableError(
                    f"step {commit.step}: rank {rank} has staged for table {table!r}, and the "
                    "commit has no rates of it; nothing was applied"
                )
            weighed.setdefault(table, []).extend(counted)
    return weighed


def _check_rates(table: str, step: int, rates: Sequence[float], rules: Sequence[Rule]) -> None:
    """Raise what the table would, before any other table has changed."""
    if step < 1 or len(rates) != len(rules):
        raise TableError(
            f"table {table!r}: step counts from 1 and lr has a number for each of {len(rules)} "
            f"rules, got step={step}, lr={rates}; nothing was applied"
        )
    for rate, rule in zip(rates, rules, strict=True):
        if not (math.isfinite(rate) and rate >= 0.0):
            raise TableError(
                f"table {table!r}: lr must be finite and >= 0, got {rate}; nothing was applied"
            )
        if rate * rule.weight_decay >= 1.0:
            raise SettingError(
                f"table {table!r}: lr * weight_decay must be < 1, got {rate} * "
                f"{rule.weight_decay}; nothing was applied"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
