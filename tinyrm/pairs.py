"""Preference pairs on disk: JSON lines, plain or packed (.gz, .xz)."""

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from tinyrm.api import MESSAGES, TEXT, prompt_branch
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput, describe

NonEmpty = Annotated[str, Field(min_length=1)]
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


class PreferencePair(BaseModel):
    """A prompt, the response that was preferred and the one that was not. Other fields of a record are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: NonEmpty
    chosen: NonEmpty
    rejected: NonEmpty
    domain: str | None = None
    subset: str | None = None

    def comparison(self) -> Comparison:
        """The chosen response as A."""
        return Comparison(self.prompt, self.chosen, self.rejected)


class AskedPair(BaseModel):
    """What a line asks to be scored. Only which texts there are is looked at; who scores it judges the texts."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[list[dict[str, Any]], Tag(MESSAGES)], Discriminator(prompt_branch)
    ]
    response_a: str
    response_b: str
    domain: str | None = None
    instruction: str | None = None
    swap: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _chosen_is_a(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "response_a" not in fields and "chosen" in fields:
            return fields | {"response_a": fields["chosen"], "response_b": fields.get("rejected")}
        return fields


def read_pairs(path: Path) -> list[PreferencePair]:
    """All pairs of a file. Raises InvalidInput naming the line that is not a pair."""
    return read_records(path, PreferencePair)


def read_records(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """All lines of a file as what they should be. Raises InvalidInput naming the line that is not."""
    records = enumerate(read_jsonl(path), start=1)
    return [validated(kind, record, f"{path}, line {number}") for number, record in records]


def validated(kind: type[AnyRecord], record: object, place: str) -> AnyRecord:
    """A record as what it should be. Raises InvalidInput naming the place and the first field that does not fit."""
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        raise InvalidInput(f"{place}: {describe(error)}") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """The JSON value of each line. Raises InvalidInput naming the file, and the line that is not JSON."""
    number = 0
    try:
        with open_text(path, "rt") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                yield json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path}, line {number}: {error}") from error
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read after line {number}: {error}") from error


def open_text(path: Path, mode: Literal["rt", "wt"]) -> TextIO:
    """A file to read or to write, packed as its name says."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    file: TextIO = openers.get(path.suffix, open)(path, mode, encoding="utf-8")
    return file
