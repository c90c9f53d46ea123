"""What dialects share of bodies and URLs: texts of a policy, labels, and options in the query."""

import re
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Query
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from tinyrm.api import MAX_RESPONSES, Name, NonEmpty, refuse_unknown_keys
from tinyrm.comparison import EmptyMode
from tinyrm.reasoning import Reasoning


def replace_surrogates(text: Any) -> Any:
    """Return a text with a replacement character for each lone surrogate, which no tokenizer accepts.

    A sample that was refused for one would let all others of its prompt wait for it.
    """
    if not isinstance(text, str):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# A text that a policy wrote.
PolicyText = Annotated[str, BeforeValidator(replace_surrogates)]

# Ends at the first invalid element: an error for each one would take many times as long as parsing the body.
FAIL_FAST = Field(fail_fast=True)
# Chat messages in any form that tinyrm.chat.read_turn knows.
AnyMessages = Annotated[list[dict[str, Any]], FAIL_FAST]

# Trainers put any value into a label; only text and numbers serve as a reference.
Label = Any
# A longer label is a text, whatever it consists of.
MAX_BARE_CHARACTERS = 40


class DialectBody(BaseModel):
    """A body in the form of another program. Unknown fields are ignored, and null is the default of an optional one."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        optional = {
            name
            for field_name, field in cls.model_fields.items()
            if not field.is_required()
            for name in field_names(field_name, field)
        }
        return {key: part for key, part in value.items() if part is not None or key not in optional}


def field_names(name: str, field: FieldInfo) -> list[str]:
    """Return the keys that a body may have for a field."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias or name)]


class Options(BaseModel):
    """Options that a trainer cannot put into its body, in the query of its URL, as in `/get_reward?domain=safety`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_no_unknown_keys(cls, value: Any) -> Any:
        return refuse_unknown_keys(value, cls.model_fields)

    domain: Name | None = Field(default=None, description="One of the model's domains.")
    instruction: NonEmpty | None = Field(default=None, description="Replaces the domain's instruction.")
    model: Name | None = Field(default=None, description="Name or name@revision of the model that scores.")
    reasoning: Reasoning | None = Field(
        default=None, description="Whether reasoning is judged with the response. Default: TINYRM_REASONING."
    )
    empty: EmptyMode = Field(default="last", description="What happens to responses without a text; see /v1/rewards.")


AnyOptions = TypeVar("AnyOptions", bound=Options)


class CohortOptions(Options):
    """Options that define the cohort of a sample, if its model does not score responses alone."""

    group_size: int | None = Field(
        default=None,
        ge=1,
        le=MAX_RESPONSES,
        description="Number of samples of one prompt. Default: TINYRM_GROUP_SIZE. 1: every reward is neutral.",
    )
    group_id: Name | None = Field(
        default=None, description="Separates cohorts with the same prompt, such as those of two trainings."
    )
    partial: Literal["score", "refuse"] | None = Field(
        default=None, description="What happens to an incomplete cohort. Default: TINYRM_PARTIAL_COHORTS."
    )
    copies: Literal["answer", "join"] | None = Field(
        default=None,
        description="A sample equal to one of the group just judged: answer, it gets that one's reward; join, it opens "
        "the next cohort. Default: answer in the dialect verl, join in the others.",
    )


class LabelOptions(CohortOptions):
    """Options for samples with a label."""

    labels: Literal["auto", "reference", "ignore"] = Field(
        default="auto",
        description="reference: a response with a label is compared with it. ignore: with the other samples of its "
        "cohort. auto: as reference if the label is a text that is not only a number or a letter, otherwise as ignore.",
    )


QueryOptions = Annotated[Options, Query()]
QueryCohortOptions = Annotated[CohortOptions, Query()]
QueryLabelOptions = Annotated[LabelOptions, Query()]

# What a program checks, and not a response: a number or the letter of a choice, without what is around it.
DECORATION = re.compile(r"####|\\boxed|[\\${}()%\s]")
BARE = re.compile(r"[-+]?\d[\d.,_]*(/\d[\d.,_]*|e[-+]?\d+)?|[A-Za-z]\.?")


def is_bare(label: str) -> bool:
    """Return whether a label is only a number or a letter, such as 4, -1,000.5, 3/4, 12%, $\\boxed{4}$, #### 4, (B)."""
    return len(label) <= MAX_BARE_CHARACTERS and BARE.fullmatch(DECORATION.sub("", label)) is not None
