"""A file of scores: one column, in the format that the file's suffix says."""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from downpour.data.paths import format_of
from downpour.data.readers import COMPRESSED, SUFFIXES
from downpour.errors import DataError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np

COLUMN = "score"
SCHEMA = pa.schema({COLUMN: pa.float32()})
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


def require_scores_file(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Raise SettingError for a file that scores cannot be written to, before there are any.

    Its suffix must say a format that is read as well, its folder must be there and writable, and
    it must be none of `inputs`, which it would replace.
    """
    if out.is_dir():
        raise SettingError(f"scores cannot be written to {out}, which is a directory; name a file")
    try:
        format_of(out)
    except DataError as error:
        raise SettingError(
            f"scores cannot be written to {out}: its suffix must be one of {', '.join(SUFFIXES)}, "
            f"of text also with {', '.join(COMPRESSED)}"
        ) from error
    folder = out.absolute().parent
    if not folder.is_dir():
        raise SettingError(f"scores cannot be written to {out}: there is no directory {folder}")
    if not os.access(folder, os.W_OK):
        raise SettingError(f"scores cannot be written to {out}: {folder} is not writable")
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise SettingError(f"scores would replace {path}, which is read; name another file")


def write_scores(out: Path, scores: Iterable[np.ndarray[Any, Any]]) -> int:
    """Write parts of scores [n] one after another, float32 in column `score`; give their number.

    After an error the file is not there, or is the one that was there before.
    """
    rows = 0
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with _writer(beside, format_of(out), CODECS.get(out.suffix.lower())) as writer:
            for part in scores:
                writer.write_table(pa.table([pa.array(part.astype("float32"))], SCHEMA))
                rows += len(part)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return rows


@contextmanager
def _writer(path: Path, kind: str, codec: str | None) -> Iterator[Any]:
    """What writes tables to a file of a format; the file is whole once this ends."""
    with contextlib.ExitStack() as exits:
        if kind == "parquet":
            yield exits.enter_context(pyarrow.parquet.ParquetWriter(path, SCHEMA))
            return
        sink = exits.enter_context(pa.output_stream(str(path), compression=codec))
        if kind == "arrow":
            yield exits.enter_context(pa.ipc.new_file(sink, SCHEMA))
            return
        options = pyarrow.csv.WriteOptions(
            delimiter="\t" if kind == "tsv" else ",", quoting_style="none"
        )
        yield exits.enter_context(pyarrow.csv.CSVWriter(sink, SCHEMA, write_options=options))
