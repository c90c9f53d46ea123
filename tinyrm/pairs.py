"""Read preference pairs from JSON lines, plain or compressed (.gz, .xz)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput, describe
from tinyrm.files import READ_ERRORS, open_text
from tinyrm.preferences import read_preference
from tinyrm.template import FIGURE2

NonEmpty = Annotated[str, Field(min_length=1)]
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


class PreferencePair(BaseModel):
    """A prompt with its preferred and its rejected response. Other fields of a record are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: NonEmpty
    chosen: NonEmpty
    rejected: NonEmpty
    domain: str | None = None
    subset: str | None = None

    def comparison(self) -> Comparison:
        """Return a comparison with the chosen response as A."""
        return Comparison(self.prompt, self.chosen, self.rejected)


def read_pairs(path: Path) -> list[PreferencePair]:
    """Return all pairs of a file. Raises InvalidInput, which names the first line that is not a pair."""
    return [to_pair(record, f"{path}, line {number}") for number, record in enumerate(read_jsonl(path), start=1)]


def to_pair(record: object, place: str) -> PreferencePair:
    """Return a record in any form of `tinyrm.preferences` as a pair; chat messages become one text, as in training.

    Raises InvalidInput, which names the place, and the columns or keys of a record in another form.
    """
    if not isinstance(record, dict):
        raise InvalidInput(f"{place}: a record must be an object, not {type(record).__name__}")
    try:
        texts = read_preference(record)
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from error
    prompt = texts.prompt if isinstance(texts.prompt, str) else FIGURE2.render_messages(texts.prompt)
    fields = {"prompt": prompt, "chosen": texts.chosen, "rejected": texts.rejected}
    return validate(PreferencePair, record | fields, place)


def read_records(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """Return all lines of a file as records of `kind`. Raises InvalidInput, which names the first invalid line."""
    records = enumerate(read_jsonl(path), start=1)
    return [validate(kind, record, f"{path}, line {number}") for number, record in records]


def validate(kind: type[AnyRecord], record: object, place: str) -> AnyRecord:
    """Return a record as `kind`. Raises InvalidInput, which names the place and the first invalid field."""
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        raise InvalidInput(f"{place}: {describe(error)}") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the JSON value of each line. Raises InvalidInput, which names the file and the line."""
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                yield json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path}, line {number}: {error}") from error
    except (*READ_ERRORS, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read after line {number}: {error}") from error
