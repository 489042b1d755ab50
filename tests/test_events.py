from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from tensorboardX.proto.event_pb2 import Event

from downpour.events import EventWriter

if TYPE_CHECKING:
    from pathlib import Path


def read_scalars(path: Path) -> list[tuple[int, str, float]]:
    """The (step, tag, value) of an event file, whose records are length, crc, event, crc."""
    data, place, scalars = path.read_bytes(), 0, []
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + size])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        place += 12 + size + 4
    return scalars


def test_scalars_are_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "new" / "folder") as events:
        events.scalars(1, {"train/loss": 0.5, "eval/auc": None})
        events.scalars(2, {"eval/auc": None})
        events.scalars(2**40, {"train/loss": 0.25, "rows/$embedding [x]": 7.0})
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert "tfevents" in path.name  # what TensorBoard looks for
    assert read_scalars(path) == [
        (1, "train/loss", 0.5),
        (2**40, "train/loss", 0.25),
        (2**40, "rows/$embedding [x]", 7.0),
    ]


def test_two_writers_do_not_share_a_file(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as one, EventWriter(tmp_path) as two:
        one.scalars(1, {"a": 1.0})
        two.scalars(1, {"a": 2.0})
    assert sorted(value for path in tmp_path.iterdir() for *_, value in read_scalars(path)) == [
        1,
        2,
    ]


def test_scalars_can_be_read_before_the_end(tmp_path: Path) -> None:
    with EventWriter(tmp_path, flush_s=0) as events:
        events.scalars(1, {"a": 1.0})
        (path,) = tmp_path.iterdir()
        assert read_scalars(path) == [(1, "a", 1.0)]


def interrupt(events: EventWriter) -> None:
    with events:
        events.scalars(3, {"a": 1.0})
        raise KeyboardInterrupt


def test_a_broken_run_leaves_whole_events(tmp_path: Path) -> None:
    events = EventWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupt(events)
    events.close()
    (path,) = tmp_path.iterdir()
    assert read_scalars(path) == [(3, "a", 1.0)]
