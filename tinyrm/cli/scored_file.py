"""The file that `tinyrm score` writes: whole lines, one for each line of the input, in its order."""

import fcntl
import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tinyrm.cli.lines import OWN_FIELD
from tinyrm.errors import InvalidInput

PARSE_ERRORS = (ValueError, KeyError, TypeError, RecursionError)


class ScoredFile:
    """Open for one process at a time. lines: whole ones it has. errors: how many of them. last: the last one's record.

    A line without its end, as a kill leaves it, is dropped when the file is opened, and scored again.
    Raises InvalidInput if the file is something else, or another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.lines, self.errors = 0, 0
        self.last: dict[str, Any] | None = None
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise InvalidInput(f"--out {path}: {error.strerror}") from error
        try:
            self._lock(path)
            self._file.truncate(self._read(path))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        """Written at once: what was counted is on its way to the disk even if this process is killed next."""
        self._file.write(encoded(record) + b"\n")
        self._file.flush()
        self._count(record)

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"--out {path}: another process is writing it; wait for it, or name another file"
            ) from error

    def _read(self, path: Path) -> int:
        """Count what is there; bytes of all whole lines."""
        self._file.seek(0)
        whole_bytes = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                break
            try:
                record = json.loads(text)
                is_next = record[OWN_FIELD]["index"] == self.lines
            except PARSE_ERRORS:
                is_next = False
            if not is_next:
                raise InvalidInput(f"--out {path}: line {self.lines + 1} is not of an earlier run; name another file")
            self._count(record)
            whole_bytes += len(text)
        return whole_bytes

    def _count(self, record: dict[str, Any]) -> None:
        self.lines += 1
        self.errors += "error" in record[OWN_FIELD]
        self.last = record


def encoded(record: dict[str, Any]) -> bytes:
    """As readable as it can be: a lone surrogate has no UTF-8, only its escape."""
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(record).encode()
