"""The bundle on this node: a folder that is there, or one that is fetched once from where all nodes can reach it."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from tinyrm.bundle import Bundle
from tinyrm.errors import InvalidBundle
from tinyrm.manifest import Manifest


def local_bundle(address: str, store: Path) -> Path:
    """The folder of the bundle at a path of this node, or at an address such as s3://bucket/models/name.

    What is fetched is verified before it has its name in `store`, which processes of one node share: one of them
    fetches. Raises InvalidBundle and its kinds.
    """
    if "://" not in address:
        return Path(address)
    try:
        return _fetched(address, store)
    except (OSError, ImportError, ValueError) as error:
        raise InvalidBundle(f"{address} cannot be fetched: {error}") from error


def _fetched(address: str, store: Path) -> Path:
    files, root = url_to_fs(address)
    manifest = Manifest.model_validate_json(files.cat_file(f"{root.rstrip('/')}/manifest.json"))
    folder = store / f"{manifest.name}-{manifest.revision}"
    store.mkdir(parents=True, exist_ok=True)
    with _locked(store):
        if not folder.exists():
            _fetch(files, root, folder)
    return folder


def _fetch(files: AbstractFileSystem, root: str, folder: Path) -> None:
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files.get(f"{root.rstrip('/')}/", f"{staged}/", recursive=True)
        Bundle.open(staged)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
