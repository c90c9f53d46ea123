"""Fetch a bundle once per node, from storage that all nodes can reach."""

import shutil
import tempfile
from pathlib import Path

from fsspec.core import url_to_fs

from tinyrm.bundle import Bundle, read_manifest
from tinyrm.errors import InvalidBundle
from tinyrm.files import locked
from tinyrm.manifest import Manifest


def fetch_bundle(address: str, store: Path, revision: str | None = None) -> Path:
    """Return the folder of the bundle, after fetching it if necessary.

    address: a path on this node, or an address such as s3://bucket/models/name.
    store: folder for fetched bundles. The processes of one node share it: one fetches, the others wait.
    revision: what the bundle must have; None: any.

    A bundle is verified before it gets its name in `store`. Raises InvalidBundle and its kinds.
    """
    if "://" not in address:
        if revision:
            check_revision(address, read_manifest(Path(address)), revision)
        return Path(address)
    try:
        files, root = url_to_fs(address)
        root = root.rstrip("/")
        manifest = Manifest.model_validate_json(files.cat_file(f"{root}/manifest.json"))
        if revision:
            check_revision(address, manifest, revision)
        folder = store / f"{manifest.name}-{manifest.revision}"
        store.mkdir(parents=True, exist_ok=True)
        with locked(store / ".lock"):
            if not folder.exists():
                staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=store))
                try:
                    files.get(f"{root}/", f"{staged}/", recursive=True)
                    Bundle.open(staged)
                    staged.rename(folder)
                finally:
                    shutil.rmtree(staged, ignore_errors=True)
    except (OSError, ImportError, ValueError) as error:
        raise InvalidBundle(f"{address} cannot be fetched: {error}") from error
    return folder


def check_revision(address: str, manifest: Manifest, revision: str) -> None:
    """Raise InvalidBundle if the bundle has another revision."""
    if manifest.revision != revision:
        raise InvalidBundle(f"{address} holds {manifest.identity}, and the configuration asks for revision {revision}")
