"""The lines of `tinyrm score`: what is asked for each, and what is written for it."""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tinyrm.client import CompareItem, CompareReply, ItemError
from tinyrm.client.calls import CompareOptions
from tinyrm.errors import InvalidInput, describe
from tinyrm.pairs import AskedPair

OWN_FIELD = "tinyrm"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input. fields: None if it is no JSON object. item: None if it cannot be asked; wrong says why."""

    index: int
    fields: dict[str, Any] | None
    item: CompareItem | None
    wrong: str = ""

    def record(self, result: CompareReply | ItemError) -> dict[str, Any]:
        """The line as it was, and what became of it."""
        name = "error" if isinstance(result, ItemError) else "reply"
        return (self.fields or {}) | {OWN_FIELD: {"index": self.index, name: result.model_dump()}}

    def is_of(self, record: dict[str, Any]) -> bool:
        """Whether an earlier run wrote this record for this line."""
        own = {name: value for name, value in record.items() if name != OWN_FIELD}
        return own == {name: value for name, value in (self.fields or {}).items() if name != OWN_FIELD}


def read_lines(path: Path, defaults: CompareOptions) -> Iterator[Line]:
    """Every line, also those that are wrong. Raises InvalidInput if the file cannot be read on."""
    for index, text in enumerate(_texts(path)):
        yield line_of(index, text, defaults)


def count_lines(path: Path) -> int:
    return sum(1 for _ in _texts(path))


def _texts(path: Path) -> Iterator[bytes]:
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    number = 0
    try:
        with openers.get(path.suffix, open)(path, "rb") as lines:
            for number, text in enumerate(lines, start=1):  # noqa: B007
                yield text
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InvalidInput(f"{path} cannot be read after line {number}: {error}") from error


def line_of(index: int, text: bytes, defaults: CompareOptions) -> Line:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Line(index, None, None, f"line {index + 1} is not JSON: {error}")
    if not isinstance(fields, dict):
        return Line(index, None, None, f"line {index + 1} is not a JSON object")
    try:
        said = AskedPair.model_validate(fields).model_dump(exclude_none=True)
    except ValidationError as error:
        return Line(index, fields, None, f"line {index + 1}: {describe(error)}")
    item: Any = {name: value for name, value in defaults.items() if value is not None} | said
    return Line(index, fields, item)
