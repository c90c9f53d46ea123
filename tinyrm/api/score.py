"""POST /v1/score."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from tinyrm.api.base import MAX_RESPONSES, Reply
from tinyrm.api.compare import PromptRequest, Usage
from tinyrm.api.group import GROUP_EXAMPLE
from tinyrm.api.texts import Response


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

    prompt: int = Field(description="Tokens dropped from the prompt.")
    response: int = Field(description="Tokens dropped from the response.")


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
    truncated: ResponseTruncated = Field(description="Tokens that the model did not read.")
    empty: bool = Field(
        default=False, description="Whether nothing was judged but white space, special tokens and dropped reasoning."
    )


class ScoreReply(Reply):
    """Scores in the order of the responses."""

    results: list[ResponseScore] = Field(description="Of each response, in the order of the request.")
    model: str = Field(description="name@revision of the model.")
    usage: Usage = Field(description="What the scores cost.")
