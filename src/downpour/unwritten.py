"""What a run cannot write, as its disk is full: said, no end of the training, kept elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from downpour.disk import naming
from downpour.errors import DownpourError
from downpour.events import EventWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Unwritten:
    """What could not be written, until it could; `say` is told the first time, of each file."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[Path] = set()
        self._why: dict[Path, str] = {}

    @contextlib.contextmanager
    def noted(self, path: Path) -> Iterator[None]:
        """Note an error of writing a file, in place of raising it."""
        try:
            with naming(path):
                yield
        except OSError as error:
            if isinstance(error, DownpourError):  # a server that was lost
                raise
            self._why[path] = f"{path} could not be written: {error}"
            if path not in self._said:
                self._said.add(path)
                self._say(f"{self._why[path]}; the training goes on")
        else:
            self._why.pop(path, None)

    @property
    def told(self) -> list[str]:
        """A sentence for each file that is still not written."""
        return list(self._why.values())


class SafeEvents:
    """An `EventWriter` whose errors are noted; after one it writes no more."""

    def __init__(self, folder: Path, unwritten: Unwritten) -> None:
        self._folder, self._unwritten = folder, unwritten
        self._writer: EventWriter | None = EventWriter(folder)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """See EventWriter."""
        self._call(lambda writer: writer.scalars(step, values))

    def close(self) -> None:
        """See EventWriter; the second time nothing is done."""
        self._call(lambda writer: writer.close())
        self._writer = None

    def _call(self, do: Callable[[EventWriter], None]) -> None:
        """What a broken record is followed by could not be read."""
        writer = self._writer
        if writer is None:
            return
        self._writer = None
        with self._unwritten.noted(self._folder):
            try:
                do(writer)
                self._writer = writer
            except OSError:
                with contextlib.suppress(OSError):
                    writer.close()
                raise


class SavedElsewhereError(OSError):
    """A folder could not be written; what was to be saved there is in another one."""


def save_somewhere(save: Callable[[Path], None], folder: Path) -> None:
    """Save into a folder, or else into a temporary one: nobody wants to train again.

    Raises SavedElsewhereError where it had to be the other one, and the OSError, whose note says
    what to do, where it could be neither.
    """
    try:
        save(folder)
    except OSError as error:
        if isinstance(error, DownpourError):
            raise
        way_out = f"free space for {folder}/, or name another folder"
        other = Path(tempfile.mkdtemp(prefix=f"downpour-{folder.resolve().name}-"))
        try:
            save(other)
        except OSError as again:
            shutil.rmtree(other, ignore_errors=True)
            error.add_note(f"nor could it be saved in {other}/: {again}; {way_out}")
            raise error from None
        raise SavedElsewhereError(
            f"the model was saved in {other}/ instead, move it from there: {error}; {way_out}"
        ) from error
