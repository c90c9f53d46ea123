"""POST /v1/compare and /v1/compare/batch, and the parts that other bodies share with them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from tinyrm.api.base import MAX_ITEMS, Name, NonEmpty, Reply, Request
from tinyrm.api.errors import ErrorBody, ErrorReply
from tinyrm.api.texts import Prompt, Response
from tinyrm.comparison import SwapMode, Verdict
from tinyrm.confidence import Confidence
from tinyrm.errors import from_validation
from tinyrm.reasoning import Reasoning


class Usage(Reply):
    """Cost of a request."""

    sequences: int = Field(
        description="Texts that the model read: one or two for a comparison of a model that reads pairs, one for each "
        "response of a model that reads one response, one for all responses of a model that reads sets."
    )
    tokens: int = Field(description="Of these sequences, without padding.")
    gflops: float = Field(description="Operations that the model needs (tinyrm/flops.py), without padding.")


class Truncated(Reply):
    """Tokens dropped to fit the model's length: the prompt loses its beginning, a response its end or its middle.

    Which of both depends on the model and the domain: `truncation` in /v1/models. Exact for a text of up to 16
    characters for each token of the model's length. A longer text is not read as a whole, and at least this many of
    its tokens were dropped.
    """

    prompt: int = Field(description="Tokens dropped from the prompt.")
    response_a: int = Field(description="Tokens dropped from response A.")
    response_b: int = Field(description="Tokens dropped from response B.")


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
    reasoning: Reasoning | None = Field(
        default=None,
        description="drop: reasoning before a response, between tags such as <think>, is not judged, nor that in turns "
        "of the prompt. keep: it is. Default: TINYRM_REASONING.",
    )


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
                    "response_a": "Air scatters blue light more than red.",
                    "response_b": "No idea.",
                }
            ]
        },
    )

    response_a: Response = Field(description="A text, or messages: calls of tools, their results, the reply.")
    response_b: Response = Field(description="The other response, likewise.")


class Orders(Reply):
    """P(A is better) in each order by itself, as `swap: off` would have returned it.

    A model has a bias for a position. The two differ by it, and it cancels in `probability_a` of both orders.
    """

    a_first: float = Field(description="With A as the first response.")
    b_first: float | None = Field(description="With B as the first response; null if that order was not scored.")


class CompareReply(Reply):
    """`margin` is the log-odds that A is better; the probabilities follow from it and add up to 1."""

    preferred: Verdict = Field(description="tie only if the margin is exactly 0, as for two equal responses.")
    probability_a: float = Field(description="Calibrated probability that A is better.")
    probability_b: float = Field(description="Calibrated probability that B is better.")
    margin: float = Field(description="Calibrated log-odds that A is better.")
    confidence: Confidence = Field(
        description="How sure the preference is. p is the least probability of the preferred response that the "
        "standard error of the calibration leaves. close: too close to call, p below 0.55, or the two orders prefer "
        "different responses. leaning: p below 0.75. clear: any other."
    )
    orders: Orders | None = Field(
        default=None, description="What each order alone would give; null for a model that does not read pairs."
    )
    model: str = Field(description="name@revision of the model.")
    usage: Usage = Field(description="What the comparison cost.")
    truncated: Truncated = Field(description="Tokens that the model did not read.")


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

    items: list[Annotated[CompareRequest, WrapValidator(_keep_error)]] = Field(
        min_length=1, max_length=MAX_ITEMS, description="The comparisons; one that is invalid fails alone."
    )


class BatchReply(Reply):
    """Results in the order of the items; an item that failed has an error in its place."""

    results: list[CompareReply | ErrorReply] = Field(description="A result or an error for each item, in their order.")
    usage: Usage = Field(description="What all items cost together.")
