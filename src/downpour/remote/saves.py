"""Saves of all servers: each writes its shard, and all shards get the name or none does."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from downpour.errors import DownpourError, RefusedError, SavedRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downpour.remote.server import RemoteServer

DROP_S = 2.0  # for a server to remove what it has written of a save that failed
T = TypeVar("T")


class Shard(NamedTuple):
    """A shard that a server has under a name: its number, of how many, and the id of its save."""

    number: int
    of: int
    save_id: str | None


def save(servers: Sequence[RemoteServer], name: str) -> list[str]:
    """Let each server save its shard under a name; returns the folder of each.

    Raises RefusedError for a name that is taken, and ServerError; then nothing has the name.
    """
    found = _of_each(servers, lambda it: it.ask("find_save", {"name": name})["shards"])
    _require_free(servers[0], name, [[Shard(*each) for each in own] for own in found])
    own_ids = [_own_id(number, own) for number, own in enumerate(found)]
    replaces = dict(zip(servers, own_ids, strict=True))
    request = {"name": name, "save": secrets.token_hex(8)}

    def write(server: RemoteServer) -> None:
        num_bytes = sum(table.bytes for table in server.stats().values())
        server.ask("save", request, deadline_s=server.patience_s(num_bytes))

    def keep(server: RemoteServer) -> str:
        path: str = server.ask("keep_save", {**request, "replaces": replaces[server]})["path"]
        return path

    def drop(server: RemoteServer) -> None:
        with suppress(DownpourError):  # what one that is gone has left, its next save removes
            server.ask("drop_save", request, deadline_s=DROP_S)

    try:
        _of_each(servers, write)
        return _of_each(servers, keep)
    except BaseException:
        _of_each(servers, drop)
        raise


def load(servers: Sequence[RemoteServer], name: str) -> list[dict[str, int]]:
    """Let each server, all of them new, fill itself from the save of a name; the steps of each.

    Where one would refuse, or their shards are not of one save, none is filled. Raises
    RefusedError, SavedRunError and ServerError.
    """
    checks = _of_each(servers, lambda it: it.ask("load", {"name": name, "check": True}))
    saves = {check["save"] for check in checks}
    if len(saves) > 1:
        whose = (f"{it.endpoint} {own['save']}" for it, own in zip(servers, checks, strict=True))
        raise SavedRunError(
            f"save {name!r} is broken: one of that name was cut short, and so its shards are of "
            f"different saves ({', '.join(whose)}); nothing was loaded. Load another one"
        )
    request = {"name": name, "save": saves.pop()}
    limits_s = {
        server: server.patience_s(check["bytes"])
        for server, check in zip(servers, checks, strict=True)
    }
    answers = _of_each(servers, lambda it: it.ask("load", request, deadline_s=limits_s[it]))
    return [answer["steps"] for answer in answers]


def _require_free(first: RemoteServer, name: str, found: Sequence[Sequence[Shard]]) -> None:
    """Raise RefusedError for a name that has a whole save, given what each server has found.

    A save that lacks shards is broken: servers were lost while it was made, and its name is free.
    Servers may share one disk or not, so each finds all shards or only its own. A save of another
    number of servers counts as whole, as some of its shards may be on disks that no server here
    has.
    """
    shards = {shard for own in found for shard in own}
    for number, of, save_id in sorted(shards, key=str):
        if of != len(found) or all(Shard(each, of, save_id) in shards for each in range(of)):
            raise RefusedError(
                f"{first.endpoint}: {name!r} exists already, with shard {number} of {of}; save "
                "under another name, or remove it first"
            )


def _own_id(number: int, found: Sequence[Sequence[Any]]) -> str | None:
    """The id of the save of which a server has its shard; None if it has none, or no id."""
    return next((shard[2] for shard in found if shard[0] == number), None)


def _of_each(servers: Sequence[RemoteServer], call: Callable[[RemoteServer], T]) -> list[T]:
    """What a call gives of each server, all at once; raises the first one's error."""
    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(call, servers))
