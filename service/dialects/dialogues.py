"""Whole dialogues: `/classify` and `/v1/embeddings` as vLLM and SGLang have them, and as verl calls them.

One handler for three dialects, since the paths are the same; the fields of a body tell them apart. verl ends a training
on any 4xx, so under overload these paths return 503 in its dialect whatever the setting is.
"""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Discriminator, Field, Tag

from service.api.dependencies import ERRORS
from service.dialects.bodies import AnyMessages, CohortOptions, DialectBody, PolicyText, QueryCohortOptions
from service.dialects.context import Context, DialectContext, gather_scores
from service.dialects.errors import ErrorsOfOpenAI
from service.scoring.ranking import GroupScore
from tinyrm.api import MAX_ITEMS
from tinyrm.chat import Prompt, read_turn, to_messages
from tinyrm.errors import BRANCH, InvalidInput
from tinyrm.markup import split_dialogue

router = APIRouter(tags=["verl", "vllm", "sglang"], route_class=ErrorsOfOpenAI)

INPUT, MESSAGES, TEXT = f"{BRANCH}input", f"{BRANCH}messages", f"{BRANCH}text"

# Dialogues in a chat template, with the response as the assistant's last turn.
Dialogues = PolicyText | Annotated[list[PolicyText], Field(max_length=MAX_ITEMS, fail_fast=True)]


class InputRequest(DialectBody):
    """Dialogues to score.

    input: in a chat template, with the response as the assistant's last turn.
    model: the trainer's own name of the model, which is ignored; `?model=` selects one.
    """

    model: str | None = None
    input: Dialogues

    def split(self) -> list[tuple[Prompt, str]]:
        """Return the prompt and the response of each dialogue. Raises InvalidInput."""
        return [split_dialogue(text) for text in as_list(self.input)]


class ChatRequest(DialectBody):
    """One dialogue to score.

    messages: the last one is the response, of the assistant.
    """

    model: str | None = None
    messages: AnyMessages = Field(min_length=1)

    def split(self) -> list[tuple[Prompt, str]]:
        """Return the prompt and the response. Raises InvalidInput."""
        *before, last = self.messages
        speaker, response = read_turn(last)
        prompt = to_messages(before)
        if speaker != "assistant" or not prompt:
            raise InvalidInput("messages: the last one must be the assistant's, the response to those before it")
        return [(prompt, response)]


class Activation(BaseModel):
    """The scale of the reward.

    use_activation: a probability if true, log-odds if false; formerly `activation`.
    """

    use_activation: bool = Field(default=True, validation_alias=AliasChoices("use_activation", "activation"))


class ClassifyRequest(InputRequest, Activation):
    __doc__ = InputRequest.__doc__


class ClassifyChatRequest(ChatRequest, Activation):
    __doc__ = ChatRequest.__doc__


class SGLangRequest(DialectBody):
    """Dialogues as SGLang's own API takes them.

    text: one or several, in a chat template, with the response as the assistant's last turn.
    """

    text: Dialogues

    def split(self) -> list[tuple[Prompt, str]]:
        """Return the prompt and the response of each dialogue. Raises InvalidInput."""
        return [split_dialogue(text) for text in as_list(self.text)]


def request_branch(body: Any) -> str:
    """Return which of the bodies this is; `input` if none of the others."""
    fields = {name for name, value in body.items() if value is not None} if isinstance(body, dict) else ()
    return TEXT if "text" in fields else MESSAGES if "messages" in fields else INPUT


def chat_branch(body: Any) -> str:
    """Return `messages` for a chat, or else `input`; for paths that SGLang's own body does not reach."""
    return MESSAGES if request_branch(body) == MESSAGES else INPUT


AnyClassifyRequest = Annotated[
    Annotated[ClassifyRequest, Tag(INPUT)]
    | Annotated[ClassifyChatRequest, Tag(MESSAGES)]
    | Annotated[SGLangRequest, Tag(TEXT)],
    Discriminator(request_branch),
]
AnyEmbeddingRequest = Annotated[
    Annotated[InputRequest, Tag(INPUT)] | Annotated[ChatRequest, Tag(MESSAGES)],
    Discriminator(chat_branch),
]


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


class SGLangReward(BaseModel):
    """The reward of one dialogue.

    embedding: one number, the reward.
    """

    embedding: list[float]
    meta_info: dict[str, int]
    partial: bool


@router.post("/classify", responses={**ERRORS})
async def classify(
    body: AnyClassifyRequest, options: QueryCohortOptions, context: Context
) -> ClassifyReply | SGLangReward | list[SGLangReward]:
    """Rewards of whole dialogues, alone or within their cohorts. With `text`: as SGLang returns them."""
    scores = await score_dialogues(body.split(), options, context)
    if isinstance(body, SGLangRequest):
        rewards = [
            SGLangReward(embedding=[one.reward], meta_info={"prompt_tokens": one.tokens}, partial=one.partial)
            for one in scores
        ]
        return rewards[0] if isinstance(body.text, str) else rewards
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
async def embeddings(body: AnyEmbeddingRequest, options: QueryCohortOptions, context: Context) -> EmbeddingReply:
    """Like /classify without activation, in the format of OpenAI."""
    scores = await score_dialogues(body.split(), options, context)
    data = [Embedded(index=i, embedding=[score.reward], partial=score.partial) for i, score in enumerate(scores)]
    return EmbeddingReply(model=context.resolve(options).manifest.identity, data=data, usage=usage(scores))


async def score_dialogues(
    dialogues: list[tuple[Prompt, str]], options: CohortOptions, context: DialectContext
) -> list[GroupScore]:
    """Return the score of each response, in order, alone or within its cohort."""
    context.refuse_too_many(len(dialogues))
    pipeline, is_list = context.resolve(options), len(dialogues) > 1
    if is_list:
        context.accept_list(pipeline)
    with pipeline.held():
        return await gather_scores(
            [
                context.score_unlabelled(options, prompt, response, wait_for_room=is_list)
                for prompt, response in dialogues
            ]
        )


def as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def usage(scores: list[GroupScore]) -> PromptUsage:
    tokens = sum(score.tokens for score in scores)
    return PromptUsage(prompt_tokens=tokens, total_tokens=tokens)
