"""The verbs by which a client has servers save and load their shards.

A save has two steps, so that all servers have it or none. First each server writes its shard under
a temporary name; when all have, each renames its own. All shards of a save carry its id, which the
client has drawn, and a load compares them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from downpour.disk import naming
from downpour.errors import RefusedError
from downpour.serving.fields import flag, text
from downpour.serving.refusals import LOG
from downpour.serving.shard_files import (
    drop_shard,
    keep_shard,
    load_shard,
    read_manifest,
    save_shard,
    shard_folder,
    shards_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from downpour.serving.service import Service

    Verb = Callable[[dict[str, Any]], dict[str, Any]]

MAX_ID = 64  # characters of a save's id, which becomes a part of a file's name


class SaveVerbs:
    """Saves of the tables of a service under `root`; None takes none."""

    def __init__(self, service: Service, root: Path | None) -> None:
        self._service, self._root = service, root
        self._writing = threading.Lock()  # a request that is made again waits for the first one

    def verbs(self) -> dict[str, Verb]:
        """In the order in which they are asked for."""
        return {
            "find_save": self._find,
            "save": self._save,
            "keep_save": self._keep,
            "drop_save": self._drop,
            "load": self._load,
        }

    def _find(self, request: dict[str, Any]) -> dict[str, Any]:
        """List the shards of a name here: number, how many there were, and the id of the save."""
        return {"shards": shards_of(self._folder(request).parent)}

    def _save(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write this shard to the server's own disk under a temporary name, for `keep_save`."""
        folder, save_id = self._folder(request), _id_of(request)
        with self._writing, naming(folder):
            hosted = self._service.hosted
            save_shard(folder, hosted, self._service.incarnation, save_id)
        return {"path": str(folder)}

    def _keep(self, request: dict[str, Any]) -> dict[str, Any]:
        """Rename what `save` has written; it may replace the shard of a broken save."""
        folder, save_id = self._folder(request), _id_of(request)
        with self._writing, naming(folder):
            keep_shard(folder, save_id, replaces=request.get("replaces"))
        LOG.info("event=saved folder=%s", folder)
        return {"path": str(folder)}

    def _drop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove what this server has written of a save that failed on another one."""
        folder, save_id = self._folder(request), _id_of(request)
        with self._writing:
            drop_shard(folder, save_id)
        return {}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Fill this shard, which must be new, from a save; or check whether that would work."""
        hosted, folder = self._service.hosted, self._folder(request)
        hosted.require_new()
        if flag(request, "check"):
            manifest = read_manifest(folder, hosted)
            size = sum(it["bytes"] for it in manifest["files"].values())
            return {"bytes": size, "save": manifest["save"]}
        hosted.adopt(load_shard(folder, hosted, request.get("save")))
        LOG.info("event=loaded folder=%s", folder)
        return {"steps": self._service.greeting()["steps"]}

    def _folder(self, request: dict[str, Any]) -> Path:
        return shard_folder(self._root, text(request, "name"), self._service.hosted)


def _id_of(request: dict[str, Any]) -> str:
    save_id = text(request, "save", most=MAX_ID)
    if not save_id.isalnum() or not save_id.isascii():
        raise RefusedError(f"the id of a save must be letters and digits, got {save_id!r}")
    return save_id
