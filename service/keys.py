"""API keys. A file holds their hashes; `python -m service.keys` makes, lists and revokes keys.

A running service reads the file again when it changes. A key is 256 random bits, so one round of SHA-256 is enough:
slow, salted hashes protect passwords, which can be guessed. The hash takes a microsecond, so a flood of wrong keys
costs no more than the requests themselves.
"""

import hashlib
import hmac
import os
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinyrm.errors import InvalidKeys, describe
from tinyrm.files import locked, write_atomically
from tinyrm.output import standard_output

log = structlog.get_logger("tinyrm.auth")

KeyScope = Literal["score", "metrics", "admin"]


class ApiKey(BaseModel):
    """One key in the file: its hash, never the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[KeyScope] = Field(min_length=1)
    created: datetime


class ApiKeys(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def check_names(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same name")
        return self

    @classmethod
    def read(cls, path: Path, *, may_be_empty: bool = False) -> Self:
        """Read the file. Raises InvalidKeys.

        may_be_empty: whether a file without content holds no keys, or is an error.
        """
        try:
            content = read_regular(path)
            return cls() if may_be_empty and not content.strip() else cls.model_validate_json(content)
        except ValidationError as error:
            # `describe` leaves out the content, which must not reach the log.
            raise InvalidKeys(f"{path} is not a file of keys: {describe(error)}") from error
        except OSError as error:
            raise InvalidKeys(f"{path} cannot be read: {error.strerror}") from error


def read_regular(path: Path) -> bytes:
    """Return the content of a file. Raises InvalidKeys for anything else, such as a pipe, where a read could wait."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidKeys(f"{path} is not a regular file")
        return file.read()


def hash_token(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


class KeyRing:
    """The current keys of a file. Raises InvalidKeys if the file cannot be read at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = get_stamp(path)
        self._keys = ApiKeys.read(path).keys
        self._warn_of_permissions()

    def find(self, token: bytes) -> ApiKey | None:
        """Return the key of `token`. Every key is compared in constant time, so the duration leaks nothing."""
        # One stat per request, so that a revoked key is refused at once. Taken before the file is read: a change during
        # the read is noticed at the next request.
        stamp = get_stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = ApiKeys.read(self._path, may_be_empty=True).keys
                log.info("keys read", keys=len(self._keys))
                self._warn_of_permissions()
            except InvalidKeys as error:
                log.error("keys not read; the previous ones stay valid", reason=str(error))
        digest, found = hash_token(token), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found

    def _warn_of_permissions(self) -> None:
        # The group may read: Kubernetes mounts a Secret, which root owns, this way for a process that is not root.
        if self._stamp and self._stamp[-1] & 0o037:
            log.warning("other users may read or write the keys", path=str(self._path), advice="chmod 600")


def get_stamp(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change when the file does; the last one is its mode."""
    try:
        found = os.stat(path)  # noqa: PTH116  # called for every request; Path.stat takes twice as long
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service.keys") -> int:
    # Here, because the service imports this file too and needs no command line.
    from service.key_command import run

    return run(arguments, prog)


def change_keys(path: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
    """Replace the keys in the file. Readers see the old or the new file, and concurrent changes both apply."""
    path = path.resolve()
    with locked(path.parent):
        before = ApiKeys.read(path).keys if path.exists() else ()
        content = ApiKeys(keys=change(before)).model_dump_json(indent=2) + "\n"
        # If root runs the command, the file must still belong to the user that the service runs as.
        write_atomically(path, content, mode=0o600, keeps_owner=True)


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
