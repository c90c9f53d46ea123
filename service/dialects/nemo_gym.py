"""NeMo-Gym's comparing resources server: `/compare` for a whole group, `/verify` for one rollout of it.

Its agents also begin each rollout with `/seed_session` and end a collection with `/aggregate_metrics`.
Numbers are on its scale: 1 to 5, where 3 is neither good nor bad. A model that reads responses scores each one alone.
"""

import asyncio
import json
import math
import statistics
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.dependencies import ERRORS
from service.dialects.bodies import AnyMessages, DialectBody, Options, QueryCohortOptions, QueryOptions
from service.dialects.context import Context
from service.dialects.nemo_gym_metrics import AggregateReply, AggregateRequest, aggregate
from service.scoring.ranking import GroupResult
from tinyrm.api import MAX_MATRIX_RESPONSES, MAX_RESPONSES, NonEmpty
from tinyrm.chat import BLANK, read_turn
from tinyrm.markup import parse_prompt, strip_special

router = APIRouter(tags=["nemo-gym"])

AnyOptions = TypeVar("AnyOptions", bound=Options)


# Output items that are scored; reasoning is not.
SCORED_ITEMS = ("message", "function_call", "function_call_output")


class ResponseObject(BaseModel):
    """A response in the Responses API. Its other fields are kept for the reply of /verify."""

    model_config = ConfigDict(extra="allow")

    output: AnyMessages

    @property
    def text(self) -> str:
        """Return the text of its messages and of its calls of tools. Raises InvalidRequest."""
        items = [item for item in self.output if item.get("type", "message") in SCORED_ITEMS]
        return strip_special("\n".join(read_turn({"role": "assistant"} | item)[1] for item in items))


class GroupCompareRequest(DialectBody):
    """A prompt and a group of responses.

    conversation_history: may be empty, as it is for an agent that was given no input.
    principle: replaces the domain's instruction.
    """

    conversation_history: AnyMessages
    response_objs: list[ResponseObject] = Field(max_length=MAX_RESPONSES, fail_fast=True)
    principle: NonEmpty | None = None


class ComparisonResult(BaseModel):
    """One comparison of two responses.

    ranking: from 1, the first is much better, to 6, the second is much better.
    """

    response_i: int
    response_j: int
    judge_idx: int = 0
    score_1: float
    score_2: float
    ranking: float


class GroupCompareReply(BaseModel):
    """The scores of a group.

    rewards: one for each response, from 1 to 5.
    comparison_results: empty for more than MAX_MATRIX_RESPONSES responses: half a million would block the service.
    """

    rewards: list[float]
    comparison_results: list[ComparisonResult]
    metrics: dict[str, float]


class Created(BaseModel):
    """The parameters of the policy's call."""

    model_config = ConfigDict(extra="allow")

    input: str | AnyMessages


class VerifyRequest(DialectBody):
    """One rollout. Its prompt defines its cohort, together with its task and prompt_id if it has any."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: Created
    response: ResponseObject
    principle: NonEmpty | None = None
    prompt_id: str | None = Field(default=None, max_length=200)
    task_index: int | None = Field(default=None, alias="_ng_task_index")


class VerifyReply(VerifyRequest):
    """The rollout as it was sent, with its reward.

    reward: from 1 to 5.
    partial: whether there was a cohort that was not full.
    """

    reward: float
    partial: bool


class Seed(DialectBody):
    """A task whose rollout begins. Nothing of it is needed: a rollout is judged by its texts."""


class Seeded(BaseModel):
    """Nothing: there is no session."""


@router.post("/seed_session", responses={**ERRORS})
async def seed_session(_: Seed, __: QueryCohortOptions) -> Seeded:
    """Accept the beginning of a rollout."""
    return Seeded()


@router.post("/aggregate_metrics", responses={**ERRORS})
async def aggregate_metrics(body: AggregateRequest, _: QueryCohortOptions) -> AggregateReply:
    """Statistics of the rewards of a collection."""
    # In a thread: of a hundred thousand rollouts they take seconds.
    return await asyncio.to_thread(aggregate, body.verify_responses)


@router.post("/compare", responses={**ERRORS})
async def compare_group(body: GroupCompareRequest, options: QueryOptions, context: Context) -> GroupCompareReply:
    """Rewards of a group's responses, from comparisons between them or from the score of each."""
    options = with_principle(options, body.principle)
    texts = [response.text for response in body.response_objs]
    result = await context.score_whole_group(options, parse_prompt(body.conversation_history) or BLANK, texts)
    rewards = [grade(score.score) for score in result.scores]
    metrics = {
        "mean_individual_score": statistics.fmean(rewards) if rewards else 0.0,
        "std_individual_score": statistics.pstdev(rewards) if rewards else 0.0,
        "tiebreak_usage_rate": 0.0,
    }
    return GroupCompareReply(rewards=rewards, comparison_results=comparison_results(result), metrics=metrics)


@router.post("/verify", responses={**ERRORS}, response_model=VerifyReply)
async def verify(body: VerifyRequest, request: Request, options: QueryCohortOptions, context: Context) -> Response:
    """The reward of one rollout: at once, or with a model that reads pairs as soon as its cohort is complete."""
    group = body.task_index, body.prompt_id
    prompt = parse_prompt(body.responses_create_params.input)
    score = await context.score_unlabelled(with_principle(options, body.principle), prompt, body.response.text, group)
    reward = {"reward": grade(score.score), "partial": score.partial}
    # The whole body as it was sent, with the fields that are not used here.
    return Response(json.dumps(await request.json() | reward), media_type="application/json")


def with_principle(options: AnyOptions, principle: str | None) -> AnyOptions:
    return options.model_copy(update={"instruction": principle}) if principle else options


def grade(probability: float) -> float:
    return 1 + 4 * probability


def comparison_results(result: GroupResult) -> list[ComparisonResult]:
    """Return an entry for each pair that was compared; none for more than MAX_MATRIX_RESPONSES responses."""
    if len(result.strengths) > MAX_MATRIX_RESPONSES:
        return []
    rows = enumerate(result.ranking.probabilities.tolist())
    compared = [(i, j, p) for i, row in rows for j, p in enumerate(row) if i < j and not math.isnan(p)]
    return [
        ComparisonResult(response_i=i, response_j=j, score_1=grade(p), score_2=grade(1 - p), ranking=6 - 5 * p)
        for i, j, p in compared
    ]
