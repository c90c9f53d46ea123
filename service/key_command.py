"""The command line of `tinyrm keys` and `python -m service.keys`."""

import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError
from tyro.conf import CascadeSubcommandArgs, OmitArgPrefixes, OmitSubcommandPrefixes, arg, configure

from service.keys import ApiKey, ApiKeys, change_keys, hash_token
from service.settings import Settings, describe_settings
from tinyrm.command_line import Flag, option, parse
from tinyrm.errors import InvalidKeys, describe

# Lets tools that scan repositories and logs recognise a key.
TOKEN_PREFIX = "tinyrm_"  # noqa: S105  # not a secret: every key begins with it
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class New:
    """Make a key, print it once, and add its hash to the file."""

    name: Annotated[str, arg(metavar="NAME")]
    """Name of the client, as the access log shows it."""
    scopes: Annotated[str, arg(metavar="SCOPES")]
    """One or more of score, metrics and admin, separated by commas."""

    def run(self, path: Path, *, as_json: bool) -> None:
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        created = datetime.now(UTC).replace(microsecond=0)
        fields = {"name": self.name, "sha256": hash_token(token.encode()), "created": created}
        key = ApiKey.model_validate(fields | {"scopes": self.scopes.split(",")})

        def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if any(other.name == key.name for other in keys):
                raise InvalidKeys(f"{path} has a key {key.name} already; revoke it or choose another name")
            return *keys, key

        change_keys(path, add)
        print(json.dumps(public(key) | {"key": token}) if as_json else token)
        print(f"tinyrm: added {key.name} to {path}; this is the only time the key is shown", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class List:
    """Print the name, scopes and creation date of each key."""

    def run(self, path: Path, *, as_json: bool) -> None:
        keys = ApiKeys.read(path).keys
        if as_json:
            print(json.dumps({"keys": [public(key) for key in keys]}))
            return
        for key in keys:
            print(f"{key.name}\t{','.join(sorted(key.scopes))}\t{key.created:%Y-%m-%d %H:%M}")


@dataclass(frozen=True, slots=True)
class Revoke:
    """Remove a key from the file, so that it stops working."""

    name: Annotated[str, arg(metavar="NAME")]
    """Name of the key."""

    def run(self, path: Path, *, as_json: bool) -> None:
        def remove(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            left = tuple(key for key in keys if key.name != self.name)
            if len(left) == len(keys):
                raise InvalidKeys(f"{path} has no key {self.name}")
            return left

        change_keys(path, remove)
        if as_json:
            print(json.dumps({"revoked": self.name}))
        print(f"tinyrm: revoked {self.name}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class KeyCommand:
    """Make, list and revoke API keys. A running service applies a change at once.

    Examples:
      tinyrm keys new --file keys.json --name trainer --scopes score,metrics
      tinyrm keys list --file keys.json --json
      TINYRM_API_KEYS_FILE=keys.json tinyrm keys revoke --name trainer
    """

    command: New | List | Revoke
    file: Annotated[Path | None, option("FILE")] = None
    """File of the keys; default: the variable TINYRM_API_KEYS_FILE."""
    json: Flag = False
    """Print the result as JSON."""


def public(key: ApiKey) -> dict[str, Any]:
    """Return what may be shown of a key."""
    return {"name": key.name, "scopes": sorted(key.scopes), "created": key.created.isoformat()}


def run(arguments: Sequence[str] | None, prog: str) -> int:
    """Run one command, and return the exit code."""
    # `new --name x` instead of `command:new --command.name x`, and --file on either side of it.
    markers = configure(OmitArgPrefixes, OmitSubcommandPrefixes, CascadeSubcommandArgs)
    options = parse(markers(KeyCommand), arguments, prog=prog)
    try:
        path = options.file or Settings().api_keys_file
        if path is None:
            raise InvalidKeys("no file is given; use --file PATH or TINYRM_API_KEYS_FILE")
        options.command.run(path, as_json=options.json)
    except ValidationError as error:
        print(f"tinyrm: {describe_settings(error) if error.title == 'Settings' else describe(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except (InvalidKeys, OSError) as error:
        print(f"tinyrm: {error}", file=sys.stderr)
        return 2
    return 0
