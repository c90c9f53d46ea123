"""API keys: a file holds their hashes. `python -m service.keys` makes, lists and revokes them; a service that runs
reads the file again when it changes.

A key is 256 random bits, so one round of SHA-256 is the right hash: slow, salted hashes protect passwords that can be
guessed. It costs a microsecond, so a flood of wrong keys costs no more than the requests.
"""

import hashlib
import hmac
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, configure, subcommand

from service.settings import Settings
from tinyrm.command_line import parse
from tinyrm.errors import InvalidKeys, describe
from tinyrm.files import locked, write_atomically

log = structlog.get_logger("tinyrm.auth")

KeyScope = Literal["score", "metrics", "admin"]

# Lets scanners of repositories and logs recognise a key.
TOKEN_PREFIX = "tinyrm_"  # noqa: S105  # the same in front of every key
TOKEN_BYTES = 32


class ApiKey(BaseModel):
    """What the file holds of a key: its hash, not the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[KeyScope] = Field(min_length=1)
    created: datetime


class ApiKeys(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one name")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises InvalidKeys."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            # `describe` leaves out the content, which would end up in the log.
            raise InvalidKeys(f"{path} is not a file of keys: {describe(error)}") from error
        except OSError as error:
            raise InvalidKeys(f"{path} cannot be read: {error.strerror}") from error


def hash_token(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


class KeyRing:
    """The current keys of a file. Raises InvalidKeys if the file cannot be read at the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = ApiKeys.read(path).keys
        self._warn_of_permissions()

    def find(self, token: bytes) -> ApiKey | None:
        """Return the key of `token`. Every key is compared, each in constant time: the duration leaks nothing."""
        self._refresh()
        digest, found = hash_token(token), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found

    def _refresh(self) -> None:
        """Read the file if it changed. One stat per request, so that a revoked key is refused at once."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        # The stamp from before the file is read: a change meanwhile is read the next time.
        self._stamp = stamp
        try:
            self._keys = ApiKeys.read(self._path).keys
        except InvalidKeys as error:
            log.error("keys not read, the ones before stay", reason=str(error))
        else:
            log.info("keys read", keys=len(self._keys))
            self._warn_of_permissions()

    def _warn_of_permissions(self) -> None:
        # A group may read: Kubernetes mounts a Secret, which root owns, like this for a process that is not root.
        if self._stamp and self._stamp[-1] & 0o037:
            log.warning("others may read or write the keys", path=str(self._path), advice="chmod 600")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return numbers that differ when the file does; the last one is its mode."""
    try:
        stat = os.stat(path)  # noqa: PTH116  # at every request, and Path.stat takes twice as long
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_mode


@dataclass(frozen=True, slots=True)
class New:
    """Print a new key, once, and add its hash to the file."""

    name: str
    """Name of the client; the access log shows it."""
    scopes: str
    """One or several of score, metrics and admin, separated by commas."""

    def run(self, path: Path) -> None:
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        created = datetime.now(UTC).replace(microsecond=0)
        fields = {"name": self.name, "sha256": hash_token(token.encode()), "created": created}
        key = ApiKey.model_validate(fields | {"scopes": self.scopes.split(",")})

        def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if any(other.name == key.name for other in keys):
                raise InvalidKeys(f"{path} has a key {key.name} already; revoke it or choose another name")
            return *keys, key

        change_keys(path, add)
        print(token)
        print(f"tinyrm: added {key.name} to {path}; this is the only time the key is shown", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class List:
    """Print names, scopes and dates."""

    def run(self, path: Path) -> None:
        for key in ApiKeys.read(path).keys:
            print(f"{key.name}\t{','.join(sorted(key.scopes))}\t{key.created:%Y-%m-%d %H:%M}")


@dataclass(frozen=True, slots=True)
class Revoke:
    """Remove a key from the file, so that it stops working."""

    name: str
    """Name of the key."""

    def run(self, path: Path) -> None:
        def remove(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            left = tuple(key for key in keys if key.name != self.name)
            if len(left) == len(keys):
                raise InvalidKeys(f"{path} has no key {self.name}")
            return left

        change_keys(path, remove)
        print(f"tinyrm: revoked {self.name}", file=sys.stderr)


@configure(OmitArgPrefixes, OmitSubcommandPrefixes)  # `new --name x` instead of `command:new --command.name x`
@dataclass(frozen=True, slots=True)
class KeyCommand:
    """Make, list and revoke API keys. A running service notices a change by itself."""

    command: (
        Annotated[New, subcommand("new")]
        | Annotated[List, subcommand("list")]
        | Annotated[Revoke, subcommand("revoke")]
    )
    file: Path | None = None
    """File of the keys; default: TINYRM_API_KEYS_FILE."""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service.keys") -> int:
    options = parse(KeyCommand, arguments, prog=prog)
    try:
        path = options.file or Settings().api_keys_file
        if path is None:
            raise InvalidKeys("name the file: --file PATH, or TINYRM_API_KEYS_FILE")
        options.command.run(path)
    except (InvalidKeys, ValidationError, OSError) as error:
        print(f"tinyrm: {error}", file=sys.stderr)
        return 2
    return 0


def change_keys(path: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
    """Replace the file by the changed one: a reader sees the old or the new file, and no concurrent change is lost."""
    path = path.resolve()
    with locked(path.parent):
        before = ApiKeys.read(path).keys if path.exists() else ()
        content = ApiKeys(keys=change(before)).model_dump_json(indent=2) + "\n"
        # Run by root, the command must leave the file to the user that the service runs as.
        write_atomically(path, content, mode=0o600, keeps_owner=True)


if __name__ == "__main__":
    sys.exit(main())
