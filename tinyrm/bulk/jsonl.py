"""JSON lines as output: one line for each line of the input, in the same order. The file is its own checkpoint."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tinyrm.errors import InvalidInput
from tinyrm.files import locked

OWN_FIELD = "tinyrm"


class ScoredFile:
    """An output file, which one process at a time can open.

    lines: number of complete lines.
    errors: how many of them have an error.
    last: the record of the last line.

    An incomplete last line, which remains after a kill, is removed when the file is opened, and scored again.

    Raises InvalidInput if the file holds something else, or another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.lines, self.errors = 0, 0
        self.last: dict[str, Any] | None = None
        self._open = ExitStack()
        try:
            self._open.enter_context(locked(path, wait=False))
            self._file = self._open.enter_context(path.open("a+b"))
        except BlockingIOError as error:
            raise InvalidInput(
                f"--out {path}: another process is writing to it; wait until it has ended, or name another file"
            ) from error
        except OSError as error:
            raise InvalidInput(f"--out {path}: {error.strerror}") from error
        try:
            self._file.truncate(self._read(path))
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def append(self, record: dict[str, Any]) -> None:
        """Write a record at once: a counted record is in the kernel's hands, even if this process is killed next."""
        try:
            text = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            text = json.dumps(record).encode()  # a lone surrogate has no UTF-8, only its escape
        self._file.write(text + b"\n")
        self._file.flush()
        self._count(record)

    def _read(self, path: Path) -> int:
        """Count the records in the file, and return the size of all complete lines in bytes."""
        self._file.seek(0)
        whole_bytes = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                break
            try:
                record = json.loads(text)
                is_next = record[OWN_FIELD]["index"] == self.lines
            except (ValueError, KeyError, TypeError, RecursionError):
                is_next = False
            if not is_next:
                raise InvalidInput(
                    f"--out {path}: line {self.lines + 1} was not written by an earlier run; name another file"
                )
            self._count(record)
            whole_bytes += len(text)
        return whole_bytes

    def _count(self, record: dict[str, Any]) -> None:
        self.lines += 1
        self.errors += "error" in record[OWN_FIELD]
        self.last = record
