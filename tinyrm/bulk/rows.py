"""Read rows of files: each is a prompt with two responses."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tinyrm.chat import Message
from tinyrm.errors import InvalidRequest, from_validation
from tinyrm.preferences import columns_read, read_preference

MAX_DEPTH = 100  # of the fields of a row


class PairRow(BaseModel):
    """The texts and options of a row. Empty texts are allowed here; the scorer refuses them."""

    model_config = ConfigDict(extra="ignore")

    prompt: str | list[Message]
    response_a: str
    response_b: str
    domain: str | None = None
    instruction: str | None = None
    swap: str | None = None


# The columns of a table that are read.
COLUMNS = {"id", "domain", "instruction"} | columns_read()


def parse_pair(fields: Mapping[str, Any]) -> PairRow:
    """Return the pair of a row in any form of `tinyrm.preferences`; the chosen response is A. Raises InvalidRequest."""
    try:
        texts = read_preference(fields, own=True)
    except InvalidRequest as error:
        raise InvalidRequest(str(error)) from error  # one type for all, as the service has for an item
    options = {name: fields.get(name) for name in ("domain", "instruction", "swap")}
    if texts.prompt_column == "instruction":
        options["instruction"] = None
    pair = {"prompt": texts.prompt, "response_a": texts.chosen, "response_b": texts.rejected}
    row: PairRow = validate(PairRow.model_validate, pair | options)
    return row


def parse_fields(raw: Any) -> dict[str, Any]:
    """Return the fields of a line of JSON, or of a row of a table. Raises InvalidRequest."""
    try:
        fields = json.loads(raw) if isinstance(raw, bytes) else raw
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("not a JSON object")
    # What can just be read could not be written again, where fewer calls are left.
    if isinstance(raw, bytes) and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(fields) > MAX_DEPTH:
        raise InvalidRequest(f"nests deeper than {MAX_DEPTH} levels")
    return fields


def _depth(value: Any) -> int:
    """Return how deep a value nests, without recursion."""
    depth, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
    return depth


def validate(validator: Any, value: Any, *within: str) -> Any:
    """Return the result of a pydantic validator. Raises InvalidRequest or InvalidText, which names the field."""
    try:
        return validator(value)
    except ValidationError as error:
        raise from_validation(error, within=within) from error
