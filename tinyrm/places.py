"""Where a bundle is: a folder, a repository on the hub at a commit, or an archive at a URL with its hash.

What is not a folder is fetched once into a cache, verified, and used from there, also without a network.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tinyrm import starter
from tinyrm.archive import extract_bundle
from tinyrm.bundle import Bundle, sha256
from tinyrm.errors import BundleUnavailable, InvalidBundle, InvalidInput, TamperedBundle
from tinyrm.files import DEFAULT_CACHE, locked
from tinyrm.hub_bundles import SCHEME as HUB_SCHEME
from tinyrm.hub_bundles import download_from_hub, resolve_commit

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)
# Loggers of what is fetched, for commands that show it.
FETCHING = (__name__, "tinyrm.hub_bundles")

CACHE_VARIABLE = "TINYRM_CACHE"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"sha256=([0-9a-fA-F]{64})")
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")

# Of a download: tries without a new byte, pauses between them, silence, and time between two lines of the log.
TRIES = 5
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 10.0
TIMEOUT_S = 30.0
BETWEEN_LINES_S = 10.0
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)


def find(place: str | Path, cache: Path | None = None) -> Path:
    """Return the folder of a bundle, after fetching the bundle if its place is not a folder.

    place: a folder; `hf://ORG/NAME@COMMIT` or `ORG/NAME@COMMIT`; or `https://host/bundle.tar.gz#sha256=HEX`.
    cache: folder for what is fetched; default: TINYRM_CACHE, or ~/.cache/tinyrm.

    A folder is not opened here and need not exist. Raises InvalidInput for a place that is not pinned, InvalidBundle.
    """
    text = str(place).strip()
    if isinstance(place, Path) or not is_remote(text):
        return starter.resolve(place if isinstance(place, Path) else text)
    try:
        cache = (cache or Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)).expanduser()
    except RuntimeError as error:  # in a container, a user may have no home
        raise InvalidInput(
            f"{without_secrets(text)} has no folder to be kept in: this user has no home; set {CACHE_VARIABLE} to a "
            "folder"
        ) from error
    if text.startswith(("https://", "http://")):
        return find_archive(text, cache)
    if "://" in text and not text.startswith(HUB_SCHEME):
        raise InvalidInput(
            f"{without_secrets(text)}: bundles are fetched from hf:// and https:// only; copy this one into a folder"
        )
    return find_on_hub(text.removeprefix(HUB_SCHEME), cache)


def is_remote(place: str) -> bool:
    """Return whether a place is an address: one with a scheme, or an id of the hub that no folder has as its name."""
    if "://" in place:
        return True
    return "@" in place and bool(REPOSITORY.fullmatch(place.partition("@")[0])) and not Path(place).exists()


def find_on_hub(name: str, cache: Path) -> Path:
    """Return the folder of `ORG/NAME@COMMIT`. Raises InvalidInput, InvalidBundle."""
    repository, _, revision = name.partition("@")
    if not REPOSITORY.fullmatch(repository):
        raise InvalidInput(f"{HUB_SCHEME}{name}: a bundle on the hub is {HUB_SCHEME}ORG/NAME@COMMIT")
    if not COMMIT.fullmatch(revision):
        commit = resolve_commit(repository, revision or None)
        named = f"{revision} is not a commit and may change" if revision else "the commit is missing"
        raise InvalidInput(f"{HUB_SCHEME}{name}: {named}; pin it: {HUB_SCHEME}{repository}@{commit}")
    folder = cache / "hub" / repository.replace("/", "--") / revision
    return fetch_once(folder, f"{HUB_SCHEME}{name}", lambda partial: download_from_hub(repository, revision, partial))


def find_archive(url: str, cache: Path) -> Path:
    """Return the folder of an archive that was at a URL. Raises InvalidInput, InvalidBundle."""
    address, _, fragment = url.partition("#")
    shown, found = without_secrets(address), HASH.fullmatch(fragment)
    if not found:
        raise InvalidInput(f"{shown}: the hash is missing; write {shown}#sha256=HEX, as `sha256sum` prints it")
    refuse_plain_http(address)
    expected = found[1].lower()

    def fill(partial: Path) -> Path:
        archive, folder = partial / "archive", partial / "bundle"
        download(address, archive, expected)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        try:
            extract_bundle(archive, folder)
        except InvalidBundle as error:
            raise type(error)(f"{shown}: {error}") from error
        Bundle.open(folder)
        return folder

    return fetch_once(cache / "url" / expected, shown, fill)


def fetch_once(folder: Path, shown: str, fill: Callable[[Path], Path]) -> Path:
    """Return `folder`, which gets its name when it is complete; one process fetches, the others wait.

    shown: the place, for messages.
    fill: fetches into a folder that stays if it fails, so that the next try continues; returns where the bundle is.
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                log.info("fetching %s into %s", shown, folder)
                partial.mkdir(exist_ok=True)
                fill(partial).rename(folder)
                shutil.rmtree(partial, ignore_errors=True)
                log.info("fetched %s", shown)
    except InvalidBundle as error:
        if not isinstance(error, BundleUnavailable):  # what is there is wrong, and to continue would not help
            shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(partial, ignore_errors=True)
        raise BundleUnavailable(
            f"{shown} cannot be stored in {folder.parent}: {error.strerror or error}; {CACHE_VARIABLE} names another "
            "folder"
        ) from error
    return folder


def download(url: str, target: Path, expected: str) -> None:
    """Download a file and check its hash; continue one that is there. Raises BundleUnavailable, TamperedBundle."""
    import httpx  # here: a start from a folder does not need it

    shown = without_secrets(url)
    was_begun, tries, pause_s = target.exists(), 0, FIRST_PAUSE_S
    with httpx.Client(
        timeout=TIMEOUT_S, follow_redirects=True, event_hooks={"request": [refuse_plain_request]}
    ) as http:
        while True:
            before = size_of(target)
            try:
                receive(http, url, target)
                break
            except httpx.TransportError as error:
                tries = 1 if size_of(target) > before else tries + 1
                if tries >= TRIES:
                    raise BundleUnavailable(f"{shown}: {error or type(error).__name__}; is there a network?") from error
                log.info("%s: %s; trying again", shown, error or type(error).__name__)
                time.sleep(pause_s)
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise BundleUnavailable(f"{shown}: {error}") from error
    found = sha256(target)
    if found == expected:
        return
    target.unlink()
    if was_begun:  # perhaps by a run that read another file
        download(url, target, expected)
        return
    raise TamperedBundle(f"{shown} has the hash {found}, not {expected}; it is another file, or it was changed")


def receive(http: "httpx.Client", url: str, target: Path) -> None:
    """Receive the rest of a file. Raises httpx.HTTPError, BundleUnavailable for a response that is not the file."""
    import httpx

    at = size_of(target)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
    with http.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left; the hash decides
        if response.status_code in RETRIED_STATUS:
            raise httpx.RemoteProtocolError(f"status {response.status_code}")
        if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise BundleUnavailable(f"{without_secrets(url)}: {advice_of(response)}")
        at = at if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
        left = int(response.headers.get("Content-Length") or 0)
        if left > shutil.disk_usage(target.parent).free:
            raise OSError(errno.ENOSPC, f"No space left on device: {left:,} bytes are needed")
        last_line = time.monotonic()
        with target.open("r+b" if at else "wb") as file:
            file.seek(at)
            for chunk in response.iter_bytes():
                file.write(chunk)
                if time.monotonic() - last_line >= BETWEEN_LINES_S:
                    last_line = time.monotonic()
                    of_all = f" of {at + left:,}" if left else ""
                    log.info("%s: %s%s bytes", without_secrets(url), f"{file.tell():,}", of_all)


def advice_of(response: "httpx.Response") -> str:
    """Return what a status means for the person who wrote the URL."""
    if response.status_code in (401, 403):
        return f"status {response.status_code}: it needs credentials, or a signed address that is still valid"
    if response.status_code in (404, 410):
        return f"status {response.status_code}: there is no such file"
    return f"status {response.status_code} instead of the file"


def refuse_plain_request(request: "httpx.Request") -> None:
    """Refuse a request, such as after a redirect, that would travel in the clear. Raises BundleUnavailable."""
    try:
        refuse_plain_http(str(request.url))
    except InvalidInput as error:
        raise BundleUnavailable(f"it redirects to {error}") from error


def refuse_plain_http(url: str) -> None:
    """Raise InvalidInput for http:// to another machine: who reads along could see credentials."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise InvalidInput(f"{without_secrets(url)} is not a URL: {error}") from error
    if not host or (parts.scheme != "https" and host not in THIS_MACHINE):
        raise InvalidInput(f"{without_secrets(url)}: use https://; http:// is for this machine only")


def without_secrets(url: str) -> str:
    """Return a URL without user, password and query, which may hold a signature."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
