"""What staging refuses, and that it then keeps and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from downpour.errors import NonFiniteError, OutOfMemoryError, SettingError, TableError
from downpour.serving.staging import Commit, Staging
from downpour.tables import DenseTable, arena
from tests.ctr_tables import some_pushes
from tests.staged import (
    KEYS,
    RATES,
    SIZE,
    Staged,
    bits,
    block,
    commit,
    grads,
    one_of_each,
    server,
    staged,
)

if TYPE_CHECKING:
    from downpour.server import Server

SAMPLES = {0: 3, 1: 5}


def both() -> list[Staged]:
    return [*one_of_each(0), *one_of_each(1)]


def with_value(values: np.ndarray, place: Any, value: float) -> np.ndarray:
    values[place] = value
    return values


NAN, INF, THREE = np.nan, np.inf, KEYS[:3]
STAGED: dict[str, tuple[Any, int, type[Exception], str]] = {
    "a later step": (Staged("plain", 0, grads(3), THREE), 3, TableError, r"3 .* next one is 2"),
    "an old step": (Staged("plain", 0, grads(3), THREE), 1, TableError, "step 1 cannot be staged"),
    "an old dense step": (Staged("dense", 0, block()), 1, TableError, "step 1 cannot be staged"),
    "no table": (Staged("rows", 0, grads(3), THREE), 2, TableError, "no sparse table 'rows' here"),
    "a dense table": (Staged("dense", 0, grads(3), THREE), 2, TableError, "are: plain, ctr"),
    "no dense table": (Staged("bias", 0, block()), 2, TableError, "'bias' here, but of: dense"),
    "signed keys": (
        Staged("plain", 0, grads(3), THREE.view(np.int64)), 2, TableError, "uint64.*got int64",
    ),
    "keys in two axes": (Staged("plain", 0, grads(3), THREE[None]), 2, TableError, r"\[1, 3\]"),
    "too few rows": (Staged("plain", 0, grads(2), THREE), 2, TableError, r"\[3, 4\].*\[2, 4\]"),
    "CTR rows for plain": (Staged("plain", 0, some_pushes(3), THREE), 2, TableError, r"\[3, 8\]"),
    "another dtype": (
        Staged("plain", 0, grads(3, dtype="float32"), THREE), 2, TableError, "got float32",
    ),
    "NaN": (
        Staged("plain", 0, with_value(grads(3), 2, NAN), THREE), 2, NonFiniteError, "in row 2",
    ),
    "infinite CTR rows": (
        Staged("ctr", 0, with_value(some_pushes(3), 1, -INF), THREE), 2, NonFiniteError, "row 1",
    ),
    "a negative show": (
        Staged("ctr", 0, with_value(some_pushes(3), (2, 1), -1.0), THREE), 2, TableError, "show",
    ),
    "a slot too high": (
        Staged("ctr", 0, with_value(some_pushes(3), (2, 0), 2**24), THREE), 2, TableError, "slots",
    ),
    "repeats that overflow": (
        Staged("plain", 0, np.full((2, 4), 1e308), KEYS[[0, 0]]), 2, NonFiniteError, "to infinity",
    ),
    "a block too long": (Staged("dense", 0, np.ones(SIZE + 1)), 2, TableError, r"\[9\].*\[10\]"),
    "a block of another dtype": (Staged("dense", 0, block(0, "float32")), 2, TableError, "float32"),
    "no such parameter": (
        Staged("dense", 0, block(), names=("bias", "scale")), 2, TableError, "no section 'scale'",
    ),
    "an infinite gradient": (
        Staged("dense", 0, with_value(block(), 5, INF)), 2, NonFiniteError, "of 'weight' holds NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGED)
def test_a_push_that_is_refused_is_not_kept(name: str) -> None:
    call, step, error, message = STAGED[name]
    (own, staging), (other, unharmed) = staged(one_of_each(0)), staged(one_of_each(0))
    for each in (staging, unharmed):
        each.commit(commit({0: 1}))
        for good in both():
            good.on(each, step=2)
    before = bits(own)
    with pytest.raises(error, match=message):
        call.on(staging, step)
    assert bits(own) == before
    for each in (staging, unharmed):
        each.commit(commit(SAMPLES, step=2))
    assert bits(own) == bits(other)


def rates(**changed: Any) -> dict[str, Any]:
    return {**RATES, **changed}


COMMITS: dict[str, tuple[Any, type[Exception], str]] = {
    "a later step": (commit(SAMPLES, step=2), TableError, r"step 2 .* next one is 1"),
    "no rates": (
        commit(SAMPLES, rates={"ctr": RATES["ctr"], "dense": RATES["dense"]}),
        TableError, "rank 0 has staged for table 'plain', and the commit has no rates",
    ),
    "no dense rates": (
        commit(SAMPLES, rates={"ctr": RATES["ctr"], "plain": RATES["plain"]}),
        TableError, "rank 0 has staged for table 'dense'",
    ),
    "no rate": (commit(SAMPLES, rates=rates(ctr=(1, ()))), TableError, "each of 2 rules"),
    "one of two": (commit(SAMPLES, rates=rates(ctr=(1, (0.1,)))), TableError, "each of 2 rules"),
    "two of one": (commit(SAMPLES, rates=rates(dense=(1, (0.1, 0.1)))), TableError, "of 1 rules"),
    "step 0": (commit(SAMPLES, rates=rates(dense=(0, (0.1,)))), TableError, "counts from 1"),
    "negative": (commit(SAMPLES, rates=rates(dense=(1, (-0.1,)))), TableError, "'dense': lr must"),
    "NaN": (commit(SAMPLES, rates=rates(plain=(1, (NAN,)))), TableError, "'plain': lr must"),
    "infinite": (commit(SAMPLES, rates=rates(ctr=(1, (0.1, INF)))), TableError, "'ctr': lr must"),
    "decay": (commit(SAMPLES, rates=rates(plain=(1, (2.0,)))), SettingError, r"2.0 \* 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMITS)
def test_a_commit_that_is_refused_changes_nothing(name: str) -> None:
    refused, error, message = COMMITS[name]
    (own, staging), (other, unharmed) = staged(both()), staged(both())
    before = bits(own)
    with pytest.raises(error, match=message):
        staging.commit(refused)
    assert bits(own) == before
    for each in (staging, unharmed):
        assert each.commit(commit(SAMPLES))
    assert bits(own) == bits(other)


HUGE: dict[str, Any] = {
    "plain": Staged("plain", 2, np.full((1, 4), 1.7e308), KEYS[:1], is_mean=False),
    "ctr": Staged("ctr", 2, np.full((1, 8), 1.7e308), KEYS[:1], is_mean=False),
    "dense": Staged("dense", 2, np.full(SIZE, 1.7e308), is_mean=False),
}
HUGE["ctr"].values[:, 0] = 1.0


@pytest.mark.parametrize("table", HUGE)
def test_of_a_commit_whose_sums_overflow_nothing_is_applied(table: str) -> None:
    own, staging = staged([*both(), HUGE[table], HUGE[table]])
    before = bits(own)
    with pytest.raises(NonFiniteError, match=rf"step 1: .*{table}.* sum to infinity"):
        staging.commit(commit({**SAMPLES, 2: 1}))
    assert bits(own) == before


def known(calls: list[Staged]) -> tuple[Server, Staging]:
    """As `staged`, with a row for each key: a step that is refused may make rows."""
    own = server()
    for table in ("plain", "ctr"):
        own.locate(table, KEYS, create=True)
    return staged(calls, own=own)


@pytest.mark.parametrize("table", HUGE)
def test_a_step_that_leads_to_infinity_changes_no_table_and_is_over(table: str) -> None:
    (own, staging), (other, unharmed) = known([*both(), HUGE[table]]), known([])
    before = bits(own)
    refused = commit({**SAMPLES, 2: 1})
    for _ in range(2):  # all who commit it are told the same
        with pytest.raises(NonFiniteError, match=rf"step 1: .*table '{table}': this push would"):
            staging.commit(refused)
        assert bits(own) == before
    assert staging.committed == 1
    unharmed.commit(commit({0: 1}, rates={}))  # the others
    for each in (staging, unharmed):
        for good in both():
            good.on(each, step=2)
        assert each.commit(commit(SAMPLES, step=2))
    assert bits(own) == bits(other)
    assert not staging.commit(commit(SAMPLES, step=2))


@pytest.mark.parametrize("place", ["rows", "embedx", "a copy"])
def test_a_step_that_there_is_no_memory_for_is_refused_as_a_whole(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = both()
    if place == "embedx":
        shown = next(it for it in calls if it.table == "ctr")
        shown.values[:, 1] = 100.0
    (own, staging), before = known(calls), None
    if place == "rows":
        own, staging = staged(calls)
    before = bits(own)

    def no_memory(*_: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patched:
        if place == "a copy":
            patched.setattr(DenseTable, "_remember", no_memory)
        else:
            patched.setattr(arena, "Pages", no_memory)
        for _ in range(2):
            with pytest.raises(OutOfMemoryError, match=r"step 1: .* no memory .*no more"):
                staging.commit(commit(SAMPLES))
            assert bits(own) == before
    assert staging.committed == 1


def test_sums_that_cancel_to_nan_are_refused_without_a_warning() -> None:
    huge = [Staged("dense", 0, np.full(SIZE, sign * 1.7e308), is_mean=False) for sign in (1, 1, -1)]
    _, staging = staged([*huge, huge[2], huge[2]])
    with pytest.raises(NonFiniteError, match=r"'dense'.* sum to infinity"):
        staging.commit(commit({0: 1}))


@pytest.mark.parametrize("step", [0, -3])
def test_steps_count_from_one(step: int) -> None:
    with pytest.raises(SettingError, match=rf"Commit\.step counts from 1, got {step}"):
        Commit(step=step, samples={}, rates={})


def test_no_batch_has_fewer_than_no_samples() -> None:
    with pytest.raises(SettingError, match=r"Commit\.samples must be >= 0, got -2 of rank 1"):
        Commit(step=1, samples={0: 1, 1: -2}, rates={})


def test_a_commit_may_name_dense_tables_that_others_have() -> None:
    elsewhere = rates(other=(1, (0.1,)))
    own = server()
    staging = Staging(own, elsewhere=["other"])
    with pytest.raises(TableError, match=r"no table 'another' to commit; there are: plain.*other"):
        staging.commit(commit({0: 1}, rates={**elsewhere, "another": (1, (0.1,))}))
    assert staging.commit(commit({0: 1}, rates=elsewhere))
    with pytest.raises(TableError, match="no part of a dense table 'other' here"):
        Staged("other", 0, block()).on(staging, step=2)
    assert Staging(server()).commit(commit({0: 1}, rates=elsewhere))
