"""Validate rows of files: each is a prompt with two responses."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError, model_validator

from tinyrm.api import MESSAGES, TEXT, prompt_branch
from tinyrm.errors import InvalidRequest, from_validation


class PairRow(BaseModel):
    """The fields of a row; `chosen` and `rejected` are other names of response_a and response_b.

    Only the presence and types of texts are checked here; the scorer checks the texts themselves.
    """

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


# The columns of a table that are read.
COLUMNS = {"id", "chosen", "rejected", *PairRow.model_fields} - {"swap"}


def parse_fields(raw: Any) -> dict[str, Any]:
    """Return the fields of a line of JSON, or of a row of a table. Raises InvalidRequest."""
    try:
        fields = json.loads(raw) if isinstance(raw, bytes) else raw
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("not a JSON object")
    return fields


def validate(validator: Any, value: Any, *within: str) -> Any:
    """Return the result of a pydantic validator. Raises InvalidRequest or InvalidText, which names the field."""
    try:
        return validator(value)
    except ValidationError as error:
        raise from_validation(error, within=within) from error
