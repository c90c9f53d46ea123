"""Read the rows of a file: JSON lines, a JSON array, CSV or Parquet, plain or compressed (.gz, .xz, .zst)."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinyrm.errors import InvalidInput
from tinyrm.files import READ_ERRORS, open_compressed

# Beginning of a file -> what the file is, and what to do.
OTHER_FORMATS = {
    b"\xff\xfe": "it is text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "it is compressed with gzip; decompress it, or let its name end in .gz",
    b"\xfd7zXZ\x00": "it is compressed with xz; decompress it, or let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; decompress it first",
    b"BZh": "it is compressed with bzip2; decompress it first",
    b"PK\x03\x04": "it is a zip archive; extract it first",
    b"PAR1": "it is Parquet; its name must end in .parquet, and `tinyrm score` reads it with --bundle only",
}
PACKED = (".gz", ".xz", ".zst")
# What the name of a file of rows ends in, before that of a compression.
TABLES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")
# Parquet is read in batches, so that a large file is never in memory as a whole.
BATCH_ROWS = 256


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place, for messages: `pairs.jsonl, line 3`. A file of any other name holds JSON lines.

    Cells of CSV are texts; an empty one is None.

    Raises InvalidInput, which names the file, if it is damaged, cannot be read or is in another format.
    """
    kind = table_suffix(path)
    if kind == ".parquet":
        yield from numbered(path, read_parquet(path))
    elif kind == ".csv":
        yield from numbered(path, read_csv(path))
    elif kind == ".json" and (rows := read_array(path)) is not None:
        yield from numbered(path, iter(rows))
    else:
        with open_packed(path) if path.suffix == ".zst" else nullcontext() as file:
            for number, value in enumerate(read_jsonl(path, file), start=1):
                yield f"{path}, line {number}", value


def table_suffix(path: Path) -> str:
    """Return the suffix of a file's format, without that of a compression; empty if it is none of TABLES."""
    suffix = (path.with_suffix("") if path.suffix in PACKED else path).suffix
    return suffix if suffix in TABLES else ""


def numbered(path: Path, rows: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def open_packed(path: Path) -> BinaryIO:
    """Open a file to read bytes, decompressed according to its suffix. Raises InvalidInput; reading raises READ_ERRORS.

    Python has no zstd before 3.14, and the library of Parquet has it.
    """
    if path.suffix != ".zst":
        return open_compressed(path)
    return io.BufferedReader(import_arrow(path).input_stream(str(path), compression="zstd"))


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file. Raises InvalidInput."""
    pa = import_arrow(path)
    try:
        with open_packed(path) as file:
            # The footer is at the end, so a compressed file is decompressed as a whole.
            source = pa.BufferReader(file.read()) if path.suffix in PACKED else file
            for batch in pa.parquet.ParquetFile(source).iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, *READ_ERRORS) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet: {next(iter(str(error).splitlines()), error)}") from error


def import_arrow(path: Path) -> Any:
    """Return pyarrow, which is loaded for the files that need it. Raises InvalidInput if it is not installed."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - a large package, which clients and servers do not have
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{path} needs the package pyarrow, which is not installed; install it, or write the file as JSON lines"
        ) from error
    return pa


def read_csv(path: Path) -> Iterator[dict[str, str | None]]:
    """Yield the rows of a CSV file under the names of its first row. Raises InvalidInput."""
    csv.field_size_limit(sys.maxsize)  # a dialogue in one cell exceeds csv's 131,072 characters
    try:
        with open_packed(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            table = csv.DictReader(text, strict=True)
            names = table.fieldnames or ()
            if repeated := [name for name in names if names.count(name) > 1]:
                raise InvalidInput(f"{path} has several columns of the name {repeated[0]!r}; name each once")
            for number, row in enumerate(table, start=1):
                if None in row:
                    raise InvalidInput(f"{path}, row {number} has more cells than the first row has names")
                yield {name: value or None for name, value in row.items()}
    except (csv.Error, UnicodeDecodeError, *READ_ERRORS) as error:
        raise InvalidInput(f"{path} cannot be read as CSV: {error}") from error


def read_array(path: Path) -> list[Any] | None:
    """Return the values of a file that holds a JSON array; None if it begins in another way. Raises InvalidInput."""
    try:
        with open_packed(path) as file:
            beginning = cast("Any", file).peek(64).removeprefix(codecs.BOM_UTF8)
            if not beginning.lstrip().startswith(b"["):
                return None
            values = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError, *READ_ERRORS) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {error}") from error
    return list(values)


def read_jsonl(path: Path, file: BinaryIO | None = None) -> Iterator[Any]:
    """Yield the JSON value of each line. Raises InvalidInput, which names the file and the line.

    file: as of `read_lines`.
    """
    for number, line in enumerate(read_lines(path, file), start=1):
        try:
            value = json.loads(line.decode())
        except json.JSONDecodeError as error:  # its own text counts lines within this one
            raise InvalidInput(f"{path}, line {number}: not JSON at column {error.colno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path}, line {number}: {error}") from error
        yield value


def read_lines(path: Path, file: BinaryIO | None = None) -> Iterator[bytes]:
    """Yield the lines of a file of JSON lines, without byte order marks and without blank lines at the end.

    file: what is read in place of the file at `path`, such as standard input.

    Raises InvalidInput, which names the file, if it is damaged or cannot be read.
    """
    number, blank = 0, 0
    try:
        with nullcontext(file) if file else open_compressed(path) as lines:
            for number, text in enumerate(lines, start=1):
                if number == 1:
                    refuse_other_formats(text, str(path))
                line = text.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    blank += 1
                    continue
                yield from [b"\n"] * blank
                blank = 0
                yield line
    except READ_ERRORS as error:
        raise InvalidInput(f"{path} cannot be read after line {number}: {error}") from error


def refuse_other_formats(beginning: bytes, name: str) -> None:
    """Raise InvalidInput if a file begins as JSON cannot: it is compressed, or text in another encoding."""
    for mark, what in OTHER_FORMATS.items():
        if beginning.startswith(mark):
            raise InvalidInput(f"{name} is not JSON lines in UTF-8: {what}")
