"""The request and reply bodies of the HTTP API, for the service and its clients.

Requests refuse unknown fields, so that a misspelt option is an error. Replies ignore them, so that a client can call
a newer service. The bodies of other programs' APIs are in service/dialects.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import InitErrorDetails, PydanticCustomError

from tinyrm import chat
from tinyrm.chat import LIST, TEXT, ChatMessage, Message, text_branch
from tinyrm.comparison import GroupStrategy, SwapMode, Verdict
from tinyrm.confidence import Confidence
from tinyrm.errors import InvalidInput, TinyRMError, from_validation

# The largest value of the setting max_batch_items. It is checked while a list is parsed: validating a million invalid
# items before the refusal would block the service for seconds.
MAX_ITEMS = 16_384
MAX_RESPONSES = 128
# Of one dialogue. Each takes ten microseconds to read, and no model reads the text of so many.
MAX_MESSAGES = 10_000
MAX_TIMEOUT_MS = 3_600_000

NonEmpty = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=200)]  # error messages repeat an unknown name
Scale = Literal["zero_mean", "unit"]

# Errors that do not depend on the request: a later try may succeed.
TRANSIENT = frozenset(("overloaded", "unavailable", "engine_restarting", "shutting_down"))


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


# Messages


MESSAGE_KEYS = frozenset(ChatMessage.__annotations__)
MESSAGE_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


def _read_message(message: Any, validate: ValidatorFunctionWrapHandler) -> tuple[chat.Speaker, str]:
    """Return the speaker and the text. Only the assistant and tools may be silent: theirs may be a call, or no result.

    The reader checks what it reads. Validating every field of every message as well would take many times as long as
    parsing the body, so that is left to messages that cannot be valid, for its error.

    Raises PydanticCustomError, so that the error names the place of the message.
    """
    is_message = type(message) is dict and message.keys() <= MESSAGE_KEYS
    if not is_message or not isinstance(message.get("role"), str) or message["role"] not in MESSAGE_ROLES:
        validate(refuse_unknown_keys(message, MESSAGE_KEYS))
    try:
        speaker, text = chat.read_turn(message)
    except InvalidInput as error:
        raise PydanticCustomError("message", "{reason}", {"reason": str(error)}) from None
    if not text and speaker not in ("assistant", "tool"):
        raise PydanticCustomError("message", "a message of the {speaker} must have a text", {"speaker": speaker})
    if not is_unicode(text):
        raise PydanticCustomError("string_unicode", "half of a surrogate pair is no valid text")
    return speaker, text


def _read_prompt(turns: list[tuple[chat.Speaker, str]]) -> list[Message]:
    messages = [chat.to_message(speaker, text) for speaker, text in turns if text]
    if not messages:
        raise PydanticCustomError("messages", "no message has a text")
    return messages


def _read_response(turns: list[tuple[chat.Speaker, str]]) -> str:
    if any(speaker in ("system", "user") for speaker, _ in turns):
        raise PydanticCustomError(
            "messages", "a response has messages of the assistant and of its tools; others belong to the prompt"
        )
    if not (text := chat.join_turns(turns)):
        raise PydanticCustomError("messages", "no message has a text")
    return text


if TYPE_CHECKING:  # what is left after validation
    Prompt = str | list[Message]
    Response = str
else:
    Messages = Annotated[
        list[Annotated[ChatMessage, WrapValidator(_read_message)]],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    ]
    Prompt = Annotated[
        Annotated[NonEmpty, Tag(TEXT)] | Annotated[Messages, AfterValidator(_read_prompt), Tag(LIST)],
        Discriminator(text_branch),
    ]
    Response = Annotated[
        Annotated[NonEmpty, Tag(TEXT)] | Annotated[Messages, AfterValidator(_read_response), Tag(LIST)],
        Discriminator(text_branch),
    ]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_no_unknown_keys(cls, value: Any) -> Any:
        return refuse_unknown_keys(value, cls.model_fields)


class Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


# Errors


class ErrorBody(Reply):
    """`type` is stable and meant for programs; `message` describes the error for people."""

    type: str
    message: str

    @classmethod
    def of(cls, error: TinyRMError) -> Self:
        return cls(type=error.type, message=str(error))

    @property
    def is_transient(self) -> bool:
        """Whether a later try with the same item may succeed."""
        return self.type in TRANSIENT


class ErrorReply(Reply):
    error: ErrorBody


# Parts of replies


class Usage(Reply):
    """Cost of a request."""

    sequences: int = Field(
        description="Texts that the model read: one or two for a comparison of a model that reads pairs, one for each "
        "response of a model that reads one response, one for all responses of a model that reads sets."
    )
    tokens: int = Field(description="Of these sequences, without padding.")
    gflops: float = Field(description="Operations that the model needs (tinyrm/flops.py), without padding.")


class Truncated(Reply):
    """Tokens dropped to fit the model's length: the prompt loses its beginning, a response its end.

    Exact for a text of up to 16 characters for each token of the model's length. A longer text is not read to its end,
    and at least this many of its tokens were dropped.
    """

    prompt: int
    response_a: int
    response_b: int


class PromptRequest(Request):
    """The fields that all requests share: a prompt, and which model reads it."""

    prompt: Prompt = Field(
        description="The request as text, or a dialogue as a list of chat messages; roles and parts as in OpenAI's API."
    )
    domain: Name | None = Field(default=None, description="One of the model's domains; each has its own instruction.")
    instruction: NonEmpty | None = Field(default=None, description="Replaces the domain's instruction.")
    model: Name | None = Field(
        default=None, description="Name or name@revision. A model that is not served is refused."
    )


# POST /v1/compare and /v1/compare/batch


class ComparisonRequest(PromptRequest):
    """How the responses to a prompt are compared."""

    swap: SwapMode | None = Field(
        default=None,
        description="on: score both orders, so that position cannot matter. off: one order, half the cost. "
        "auto: the second order only if the first is not decisive. Only a model that reads pairs has orders: any other "
        "accepts every value and ignores it.",
    )


class CompareRequest(ComparisonRequest):
    """Which of two responses to one prompt is better?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "Why is the sky blue?",
                    "response_a": "Air scatters blue light most.",
                    "response_b": "No idea.",
                }
            ]
        },
    )

    response_a: Response = Field(description="A text, or messages: calls of tools, their results, the reply.")
    response_b: Response


class CompareReply(Reply):
    """`margin` is the log-odds that A is better; the probabilities follow from it and add up to 1."""

    preferred: Verdict = Field(description="tie only if the margin is exactly 0, as for two equal responses.")
    probability_a: float
    probability_b: float
    margin: float
    confidence: Confidence = Field(
        description="How sure the preference is. p is the least probability of the preferred response that the "
        "standard error of the calibration leaves. close: too close to call, p below 0.55, or the two orders prefer "
        "different responses. leaning: p below 0.75. clear: any other."
    )
    model: str
    usage: Usage
    truncated: Truncated


class InvalidItem(BaseModel):
    """An item of a batch that is not a valid comparison; the other items are still scored."""

    error: ErrorBody


def _keep_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        return InvalidItem(error=ErrorBody.of(from_validation(error, root="item")))


class BatchRequest(Request):
    """Many comparisons in one request."""

    items: list[Annotated[CompareRequest, WrapValidator(_keep_error)]] = Field(min_length=1, max_length=MAX_ITEMS)


class BatchReply(Reply):
    """Results in the order of the items; an item that failed has an error in its place."""

    results: list[CompareReply | ErrorReply]
    usage: Usage


# POST /v1/rank and /v1/rewards

SETS = (
    "Of a model that reads sets: 1 if one sequence held all responses. If they were too long for that, the number of "
    "sequences that held them; where scores depend on the other responses, these share some, by which they are joined. "
    "null for any other model."
)
GROUP_EXAMPLE: JsonDict = {
    "prompt": "Why is the sky blue?",
    "responses": ["No idea.", "Air scatters blue light most.", "Because."],
}


class GroupRequest(ComparisonRequest):
    """Several responses to one prompt."""

    responses: Annotated[list[Response], Field(min_length=1, max_length=MAX_RESPONSES, fail_fast=True)]
    strategy: GroupStrategy = Field(
        default="round_robin",
        description="Which pairs are compared. round_robin: all, n (n - 1) / 2 comparisons. swiss: neighbours in the "
        "standings, at most n / 2 in each of log2(n) + 1 rounds. knockout: winners only, n - 1. reference: each "
        "response with `reference` only, n. A model that does not read pairs compares nothing: it reads each response "
        "once, whatever the strategy, in n sequences or in one. cascade: needs two models; one that scores responses "
        "alone scores all, and one that reads pairs compares the best `top` with each other.",
    )
    top: Annotated[int, Field(ge=2, le=MAX_RESPONSES)] | None = Field(
        default=None,
        description="How many of the best responses strategy cascade compares, 2 to all; 4 by default, or all if there "
        "are fewer.",
    )
    reference: Response | None = Field(
        default=None, description="The response that each response is compared with; see `strategy`."
    )

    @model_validator(mode="after")
    def _reference_and_strategy_agree(self) -> Self:
        if (self.reference is None) == (self.strategy == "reference"):
            raise ValueError("strategy reference needs a text in `reference`, and no other strategy takes one")
        return self

    @model_validator(mode="after")
    def _top_and_strategy_agree(self) -> Self:
        if self.top is not None and self.strategy != "cascade":
            raise ValueError("top: only strategy cascade takes it")
        if self.top is not None and self.top > len(self.responses):
            raise ValueError(f"top: {self.top} is more than the {len(self.responses)} responses")
        return self


class RankRequest(GroupRequest):
    """Which of several responses are better than which?"""

    model_config = ConfigDict(json_schema_extra={"examples": [GROUP_EXAMPLE]})

    responses: Annotated[list[Response], Field(min_length=2, max_length=MAX_RESPONSES, fail_fast=True)]
    win_matrix: bool = Field(default=False, description="Whether the reply contains the result of each comparison.")


class RankReply(Reply):
    """`strengths` are Bradley-Terry strengths: log-odds, mean 0. `order` holds indices into the request's responses."""

    order: list[int] = Field(description="Best first.")
    strengths: list[float]
    standard_errors: list[float] = Field(
        description="Of the strengths, as if each comparison, or each pair of responses where none is compared, were "
        "one game."
    )
    cycle_rate: float | None = Field(
        description="Share of triples that contradict themselves; null if no triple was compared completely."
    )
    win_matrix: list[list[float | None]] | None = Field(
        description="[i][j]: P(i beats j); null where i and j were not compared."
    )
    comparisons: int = Field(description="0 for a model that does not read pairs: see `usage.sequences`.")
    sets: int | None = Field(description=SETS)
    model: str = Field(
        description="name@revision; of a cascade those of both models, joined by +, the one that scores all first."
    )
    usage: Usage
    truncated_tokens: int = Field(
        description="Tokens dropped over all comparisons, each order counted once, or over all sequences of a model "
        "that compares none; at least this many if a text is too long to be read to its end."
    )


class RewardsRequest(GroupRequest):
    """How good is each of several responses, relative to the others?"""

    model_config = ConfigDict(json_schema_extra={"examples": [GROUP_EXAMPLE]})

    scale: Scale = Field(
        default="zero_mean",
        description="zero_mean: strengths, log-odds that add up to 0. unit: mean probability to beat the responses "
        "it was compared with; of strategy cascade, to beat another response by these strengths.",
    )

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> Self:
        if len(self.responses) == 1 and not (self.strategy == "reference" and self.scale == "unit"):
            raise ValueError(
                "responses: one response alone has no reward; send at least 2, or a `reference` with scale unit"
            )
        return self


class RewardsReply(Reply):
    """A reward for each response, in the order of the request."""

    rewards: list[float]
    sets: int | None = Field(description=SETS)
    model: str = Field(description="As in the reply of /v1/rank.")
    usage: Usage


# POST /v1/score


class ScoreRequest(PromptRequest):
    """How good is a response, whatever others are like?"""

    model_config = ConfigDict(json_schema_extra={"examples": [GROUP_EXAMPLE]})

    response: Response | None = Field(default=None, description="One response; or send `responses`.")
    responses: Annotated[list[Response], Field(min_length=1, max_length=MAX_RESPONSES, fail_fast=True)] | None = Field(
        default=None, description="Several responses, each scored as if it were alone."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.response is None) == (self.responses is None):
            raise ValueError("send either a text in `response` or a list in `responses`, and not both")
        return self

    @property
    def texts(self) -> list[str]:
        """The responses, however they were sent."""
        return [self.response] if self.response is not None else self.responses or []


class ResponseTruncated(Reply):
    """Tokens dropped to fit the model's length, counted as in the reply to a comparison."""

    prompt: int
    response: int


class ResponseScore(Reply):
    """The score of one response, which depends on no other response.

    Differences between responses to one prompt are what the model learned; scores of different prompts are comparable
    only as far as its training data made them so.
    """

    raw: float = Field(description="The model's own output, as the library that made it returns it: see `activation`.")
    score: float | None = Field(
        description="Standard deviations above the mean of held-out responses, computed from the logit; null if the "
        "bundle has no `score_scale`."
    )
    tokens: int = Field(description="Of prompt and response; `usage` counts a prompt that is read once only once.")
    truncated: ResponseTruncated


class ScoreReply(Reply):
    """Scores in the order of the responses."""

    results: list[ResponseScore]
    model: str
    usage: Usage


# GET /v1/models, /healthz and /readyz


class ScoreScale(Reply):
    """Logits of held-out responses: `score` is (logit - mean) / std."""

    mean: float
    std: float
    responses: int = Field(description="How many were scored.")


class ModelCard(Reply):
    """A served model and the engine it runs on."""

    name: str
    revision: str
    default: bool
    reads: Literal["pair", "response", "set"] = Field(
        description="What one sequence holds. pair: the prompt and two responses. response: the prompt and one "
        "response, so n responses cost n sequences. set: the prompt and any number of responses."
    )
    scores_alone: bool = Field(
        description="Whether the score of a response depends on no other one, so that /v1/score replies: always if "
        "`reads` is response, and for some models that read sets."
    )
    head: str = Field(description="What makes logits from the encoder's output: cloze, pair or score.")
    activation: Literal["identity", "sigmoid"] = Field(description="Of `raw` in replies of /v1/score.")
    score_scale: ScoreScale | None = Field(description="Of `score` in replies of /v1/score.")
    domains: dict[str, str]
    default_domain: str
    template: str
    max_tokens: int
    parameters: int
    temperature: float
    temperatures: dict[str, float] = Field(
        description="Of domains, if some need their own; `temperature` is that of all others."
    )
    engine: str
    precision: str


class ModelList(Reply):
    models: list[ModelCard]


class Status(Reply):
    status: str
