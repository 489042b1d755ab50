"""What clients have servers do with whole tables: clear, shrink, save, load."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import downpour as dp
from downpour.consistency import Async, Geo, Sync
from downpour.errors import RefusedError, SavedRunError, SettingError, TableError
from downpour.plan.plan import Plan
from downpour.remote.connect import connect
from downpour.serving.flight_server import FlightServer
from downpour.serving.process import LISTENING
from downpour.serving.service import Service
from tests import geo_runs
from tests.ctr_tables import DIM, some_pushes
from tests.geo_runs import Faulty, Lost
from tests.plans import ctr_table, plain_table, small_plan
from tests.processes import Process
from tests.servers import at_once, held
from tests.staged import NAMES, SIZE, block, grads, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLAN = plan()
IDS = np.arange(100)
STAYS = dp.Lifecycle(show_click_decay_rate=1.0, delete_threshold=0.0, delete_after_unseen_days=1e9)


@contextmanager
def served(
    number: int = 2, save_root: Path | None = None, made: Callable[[], Service] = Service
) -> Iterator[list[FlightServer]]:
    servers = [FlightServer(made(), save_root=save_root) for _ in range(number)]
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()
            server.shutdown()


def to(servers: list[FlightServer], made: Plan = PLAN, **settings: Any) -> Any:
    return connect(made, [server.address for server in servers], **settings)


def pushed(seed: int = 0) -> np.ndarray:
    return some_pushes(len(IDS), seed)


def train(*clients: Any, steps: int = 3) -> None:
    """Push to each of the tables of each client."""
    for ps in clients:
        train_one(ps, steps)


def train_one(ps: Any, steps: int) -> None:
    ps.init_dense("dense", block())
    for step in range(steps):
        ps.push("plain", IDS, grads(len(IDS), step), feature="user")
        ps.push("ctr", IDS, pushed(step))
        ps.push_dense("dense", block(step), NAMES)


# clear


def test_a_cleared_table_is_new_on_all_servers() -> None:
    with served() as servers, to(servers) as ps, dp.embedded(PLAN) as new:
        train(ps, new)
        ps.clear("plain")
        new.clear("plain")
        assert (ps.steps["plain"], ps.steps["ctr"], ps.stats()["plain"].rows) == (0, 3, 0)
        for each in (ps, new):
            each.push("plain", IDS[:9], grads(9), feature="user")
        assert held(ps) == held(new)


def test_a_clear_that_is_sent_again_leaves_later_rows() -> None:
    with served(2, made=Faulty) as servers, to(servers) as ps:
        train(ps)
        for server in servers:
            server.service.faults["clear"] = [Lost()]  # type: ignore[attr-defined]
        ps.clear("plain")
        ps.push("plain", IDS, grads(len(IDS)), feature="user")
        assert ps.stats()["plain"].rows == len(IDS)
        assert [server.service.sessions.duplicates for server in servers] == [1, 1]


def test_what_was_found_before_a_clear_is_pushed_to_after_it() -> None:
    with served() as servers, to(servers) as ps, to(servers) as other:
        train(ps, steps=1)
        located = ps.locate("plain", np.arange(5, dtype=np.uint64), create=True)
        before = ps.read(located)
        other.clear("plain")
        ps.update(located, np.ones((5, before.shape[1])))
        assert ps.stats()["plain"].rows == 5


def test_steps_of_sync_training_go_on_after_a_clear() -> None:
    with served() as servers, to(servers, consistency=Sync()) as ps:
        ps.init_dense("dense", block())
        ps.begin()
        for step in (1, 2, 3):
            if step == 3:
                ps.clear("plain")
            keys = np.arange(9, dtype=np.uint64)
            ps.update(ps.locate("plain", keys, create=True), grads(9))
            ps.end_step(9, goes_on=step < 3)
            assert ps.steps["plain"] == step
        ps.finish()
        assert ps.export("plain").step == 3


def test_geo_workers_hear_that_rows_are_new() -> None:
    ids, ones = [1, 2], np.ones((2, geo_runs.DIM))
    with geo_runs.workers(1) as (worker, servers), to(servers, geo_runs.a_plan()) as other:
        worker.push("embedding", ids, ones, feature="item")
        worker.finish()
        assert worker.pull("embedding", ids, feature="item").tolist() == (0 * ones).tolist()
        other.clear("embedding")
        worker.finish()
        assert worker.pull("embedding", ids, feature="item").tolist() == ones.tolist()


# shrink


def test_all_servers_shrink_as_one_does() -> None:
    with served(3) as servers, to(servers) as ps, dp.embedded(PLAN) as one:
        train(ps, one)
        shrunk = ps.shrink("ctr")
        assert shrunk == one.shrink("ctr")
        assert 0 < shrunk.deleted < len(IDS) == shrunk.kept + shrunk.deleted
        train(ps, one)
        assert held(ps) == held(one)


def test_a_shrink_that_is_sent_again_is_a_day_and_answers_alike() -> None:
    with served(2, made=Faulty) as servers, to(servers) as ps, dp.embedded(PLAN) as one:
        train(ps, one)
        for server in servers:
            server.service.faults["shrink"] = [Lost()]  # type: ignore[attr-defined]
        assert ps.shrink("ctr") == one.shrink("ctr")
        assert held(ps) == held(one)
        assert [server.service.sessions.duplicates for server in servers] == [1, 1]


def test_plain_rows_do_not_shrink() -> None:
    with served() as servers, to(servers) as ps:
        train(ps)
        before = held(ps)
        with pytest.raises(TableError, match=r"server 0 .*table 'plain' cannot shrink"):
            ps.shrink("plain")
        with pytest.raises(TableError, match=r"no sparse table 'dense'"):
            ps.shrink("dense")
        assert held(ps) == before


@pytest.mark.parametrize("verb", ["shrink", "clear"])
def test_pulls_and_pushes_go_on_meanwhile(verb: str) -> None:
    """And after a shrink that deletes nothing no push is missing."""
    made = Plan(sparse=(ctr_table(embedx_dim=DIM, lifecycle=STAYS),), dense=(), programs={})
    push = np.zeros((len(IDS), 5 + DIM), np.float32)
    push[:, 1] = 1.0
    with served() as servers, to(servers, made) as ps:
        is_over, rounds = threading.Event(), [0, 0]

        def use(place: int) -> None:
            with to(servers, made) as own:
                while not is_over.is_set():
                    own.push("embedding", IDS, push, feature="item")
                    assert np.isfinite(own.pull("embedding", IDS, feature="item")).all()
                    own.pull("embedding", rng.integers(0, 10**9, 50), feature="item", create=True)
                    rounds[place] += 1

        def change() -> None:
            try:
                for _ in range(30):
                    getattr(ps, verb)("embedding")
            finally:
                is_over.set()

        rng = np.random.default_rng(0)
        at_once([change, lambda: use(0), lambda: use(1)])
        shows = ps.pull("embedding", IDS, feature="item")[:, 0]
        assert set(shows) == {float(sum(rounds))} if verb == "shrink" else max(shows) <= sum(rounds)


def test_sync_training_goes_on_while_a_table_shrinks() -> None:
    """Rows that are found for a commit are not replaced before it is made."""
    made = Plan(sparse=(ctr_table(embedx_dim=DIM, lifecycle=STAYS),), dense=(), programs={})
    keys, num_steps = np.arange(50, dtype=np.uint64), 60
    push = np.zeros((len(keys), 5 + DIM), np.float32)
    push[:, 1] = 1.0
    with served() as servers, to(servers, made) as ps:
        is_over = threading.Event()

        def work() -> None:
            try:
                step_on()
            finally:
                is_over.set()

        def step_on() -> None:
            with to(servers, made, consistency=Sync()) as own:
                own.begin()
                for step in range(num_steps):
                    located = own.locate("embedding", keys, create=True)
                    assert own.read(located)[:, 0].tolist() == [float(step)] * len(keys)
                    own.update(located, push, is_mean=False)
                    own.end_step(1, goes_on=step < num_steps - 1)
                own.finish()

        def shrink() -> None:
            while not is_over.is_set():
                ps.shrink("embedding")

        at_once([work, shrink])


# save and load


def test_new_servers_load_what_others_have_saved(tmp_path: Path) -> None:
    with served(2, tmp_path) as servers, to(servers) as ps:
        train(ps)
        folders = ps.save("monday")
        assert folders == [str(tmp_path / "monday" / f"shard-{i}-of-2") for i in range(2)]
        before = held(ps)
        with served(2, tmp_path) as others, to(others) as back:
            back.load("monday")
            assert held(back) == before
            train(ps, back)
            assert held(back) == held(ps)
            assert not back.init_dense("dense", np.zeros(SIZE))


def test_what_a_client_has_pushed_is_in_its_save(tmp_path: Path) -> None:
    with served(2, tmp_path) as servers, to(servers, consistency=Async()) as ps:
        ps.begin()
        train(ps)
        ps.save("monday")
        with served(2, tmp_path) as others, to(others) as back:
            back.load("monday")
            assert held(back) == held(ps)


@pytest.mark.parametrize("consistency", [Sync(), Geo(k_steps=2)], ids=["sync", "geo"])
def test_a_run_goes_on_from_a_loaded_save(consistency: Any, tmp_path: Path) -> None:
    made = small_plan(plain_table(rule=dp.Adagrad(0.1)))
    keys, rows = np.arange(9, dtype=np.uint64), np.ones((9, 4), np.float32)
    with served(2, tmp_path) as servers:
        with to(servers, made) as ps:
            ps.push("embedding", keys, rows, feature="item")
            ps.push("embedding", keys, rows, feature="item")
            ps.save("monday")
        with served(2, tmp_path) as others:
            with to(others, made) as back:
                back.load("monday")
            with to(others, made, consistency=consistency) as run:
                run.init_dense("dense.click", np.zeros(9, np.float32))
                run.begin()
                run.update(run.locate("embedding", keys, create=True), rows)
                run.end_step(9, goes_on=False)
                run.finish()
                assert run.steps["embedding"] == (3 if isinstance(consistency, Sync) else 1)


def test_names_that_are_taken_or_no_names_are_refused(tmp_path: Path) -> None:
    with served(2, tmp_path) as servers, to(servers) as ps:
        ps.save("monday")
        with pytest.raises(RefusedError, match=r"server 0 .*'monday' exists already"):
            ps.save("monday")
        with pytest.raises(RefusedError, match=r"the name of a save must be 1 to 100"):
            ps.save("../monday")
        with pytest.raises(RefusedError, match=r"'name' must be a text"):
            ps.remote[0].ask("save", {"name": 3})
    with served(1) as servers, to(servers) as ps:
        for verb in (ps.save, ps.load):
            with pytest.raises(
                RefusedError, match=r"server 0 .*no folder for saves; .*--save-root"
            ):
                verb("monday")


def test_only_new_servers_load(tmp_path: Path) -> None:
    with served(1, tmp_path) as servers, to(servers) as ps:
        ps.save("monday")
        train(ps)
        before = held(ps)
        with pytest.raises(RefusedError, match=r"shard 0 has been trained or filled already: only"):
            ps.load("monday")
        assert held(ps) == before
        with (
            to(servers, consistency=Async()) as member,
            pytest.raises(SettingError, match=r"load: the members of a run"),
        ):
            member.load("monday")


def test_where_one_server_cannot_load_none_is_filled(tmp_path: Path) -> None:
    with served(2, tmp_path) as servers, to(servers) as ps:
        train(ps)
        ps.save("monday")
    (tmp_path / "monday" / "shard-1-of-2").rename(tmp_path / "elsewhere")
    with served(2, tmp_path) as servers, to(servers) as ps:
        with pytest.raises(SavedRunError, match=r"server 1 .*has no shard-1-of-2, but shards 0 of"):
            ps.load("monday")
        (tmp_path / "elsewhere").rename(tmp_path / "monday" / "shard-1-of-2")
        ps.load("monday")
        assert ps.stats()["plain"].rows == len(IDS)
    with (
        served(3, tmp_path) as servers,
        to(servers) as ps,
        pytest.raises(SavedRunError, match=r"shards 0 of 2, 1 of 2; load it on as many servers"),
    ):
        ps.load("monday")
    with (
        served(2, tmp_path) as servers,
        to(servers, plan("float32")) as ps,
        pytest.raises(RefusedError, match=r"plan with the same model, losses, data and settings"),
    ):
        ps.load("monday")


def test_a_folder_for_saves_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"the folder for saves, .*file, is a file; name a fold"):
        FlightServer(Service(), save_root=tmp_path / "file")


def test_a_server_that_was_killed_comes_back_with_what_it_has_saved(tmp_path: Path) -> None:
    command = ["-m", "downpour", "server", "--save-root", str(tmp_path)]
    with closing(Process(command)) as server, connect(PLAN, [address_of(server)]) as ps:
        train(ps)
        before, folders = held(ps), ps.save("monday")
        server.kill()
    assert folders == [str(tmp_path / "monday" / "shard-0-of-1")]
    with closing(Process(command)) as server, connect(PLAN, [address_of(server)]) as ps:
        ps.load("monday")
        assert held(ps) == before


def address_of(server: Process) -> str:
    return server.line().removeprefix(LISTENING).strip()
