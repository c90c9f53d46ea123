"""verl's discriminative reward model: calls as to vLLM (`/classify`) or SGLang (`/v1/embeddings`).

verl ends a training on any 4xx, so under overload these paths return 503 whatever the setting is.
"""

import time
import uuid
from typing import Annotated

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Field

from service.api.dependencies import ERRORS
from service.dialects.context import (
    CohortOptions,
    Context,
    DialectBody,
    DialectContext,
    PolicyText,
    QueryCohortOptions,
    gather_scores,
)
from service.scoring.ranking import GroupScore
from tinyrm.api import MAX_ITEMS
from tinyrm.errors import InvalidInput
from tinyrm.markup import split_dialogue

router = APIRouter(tags=["verl"])


class EmbeddingRequest(DialectBody):
    """Dialogues to score.

    input: dialogues in a chat template, with the response as the assistant's last turn.
    model: the trainer's own name of the model, which is ignored; `?model=` selects one.
    """

    model: str | None = None
    input: PolicyText | Annotated[list[PolicyText], Field(max_length=MAX_ITEMS, fail_fast=True)]

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ClassifyRequest(EmbeddingRequest):
    """Dialogues to score, and the scale of the reward.

    use_activation: a probability if true, log-odds if false; formerly `activation`.
    """

    use_activation: bool = Field(default=True, validation_alias=AliasChoices("use_activation", "activation"))


class PromptUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classified(BaseModel):
    """The reward of one dialogue.

    probs: one number, the reward.
    partial: whether there was a cohort that was not full.
    """

    index: int
    label: str = "win"
    probs: list[float]
    num_classes: int = 1
    partial: bool


class ClassifyReply(BaseModel):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: PromptUsage


class Embedded(BaseModel):
    """The reward of one dialogue.

    embedding: one number, the reward.
    """

    object: str = "embedding"
    index: int
    embedding: list[float]
    partial: bool


class EmbeddingReply(BaseModel):
    object: str = "list"
    model: str
    data: list[Embedded]
    usage: PromptUsage


@router.post("/classify", responses={**ERRORS})
async def classify(body: ClassifyRequest, options: QueryCohortOptions, context: Context) -> ClassifyReply:
    """Rewards of whole dialogues, alone or within their cohorts."""
    scores = await score_inputs(body, options, context)
    return ClassifyReply(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=context.resolve(options).manifest.identity,
        data=[
            Classified(index=i, probs=[score.score if body.use_activation else score.reward], partial=score.partial)
            for i, score in enumerate(scores)
        ],
        usage=usage(scores),
    )


@router.post("/v1/embeddings", responses={**ERRORS})
async def embeddings(body: EmbeddingRequest, options: QueryCohortOptions, context: Context) -> EmbeddingReply:
    """Like /classify without activation, in the format of SGLang."""
    scores = await score_inputs(body, options, context)
    data = [Embedded(index=i, embedding=[score.reward], partial=score.partial) for i, score in enumerate(scores)]
    return EmbeddingReply(model=context.resolve(options).manifest.identity, data=data, usage=usage(scores))


async def score_inputs(body: EmbeddingRequest, options: CohortOptions, context: DialectContext) -> list[GroupScore]:
    if len(body.inputs) > context.max_items:
        raise InvalidInput(f"input: {len(body.inputs)} texts in one call, at most {context.max_items} are accepted")
    turns = [split_dialogue(text) for text in body.inputs]
    pipeline, is_list = context.resolve(options), len(turns) > 1
    if is_list and pipeline.scores_alone:  # cohorts are accepted or refused one by one
        pipeline.refuse_if_busy(context.deadline, context.fairness_key)
    with pipeline.held():
        return await gather_scores(
            [context.score_unlabelled(options, prompt, response, wait_for_room=is_list) for prompt, response in turns]
        )


def usage(scores: list[GroupScore]) -> PromptUsage:
    tokens = sum(score.tokens for score in scores)
    return PromptUsage(prompt_tokens=tokens, total_tokens=tokens)
