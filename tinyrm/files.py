"""Write files atomically, lock them between processes, and open text that may be compressed."""

import errno
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

# Where fetched bundles are kept, unless TINYRM_CACHE names another folder.
DEFAULT_CACHE = "~/.cache/tinyrm"

# Suffix -> how to open text that is compressed.
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
# Reading a file, compressed or not, may raise these.
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


def open_compressed(path: Path) -> BinaryIO:
    """Open a file to read bytes, decompressed according to its suffix. Reading raises READ_ERRORS."""
    file: BinaryIO = COMPRESSED.get(path.suffix, open)(path, "rb")
    return file


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """Open UTF-8 text, compressed according to its suffix. Reading raises READ_ERRORS and UnicodeDecodeError.

    A byte order mark, which editors of Windows write, is not part of the text.
    """
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    file: TextIO = COMPRESSED.get(path.suffix, open)(path, mode, encoding=encoding)
    return file


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o644, keeps_owner: bool = False) -> None:
    """Replace `path` in one step: a reader sees the old content or the new, even after a crash of the machine.

    mode: permissions of the file.
    keeps_owner: whether an existing file keeps its owner if root replaces it.
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
    """Hold an exclusive lock on `path`: a folder, or a file, which is created if it is missing and remains.

    The kernel releases the lock when the process ends, however it ends.

    wait: whether to wait for another process that holds the lock; otherwise raises BlockingIOError.

    Raises OSError on a system without such locks, as Windows is.
    """
    try:
        import fcntl  # noqa: PLC0415 - calls of a service need no locks, and run on every system
    except ModuleNotFoundError as error:
        raise OSError(errno.ENOTSUP, "this needs file locks, which this system does not have") from error
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
