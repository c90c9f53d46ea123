"""OpenRLHF's remote reward model: `--reward.remote_url http://HOST:8000/get_reward`."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.dependencies import ERRORS
from service.dialects.context import Context, Label, QueryLabelOptions, gather_scores
from tinyrm.api import MAX_ITEMS
from tinyrm.chat import find_response, parse_prompt
from tinyrm.errors import InvalidInput

router = APIRouter(tags=["openrlhf"])


class RewardRequest(BaseModel):
    """Lists of one length, of which the trainer fills one place a request, or none."""

    query: list[str] = Field(max_length=MAX_ITEMS, description="Prompt and response, with special tokens.")
    prompts: list[str] = Field(max_length=MAX_ITEMS)
    labels: list[Label] | None = Field(
        default=None, max_length=MAX_ITEMS, description="Reference responses, or nothing."
    )


class RewardReply(BaseModel):
    """rewards: log-odds, mean 0 in a cohort; equal to the scores where a label was the opponent. scores: in 0..1.

    extra_logs: `p_win` equal to the scores, `partial` 1 where the cohort was not full.
    """

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward", responses={**ERRORS})
async def get_reward(body: RewardRequest, options: QueryLabelOptions, context: Context) -> RewardReply:
    """Rewards of whole texts: against their labels, or within cohorts."""
    labels = body.labels or [None] * len(body.query)
    if not len(body.query) == len(body.prompts) == len(labels):
        raise InvalidInput("query, prompts, labels: three lists of different lengths")
    if len(body.query) > context.max_items:
        raise InvalidInput(f"query: {len(body.query)} texts in one call, at most {context.max_items} are taken")
    is_list = len(body.query) > 1
    if is_list:
        context.resolve(options).refuse_if_busy(context.deadline)
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
