"""Read preference pairs from files of every form of `tinyrm.verdicts` and every format of `tinyrm.tables`."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
)

from tinyrm.chat import Dialogue
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput, describe
from tinyrm.tables import read_jsonl, read_rows
from tinyrm.template import FIGURE2
from tinyrm.verdicts import Judged, Label, read_judged

NonEmpty = Annotated[str, Field(min_length=1)]
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)

log = logging.getLogger(__name__)


def keep_dialogue(value: object, validate: ValidatorFunctionWrapHandler) -> str:
    """Return a text; a Dialogue stays one, with its messages."""
    text: str = validate(value)
    return value if isinstance(value, Dialogue) else text


class PreferencePair(Label):
    """A prompt with its preferred and its rejected response. Other fields of a record are ignored.

    prompt: a Dialogue if it was messages, for templates that write their own tokens between turns.

    What makes or reads pairs gives them `oriented`: of a pair with a probability, the chosen response is not the worse.
    """

    prompt: Annotated[NonEmpty, WrapValidator(keep_dialogue)]
    chosen: NonEmpty
    rejected: NonEmpty
    domain: str | None = None
    subset: str | None = None

    @model_serializer(mode="wrap")
    def _without_plain_label(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write a label only where it says something: a pair without scores is its texts, domain and subset."""
        fields: dict[str, Any] = dump(self)
        plain = {"probability": None, "margin": None, "weight": 1.0}
        return {name: value for name, value in fields.items() if name not in plain or value != plain[name]}

    def comparison(self) -> Comparison:
        """Return a comparison with the chosen response as A."""
        return Comparison(self.prompt, self.chosen, self.rejected)

    def oriented(self) -> "PreferencePair":
        """Return the pair with the response that is probably better as the chosen one."""
        if self.target >= 0.5:
            return self
        flipped: dict[str, Any] = {"chosen": self.rejected, "rejected": self.chosen}
        if self.margin is not None:
            flipped["margin"] = -self.margin
        if self.probability is not None:
            flipped["probability"] = 1 - self.probability
        return self.model_copy(update=flipped)


def read_pairs(path: Path, *, ties: bool = False) -> list[PreferencePair]:
    """Return the pairs of a file, of which none is judged the other way round.

    ties: whether pairs of which no response is better are among them, with a probability of one half.

    Raises InvalidInput, which names the first line or row that is not a pair.
    """
    pairs = [pair for _, pair in iterate_pairs(path)]
    verdicts = pairs if ties else [pair for pair in pairs if not pair.is_tie]
    if len(verdicts) < len(pairs):
        log.warning("%s: %d of %d pairs are ties, which are no verdicts", path, len(pairs) - len(verdicts), len(pairs))
    return verdicts


def iterate_pairs(path: Path) -> Iterator[tuple[str, PreferencePair]]:
    """Yield the pairs of a file, oriented, with their places for messages. Raises InvalidInput."""
    for place, record in read_rows(path):
        for pair in to_pairs(record, place):
            yield place, pair


def to_pairs(record: object, place: str) -> list[PreferencePair]:
    """Return the pairs of a record in any form of `tinyrm.verdicts`, oriented; a tie has a probability of one half.

    Chat messages become one text, as in training, which keeps them.

    Raises InvalidInput, which names the place, and the columns or keys of a record in another form.
    """
    if not isinstance(record, dict):
        raise InvalidInput(f"{place}: a record must be an object, not {type(record).__name__}")
    try:
        judged = read_judged(record)
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from error
    return [to_pair(record, one, place).oriented() for one in judged]


def to_pair(record: dict[str, Any], judged: Judged, place: str) -> PreferencePair:
    prompt = judged.texts.prompt
    if not isinstance(prompt, str):
        text = FIGURE2.render_messages(prompt)
        prompt = Dialogue.of(text, prompt) if len(prompt) > 1 else text
    fields = {"prompt": prompt, "chosen": judged.texts.chosen, "rejected": judged.texts.rejected}
    label = judged.label.model_dump(exclude_defaults=True) | ({"probability": 0.5} if judged.is_tie else {})
    return validate(PreferencePair, {name: record.get(name) for name in ("domain", "subset")} | fields | label, place)


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
