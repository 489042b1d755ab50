"""A client: all tables of a plan, wherever their shards are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, cast

import numpy as np

from downpour.accessor import CtrAccessor
from downpour.atomic import Atomic
from downpour.errors import NonFiniteError, SettingError, TableError
from downpour.given import checked_block, checked_rows, dense_values, stored_ids
from downpour.merged import merged_shrunk, merged_stats
from downpour.plan.sections import DEFAULT_SECTIONS, Layout
from downpour.server import Server
from downpour.tables import TableStats, check_pushes, dedup, merge_pushes, partition
from downpour.tables.batches import is_finite, segment_sum
from downpour.transport import DenseState, DenseStats, Shrunk, SparseState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import ArrayLike, NDArray

    from downpour.arrow import Column
    from downpour.plan.plan import Plan
    from downpour.plan.sections import Sections
    from downpour.plan.specs import SparseTableSpec
    from downpour.rules import Rule
    from downpour.transport import Floats, Keys, Rows, Transport


@dataclass(frozen=True, slots=True)
class Located:
    """Different keys of one table with their rows, ready to be read and updated.

    `order` [n] groups the keys by shard, and `ends` [num_shards + 1] are the groups' bounds; one
    shard alone has no order. `rows`: each shard's row numbers, as of the `rebuilds` of the table
    until then.
    """

    table: str
    keys: Keys
    rows: tuple[Rows, ...]
    order: NDArray[np.int64] | None = None
    ends: tuple[int, ...] = ()
    rebuilds: int = field(default=0, kw_only=True)


class Client:
    """Reads and updates the tables of `plan` on its servers, one transport a shard.

    It counts the steps of each table, and takes each step's learning rate from the rule's
    schedule. `pull`, `push` and `set` are for anyone; what takes `Located` is the worker's.
    `sections` says how dense tables are split, as the servers have it.
    """

    is_embedded = True  # rows are in this process
    is_alone = True  # no other worker takes part in its steps

    def __init__(
        self, plan: Plan, servers: Sequence[Transport], *, sections: Sections = DEFAULT_SECTIONS
    ) -> None:
        self.plan = plan
        self.servers = tuple(servers)
        self._layouts = {it.name: Layout(it, len(self.servers), sections) for it in plan.dense}
        self.steps = dict.fromkeys(
            [*(it.name for it in plan.sparse), *(it.name for it in plan.dense)], 0
        )
        self._rebuilds: Counter[str] = Counter()  # after which rows have other numbers
        # How often this client has changed a dense table: embedded, nobody else does.
        self.dense_changes: Counter[str] = Counter()
        self._atomic = Atomic(self.steps, self.dense_changes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; embedded tables live as long as the client does."""

    def pull(
        self,
        table: str,
        keys: Column,
        *,
        feature: str | None = None,
        create: bool = False,
        hashed: bool | None = None,
    ) -> Floats:
        """The rows of raw ids [n], repeats allowed: [n, dim]; CTR rows are [n, 2 + dim], their show
        and click before the weights.

        keys: integers or texts, in whatever holds a feature's ids in training (list, numpy, torch,
        Arrow, pandas, polars), read the same way; `hashed` as in the `Feature`. `feature` says in
        which id space the ids are; it may be left out where the table has one. An unknown id has
        its initial row; it is stored only with `create`. Raises TableError.
        """
        unique, inverse = dedup(stored_ids(self._spec(table), keys, feature, hashed))
        rows: Floats = self.read(self.locate(table, unique, create=create))[inverse]
        return rows

    def push(
        self,
        table: str,
        keys: Column,
        grads: Floats,
        *,
        feature: str | None = None,
        hashed: bool | None = None,
    ) -> None:
        """One step of the table's rules: gradients [n, dim], summed by key in their order.

        keys, feature and hashed: as in `pull`.
        For CTR rows [n, 4 + dim]: slot, show, click and places stand before the gradients of w and
        embedx (see CtrAccessor); the slot is not summed, the last one of a key stays. Raises
        TableError or NonFiniteError, and then nothing has changed.
        """
        spec = self._spec(table)
        accessor = spec.accessor
        unique, inverse = dedup(stored_ids(spec, keys, feature, hashed))
        grads = checked_rows(spec, "gradients", grads, (len(inverse), accessor.push_dim))
        if isinstance(accessor, CtrAccessor):
            check_pushes(table, grads)
            summed = merge_pushes(grads, inverse, len(unique))
        else:
            summed = segment_sum(grads, inverse, len(unique))
        if not is_finite(summed):
            raise NonFiniteError(f"table {table!r}: gradients sum to infinity; nothing was applied")
        self.update(self.locate(table, unique, create=True), summed)

    def set(
        self,
        table: str,
        keys: Column,
        rows: Floats,
        *,
        feature: str | None = None,
        hashed: bool | None = None,
    ) -> None:
        """Write rows [n, dim] for raw ids [n], as pretrained vectors; the rule starts afresh there.

        keys, feature and hashed: as in `pull`.
        CTR rows keep their show and click, and have their embedx from then on.
        Of several rows for one id the last one stays. Raises TableError or NonFiniteError.
        """
        spec = self._spec(table)
        stored = stored_ids(spec, keys, feature, hashed)
        rows = checked_rows(spec, "rows", rows, (len(stored), spec.accessor.dim))
        for server, part in self._parts(stored):
            server.set(table, stored[part], rows[part])

    def holds(self, table: str) -> bool:
        """Whether a sparse table has rows or has been trained, as far as this client knows."""
        name = self._spec(table).name
        if self.steps[name] > 0:
            return True
        stats = self.stats()[name]
        return isinstance(stats, TableStats) and stats.rows > 0

    def clear(self, table: str) -> None:
        """Forget all rows of a sparse table; its steps and its decay begin anew."""
        name = self._spec(table).name
        for server in self.servers:
            server.clear(name)
        self.steps[name] = 0
        self._rebuilds[name] += 1

    def shrink(self, table: str) -> Shrunk:
        """Let a day pass for the rows of a CtrAccessor; how many were kept and how many deleted.

        Show and click are multiplied by its `lifecycle.show_click_decay_rate`, and unseen_days
        grows by one. Then a row goes whose score is below `delete_threshold`, or that was not
        pushed for more than `delete_after_unseen_days`. Raises TableError for other rows.
        """
        name = self._spec(table).name
        shrunk = merged_shrunk([server.shrink(name) for server in self.servers])
        self._rebuilds[name] += 1
        return shrunk

    def locate(self, table: str, keys: Keys, *, create: bool) -> Located:
        """Find the rows of different stored keys, making those that are missing if `create`."""
        rebuilds = self._rebuilds[table]
        if len(self.servers) == 1:
            rows = self.servers[0].locate(table, keys, create=create)
            return Located(table, keys, (rows,), rebuilds=rebuilds)
        order, counts = partition(keys, len(self.servers))
        ends = (0, *np.cumsum(counts).tolist())
        by_shard = tuple(
            server.locate(table, keys[order[ends[i] : ends[i + 1]]], create=create)
            for i, server in enumerate(self.servers)
        )
        return Located(table, keys, by_shard, order, ends, rebuilds=rebuilds)

    def ask(self, located: Located) -> None:
        """Let the rows come that the step under way will `read`; embedded ones are there."""

    def ask_ahead(self, located: Located, step: int) -> None:
        """Let the rows come that a later step will `read`, as far as the consistency lets them."""

    def read_ahead(self, located: Located, step: int) -> Floats | None:
        """The rows that a later step is to `read`, if they have come and are as it may see them."""
        return None

    def read(self, located: Located) -> Floats:
        """The rows as of now, [n, pull_dim]."""
        accessor = self.plan.sparse_table(located.table).accessor
        out = np.empty((len(located.keys), accessor.pull_dim), accessor.numpy_dtype)
        located = self._as_of_now(located, create=False)
        if located.order is None:
            self.servers[0].read(located.table, located.keys, located.rows[0], out)
            return out
        for i, server in enumerate(self.servers):
            part = located.order[located.ends[i] : located.ends[i + 1]]
            rows = np.empty((len(part), accessor.pull_dim), accessor.numpy_dtype)
            server.read(located.table, located.keys[part], located.rows[i], rows)
            out[part] = rows
        return out

    def update(self, located: Located, pushes: Floats, *, is_mean: bool = True) -> None:
        """One step of the table's rules on located rows; pushes [n, push_dim] in its dtype.

        is_mean: whether they are of a mean over the step's samples, or of a sum; where several
        workers push for one step, means count by their samples.
        """
        table = located.table
        step, lr = self.next_step(table)
        located = self._as_of_now(located, create=True)
        with self._atomic.push() as changes:
            for i, server in enumerate(self.servers):
                part = pushes
                if located.order is not None:
                    part = pushes[located.order[located.ends[i] : located.ends[i + 1]]]
                server.update(table, located.rows[i], part, step=step, lr=lr, within=changes)
            self.steps[table] = step

    def next_step(self, table: str) -> tuple[int, tuple[float, ...]]:
        """The number of a table's next step and the learning rate of each of its rules in it.

        Raises SettingError where a schedule gives none that its rule can take.
        """
        rules, lrs = self._rules(table), []
        step = self.steps[table] + 1
        for rule in rules:
            lrs.append(lr := rule.lr_at(step))
            if lr * rule.weight_decay >= 1.0:
                raise SettingError(
                    f"table {table!r}: lr * weight_decay must be < 1, got {lr} * "
                    f"{rule.weight_decay} at step {step}; nothing was applied"
                )
        return step, tuple(lrs)

    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each table's last step, once it has made one; of CTR rows that of
        embedx apart.
        """
        return {
            f"{table} (embedx)" if place else table: rule.lr_at(step)
            for table, step in self.steps.items()
            if step
            for place, rule in enumerate(self._rules(table))
        }

    def atomic(self) -> AbstractContextManager[None]:
        """A block whose pushes count together: where it raises, none of them does."""
        return self._atomic.block()

    def init_dense(self, table: str, flat: Floats) -> bool:
        """Give a dense table its first weights [size]; False where a server has them already."""
        layout = self._layout(table)
        flat = checked_block(layout, "weights", flat)
        taken = [  # all are asked: what one has, another may still lack
            self.servers[share.server].init_dense(table, share.take(flat))
            for share in layout.shares
        ]
        return all(taken)

    def set_dense(self, name: str, values: ArrayLike) -> None:
        """Write a dense table [size], or one parameter of it in its shape; the rule's state stays.

        name: of the table, or of the parameter in the model. A worker's model has the values from
        its next pull on, as a rule that is the next step. Raises TableError or NonFiniteError, and
        then nothing has changed.
        """
        table, flat, names = dense_values(self.plan, name, values)
        self.write_dense(table, flat, names)

    def write_dense(self, table: str, flat: Floats, names: Collection[str]) -> None:
        """Write the parameters of these names from a block [size]; see `set_dense`."""
        layout = self._layout(table)
        flat = checked_block(layout, "values", flat, names)
        for share in layout.shares:
            self.servers[share.server].set_dense(table, share.take(flat), names)
        self.dense_changes[table] += 1

    def begin(self) -> None:
        """Wait until dense tables have their first weights, whoever gives them."""

    def end_step(self, samples: int, *, goes_on: bool = True) -> float:
        """Tell that all of a step was pushed; this worker's share of the step's samples.

        goes_on: whether the worker has another batch.
        """
        return 1.0

    def ask_dense(self, table: str) -> None:
        """Let the values come that the step under way will pull; embedded ones are there."""

    def pull_dense(self, table: str) -> Floats:
        """The weights of a dense table, [size]."""
        layout = self._layout(table)
        out = np.empty(layout.spec.size, layout.spec.dtype)
        for share in layout.shares:
            server = self.servers[share.server]
            if share.run is not None:
                server.pull_dense(table, out[share.run])
            else:
                own = np.empty(share.size, out.dtype)
                server.pull_dense(table, own)
                share.put(own, out)
        return out

    def push_dense(
        self, table: str, grad: Floats, names: Collection[str], *, is_mean: bool = True
    ) -> None:
        """One step of the table's rule with grad [size], on the parameters of these names.

        `is_mean` as in `update`. What grad holds for the others is not read. Raises TableError or
        NonFiniteError, and then nothing has changed.
        """
        layout = self._layout(table)
        step, (lr,) = self.next_step(table)
        grad = checked_block(layout, "gradient", grad, names)
        with self._atomic.push() as changes:
            for share in layout.shares:
                own = share.take(grad)
                self.servers[share.server].push_dense(
                    table, own, step=step, lr=lr, names=names, within=changes
                )
            self.steps[table] = step
            self.dense_changes[table] += 1

    def export(self, table: str) -> SparseState:
        """All rows of a sparse table, the keys rising whatever the number of shards."""
        shards = [server.export(self._spec(table).name) for server in self.servers]
        keys = np.concatenate([shard.keys for shard in shards])
        order = np.argsort(keys, kind="stable")
        weights = np.concatenate([shard.weights for shard in shards])
        state = np.concatenate([shard.state for shard in shards])
        first = shards[0]
        statistics = [shard.statistics for shard in shards if shard.statistics is not None]
        return SparseState(
            keys[order],
            weights[order],
            state[order],
            first.step,
            first.log_decay,
            np.concatenate(statistics)[order] if statistics else None,
        )

    def restore(self, table: str, state: SparseState) -> None:
        """Fill an empty sparse table with what `export` gave, of any number of shards."""
        for server, part in self._parts(state.keys):
            rows = state.keys[part], state.weights[part], state.state[part]
            counts = None if state.statistics is None else state.statistics[part]
            server.restore(table, SparseState(*rows, state.step, state.log_decay, counts))
        self.steps[table] = state.step

    def export_dense(self, table: str) -> DenseState:
        """A dense table with its rule's state, by parameter however it is split."""
        layout = self._layout(table)
        weights = np.empty(layout.spec.size, layout.spec.dtype)
        state, updates, step = {}, {}, 0
        for share in layout.shares:
            own = self.servers[share.server].export_dense(table)
            share.put(own.weights, weights)
            for part in share.parts:
                state[part] = own.state[part.name]
                updates[part.parameter] = own.updates[part.name]
            step = max(step, own.step)
        updates = {name: updates[name] for name in layout.parts}
        return DenseState(weights, layout.join_state(state), updates, step)

    def restore_dense(self, table: str, state: DenseState) -> None:
        """Make a dense table what `export_dense` gave, of any number of servers."""
        layout = self._layout(table)
        weights = checked_block(layout, "weights", state.weights)
        for section in layout.spec.sections:
            name, length = section.name, layout.spec.rule.state_dim(section.size)
            own_state = state.state.get(name)
            if own_state is None or name not in state.updates or own_state.shape != (length,):
                raise TableError(
                    f"dense table {table!r}: state of {name!r} must be [{length}] with its update "
                    "count; was it saved with another rule?"
                )
        cut = layout.cut_state(state.state)
        for share in layout.shares:
            own = {part.name: cut[part] for part in share.parts}
            updates = {part.name: state.updates[part.parameter] for part in share.parts}
            part_state = DenseState(share.take(weights), own, updates, state.step)
            self.servers[share.server].restore_dense(table, part_state)
        self.steps[table] = state.step
        self.dense_changes[table] += 1

    def stats(self) -> dict[str, TableStats | DenseStats]:
        """Rows and bytes of each table, all shards together."""
        by_shard = [server.stats() for server in self.servers]
        merged: dict[str, TableStats | DenseStats] = {}
        for spec in self.plan.sparse:
            merged[spec.name] = merged_stats([cast("TableStats", s[spec.name]) for s in by_shard])
        for name, layout in self._layouts.items():
            shares = [cast("DenseStats", by_shard[it.server][name]) for it in layout.shares]
            merged[name] = DenseStats(sum(it.size for it in shares), sum(it.bytes for it in shares))
        return merged

    def _as_of_now(self, located: Located, *, create: bool) -> Located:
        """Keys that were located before their table was cleared or shrunk are located again."""
        if located.rebuilds == self._rebuilds[located.table]:
            return located
        return self.locate(located.table, located.keys, create=create)

    def _parts(self, keys: Keys) -> Iterator[tuple[Transport, NDArray[np.int64]]]:
        """Each server with the places of its keys."""
        order, counts = partition(keys, len(self.servers))
        yield from zip(self.servers, np.split(order, np.cumsum(counts)[:-1]), strict=True)

    def _layout(self, table: str) -> Layout:
        return self._layouts[self.plan.dense_table(table).name]

    def _rules(self, table: str) -> tuple[Rule, ...]:
        for spec in self.plan.sparse:
            if spec.name == table:
                return spec.accessor.rules
        return (self.plan.dense_table(table).rule,)

    def _spec(self, table: str) -> SparseTableSpec:
        for spec in self.plan.sparse:
            if spec.name == table:
                return spec
        known = ", ".join(spec.name for spec in self.plan.sparse) or "none"
        raise TableError(f"no sparse table {table!r}; the plan has: {known}")


def embedded(plan: Plan, *, num_shards: int = 1, sections: Sections = DEFAULT_SECTIONS) -> Client:
    """A client of servers inside this process, one a shard.

    The number of shards changes no result, nor do the sections. Raises SettingError.
    """
    if type(num_shards) is not int or num_shards < 1:
        raise SettingError(f"embedded: num_shards must be an int >= 1, got {num_shards!r}")
    servers = [
        Server(plan, shard=i, num_shards=num_shards, sections=sections) for i in range(num_shards)
    ]
    return Client(plan, servers, sections=sections)
