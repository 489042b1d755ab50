"""How large the answer to a read is, known before it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.serving.changes import PART_BYTES

if TYPE_CHECKING:
    from downpour.serving.hosted import Hosted
    from downpour.wire import Message

COPIES = 2  # of an answer while it is sent, measured


def answer_bytes(hosted: Hosted, message: Message) -> int:
    """What the answer to a read will take, at most; 0 if it will be refused."""
    return COPIES * _value_bytes(hosted, message)


def _value_bytes(hosted: Hosted, message: Message) -> int:
    op, name = message.header.get("op"), message.header.get("table")
    if not isinstance(name, str):
        return 0
    if (sparse := hosted.server.sparse.get(name)) is not None:
        accessor = sparse.accessor
        if op == "pull":
            return int(message.keys.size * accessor.pull_dim * accessor.numpy_dtype.itemsize)
        return 2 * PART_BYTES if op == "geo_fetch" else 0
    if (dense := hosted.server.dense.get(name)) is not None:
        return 2 * dense.num_bytes if op == "export_dense" else dense.size * dense.dtype.itemsize
    return 0
