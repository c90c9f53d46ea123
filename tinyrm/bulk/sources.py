"""Files, folders, globs and addresses of rows. Each file is split into shards that can be read independently."""

import codecs
import hashlib
import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from tinyrm.bulk.rows import COLUMNS
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.files import COMPRESSED
from tinyrm.preferences import find_responses
from tinyrm.tables import refuse_other_formats

# The files of a folder that are read. A file given by its own path may have any name, and holds JSON lines.
SUFFIXES = (".parquet", *(kind + end for kind in (".jsonl", ".ndjson") for end in ("", *COMPRESSED)))
DECODED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of one source.

    seek_row: reading may begin at this row.
    seek_to: the byte where that row begins, or its row group in a Parquet file.
    """

    source: str
    first_row: int
    rows: int
    seek_row: int = 0
    seek_to: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A file.

    name: an absolute path or an address, valid in any process.
    fingerprint: changes with the content.
    """

    name: str
    fingerprint: str
    shards: tuple[Shard, ...]


def find(words: Iterable[str]) -> list[str]:
    """Return the files that files, folders, globs and addresses stand for, sorted. Raises InvalidInput."""
    names: set[str] = set()
    for word in words:
        system, path = _system(word)
        with _reading(word):
            if system.isdir(path):
                found = [file for file in system.find(path) if is_data(file[len(path) :])]
            elif system.isfile(path):
                found = [path]
            else:
                found = [file for file in system.glob(path) if system.isfile(file)] if set(path) & set("*?[") else []
        if not found:
            kinds = ", ".join(kind for kind in SUFFIXES if kind.count(".") == 1)
            why = "no such file, or no file of pairs in it"
            if isinstance(system, LocalFileSystem) and Path(path).exists() and not Path(path).is_dir():
                why = "a pipe, which cannot be read twice; write it into a file"
            raise InvalidInput(f"{word}: {why} ({kinds}, or compressed as .gz, .xz)")
        names.update(found if isinstance(system, LocalFileSystem) else map(system.unstrip_protocol, found))
    if unprintable := [name for name in names if not name.isprintable()]:
        raise InvalidInput(f"{min(unprintable)!r}: the name is not valid text; rename the file")
    return sorted(names)


def plan(name: str, rows_per_shard: int) -> Source:
    """Split a file into shards. Reads all of a file of JSON lines, but only the footer of a Parquet file.

    Raises InvalidInput.
    """
    with _reading(name), _open(name) as file:
        source = (_plan_parquet if is_parquet(name) else _plan_lines)(name, file, rows_per_shard)
        if not source.shards:
            raise InvalidInput(f"{name} has no rows")
        return source


def is_data(path: str) -> bool:
    """Return whether a file of a folder is input. Names that begin with _ or . are skipped; our own output has them."""
    hidden = any(name.startswith(("_", ".")) for name in PurePosixPath(path.lstrip("/")).parts)
    return path.endswith(SUFFIXES) and not hidden


def is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


class Reader:
    """Reads shards. Consecutive shards are read in one go, so a compressed file is decompressed once."""

    def __init__(self) -> None:
        self._source, self._row = "", 0
        self._rows: Generator[Any] = _rows_from(Shard("", 0, 0))

    def read(self, shard: Shard) -> list[Any]:
        """Return the shard's rows: bytes of a line, or columns of a Parquet row. Raises InvalidInput."""
        with _reading(shard.source):
            if self._source != shard.source or not shard.seek_row <= self._row <= shard.first_row:
                self._rows.close()
                self._source, self._row, self._rows = shard.source, shard.seek_row, _rows_from(shard)
            skipped = shard.first_row - self._row
            rows = list(islice(self._rows, skipped, skipped + shard.rows))
        self._row = shard.first_row + len(rows)
        if len(rows) < shard.rows:
            raise InvalidInput(f"{shard.source} became shorter while it was read; start again in another folder")
        return rows


def _system(word: str) -> tuple[Any, str]:
    """Return the file system of a path or an address, and the path in it. Raises InvalidInput."""
    if "://" not in word:
        # Links are not resolved: in the hub's cache, the name of a link's target is a hash.
        return LocalFileSystem(), os.path.abspath(word)  # noqa: PTH100
    try:
        system, path = url_to_fs(word)
    except (ImportError, ValueError) as error:
        try:  # Arrow supports some file systems without another package
            arrow, path = pyarrow.fs.FileSystem.from_uri(word)
        except (OSError, ValueError, NotImplementedError):
            raise InvalidInput(f"{word}: {error}") from error
        return ArrowFSWrapper(arrow), path
    return system, path


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except TinyRMError:
        raise
    except Exception as error:  # each file system and each file format has its own errors
        raise InvalidInput(f"{name} cannot be read: {type(error).__name__}: {error}") from error


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    system, path = _system(name)
    with system.open(path, "rb") as file:
        yield file


@contextmanager
def _lines(name: str, file: BinaryIO) -> Iterator[BinaryIO]:
    with COMPRESSED.get(PurePosixPath(name).suffix, io.BufferedReader)(file) as lines:
        yield lines


def _plan_lines(name: str, file: BinaryIO, rows_per_shard: int) -> Source:
    seekable = PurePosixPath(name).suffix not in COMPRESSED
    digest, at, rows, starts = hashlib.sha256(), 0, 0, []
    with _lines(name, file) as lines:
        for row, line in enumerate(lines):
            if row == 0:
                refuse_other_formats(line, name)
            if row % rows_per_shard == 0:
                starts.append((row, at))
            if line.removeprefix(codecs.BOM_UTF8).strip():
                rows = row + 1  # blank lines at the end are no rows
            digest.update(line)
            at += len(line)
    shards = (
        Shard(name, first, min(rows_per_shard, rows - first), *((first, at) if seekable else (0, 0)))
        for first, at in starts
        if first < rows
    )
    return Source(name, f"{at} bytes, sha256 {digest.hexdigest()}", tuple(shards))


def _plan_parquet(name: str, file: BinaryIO, rows_per_shard: int) -> Source:
    """Split a Parquet file. The fingerprint is of its footer, which has the offsets, sizes and extremes of columns."""
    table = pq.ParquetFile(file)
    try:
        find_responses(table.schema_arrow.names, own=True)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None
    group, start, shards = 0, 0, []
    for first in range(0, table.metadata.num_rows, rows_per_shard):
        while start + (rows := table.metadata.row_group(group).num_rows) <= first:
            group, start = group + 1, start + rows
        shards.append(Shard(name, first, min(rows_per_shard, table.metadata.num_rows - first), start, group))
    size = file.seek(0, io.SEEK_END)
    file.seek(size - 8)
    file.seek(size - 8 - int.from_bytes(file.read(4), "little"))
    return Source(name, f"{size} bytes, footer sha256 {hashlib.sha256(file.read()).hexdigest()}", tuple(shards))


def _rows_from(shard: Shard) -> Generator[Any]:
    """Yield rows from the shard's `seek_row` to the end of its source."""
    with _open(shard.source) as file:
        if is_parquet(shard.source):
            table = pq.ParquetFile(file)
            columns = [name for name in table.schema_arrow.names if name in COLUMNS]
            groups = list(range(shard.seek_to, table.num_row_groups))
            for batch in table.iter_batches(DECODED_ROWS, row_groups=groups, columns=columns):
                yield from batch.to_pylist()
        else:
            with _lines(shard.source, file) as lines:
                lines.seek(shard.seek_to)
                yield from lines
