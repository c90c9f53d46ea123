"""OpenRLHF's remote reward model: `--reward.remote_url http://HOST:8000/get_reward`."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.dependencies import ERRORS
from service.dialects.bodies import DialectBody, Label, PolicyText, QueryLabelOptions
from service.dialects.context import Context, gather_scores
from tinyrm.api import MAX_ITEMS
from tinyrm.errors import InvalidInput
from tinyrm.markup import find_response, parse_prompt

router = APIRouter(tags=["openrlhf"])


class RewardRequest(DialectBody):
    """Lists of the same length. The trainer sends one sample per request, or an empty list."""

    query: list[PolicyText] = Field(
        max_length=MAX_ITEMS, fail_fast=True, description="Prompt and response, with special tokens."
    )
    prompts: list[PolicyText] = Field(max_length=MAX_ITEMS, fail_fast=True)
    labels: list[Label] | None = Field(
        default=None, max_length=MAX_ITEMS, description="Reference responses, if there are any."
    )


class RewardReply(BaseModel):
    """The rewards of all samples, in the order of the request.

    rewards: log-odds, with mean 0 in a cohort; `score` of /v1/score from a model that reads responses; equal to
        `scores` for comparisons with a label.
    scores: probabilities from 0 to 1.
    extra_logs: `p_win` is equal to `scores`; `partial` is 1 if there was a cohort that was not full.
    """

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward", responses={**ERRORS})
async def get_reward(body: RewardRequest, options: QueryLabelOptions, context: Context) -> RewardReply:
    """Rewards of whole texts, compared with their labels, alone, or within their cohorts."""
    labels = body.labels or [None] * len(body.query)
    if not len(body.query) == len(body.prompts) == len(labels):
        raise InvalidInput("query, prompts, labels: the lists must have the same length")
    context.refuse_too_many(len(body.query))
    is_list = len(body.query) > 1
    pipeline = context.resolve(options)
    if is_list:
        context.accept_list(pipeline)
    with pipeline.held():
        scores = await gather_scores(
            [
                context.score_sample(
                    options, parse_prompt(prompt), find_response(query, prompt), label, wait_for_room=is_list
                )
                for query, prompt, label in zip(body.query, body.prompts, labels, strict=True)
            ]
        )
    shares = [score.score for score in scores]
    logs = {"p_win": shares, "partial": [float(score.partial) for score in scores]}
    return RewardReply(rewards=[score.reward for score in scores], scores=shares, extra_logs=logs)
