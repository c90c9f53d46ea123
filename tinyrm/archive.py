"""Take a bundle out of an archive that somebody else made: its files, and nothing else."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tinyrm.errors import InvalidBundle
from tinyrm.manifest import MANIFEST_FILE

# A bundle is mostly weights, which do not compress; its tokenizer is JSON, which does, by a factor of ten.
MAX_RATIO, FREE_BYTES = 20, 64 << 20
MAX_MEMBERS = 1000
MAX_DEPTH = 2  # a file, or one in a folder


class Member(NamedTuple):
    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def extract_bundle(archive: Path, folder: Path) -> None:
    """Write the files beside the archive's manifest.json into `folder`: a .tar, compressed or not, or a .zip.

    Raises InvalidBundle for another file, and for an archive with links, with paths that leave it, or that would
    become far larger than it is. OSError: the disk.
    """
    left = MAX_RATIO * archive.stat().st_size + FREE_BYTES
    with _opened(archive) as members:
        files: list[Member] = []
        for number, member in enumerate(members):
            left -= member.size
            if left < 0 or number >= MAX_MEMBERS:
                raise InvalidBundle(f"the archive is too large once it is unpacked, at {member.path}")
            files.append(member)
        manifests = [member.path for member in files if member.path.name == MANIFEST_FILE]
        manifests = [path for path in manifests if len(path.parts) <= MAX_DEPTH]
        if len(manifests) != 1:
            found = "no" if not manifests else "more than one"
            raise InvalidBundle(
                f"the archive has {found} {MANIFEST_FILE}: it is not a bundle; export the model first, and pack the "
                "folder: tinyrm export --model MODEL --out models/NAME, tar -czf NAME.tar.gz -C models NAME"
            )
        if len({member.path for member in files}) < len(files):
            raise InvalidBundle("the archive holds a file twice; pack the folder again")
        for member in files:
            is_hidden = member.path.name.startswith(".")  # such as ._model.onnx, which a Mac adds
            if member.path.parent == manifests[0].parent and not is_hidden:
                with member.open() as source, (folder / member.path.name).open("xb") as target:
                    shutil.copyfileobj(source, _Limited(target, member.size), 1 << 20)


class _Limited:
    """A file that takes no more bytes than its entry in the archive promises."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise InvalidBundle("a file of the archive is longer than its entry")
        return self._file.write(data)


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[Member]]:
    """Yield the files of an archive of either kind. Raises InvalidBundle if it is damaged, or neither."""
    try:
        try:
            with tarfile.open(archive, "r:*") as tar:
                yield _of_tar(tar)
        except tarfile.ReadError:
            if not zipfile.is_zipfile(archive):
                raise
            with zipfile.ZipFile(archive) as packed:
                yield _of_zip(packed)
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidBundle(f"the archive cannot be read: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # tarfile lists each format that it tried
        raise InvalidBundle(f"the archive cannot be read, as a .tar, .tar.gz or .zip: {reason}") from error


def _of_tar(tar: tarfile.TarFile) -> Iterator[Member]:
    for entry in tar:
        path = _checked(entry.name)
        if not (entry.isreg() or entry.isdir()):
            raise InvalidBundle(f"the archive holds {entry.name!r}, which is neither a file nor a folder")
        if entry.isreg():
            yield Member(path, entry.size, partial(_open_in_tar, tar, entry))


def _open_in_tar(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(entry)
    if file is None:
        raise InvalidBundle(f"the archive holds {entry.name!r}, which is not a file")
    return file


def _of_zip(packed: zipfile.ZipFile) -> Iterator[Member]:
    for entry in packed.infolist():
        path = _checked(entry.filename)
        if (entry.external_attr >> 28) not in (0, 0o10, 0o4):  # the type of a Unix file: regular, folder
            raise InvalidBundle(f"the archive holds {entry.filename!r}, which is neither a file nor a folder")
        if not entry.is_dir():
            yield Member(path, entry.file_size, partial(packed.open, entry))


def _checked(name: str) -> PurePosixPath:
    """Return a path that stays inside the archive. Raises InvalidBundle."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise InvalidBundle(f"the archive holds {name!r}, a path that leaves it")
    return path
