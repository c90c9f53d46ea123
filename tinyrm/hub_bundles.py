"""Fetch a bundle from the hub: the files that its manifest names, and its card."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyrm.bundle import Bundle, read_manifest
from tinyrm.errors import BundleUnavailable, InvalidBundle, TinyRMError
from tinyrm.manifest import CARD_FILE, MANIFEST_FILE

log = logging.getLogger(__name__)

SCHEME = "hf://"
TIMEOUT_S = 20.0


def download_from_hub(repository: str, commit: str, partial: Path) -> Path:
    """Download a bundle into a folder in `partial`, and return that. Raises InvalidBundle and its kinds."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder, shown = partial / "bundle", f"{SCHEME}{repository}@{commit}"

    def has(name: str) -> bool:
        log.info("fetching %s of %s", name, shown)
        with hub_errors(shown):
            try:
                hf_hub_download(repository, name, revision=commit, local_dir=folder)
            except LocalEntryNotFoundError:  # a kind of the next one, but it means that there is no connection
                raise
            except EntryNotFoundError:
                return False
        return True

    if not has(MANIFEST_FILE):
        name = repository.partition("/")[2]
        raise InvalidBundle(
            f"{shown} has no {MANIFEST_FILE}: it is not a bundle; export it first: tinyrm export --model {repository} "
            f"--revision {commit} --out models/{name}"
        )
    for name in read_manifest(folder).files:
        if not has(name):
            raise InvalidBundle(f"{shown} has no {name}, which its manifest names; upload the whole folder again")
    has(CARD_FILE)
    Bundle.open(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of the library
    return folder


def resolve_commit(repository: str, revision: str | None) -> str:
    """Return the commit that a branch or a tag names now; of the main branch by default. Raises BundleUnavailable."""
    from huggingface_hub import HfApi

    with hub_errors(f"{SCHEME}{repository}{f'@{revision}' if revision else ''}"):
        return str(HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_S).sha)


@contextmanager
def hub_errors(shown: str) -> Iterator[None]:
    """Turn what the hub's library raises into BundleUnavailable, with one sentence."""
    from huggingface_hub import errors

    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: "its owner grants access: accept the conditions on its page, and set HF_TOKEN",
        errors.RepositoryNotFoundError: "it does not exist, or is private: set HF_TOKEN to a token that may read it",
        errors.RevisionNotFoundError: "the repository has no such revision",
        errors.OfflineModeIsEnabled: "it is not in the cache, and HF_HUB_OFFLINE is set",
    }
    try:
        yield
    except TinyRMError:
        raise
    except Exception as error:  # its HTTP library, and what that raises, changes between versions
        if isinstance(error, OSError) and error.errno is not None and not error.__cause__:
            raise  # of the disk; those of the hub are OSErrors without a number
        causes = [one for one in (error, error.__cause__) if one is not None]
        known = [reasons[base] for one in causes for base in type(one).__mro__ if base in reasons]
        statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in causes]
        if not known and {401, 403} & set(statuses):
            known = [reasons[errors.RepositoryNotFoundError]]
        reason = known[0] if known else f"the hub cannot be reached: {one_line(error)}"
        raise BundleUnavailable(f"{shown}: {reason}") from error


def one_line(error: BaseException) -> str:
    """Return the reason below an error: the library's own ones are paragraphs."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__
