"""A row of a file -> both readings of its comparison, or why there are none."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tinyrm.chat import Message
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.errors import InvalidInput, InvalidRequest, from_validation
from tinyrm.pairs import AskedPair
from tinyrm.spec import ClozeSpec

MESSAGES = TypeAdapter(list[Message])


@dataclass(frozen=True, slots=True)
class Row:
    """number: in its source, from 0. readings: A first, B first; none if there is an error (its type, its message)."""

    number: int
    id: str | None
    readings: tuple[Encoding, ...] = ()
    error: str | None = None
    error_message: str | None = None

    @property
    def truncation(self) -> Truncation:
        return self.readings[0].truncation if self.readings else Truncation()


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """domain, instruction: of rows that do not say. Raises UnknownDomain, InstructionTooLong if they fit no row."""

    encoder: Encoder
    spec: ClozeSpec
    domain: str | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        instruction, _ = self.spec.resolve("", self.domain, self.instruction)
        if not instruction:
            raise InvalidInput("an empty instruction; leave it out, and the domain's own is used")
        self.encoder.encode(Comparison("prompt", "a", "b"), instruction)

    def encode(self, number: int, raw: Any) -> Row:
        """`raw`: a line, or the columns of a Parquet row. Never raises what is the row's own fault."""
        name = None
        try:
            fields = _fields_of(raw)
            name = _id_of(fields)
            return Row(number, name, self._readings(fields))
        except InvalidInput as error:
            return Row(number, name, (), error.type, _printable(str(error)))

    def _readings(self, fields: dict[str, Any]) -> tuple[Encoding, ...]:
        asked = _validated(AskedPair.model_validate, fields)
        texts = {"response_a": asked.response_a, "response_b": asked.response_b, "instruction": asked.instruction}
        given = asked.prompt if isinstance(asked.prompt, str) else self._messages(asked.prompt)
        empty = [name for name, text in {"prompt": given, **texts}.items() if text in ("", [])]
        if empty:
            raise InvalidRequest(f"{empty[0]}: an empty text")
        instruction, prompt = self.spec.resolve(
            given,
            self.domain if asked.domain is None else asked.domain,
            self.instruction if asked.instruction is None else asked.instruction,
        )
        return self.encoder.encode(Comparison(prompt, asked.response_a, asked.response_b), instruction, swap=True)

    def _messages(self, messages: list[dict[str, Any]]) -> list[Message]:
        # A Parquet column gives every message the keys of all.
        said = [{key: value for key, value in message.items() if value is not None} for message in messages]
        validated: list[Message] = _validated(MESSAGES.validate_python, said, "prompt")
        return validated


def _fields_of(raw: Any) -> dict[str, Any]:
    try:
        fields = json.loads(raw) if isinstance(raw, bytes) else raw
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("not a JSON object")
    # Both orders are read, whatever a row says of swap.
    return {name: value for name, value in fields.items() if value is not None and name != "swap"}


def _validated(validate: Any, value: Any, *within: str) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        raise from_validation(error, within=within) from error


def _id_of(fields: dict[str, Any]) -> str | None:
    given = fields.get("id")
    return None if given is None else _printable(given if isinstance(given, str) else json.dumps(given, default=str))


def _printable(text: str) -> str:
    """A lone surrogate has no UTF-8, only its escape."""
    return text.encode(errors="backslashreplace").decode()
