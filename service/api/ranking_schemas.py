"""The bodies of questions about more than two responses."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from service.api.schemas import Asked, NonEmpty, Usage
from tinyrm.schedules import Strategy

MOST_RESPONSES = 128

EXAMPLE: JsonDict = {"prompt": "What is 2 + 2?", "responses": ["2 + 2 = 5.", "2 + 2 = 4.", "No idea."]}


class GroupRequest(Asked):
    """Several responses to one prompt."""

    responses: Annotated[list[NonEmpty], Field(min_length=1, max_length=MOST_RESPONSES)]
    strategy: Strategy = Field(
        default="round_robin",
        description="Who meets whom. round_robin: everybody, n (n - 1) / 2 comparisons. swiss: neighbours in the "
        "standings, at most n / 2 in each of log2(n) + 1 rounds. knockout: winners, n - 1. reference: each one meets "
        "`reference` only, n.",
    )
    reference: NonEmpty | None = Field(default=None, description="What each response is compared with; see `strategy`.")

    @model_validator(mode="after")
    def _reference_and_strategy_agree(self) -> Self:
        if (self.reference is None) == (self.strategy == "reference"):
            raise ValueError("strategy reference needs a text in `reference`, and no other strategy takes one")
        return self

    @property
    def participants(self) -> list[str]:
        """The reference, if there is one, is the last."""
        return self.responses if self.reference is None else [*self.responses, self.reference]


class RankRequest(GroupRequest):
    """Which of several responses are better than which?"""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    win_matrix: bool = Field(default=False, description="Whether the reply holds the result of each comparison.")

    @model_validator(mode="after")
    def _two_to_compare(self) -> Self:
        if len(self.responses) < 2:
            raise ValueError("responses: one response has no rank; send at least 2")
        return self


class RankReply(BaseModel):
    """`strengths` are Bradley-Terry strengths: log-odds, mean 0. Numbers of responses are places in the request."""

    order: list[int] = Field(description="Best first.")
    strengths: list[float]
    standard_errors: list[float] = Field(description="Of the strengths, as if each comparison were one game.")
    cycle_rate: float | None = Field(description="Share of triples that contradict themselves; null if none met.")
    win_matrix: list[list[float | None]] | None = Field(description="[i][j]: P(i beats j); null where none met.")
    comparisons: int
    model: str
    usage: Usage
    truncated_tokens: int = Field(description="Tokens dropped over all comparisons, each order counted once.")


class RewardsRequest(GroupRequest):
    """How good is each of several responses, among each other?"""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    scale: Literal["zero_mean", "unit"] = Field(
        default="zero_mean",
        description="zero_mean: strengths, log-odds that add up to 0. unit: mean probability to beat whom it met.",
    )

    @model_validator(mode="after")
    def _somebody_to_compare_with(self) -> Self:
        if len(self.responses) == 1 and not (self.strategy == "reference" and self.scale == "unit"):
            raise ValueError(
                "responses: one response alone has no reward; send at least 2, or a `reference` with scale unit"
            )
        return self


class RewardsReply(BaseModel):
    """A reward for each response, in the order of the request."""

    rewards: list[float]
    model: str
    usage: Usage
