"""One reader a file format: a path in, Arrow tables of the named columns out, a piece at a time."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from downpour.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK_BYTES = 2 << 20  # of text at a time: 0.5 to 4 MB read equally fast
PIECE_ROWS = 1 << 15  # of Parquet and Arrow at a time

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",  # RecBole's atomic files
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


class Reader(Protocol):
    """What reads one file format. Raises DataError without the file's name; `Files` adds it."""

    def names(self, path: Path) -> list[str]:
        """Name the columns of a file."""
        ...

    def tables(self, path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Read these columns (which are there), in pieces of bounded size, in the file's order."""
        ...

    def num_rows(self, path: Path) -> int | None:
        """Count the rows where the file says how many; None where only reading would tell."""
        ...


@dataclass(frozen=True, slots=True)
class TextReader:
    """CSV and TSV, compressed or not. Every cell is text: the schema says what it means.

    names_given: names of the columns where the file has no header line.
    """

    delimiter: str
    quote_char: str | None
    null_values: tuple[str, ...]
    names_given: tuple[str, ...] | None

    def names(self, path: Path) -> list[str]:
        """Name the columns: those given, or the header line's."""
        if self.names_given is not None:
            return list(self.names_given)
        with _explained(), _open_text(path) as stream:
            header = pa.BufferReader(_first_line(stream))
            names: list[str] = self._open(header, None).schema.names
            return names

    def tables(self, path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Read in blocks of text; a cell of `null_values` is missing."""
        with _explained(), _open_text(path) as stream:
            for batch in self._open(stream, columns):
                yield pa.Table.from_batches([batch])

    def num_rows(self, path: Path) -> int | None:
        """Give None: text does not say."""
        return None

    def _open(self, stream: pa.NativeFile, columns: tuple[str, ...] | None) -> pa.RecordBatchReader:
        types = dict.fromkeys(columns, pa.string()) if columns else None
        return pyarrow.csv.open_csv(
            stream,
            # one thread: as fast here, leaves the others to training, and errors name the row
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=self.names_given
            ),
            pyarrow.csv.ParseOptions(
                delimiter=self.delimiter,
                quote_char=False if self.quote_char is None else self.quote_char,
            ),
            pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=types,
                strings_can_be_null=True,
                null_values=list(self.null_values),
            ),
        )


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Apache Parquet."""

    def names(self, path: Path) -> list[str]:
        """Name the top-level columns."""
        with _explained(), pyarrow.parquet.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            return names

    def tables(self, path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Read in pieces of PIECE_ROWS rows."""
        with _explained(), pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PIECE_ROWS, columns=list(columns), use_threads=False):
                yield pa.Table.from_batches([batch])

    def num_rows(self, path: Path) -> int | None:
        """Count the rows, from the footer."""
        with _explained(), pyarrow.parquet.ParquetFile(path) as file:
            rows: int = file.metadata.num_rows
            return rows


@dataclass(frozen=True, slots=True)
class ArrowReader:
    """Arrow IPC, as file (Feather version 2) or as stream."""

    def names(self, path: Path) -> list[str]:
        """Name the columns."""
        with _explained(), _open_arrow(path) as reader:
            names: list[str] = reader.schema.names
            return names

    def tables(self, path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Read the file's record batches: small ones joined, large ones cut at PIECE_ROWS rows."""
        with _explained(), _open_arrow(path) as reader:
            waiting: list[pa.RecordBatch] = []
            rows = 0
            for batch in _record_batches(reader):
                waiting.append(batch.select(list(columns)))
                rows += batch.num_rows
                if rows >= PIECE_ROWS:
                    yield from _cut(waiting)
                    waiting, rows = [], 0
            if waiting:
                yield from _cut(waiting)

    def num_rows(self, path: Path) -> int | None:
        """Give None: the rows stand in each record batch only."""
        return None


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what Arrow says of a broken file into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("the file is gone") from error
    except (pa.ArrowException, OSError) as error:
        message = str(error).strip()
        if (
            "Empty CSV file" in message
            or "file size is 0" in message
            or "is too small: 0" in message
        ):
            raise DataError("the file is empty") from error
        if "Truncated compressed stream" in message:
            raise DataError("the file is cut off: its compressed data ends too early") from error
        raise DataError(message) from error


def _first_line(stream: pa.NativeFile) -> bytes:
    line: bytes = b""
    while b"\n" not in line and (more := stream.read(1 << 12)):
        line += more
    return line.partition(b"\n")[0] + b"\n" if line else b""


def _open_text(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression="detect", buffer_size=BLOCK_BYTES)


@contextmanager
def _open_arrow(path: Path) -> Iterator[pa.RecordBatchFileReader | pa.RecordBatchStreamReader]:
    file: BinaryIO
    with path.open("rb") as file:
        start = file.read(6)
    with pa.OSFile(str(path)) as source:
        if not start:
            raise DataError("the file is empty")
        yield pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)


def _record_batches(
    reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader,
) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        yield from reader


def _cut(batches: list[pa.RecordBatch]) -> Iterator[pa.Table]:
    table = pa.Table.from_batches(batches)
    for start in range(0, table.num_rows, PIECE_ROWS):
        yield table.slice(start, PIECE_ROWS)
