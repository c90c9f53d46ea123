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
# A file in the folder, locked by the process that owns it. The kernel releases the lock however that process ends.
OWNER = "owner"
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
        # Renamed when it is locked: without this, another service could find it unlocked.
        with locked(folder / f"{OWNER}-new"):
            (folder / f"{OWNER}-new").rename(folder / OWNER)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders whose owner has ended."""
    for owner in parent.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError):
            if owner.lstat().st_uid == os.geteuid():
                with locked(owner, wait=False):
                    shutil.rmtree(owner.parent, ignore_errors=True)


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
