"""Read preference pairs from JSON lines, plain or compressed (.gz, .xz)."""

import codecs
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from tinyrm.chat import Dialogue
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput, describe
from tinyrm.files import READ_ERRORS, open_compressed
from tinyrm.preferences import read_preference
from tinyrm.template import FIGURE2

# Beginning of a file -> what the file is, and what to do.
OTHER_FORMATS = {
    b"\xff\xfe": "it is text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "it is compressed with gzip; decompress it, or let its name end in .gz",
    b"\xfd7zXZ\x00": "it is compressed with xz; decompress it, or let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; decompress it first",
    b"BZh": "it is compressed with bzip2; decompress it first",
    b"PK\x03\x04": "it is a zip archive; extract it first",
    b"PAR1": "it is Parquet; its name must end in .parquet, and only --bundle reads it",
}
NonEmpty = Annotated[str, Field(min_length=1)]
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def keep_dialogue(value: object, validate: ValidatorFunctionWrapHandler) -> str:
    """Return a text; a Dialogue stays one, with its messages."""
    text: str = validate(value)
    return value if isinstance(value, Dialogue) else text


class PreferencePair(BaseModel):
    """A prompt with its preferred and its rejected response. Other fields of a record are ignored.

    prompt: a Dialogue if it was messages, for templates that write their own tokens between turns.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: Annotated[NonEmpty, WrapValidator(keep_dialogue)]
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
    """Return a record in any form of `tinyrm.preferences` as a pair.

    Chat messages become one text, as in training, which keeps them.

    Raises InvalidInput, which names the place, and the columns or keys of a record in another form.
    """
    if not isinstance(record, dict):
        raise InvalidInput(f"{place}: a record must be an object, not {type(record).__name__}")
    try:
        texts = read_preference(record)
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from error
    prompt = texts.prompt
    if not isinstance(prompt, str):
        text = FIGURE2.render_messages(prompt)
        prompt = Dialogue.of(text, prompt) if len(prompt) > 1 else text
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
    for number, line in enumerate(read_lines(path), start=1):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path}, line {number}: {error}") from error
        yield value


def read_lines(path: Path, file: BinaryIO | None = None) -> Iterator[bytes]:
    """Yield the lines of a file of JSON lines, without byte order marks and without blank lines at the end.

    file: what is read in place of the file at `path`, such as standard input.

    Raises InvalidInput, which names the file, if it is damaged or cannot be read.
    """
    number, blank = 0, 0
    try:
        with nullcontext(file) if file else open_compressed(path) as lines:
            for number, text in enumerate(lines, start=1):
                if number == 1:
                    refuse_other_formats(text, str(path))
                line = text.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    blank += 1
                    continue
                yield from [b"\n"] * blank
                blank = 0
                yield line
    except READ_ERRORS as error:
        raise InvalidInput(f"{path} cannot be read after line {number}: {error}") from error


def refuse_other_formats(beginning: bytes, name: str) -> None:
    """Raise InvalidInput if a file begins as no JSON does: it is compressed, or text in another encoding."""
    for mark, what in OTHER_FORMATS.items():
        if beginning.startswith(mark):
            raise InvalidInput(f"{name} is not JSON lines in UTF-8: {what}")
