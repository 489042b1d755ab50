"""Batches streamed from log files."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from downpour.data.paths import expand, format_of, listed, partitions
from downpour.data.readers import FORMATS, ArrowReader, ParquetReader, Reader, TextReader
from downpour.data.shuffle import count_batches, rebatched, shuffled
from downpour.errors import DataError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from downpour.data.schema import Schema
    from downpour.features import Batch


@dataclass(frozen=True, slots=True)
class Files:
    """A log in files, read anew each epoch in bounded memory.

    paths: a path or several, in time order. A folder stands for the files in it (not those in
    folders of it, which is refused), and `*`, `?`, `[..]` and `**` match; both in natural order
    (part-9 before part-10). `~` is the user's home. Addresses such as s3:// are refused, and what
    folders' names say (day=1) is not read.
    schema: what is read of them.
    batch_size: samples a batch; the last of an epoch may be smaller, or goes with `drop_last`.
    format: "csv", "tsv", "parquet" or "arrow"; None tells each file's by its suffix (before .gz,
    .bz2, .zst or .lz4, which text may have).
    delimiter, quote_char, null_values, column_names: of text. The delimiter is one character, ","
    in csv and a tab in tsv unless given; with quote_char None, quotes mean nothing; a cell of
    null_values is missing, whatever the column (features leave out more: `Feature(null_values=)`);
    column_names are given where files have no header line.
    shuffle_seed: None keeps the order of time. A number shuffles the files, and then the samples
    in a window of shuffle_rows, by (shuffle_seed, epoch).
    rows: (start, stop) takes only those rows, counted from 0 over all files in order; None is an
    open end. The files then keep their order.

    Raises SettingError when made. Whatever is wrong with the files is a DataError when they are
    read, which names the file.
    """

    paths: str | Path | Sequence[str | Path]
    schema: Schema
    _: KW_ONLY
    batch_size: int
    format: str | None = None
    delimiter: str | None = None
    quote_char: str | None = '"'
    null_values: Sequence[str] = ("",)
    column_names: Sequence[str] | None = None
    shuffle_seed: int | None = None
    shuffle_rows: int = 1 << 17
    drop_last: bool = False
    rows: tuple[int | None, int | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", listed(self.paths))
        object.__setattr__(self, "null_values", tuple(self.null_values))
        if self.column_names is not None:
            object.__setattr__(self, "column_names", tuple(self.column_names))
        require_sizes(self.batch_size, self.shuffle_seed)
        if self.format is not None and self.format not in FORMATS:
            raise SettingError(f"Files.format must be {', '.join(FORMATS)}, got {self.format!r}")
        for name in ("delimiter", "quote_char"):
            mark = getattr(self, name)
            if mark is not None and len(mark.encode()) != 1:
                raise SettingError(f"Files.{name} must be one ASCII character, got {mark!r}")
        if self.shuffle_rows < 2:
            raise SettingError(f"Files.shuffle_rows must be at least 2, got {self.shuffle_rows}")
        start, stop = self._bounds()
        if start < 0 or (stop is not None and stop <= start):
            raise SettingError(
                f"Files.rows must be (start, stop) with a row in it, got {self.rows}"
            )

    def files(self) -> list[Path]:
        """List the files, in order. Raises DataError where a path matches none."""
        return [path for entry in listed(self.paths) for path in expand(entry, self.format)]

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """Read the batches of one epoch. Raises DataError, also where there is no batch at all."""
        files = self.files()
        pieces = self._pieces(files)
        if self.shuffle_seed is not None:
            random = np.random.default_rng([self.shuffle_seed, epoch])
            if self.rows is None:
                pieces = self._pieces([files[i] for i in random.permutation(len(files))])
            pieces = shuffled(pieces, self.shuffle_rows, random)
        there_is_one = False
        for batch in rebatched(pieces, self.batch_size, drop_last=self.drop_last):
            there_is_one = True
            yield batch
        if not there_is_one:
            raise DataError(self._nothing(files))

    def num_batches(self) -> int | None:
        """Count the batches of an epoch; None for formats that do not say their rows."""
        counts = [self._num_rows(path) for path in self.files()]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        start, stop = self._bounds()
        there = len(range(sum(known))[start:stop])
        return count_batches(there, self.batch_size, drop_last=self.drop_last)

    def _pieces(self, files: list[Path]) -> Iterator[Batch]:
        for path, row, table in self._tables(files):
            try:
                yield self.schema.batch(table)
            except DataError as error:
                raise DataError(f"{path}, counting from its row {row}: {error}") from error

    def _tables(self, files: list[Path]) -> Iterator[tuple[Path, int, pa.Table]]:
        """Read tables with the file and the row of it that each begins at, cut to `rows`."""
        start, stop = self._bounds()
        seen = 0
        for path in files:
            first = 0
            for table in self._read(path):
                skip = min(max(0, start - seen), table.num_rows)
                keep = table.num_rows if stop is None else min(table.num_rows, stop - seen)
                if keep > skip:
                    yield path, first + skip, table.slice(skip, keep - skip)
                first += table.num_rows
                seen += table.num_rows
                if stop is not None and seen >= stop:
                    return

    def _read(self, path: Path) -> Iterator[pa.Table]:
        row = 0
        try:
            reader = self._reader(path)
            names = reader.names(path)
            _require_no_partition(path, names, self.schema.columns)
            self.schema.require_columns(names)
            for table in reader.tables(path, self.schema.columns):
                yield table
                row += table.num_rows
        except DataError as error:
            after = f" (after {row} good rows)" if row else ""
            raise DataError(f"{path}: {error}{after}") from error

    def _num_rows(self, path: Path) -> int | None:
        try:
            return self._reader(path).num_rows(path)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def _reader(self, path: Path) -> Reader:
        kind = self.format or format_of(path)
        if kind == "parquet":
            return ParquetReader()
        if kind == "arrow":
            return ArrowReader()
        return TextReader(
            delimiter=self.delimiter or ("\t" if kind == "tsv" else ","),
            quote_char=self.quote_char,
            null_values=tuple(self.null_values),
            names_given=None if self.column_names is None else tuple(self.column_names),
        )

    def _bounds(self) -> tuple[int, int | None]:
        start, stop = self.rows or (None, None)
        return start or 0, stop

    def _nothing(self, files: list[Path]) -> str:
        names = ", ".join(map(str, islice(files, 3))) + (", ..." if len(files) > 3 else "")
        why = f" in rows {self.rows}" if self.rows else ""
        why += (
            f" that fills a batch of {self.batch_size} (drop_last=True)" if self.drop_last else ""
        )
        return f"there is no sample{why} in {len(files)} file{'s' * (len(files) > 1)}: {names}"


def _require_no_partition(path: Path, names: list[str], wanted: tuple[str, ...]) -> None:
    """Raise DataError where a column is wanted that only a folder's name gives (day=1)."""
    for column, value in partitions(path).items():
        if column in wanted and column not in names:
            raise DataError(
                f"no column {column!r} (columns: {', '.join(names)}); the folder's name says "
                f"{column}={value}, which is not read: write the column into the files, or read "
                "them with pyarrow.dataset and give that to a Frame"
            )


def require_sizes(batch_size: int, shuffle_seed: int | None) -> None:
    """Raise SettingError unless these can be a batch size and a seed."""
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size}")
    if shuffle_seed is not None and shuffle_seed < 0:
        raise SettingError(f"shuffle_seed must not be negative, got {shuffle_seed}")
