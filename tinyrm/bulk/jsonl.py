"""JSON lines as output: one line for each line of the input, in the same order. A file is its own checkpoint."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tinyrm.errors import InvalidInput
from tinyrm.files import locked

OWN_FIELD = "tinyrm"
STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


class ScoredFile:
    """An output. One that can be continued is read first, with `records` and then `drop_tail`.

    lines: number of complete lines.
    errors: how many of them have an error.
    """

    def __init__(self, name: str, file: BinaryIO, *, is_kept: bool) -> None:
        """name: for messages. is_kept: whether it is a file, which an earlier run may have begun; or a pipe."""
        self.name, self.lines, self.errors = name, 0, 0
        self._file, self._is_kept = file, is_kept
        self._whole_bytes, self._tail = 0, b""

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records that earlier runs wrote. Raises InvalidInput if a line is something else."""
        if not self._is_kept:
            return
        self._file.seek(0)
        for text in self._file:
            if not text.endswith(b"\n"):
                self._tail = text
                break
            try:
                record = json.loads(text)
                is_next = record[OWN_FIELD]["index"] == self.lines
            except (ValueError, KeyError, TypeError, RecursionError):
                is_next = False
            if not is_next:
                raise InvalidInput(
                    f"--out {self.name}: line {self.lines + 1} was not written by an earlier run; name another file"
                )
            self._count(record)
            self._whole_bytes += len(text)
            yield record

    def drop_tail(self, following: dict[str, Any] | None) -> None:
        """Remove an incomplete last line, which a kill leaves behind, so that it is scored again.

        following: beginning of the record that would be next: its input, index and options; None at the end.

        Raises InvalidInput, and changes nothing, if it is the only line and cannot be the beginning of that record.
        """
        if not self._tail:
            return
        if self.lines == 0:  # nothing else shows whose file it is
            ours = [] if following is None else [text[: -len("}}")] for text in _encodings(following)]
            if not any(text.startswith(self._tail) or self._tail.startswith(text + b", ") for text in ours):
                raise InvalidInput(
                    f"--out {self.name}: its only line has no end, and no earlier run wrote it; name another file"
                )
        self._file.truncate(self._whole_bytes)

    def append(self, record: dict[str, Any]) -> None:
        """Write a record at once: a counted record is in the kernel's hands, even if this process is killed next."""
        self._file.write(_encodings(record)[0] + b"\n")
        self._file.flush()
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.lines += 1
        self.errors += "error" in record[OWN_FIELD]


def _encodings(record: dict[str, Any]) -> list[bytes]:
    """Return the record as JSON: in UTF-8 if it can be, and in ASCII, where a lone surrogate is an escape."""
    ascii_only = json.dumps(record).encode()
    try:
        return [json.dumps(record, ensure_ascii=False).encode(), ascii_only]
    except UnicodeEncodeError:
        return [ascii_only]


@contextmanager
def open_output(name: str, pairs: str) -> Iterator[ScoredFile]:
    """Open an output: a file, which one process at a time can open; a pipe; or standard output, as `-`.

    pairs: the input, `-` for standard input; the output must be another file.

    Raises InvalidInput.
    """
    if _is_same_file(name, pairs):
        raise InvalidInput(f"--out {name} is the file that is read; name another file")
    if name in STDOUT:
        if sys.stdout is None:
            raise InvalidInput(f"--out {name}: standard output is closed")
        yield ScoredFile("standard output", sys.stdout.buffer, is_kept=False)
        return
    path = Path(name)
    with ExitStack() as held:
        with output_errors(name, "file"):
            if path.exists() and not path.is_file() and not path.is_dir():
                output = ScoredFile(name, held.enter_context(path.open("wb")), is_kept=False)
            else:
                held.enter_context(locked(path, wait=False))
                output = ScoredFile(name, held.enter_context(path.open("a+b")), is_kept=True)
        yield output


@contextmanager
def output_errors(name: object, kind: str) -> Iterator[None]:
    """Turn what opening and locking an output raises into InvalidInput.

    kind: what the output is, file or folder.
    """
    try:
        yield
    except BlockingIOError as error:
        raise InvalidInput(
            f"--out {name}: another process is writing to it; wait until it has ended, or name another {kind}"
        ) from error
    except OSError as error:
        raise InvalidInput(f"--out {name}: {error.strerror or error}") from error


def _is_same_file(out: str, pairs: str) -> bool:
    """Return whether both are one file, under whatever names: links, and what a shell has redirected."""
    with suppress(OSError, ValueError):  # one of them does not exist
        written = os.fstat(sys.stdout.fileno()) if out in STDOUT else Path(out).stat()
        read = os.fstat(sys.stdin.fileno()) if pairs == "-" else Path(pairs).stat()
        return stat.S_ISREG(read.st_mode) and os.path.samestat(written, read)
    return False
