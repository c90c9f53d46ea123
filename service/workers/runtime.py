"""The folder in which the processes of one service share sockets and metrics."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyrm.errors import InvalidSettings
from tinyrm.files import locked

PREFIX = "tinyrm-service-"
# Marks a folder of ours. The process that owns it holds a lock on the folder, which the kernel releases however that
# process ends, and which keeps systemd from cleaning the folder up.
MARK = "tinyrm"
# The path of a Unix socket may have 108 bytes, with a zero at its end.
MAX_SOCKET_PATH = 107


@contextmanager
def runtime_folder() -> Iterator[Path]:
    """Return a new folder for temporary files, and remove it in the end. Remove those of services that were killed.

    Raises InvalidSettings if there can be none.
    """
    try:
        remove_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        raise InvalidSettings(f"several workers need a folder for temporary files, see TMPDIR: {error}") from error
    try:
        with locked(folder):
            (folder / MARK).touch()  # now, because another service would remove a marked folder without a lock
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders whose owner has ended."""
    for mark in parent.glob(f"{PREFIX}*/{MARK}"):
        with suppress(OSError):
            if mark.lstat().st_uid == os.geteuid():
                with locked(mark.parent, wait=False):
                    shutil.rmtree(mark.parent, ignore_errors=True)


@contextmanager
def socket_path(path: Path) -> Iterator[str]:
    """Return a path for the Unix socket `path` that is short enough for the kernel, however long its folder's is."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
