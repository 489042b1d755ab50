"""Saves of several servers that are cut short: the name is of one save, whole, or it is free."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from downpour.errors import DownpourError, RefusedError, SavedRunError, ServerLostError
from downpour.remote.connect import connect
from downpour.serving import save_verbs
from downpour.serving.process import LISTENING
from tests.processes import LIMIT_S, Process
from tests.servers import held
from tests.test_verbs import PLAN, served, to, train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Killed(BaseException):
    """The end of a server, as its files see it."""


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@contextmanager
def trained(root: Path, steps: int) -> Iterator[Any]:
    """A client of two new servers, whose tables were pushed to so often."""
    with served(2, root) as servers, to(servers) as ps:
        train(ps, steps=steps)
        yield ps


def loaded(root: Path, name: str = "monday") -> dict[str, Any]:
    """What two new servers hold that have loaded a save."""
    with served(2, root) as servers, to(servers) as ps:
        ps.load(name)
        return held(ps)


def failing_at(monkeypatch: pytest.MonkeyPatch, step: str, shard: int) -> None:
    """Let one server fail in a step of a save, before it has done anything."""
    work = getattr(save_verbs, step)

    def fail(folder: Path, *args: Any, **kwargs: Any) -> Any:
        if folder.name.startswith(f"shard-{shard}-"):
            raise OSError(28, "no space left on device")
        return work(folder, *args, **kwargs)

    monkeypatch.setattr(save_verbs, step, fail)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("step", ["save_shard", "keep_shard"])
def test_a_save_that_fails_on_one_server_is_on_none_and_its_name_is_free(
    step: str, shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trained(tmp_path, 1) as ps:
        with monkeypatch.context() as patched:
            failing_at(patched, step, shard)
            with pytest.raises(DownpourError, match=rf"server {shard} .*no space left"):
                ps.save("monday")
        assert visible(tmp_path) == []
        ps.save("monday")
        assert loaded(tmp_path) == held(ps)


def test_a_save_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    with trained(tmp_path, 1) as ps:
        ps.save("monday")
        before = {it: it.stat().st_mtime_ns for it in tmp_path.rglob("*")}
        expected = held(ps)
    with trained(tmp_path, 2) as ps:
        with pytest.raises(RefusedError, match=r"server 0 .*'monday' exists already, with shard 0"):
            ps.save("monday")
        assert {it: it.stat().st_mtime_ns for it in tmp_path.rglob("*")} == before
    assert loaded(tmp_path) == expected
    with (
        served(3, tmp_path) as servers,
        to(servers) as ps,
        pytest.raises(RefusedError, match=r"'monday' exists already, with shard 0 of 2"),
    ):
        ps.save("monday")


def test_shards_of_two_saves_are_not_loaded_together(tmp_path: Path) -> None:
    with trained(tmp_path, 1) as ps:
        ps.save("monday")
        ps.save("tuesday")
    (tmp_path / "monday" / "shard-1-of-2").rename(tmp_path / "other")
    (tmp_path / "tuesday" / "shard-1-of-2").rename(tmp_path / "monday" / "shard-1-of-2")
    with served(2, tmp_path) as servers, to(servers) as ps:
        with pytest.raises(
            SavedRunError, match=r"'monday' is broken: .*different saves \(server 0 .*, server 1"
        ):
            ps.load("monday")
        with pytest.raises(SavedRunError, match=r"server 1 .*'tuesday' has no shard-1-of-2"):
            ps.load("tuesday")
        assert all(not stats.rows for stats in (ps.stats()["plain"], ps.stats()["ctr"]))


def lose_amid_the_names(root: Path) -> None:
    """Save with a server that is lost when the other has given its shard the name."""
    with trained(root, 1) as ps:
        asked = ps.remote[1].ask

        def ask(verb: str, *args: Any, **kwargs: Any) -> Any:
            if verb in ("keep_save", "drop_save"):
                raise ServerLostError("it was killed")
            return asked(verb, *args, **kwargs)

        ps.remote[1].ask = ask
        drop = ps.remote[0].ask

        def crash(verb: str, *args: Any, **kwargs: Any) -> Any:
            if verb == "drop_save":
                raise Killed  # the client is gone, too
            return drop(verb, *args, **kwargs)

        ps.remote[0].ask = crash
        with pytest.raises(Killed):
            ps.save("monday")


def test_a_save_that_was_cut_short_is_not_loaded_and_does_not_block_its_name(
    tmp_path: Path,
) -> None:
    lose_amid_the_names(tmp_path)
    assert visible(tmp_path / "monday") == ["shard-0-of-2"]
    with pytest.raises(SavedRunError, match=r"server 1 .*'monday' has no shard-1-of-2"):
        loaded(tmp_path)
    with trained(tmp_path, 2) as ps:
        ps.save("monday")
        assert loaded(tmp_path) == held(ps)
    assert visible(tmp_path) == ["monday"]


def test_servers_with_disks_of_their_own_replace_a_broken_save(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    lose_amid_the_names(roots[0])
    with ExitStack() as stack:
        servers = [stack.enter_context(served(1, root))[0] for root in roots]
        ps = stack.enter_context(to(servers))
        train(ps)
        ps.save("monday")
        expected = held(ps)
        with pytest.raises(RefusedError, match=r"'monday' exists already"):
            ps.save("monday")
    with ExitStack() as stack:
        servers = [stack.enter_context(served(1, root))[0] for root in roots]
        back = stack.enter_context(to(servers))
        back.load("monday")
        assert held(back) == expected


def test_of_a_server_that_is_killed_in_a_save_the_name_is_of_one_save(tmp_path: Path) -> None:
    command = ["-m", "downpour", "server", "--save-root", str(tmp_path)]
    with closing(Process(command)) as first, closing(Process(command)) as second:
        addresses = [it.line().removeprefix(LISTENING).strip() for it in (first, second)]
        with connect(PLAN, addresses, deadline_s=2.0) as ps:
            train(ps, steps=1)
            expected = held(ps)
            saving = threading.Thread(target=lambda: suppressed(ps.save, "monday"))
            saving.start()
            until = time.monotonic() + LIMIT_S
            while not visible(tmp_path) and time.monotonic() < until:
                time.sleep(0.001)
            second.kill()
            saving.join(LIMIT_S)
    with trained(tmp_path, 2) as ps:
        try:
            ps.save("monday")
            expected = held(ps)
        except RefusedError:  # it was whole before the server was killed
            pass
    assert loaded(tmp_path) == expected
    assert visible(tmp_path) == ["monday"]


def suppressed(call: Any, *args: Any) -> None:
    with suppress(DownpourError):
        call(*args)
