"""Files that are never seen half-written, locks between processes, and text that may be compressed."""

import fcntl
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

# The compressed formats of text, by the end of a file's name.
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
# What reading a file may raise, compressed or not.
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


def open_compressed(path: Path) -> BinaryIO:
    """Open a file for reading its bytes, decompressed if its name says so. Reading raises READ_ERRORS."""
    file: BinaryIO = COMPRESSED.get(path.suffix, open)(path, "rb")
    return file


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """Open UTF-8 text, compressed if the file's name says so. Reading raises READ_ERRORS and UnicodeDecodeError."""
    file: TextIO = COMPRESSED.get(path.suffix, open)(path, mode, encoding="utf-8")
    return file


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o644, keeps_owner: bool = False) -> None:
    """Replace `path` in one step: a reader sees the old content or the new, also after a crash of the machine.

    keeps_owner: run by root, leave an existing file to its owner.
    """
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if keeps_owner and os.geteuid() == 0 and path.exists():
                os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path`: a folder, or a file that is created if need be and stays.

    The kernel releases the lock when the process ends, however it ends. Raises BlockingIOError if another process holds
    it and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
