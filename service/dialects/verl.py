"""verl's discriminative reward model: a router address, asked as vLLM (`/classify`) or SGLang (`/v1/embeddings`) is.

verl ends a training on any 4xx: these paths say 503 when too much waits, whatever the settings say for others.
"""

import time
import uuid
from typing import Annotated

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Field

from service.api.dependencies import ERRORS
from service.dialects.context import CohortOptions, CohortOptionsOf, Desk, DeskOf
from service.dialects.openrlhf import together
from service.scoring.groups import Placed
from tinyrm.api import MAX_ITEMS
from tinyrm.chat import split_dialogue
from tinyrm.errors import InvalidInput

router = APIRouter(tags=["verl"])


class EmbeddingRequest(BaseModel):
    """input: dialogues in a chat template, the response as the assistant's last turn.

    model: the trainer's name of what it thinks it asks; not read. `?model=` chooses.
    """

    model: str | None = None
    input: str | Annotated[list[str], Field(max_length=MAX_ITEMS)]

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ClassifyRequest(EmbeddingRequest):
    """use_activation, once called activation: false asks for log-odds, else it is a probability."""

    use_activation: bool = Field(default=True, validation_alias=AliasChoices("use_activation", "activation"))


class PromptUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classified(BaseModel):
    """probs: one number, the reward. partial: the cohort was not full."""

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
    """embedding: one number, the reward."""

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
async def classify(body: ClassifyRequest, options: CohortOptionsOf, desk: DeskOf) -> ClassifyReply:
    """Rewards of whole dialogues within their cohorts."""
    placed = await _placed(body, options, desk)
    return ClassifyReply(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=desk.model_name(options),
        data=[
            Classified(index=i, probs=[one.score if body.use_activation else one.reward], partial=one.partial)
            for i, one in enumerate(placed)
        ],
        usage=_usage(placed),
    )


@router.post("/v1/embeddings", responses={**ERRORS})
async def embeddings(body: EmbeddingRequest, options: CohortOptionsOf, desk: DeskOf) -> EmbeddingReply:
    """The same as /classify without activation, in the shape of SGLang."""
    placed = await _placed(body, options, desk)
    data = [Embedded(index=i, embedding=[one.reward], partial=one.partial) for i, one in enumerate(placed)]
    return EmbeddingReply(model=desk.model_name(options), data=data, usage=_usage(placed))


async def _placed(body: EmbeddingRequest, options: CohortOptions, desk: Desk) -> list[Placed]:
    if len(body.inputs) > desk.max_items:
        raise InvalidInput(f"input: {len(body.inputs)} texts in one call, at most {desk.max_items} are taken")
    turns = [split_dialogue(text) for text in body.inputs]
    return await together([desk.join(options, prompt, response) for prompt, response in turns])


def _usage(placed: list[Placed]) -> PromptUsage:
    tokens = sum(one.tokens for one in placed)
    return PromptUsage(prompt_tokens=tokens, total_tokens=tokens)
