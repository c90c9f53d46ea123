"""The bodies that travel over HTTP."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from tinyrm.comparison import Verdict
from tinyrm.template import Message

NonEmpty = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=200)]  # errors repeat a name that is not known

# The most that the setting max_batch_items may allow. Checked while a list is read: a body of a million wrong items
# would otherwise hold up everybody for seconds, only to be refused.
MOST_ITEMS = 16_384


# Pydantic puts the branch it tried into the path of an error; these cannot be mistaken for a body's own key.
TEXT, MESSAGES, TEXTS, DOCUMENTS = BRANCHES = "<text>", "<messages>", "<texts>", "<documents>"


def _form_of(prompt: Any) -> str:
    """Which form was meant, so that a wrong message is not reported as text that is no text."""
    return MESSAGES if isinstance(prompt, list) else TEXT


Prompt = Annotated[
    Annotated[NonEmpty, Tag(TEXT)] | Annotated[list[Message], Field(min_length=1, fail_fast=True), Tag(MESSAGES)],
    Discriminator(_form_of),
]


SwapMode = Literal["on", "off", "auto"]


class Asked(BaseModel):
    """What every question has: a prompt, and how its responses are to be judged."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt = Field(description="The request as text, or a dialogue as a list of chat messages.")
    domain: Name | None = Field(default=None, description="One of the model's domains; each has its own instruction.")
    instruction: NonEmpty | None = Field(default=None, description="Takes the place of the domain's instruction.")
    swap: SwapMode | None = Field(
        default=None,
        description="on: read both orders, so that position cannot matter. off: one order, half the cost. "
        "auto: the second order only where the first is not sure by itself.",
    )
    model: Name | None = Field(default=None, description="Name or name@revision; refused if another model is served.")


class CompareRequest(Asked):
    """Which of two responses to one prompt is better?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "What is 2 + 2?", "response_a": "2 + 2 = 4.", "response_b": "2 + 2 = 5."}]
        },
    )

    response_a: NonEmpty
    response_b: NonEmpty


class Usage(BaseModel):
    """What the answer cost. GFLOPs are what the model needs (tinyrm/flops.py), padding not included."""

    tokens: int
    gflops: float


class Truncated(BaseModel):
    """Tokens dropped to fit the model's length: the prompt loses its beginning, a response its end."""

    prompt: int
    response_a: int
    response_b: int


class CompareReply(BaseModel):
    """`margin` is the log-odds that A is better; the probabilities follow from it and add up to 1."""

    preferred: Verdict = Field(description="tie only if the margin is exactly 0, as for two equal responses.")
    probability_a: float
    probability_b: float
    margin: float
    model: str
    usage: Usage
    truncated: Truncated


class ErrorBody(BaseModel):
    """`type` is stable and meant for programs, `message` says what to do."""

    type: str
    message: str


class ErrorReply(BaseModel):
    error: ErrorBody


class RejectedItem(BaseModel):
    """An item of a batch that is no valid comparison; its neighbours are scored all the same."""

    error: ErrorBody


def describe(error: ValidationError) -> ErrorBody:
    """The first thing that is wrong, without repeating what was sent."""
    return describe_first(list(error.errors(include_url=False, include_input=False)))


def describe_first(errors: list[Any]) -> ErrorBody:
    first = errors[0]
    path = ".".join(str(part) for part in first["loc"] if part not in ("body", *BRANCHES))
    path = path or ("body" if "body" in first["loc"] else "item")
    kind = "invalid_text" if first["type"] == "string_unicode" else "invalid_request"
    return ErrorBody(type=kind, message=f"{path}: {first['msg']}")


def _keep_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        return RejectedItem(error=describe(error))


class BatchRequest(BaseModel):
    """Many comparisons in one call."""

    model_config = ConfigDict(extra="forbid")

    items: list[Annotated[CompareRequest, WrapValidator(_keep_error)]] = Field(min_length=1, max_length=MOST_ITEMS)


class BatchReply(BaseModel):
    """Results in the order of the items; an item that failed has an error in its place."""

    results: list[CompareReply | ErrorReply]
    usage: Usage


class ModelCard(BaseModel):
    """A served model and the engine it runs on."""

    name: str
    revision: str
    default: bool
    domains: dict[str, str]
    default_domain: str
    template: str
    max_tokens: int
    parameters: int
    temperature: float
    engine: str
    precision: str


class ModelList(BaseModel):
    models: list[ModelCard]


class Status(BaseModel):
    status: str
