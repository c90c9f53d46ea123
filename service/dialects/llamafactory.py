"""LLaMA-Factory's reward server for PPO: `reward_model: http://HOST:8000/v1/score/evaluation`."""

import uuid

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.dependencies import ERRORS
from service.dialects.bodies import DialectBody, PolicyText, QueryOptions
from service.dialects.context import Context
from tinyrm.api import MAX_ITEMS
from tinyrm.errors import NotPointwise
from tinyrm.markup import split_dialogue

router = APIRouter(tags=["llamafactory"])


class EvaluationRequest(DialectBody):
    """Dialogues of a mini-batch, of different prompts.

    model: always `model`; `?model=` selects one.
    messages: whole dialogues in a chat template, with the response as the assistant's last turn.
    """

    messages: list[PolicyText] = Field(max_length=MAX_ITEMS, fail_fast=True)


class EvaluationReply(BaseModel):
    """The rewards, in the order of the dialogues."""

    id: str
    object: str = "score.evaluation"
    model: str
    scores: list[float]


@router.post("/v1/score/evaluation", responses={**ERRORS})
async def evaluate(body: EvaluationRequest, options: QueryOptions, context: Context) -> EvaluationReply:
    """Rewards of whole dialogues, from a model that scores each alone: PPO has one response to a prompt."""
    pipeline = context.resolve(options)
    if not pipeline.scores_alone:
        raise NotPointwise(
            f"{pipeline.manifest.identity} compares responses to one prompt, and PPO samples only one; serve a model "
            "that scores responses alone (`scores_alone` in /v1/models)"
        )
    context.refuse_too_many(len(body.messages))
    scores = await context.score_groups(options, [split_dialogue(text) for text in body.messages])
    return EvaluationReply(
        id=f"scoreval-{uuid.uuid4().hex}",
        model=pipeline.manifest.identity,
        scores=[score.reward for score in scores],
    )
