"""What all bodies share: strict requests, lenient replies, and the limits of one call."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

# The largest value of the setting max_batch_items. It is checked while a list is parsed: validating a million invalid
# items before the refusal would block the service for seconds.
MAX_ITEMS = 16_384
# Of one call. Cohere's rerankers take as many documents.
MAX_RESPONSES = 1000
MAX_TIMEOUT_MS = 3_600_000

NonEmpty = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=200)]  # error messages repeat an unknown name


def refuse_unknown_keys(value: Any, known: Collection[str]) -> Any:
    """Return `value`. Raises ValidationError for the first key of a dict that is not among `known`.

    `extra="forbid"` alone would make an error for each unknown key, which for a large body takes many times as long as
    parsing it.
    """
    if isinstance(value, dict):
        for key in value:
            if key not in known:
                kind = "extra_forbidden" if is_unicode(str(key)) else "string_unicode"
                unknown = InitErrorDetails(type=kind, loc=(str(key),), input=None)
                raise ValidationError.from_exception_data("unknown key", [unknown])
    return value


def is_unicode(text: str) -> bool:
    """Return whether `text` has no lone surrogate, which a JSON escape can make."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Request(BaseModel):
    # Strict, as the OpenAPI document has it: "1" is no number, and 1 is neither true nor a text.
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_no_unknown_keys(cls, value: Any) -> Any:
        return refuse_unknown_keys(value, cls.model_fields)


class Reply(BaseModel):
    # The service always sends a field that has a default, which is for replies of an older one.
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)
