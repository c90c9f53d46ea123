"""Private copies of a served bundle's files: a process that starts later opens what the service was started with.

The folder of a bundle may change at any time: another revision is put in its place, or files in it are overwritten.
"""

import fcntl
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from tinyrm.bundle import Bundle
from tinyrm.engines import EngineOptions
from tinyrm.errors import InvalidBundle
from tinyrm.manifest import Manifest

# Where a process finds its open files.
OPEN_FILES = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")

# No process can change a file with these, nor remove them.
SEALS = (
    fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE if sys.platform == "linux" else 0
)


class PinnedFiles(Mapping[str, Path]):
    """Files in memory: name -> a path that this process can open. A process that inherits the descriptors has them too.

    They are freed when no process has them open. This one closes them at `close`, or when nothing refers to them.
    """

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self.descriptors = dict(descriptors)
        self._finalizer = weakref.finalize(self, close_all, list(self.descriptors.values()))

    def close(self) -> None:
        self._finalizer()

    @classmethod
    def copy(cls, paths: Mapping[str, Path]) -> Self:
        """Copy files into memory. Raises InvalidBundle if one cannot be read or does not fit."""
        descriptors: dict[str, int] = {}
        try:
            for name, path in paths.items():
                descriptors[name] = new_file(name)
                with path.open("rb") as source, os.fdopen(descriptors[name], "wb", closefd=False) as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                seal(descriptors[name])
        except OSError as error:
            close_all(descriptors.values())
            raise InvalidBundle(f"{path} cannot be copied into memory: {error}") from error
        return cls(descriptors)

    @classmethod
    def of(cls, name: str, content: bytes) -> Self:
        """Return one file with this content."""
        descriptor = new_file(name)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
            file.seek(0)
        return cls({name: descriptor})

    def __getitem__(self, name: str) -> Path:
        return OPEN_FILES / str(self.descriptors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.descriptors)

    def __len__(self) -> int:
        return len(self.descriptors)


def new_file(name: str) -> int:
    """Return the descriptor of a new file in memory; without a name on disk on systems that have none in memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"tinyrm-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def seal(descriptor: int) -> None:
    """Make a file in memory unchangeable for every process, so that it needs to be verified once only."""
    with suppress(OSError):  # a kernel without seals: each process verifies the file
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def is_sealed(descriptor: int) -> bool:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def open_pinned(folder: Path, options: EngineOptions) -> Bundle:
    """Open a bundle with private copies of the files that an engine with these options may read.

    Each file is read and hashed once: what is needed as its copy, the others in the folder.

    Raises InvalidBundle, UnknownSchema, TamperedBundle.
    """
    if not hasattr(os, "memfd_create"):  # not Linux: a process that starts later checks the folder's revision
        return Bundle.open(folder)
    bundle = Bundle.unverified(folder)
    needed = needed_files(bundle.manifest, options)
    pinned = replace(bundle, files=PinnedFiles.copy({name: bundle.path(name) for name in needed}))
    pinned.verify(bundle.manifest.files)
    return pinned


def unpin(bundle: Bundle) -> None:
    """Close the private copies of a bundle that is not served any more."""
    if isinstance(bundle.files, PinnedFiles):
        bundle.files.close()


def open_inherited(folder: Path, manifest: Manifest, descriptors: Mapping[str, int]) -> Bundle:
    """Return the bundle that the parent process serves, in its child.

    descriptors: inherited ones of the parent's private copies; none: the folder is read, and must hold the same bundle.

    Raises InvalidBundle, TamperedBundle.
    """
    if descriptors:
        inherited = Bundle(folder, manifest, PinnedFiles(descriptors))
        inherited.verify(name for name, number in descriptors.items() if not is_sealed(number))
        return inherited
    bundle = Bundle.open(folder)
    if bundle.manifest.identity != manifest.identity:
        raise InvalidBundle(
            f"{folder} holds {bundle.manifest.identity} now, and {manifest.identity} is served; reload the service"
        )
    return bundle


def needed_files(manifest: Manifest, options: EngineOptions) -> list[str]:
    """Return the names of the files without the graphs of other precisions, and without weights that are not used."""
    kept = {options.precision, "fp32"} if options.precision == "bf16" else {options.precision}
    graphs = [manifest.precisions, *manifest.specialised.values()]
    used = {name for files in graphs for precision, name in files.items() if precision in kept}
    unused = {name for files in graphs for name in files.values()} - used
    unused |= {f"{name}.data" for name in unused} - {f"{name}.data" for name in used}
    if options.engine not in ("auto", "torch-cuda"):
        unused.add(manifest.weights or "")
    return [name for name in manifest.files if name not in unused]
