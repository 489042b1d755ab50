"""Memory that ends in a request: what there was is unchanged, and new rows are whole."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.errors import OutOfMemoryError
from downpour.server import Server
from downpour.serving.service import Service
from downpour.tables import arena, index, undo
from downpour.tables.pages import Pages
from tests import test_tables_sparse
from tests.ctr_tables import make_table, same_bits, some_keys, some_pushes
from tests.one_shard import DEPLOYMENT, NEW, WRITES, Stream, fill, held, serving
from tests.staged import plan

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN, MORE = some_keys(300, 1), some_keys(6000, 2)
BOTH = np.concatenate([KNOWN, MORE])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few thousand rows need many of them, and several growths of the index."""
    monkeypatch.setattr(arena, "_chunk_shift", lambda row_bytes: 9)


def plain() -> Any:
    table = test_tables_sparse.make_table(test_tables_sparse.RULES["adam"])
    table.push(KNOWN, test_tables_sparse.some_grads(300), step=1, lr=0.1)
    return table


def ctr() -> Any:
    table = make_table(embedx_threshold=0.3)
    table.push(KNOWN, some_pushes(300), step=1, lr=0.1)
    return table


def values(kind: str, width: int) -> np.ndarray:
    made = np.random.default_rng(0).standard_normal((len(BOTH), width))
    return made.astype("float32" if kind == "plain" else "float64")


def push(table: Any, kind: str) -> None:
    pushes = some_pushes(len(BOTH), 7) if kind == "ctr" else values(kind, test_tables_sparse.DIM)
    table.push(BOTH, pushes, step=2, lr=0.1)


def put(table: Any, kind: str) -> None:
    table.set(BOTH, values(kind, table.dim))


def pull(table: Any, kind: str) -> None:
    table.pull(BOTH)


def locate(table: Any, kind: str) -> None:
    table.locate(BOTH, create=True)


def failing_after(patched: pytest.MonkeyPatch, good: int) -> list[int]:
    """Let memory end after so many pieces; the list has how many there were."""
    taken = [0]

    def made(num_bytes: int) -> Pages:
        if taken[0] >= good:
            raise MemoryError(f"no {num_bytes} bytes")
        taken[0] += 1
        return Pages(num_bytes)

    for module in (arena, index):
        patched.setattr(module, "Pages", made)
    return taken


@pytest.mark.parametrize("call", [push, put, pull, locate], ids=lambda it: it.__name__)
@pytest.mark.parametrize("kind", ["plain", "ctr"])
def test_wherever_memory_ends_known_rows_stay_and_new_ones_are_whole(
    kind: str, call: Callable[[Any, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = plain if kind == "plain" else ctr
    good = 0
    while True:
        table, fresh = make(), make()
        before = table.step, table.log_decay, table.stats().embedx_rows
        with monkeypatch.context() as patched:
            failing_after(patched, good)
            try:
                call(table, kind)
                break
            except OutOfMemoryError as error:
                assert "'table': there is no memory for more than its" in str(error)  # noqa: PT017
        assert (table.step, table.log_decay, table.stats().embedx_rows) == before
        made = BOTH[table.locate(BOTH, create=False) >= 0]
        assert len(made) == len(table)
        fresh.locate(made, create=True)
        same_bits(table.export(), fresh.export())
        call(table, kind)  # there is memory again
        call(fresh, kind)
        same_bits(table.export(), fresh.export())
        good += 1
    assert good > 10


def test_a_table_that_cannot_be_restored_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    own, filled = Server(plan()), Server(plan())
    filled.sparse["ctr"].push(BOTH, some_pushes(len(BOTH)), step=1, lr=(0.1, 0.1))
    state = filled.export("ctr")
    for good in (2, 5, 9):
        with monkeypatch.context() as patched:
            failing_after(patched, good)
            with pytest.raises(OutOfMemoryError):
                own.restore("ctr", state)
        assert own.is_new
    own.restore("ctr", state)
    same_bits(own.sparse["ctr"].export(), filled.sparse["ctr"].export())


def test_a_log_that_there_is_no_memory_for_refuses_the_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(self: Any, num_bytes: int) -> np.ndarray:
        raise MemoryError(f"no {num_bytes} bytes")

    for table, kind in ((plain(), "plain"), (ctr(), "ctr")):
        before = table.step, [it[:0].tobytes() for it in table.export()]
        table.locate(BOTH, create=True)
        exported = table.export()
        with monkeypatch.context() as patched:
            patched.setattr(undo.SpareMemory, "take", no_memory)
            with pytest.raises(MemoryError, match=r"no \d+ bytes"):
                push(table, kind)
        same_bits(exported, table.export())
        assert table.step == before[0]


# On servers.


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError("the system gives no 134217728 bytes")


FAULTS = {
    "push": ("downpour.tables.undo.SpareMemory.take", MemoryError("none left")),
    "push_dense": ("downpour.server.DenseTable._remember", OSError(12, "Cannot allocate memory")),
    "set": ("downpour.tables.sparse.write", MemoryError("none left")),
    "clear": ("downpour.server.sparse_table", OSError(12, "Cannot allocate memory")),
    "shrink": ("downpour.tables.ctr.RowStore", MemoryError("none left")),
    "init_dense": ("downpour.tables.dense.is_finite", MemoryError("none left")),
    "geo_add": ("downpour.tables.sparse.read_state", MemoryError("none left")),
    "stage": ("downpour.serving.merging.dedup", MemoryError("none left")),
}


@pytest.mark.parametrize("op", FAULTS)
def test_a_request_without_memory_is_refused_typed_and_refused_again(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(DEPLOYMENT, 0)
    if op != "init_dense":
        fill(service.hosted.server)
    with serving(service) as server:
        before, first = held(server), Stream(server, is_write=True)
        if op == "geo_add":
            first.ask(WRITES["geo_join"])
        number = 7
        place, error = FAULTS[op]

        def failing(*_: Any, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(place, failing)
            answer = first.ask(WRITES[op], n=number)
        assert answer["error"] == "OutOfMemoryError", answer
        assert f"there is no memory for {op!r} of table" in answer["message"]
        assert held(server) == before
        assert first.ask(WRITES["stage_dense"], n=number + 1)["n"] == number + 1
        again = Stream(server, is_write=True)  # after a connection that broke
        assert again.greeting["last"] == number + 1
        assert again.ask(WRITES[op], n=number) == answer
        assert held(server) == before
        assert "error" not in again.ask(WRITES[op], n=number + 2)


def test_whatever_a_write_raises_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(DEPLOYMENT, 0)
    fill(service.hosted.server)
    with serving(service) as server:
        before, stream = held(server), Stream(server, is_write=True)
        with monkeypatch.context() as patched:
            patched.setattr("downpour.tables.sparse.update_kernels.push", lambda *_: 1 / 0)
            answer = stream.ask(WRITES["push"], n=1)
        assert (answer["error"], answer["message"]) == (
            "ServerError", "ZeroDivisionError: division by zero",
        )  # fmt: skip
        assert stream.ask(WRITES["push"], n=1) == answer
        assert held(server) == before


def test_a_pull_that_cannot_make_its_rows_is_refused_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(DEPLOYMENT, 0)
    with serving(service) as server:
        reads = Stream(server, is_write=False)
        asked = WRITES["set"].but(op="pull", keys=NEW, values=None, create=True)
        with monkeypatch.context() as patched:
            patched.setattr(arena, "Pages", no_memory)
            answer = reads.ask(asked)
        assert answer["error"] == "OutOfMemoryError"
        assert "'plain': there is no memory for more than its 0 rows" in answer["message"]
        assert "error" not in reads.ask(asked)


LIMITED = """
import resource, sys
import numpy as np
from downpour.deployment import Deployment
from downpour.errors import OutOfMemoryError
from downpour.rules import Adagrad
from downpour.serving.service import Service
from downpour.tables import SparseTable
from downpour.accessor import CtrAccessor, EmbeddingAccessor
from downpour.tables import CtrTable, sparse_table

kind, mb = sys.argv[1], int(sys.argv[2])
rule = Adagrad(0.1)
accessor = (
    EmbeddingAccessor(dim=16, rule=rule) if kind == "plain"
    else CtrAccessor(embedx_dim=16, rule=rule, embedx_threshold=0.0)
)
def pushes(n):
    made = np.full((n, accessor.push_dim), 1.0, np.float32)
    if kind == "ctr":
        made[:, :4] = 1.0
    return made

keys = np.arange(20_000, dtype=np.uint64)
for warm in (True, False):
    table = sparse_table("rows", accessor)
    for step in (1, 2, 3):
        table.push(keys, pushes(20_000), step=step, lr=0.1)
    expected = table.pull(keys, create=False)
many = np.arange(1_500_000, dtype=np.uint64) * np.uint64(7)
brought = pushes(many.size)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (mb << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    table.push(many, brought, step=4, lr=0.1)
    raised = "nothing"
except MemoryError as error:
    raised = type(error).__name__
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
del brought
same = np.array_equal(table.pull(keys, create=False), expected) and table.step == 3
made = many[table.locate(many, create=False) >= 0]
made = made[made >= 20_000]
fresh = sparse_table("rows", accessor)
whole = np.array_equal(table.pull(made, create=False), fresh.pull(made))
counted = len(table) == 20_000 + made.size
print(raised, same, whole, counted, made.size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("kind", ["plain", "ctr"])
@pytest.mark.parametrize("mb", [20, 300])
def test_a_process_at_its_limit_of_memory_keeps_its_tables(kind: str, mb: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, kind, str(mb)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    raised, *facts, made = done.stdout.split()
    assert raised.endswith("MemoryError")
    assert facts == ["True"] * 3
    assert mb < 100 or int(made) > 0
