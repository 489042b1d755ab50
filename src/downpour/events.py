"""Scalars for TensorBoard: `tensorboard --logdir RUN_DIR` shows a run while it trains."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class EventWriter:
    """Appends scalars to an event file of its own in `folder`, which is made if need be.

    Writes in the caller's thread: a full disk is an OSError here. (tensorboardX's SummaryWriter
    hands events to a thread through a bounded queue, and waits for ever once that thread died.)
    What is written reaches the disk every `flush_s` seconds and at `close`.
    """

    def __init__(self, folder: Path, *, flush_s: float = 10.0) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{os.getpid()}.{time.time_ns()}"  # two writers never share a file
        self._writer = EventsWriter(str(folder / "events"), suffix)
        self._flush_s = flush_s
        self._flushed_at = time.monotonic()
        self._is_open = True

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the values of one global step by tag ("train/loss"); None is left out."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        known = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if value is not None
        ]
        if not known:
            return
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=known))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._writer.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Flush and close the file; closing twice is fine."""
        if self._is_open:
            self._is_open = False
            try:
                self._writer.flush()
            finally:  # a file that cannot be written is closed all the same
                self._writer._py_recordio_writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
