"""python -m service.keys: make, list and revoke API keys. A running service notices by itself."""

import argparse
import fcntl
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from service.http.auth import ApiKey, ApiKeys, InvalidKeys, KeyScope, digest_of
from service.settings import Settings

# So that scanners of repositories and logs know a key when they see one.
TOKEN_PREFIX = "tinyrm_"  # noqa: S105 - the same in front of every key
TOKEN_BYTES = 32


def main() -> int:
    arguments = _parser().parse_args()
    try:
        path = arguments.file or Settings().api_keys_file
        if path is None:
            raise InvalidKeys("name the file: --file PATH, or TINYRM_API_KEYS_FILE")
        return COMMANDS[arguments.command](path, arguments)
    except (InvalidKeys, ValidationError, OSError) as error:
        print(f"tinyrm: {error}", file=sys.stderr)
        return 2


def new(path: Path, arguments: argparse.Namespace) -> int:
    """Print a new key, once, and add its hash to the file."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    key = ApiKey(
        name=arguments.name,
        sha256=digest_of(token.encode()),
        scopes=frozenset(arguments.scopes.split(",")),
        created=datetime.now(UTC).replace(microsecond=0),
    )

    def added(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if any(other.name == key.name for other in keys):
            raise InvalidKeys(f"{path} has a key {key.name} already; revoke it or choose another name")
        return *keys, key

    _change(path, added)
    print(token)
    print(f"tinyrm: added {key.name} to {path}; this is the only time the key is shown", file=sys.stderr)
    return 0


def show(path: Path, _: argparse.Namespace) -> int:
    """Print names, scopes and dates."""
    for key in ApiKeys.read(path).keys:
        print(f"{key.name}\t{','.join(sorted(key.scopes))}\t{key.created:%Y-%m-%d %H:%M}")
    return 0


def revoke(path: Path, arguments: argparse.Namespace) -> int:
    """Take a key out of the file."""

    def without(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        left = tuple(key for key in keys if key.name != arguments.name)
        if len(left) == len(keys):
            raise InvalidKeys(f"{path} has no key {arguments.name}")
        return left

    _change(path, without)
    print(f"tinyrm: revoked {arguments.name}", file=sys.stderr)
    return 0


COMMANDS: dict[str, Callable[[Path, argparse.Namespace], int]] = {"new": new, "list": show, "revoke": revoke}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.keys", description=__doc__)
    parser.add_argument("--file", type=Path, help="default: TINYRM_API_KEYS_FILE")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("new", help="print a new key and add its hash")
    making.add_argument("--name", required=True, help="whose key it is; the access log says so")
    making.add_argument("--scopes", required=True, help=f"out of {', '.join(get_args(KeyScope))}; separated by commas")
    commands.add_parser("list", help="names, scopes and dates")
    commands.add_parser("revoke", help="the key stops working").add_argument("--name", required=True)
    return parser


def _change(path: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
    """Replace the file by the changed one. A reader sees the old or the new file, and of two changes none is lost."""
    path = path.resolve()
    with _locked(path.parent):
        before = ApiKeys.read(path).keys if path.exists() else ()
        content = ApiKeys(keys=change(before)).model_dump_json(indent=2) + "\n"
        # Only its owner may read or write what mkstemp makes.
        handle, staged = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                _keep_owner(file.fileno(), path)
            Path(staged).replace(path)
        except BaseException:
            Path(staged).unlink(missing_ok=True)
            raise


def _keep_owner(handle: int, path: Path) -> None:
    """Run by root, the command must not take the file away from the user that the service runs as."""
    if os.geteuid() == 0 and path.exists():
        os.fchown(handle, path.stat().st_uid, path.stat().st_gid)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder's lock, which leaves no file behind; let go when the handle is closed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
