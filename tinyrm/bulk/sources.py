"""Where rows come from: files, folders, globs and addresses, each file split into parts that can be read alone."""

import gzip
import hashlib
import io
import lzma
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.pairs import AskedPair

PACKED: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
# What a folder is searched for; a file that is named may be called anything and holds JSON lines.
SUFFIXES = (".parquet", *(kind + packed for kind in (".jsonl", ".ndjson") for packed in ("", *PACKED)))
COLUMNS = {"id", "chosen", "rejected", *AskedPair.model_fields} - {"swap"}
DECODED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one source. Reading may begin at row `seek_row`, which is at byte, or in row group, `seek_to`."""

    source: str
    first_row: int
    rows: int
    seek_row: int = 0
    seek_to: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A file, by an address that is good in any process. fingerprint: changes with its content."""

    name: str
    fingerprint: str
    parts: tuple[Part, ...]


def find(words: Iterable[str]) -> list[str]:
    """The files that files, folders, globs and addresses stand for, sorted. Raises InvalidInput naming what is not."""
    return sorted({name for word in words for name in _files(word)})


def plan(name: str, rows_per_part: int) -> Source:
    """A file in parts: the footer of a Parquet file is read, JSON lines are read whole. Raises InvalidInput."""
    with _reading(name), _open(name) as file:
        source = (_plan_parquet if is_parquet(name) else _plan_lines)(name, file, rows_per_part)
        if not source.parts:
            raise InvalidInput(f"{name} has no rows")
        return source


def is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


class Reader:
    """Reads parts, from where the one before ended if that is on the way: a packed file is unpacked once."""

    def __init__(self) -> None:
        self._source, self._row = "", 0
        self._rows: Generator[Any] = _rows_from(Part("", 0, 0))

    def read(self, part: Part) -> list[Any]:
        """The part's rows: bytes of a line, or columns of a Parquet row. Raises InvalidInput."""
        with _reading(part.source):
            if self._source != part.source or not part.seek_row <= self._row <= part.first_row:
                self._rows.close()
                self._source, self._row, self._rows = part.source, part.seek_row, _rows_from(part)
            skipped = part.first_row - self._row
            rows = list(islice(self._rows, skipped, skipped + part.rows))
        self._row = part.first_row + len(rows)
        if len(rows) < part.rows:
            raise InvalidInput(f"{part.source} became shorter while it was read; start again in another folder")
        return rows


def _files(word: str) -> list[str]:
    system, path = _system(word)
    with _reading(word):
        if system.isdir(path):
            found = [file for file in system.find(path) if _is_data(file[len(path) :])]
        elif system.isfile(path):
            found = [path]
        else:
            found = [file for file in system.glob(path) if system.isfile(file)] if set(path) & set("*?[") else []
    if not found:
        kinds = ", ".join(kind for kind in SUFFIXES if kind.count(".") == 1)
        raise InvalidInput(f"{word}: no such file, or no file of pairs in it ({kinds}, or packed as .gz, .xz)")
    names = found if isinstance(system, LocalFileSystem) else [system.unstrip_protocol(file) for file in found]
    for name in names:
        if not name.isprintable():
            raise InvalidInput(f"{name!r}: a name that is not valid text; rename it")
    return names


def _is_data(path: str) -> bool:
    """Of a file in a folder; what begins with _ or . is somebody's own, as of a run of this command."""
    hidden = any(name.startswith(("_", ".")) for name in PurePosixPath(path.lstrip("/")).parts)
    return path.endswith(SUFFIXES) and not hidden


def _system(word: str) -> tuple[Any, str]:
    """The file system of a path or an address, and the path in it. Raises InvalidInput naming what is not installed."""
    if "://" not in word:
        # Not resolved: what a link points at, in the hub's cache, has a hash for a name.
        return LocalFileSystem(), os.path.abspath(word)  # noqa: PTH100
    try:
        system, path = url_to_fs(word)
    except (ImportError, ValueError) as error:
        try:  # without a package of its own: what Arrow brings
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
    except Exception as error:  # each file system and each kind of file has errors of its own
        raise InvalidInput(f"{name} cannot be read: {type(error).__name__}: {error}") from error


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    system, path = _system(name)
    with system.open(path, "rb") as file:
        yield file


@contextmanager
def _lines(name: str, file: BinaryIO) -> Iterator[BinaryIO]:
    with PACKED.get(PurePosixPath(name).suffix, io.BufferedReader)(file) as lines:
        yield lines


def _plan_lines(name: str, file: BinaryIO, rows_per_part: int) -> Source:
    seekable = PurePosixPath(name).suffix not in PACKED
    digest, at, rows, starts = hashlib.sha256(), 0, 0, []
    with _lines(name, file) as lines:
        for rows, line in enumerate(lines, start=1):
            if (rows - 1) % rows_per_part == 0:
                starts.append((rows - 1, at))
            digest.update(line)
            at += len(line)
    parts = (
        Part(name, first, min(rows_per_part, rows - first), *((first, at) if seekable else (0, 0)))
        for first, at in starts
    )
    return Source(name, f"{at} bytes, sha256 {digest.hexdigest()}", tuple(parts))


def _plan_parquet(name: str, file: BinaryIO, rows_per_part: int) -> Source:
    """The fingerprint is of the footer: where each column's values are, how long, and mostly their extremes."""
    table = pq.ParquetFile(file)
    if "prompt" not in (there := table.schema_arrow.names):
        raise InvalidInput(f"{name} has no column `prompt`; it has: {', '.join(there)}")
    group, start, parts = 0, 0, []
    for first in range(0, table.metadata.num_rows, rows_per_part):
        while start + (rows := table.metadata.row_group(group).num_rows) <= first:
            group, start = group + 1, start + rows
        parts.append(Part(name, first, min(rows_per_part, table.metadata.num_rows - first), start, group))
    size = file.seek(0, io.SEEK_END)
    file.seek(size - 8)
    file.seek(size - 8 - int.from_bytes(file.read(4), "little"))
    return Source(name, f"{size} bytes, footer sha256 {hashlib.sha256(file.read()).hexdigest()}", tuple(parts))


def _rows_from(part: Part) -> Generator[Any]:
    """Rows from the part's `seek_row` to the end of its source."""
    with _open(part.source) as file:
        if is_parquet(part.source):
            yield from _parquet_rows(file, part.seek_to)
        else:
            with _lines(part.source, file) as lines:
                lines.seek(part.seek_to)
                yield from lines


def _parquet_rows(file: BinaryIO, group: int) -> Iterator[Any]:
    table = pq.ParquetFile(file)
    columns = [name for name in table.schema_arrow.names if name in COLUMNS]
    groups = list(range(group, table.num_row_groups))
    for batch in table.iter_batches(DECODED_ROWS, row_groups=groups, columns=columns):
        yield from batch.to_pylist()
