"""POST /v1/rank and /v1/rewards."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from tinyrm.api.base import MAX_RESPONSES, Reply
from tinyrm.api.compare import ComparisonRequest, Usage
from tinyrm.api.texts import Member, Response
from tinyrm.comparison import EmptyMode, GroupStrategy

# Whose win matrix a reply may contain: a million numbers would block the service for a second.
MAX_MATRIX_RESPONSES = 128
Scale = Literal["zero_mean", "unit"]
SETS = (
    "Of a model that reads sets: 1 if one sequence held all responses. If they were too long for that, the number of "
    "sequences that held them; where scores depend on the other responses, these share some, by which they are joined. "
    "null for any other model."
)
GROUP_EXAMPLE: JsonDict = {
    "prompt": "Why is the sky blue?",
    "responses": ["No idea.", "Air scatters blue light more than red.", "Because."],
}


class GroupRequest(ComparisonRequest):
    """Several responses to one prompt."""

    responses: Annotated[list[Member], Field(min_length=1, max_length=MAX_RESPONSES, fail_fast=True)] = Field(
        description="Texts or messages; a response may be empty, see `empty`."
    )
    strategy: GroupStrategy | None = Field(
        default=None,
        description="Which pairs are compared. Default: all, or swiss if that would be more comparisons than one call "
        "may have. round_robin: all, n (n - 1) / 2 comparisons. swiss: neighbours in the standings, at most n / 2 in "
        "each of log2(n) + 1 rounds. knockout: winners only, n - 1. reference: each response with `reference` only, n. "
        "A model that does not read pairs compares nothing: it reads each response once, whatever the strategy, in n "
        "sequences or in one. cascade: needs two models; one that scores responses alone scores all, and one that "
        "reads pairs compares the best `top` with each other.",
    )
    top: Annotated[int, Field(ge=2, le=MAX_RESPONSES)] | None = Field(
        default=None,
        description="How many of the best responses strategy cascade compares, 2 to all; 4 by default, or all if there "
        "are fewer.",
    )
    reference: Response | None = Field(
        default=None, description="The response that each response is compared with; see `strategy`."
    )

    empty: EmptyMode = Field(
        default="last",
        description="last: a response with nothing but white space and special tokens is 3 log-odds below the worst of "
        "the others, whatever the model would say. judge: it is judged as a blank.",
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

    responses: Annotated[list[Member], Field(min_length=2, max_length=MAX_RESPONSES, fail_fast=True)] = Field(
        description="Texts or messages; a response may be empty, see `empty`."
    )
    win_matrix: bool = Field(
        default=False, description="Whether the reply contains the result of each comparison, of up to 128 responses."
    )

    @model_validator(mode="after")
    def _matrix_is_small(self) -> Self:
        if self.win_matrix and len(self.responses) > MAX_MATRIX_RESPONSES:
            raise ValueError(f"win_matrix: at most {MAX_MATRIX_RESPONSES} responses, not {len(self.responses)}")
        return self


class RankReply(Reply):
    """`strengths` are Bradley-Terry strengths: log-odds, mean 0. `order` holds indices into the request's responses."""

    order: list[int] = Field(description="Best first.")
    strengths: list[float] = Field(description="Of each response, in the order of the request: log-odds with mean 0.")
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
    usage: Usage = Field(description="What the ranking cost.")
    truncated_tokens: int = Field(
        description="Tokens dropped over all comparisons, each order counted once, or over all sequences of a model "
        "that compares none; at least this many if a text is too long to be read as a whole."
    )


class RewardsRequest(GroupRequest):
    """How good is each of several responses, relative to the others?"""

    model_config = ConfigDict(json_schema_extra={"examples": [GROUP_EXAMPLE]})

    scale: Scale = Field(
        default="zero_mean",
        description="zero_mean: strengths, log-odds that add up to 0. unit: mean probability to beat the responses "
        "it was compared with; of strategy cascade, to beat another response by these strengths.",
    )

    @property
    def has_nothing_to_compare(self) -> bool:
        """Whether the reward is neutral: of one response, unless it is the probability to beat a reference."""
        return len(self.responses) == 1 and not (self.strategy == "reference" and self.scale == "unit")


class RewardsReply(Reply):
    """A reward for each response, in the order of the request."""

    rewards: list[float] = Field(description="Of each response, in the order of the request; see `scale`.")
    partial: bool = Field(
        default=False, description="Whether there was nothing to compare: one response alone gets 0, or 0.5 as unit."
    )
    sets: int | None = Field(description=SETS)
    model: str = Field(description="As in the reply of /v1/rank.")
    usage: Usage = Field(description="What the rewards cost.")
