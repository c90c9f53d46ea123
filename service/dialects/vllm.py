"""vLLM's `/score` and `/pooling`: prompts and responses side by side, so that one call holds whole groups.

`/v1/score` is TinyRM's own path too: the fields of a body tell the two apart.
"""

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from service.api import score as own
from service.api.dependencies import ERRORS, TimeoutMs
from service.dialects.bodies import DialectBody, Options, PolicyText, QueryCohortOptions, QueryOptions
from service.dialects.context import Context, DialectContext
from service.dialects.dialogues import (
    INPUT,
    MESSAGES,
    ClassifyChatRequest,
    ClassifyRequest,
    PromptUsage,
    as_list,
    chat_branch,
    score_dialogues,
    usage,
)
from service.dialects.errors import ErrorsOfOpenAI
from tinyrm.api import MAX_ITEMS, Name, ScoreReply, ScoreRequest
from tinyrm.chat import join_parts
from tinyrm.errors import BRANCH, InvalidInput
from tinyrm.markup import parse_prompt, strip_special

router = APIRouter(tags=["vllm"], route_class=ErrorsOfOpenAI)

# The names of both fields, from the oldest vLLM to the newest.
PROMPTS, RESPONSES = AliasChoices("text_1", "queries", "data_1"), AliasChoices("text_2", "documents", "items", "data_2")
OWN, PAIRS = f"{BRANCH}own", f"{BRANCH}pairs"


def read_parts(value: Any) -> Any:
    """Return the text of an object with parts, as vLLM takes it for models of several media."""
    if not isinstance(value, dict) or "content" not in value:
        return value
    try:
        return join_parts(value["content"])
    except InvalidInput as error:
        raise PydanticCustomError("parts", "{reason}", {"reason": str(error)}) from None


Text = Annotated[PolicyText, BeforeValidator(read_parts)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class ScoreTextsRequest(DialectBody):
    """Prompts and responses: one prompt to any number of responses, or lists of the same length.

    text_1: prompts; also `queries` or `data_1`.
    text_2: responses; also `documents`, `items` or `data_2`.
    use_activation: a probability if true, log-odds if false.
    """

    model: Name | None = Field(default=None, description="Name of a served model.")
    text_1: Texts = Field(validation_alias=PROMPTS)
    text_2: Texts = Field(validation_alias=RESPONSES)
    use_activation: bool = True


class ScoredText(BaseModel):
    index: int
    object: str = "score"
    score: float


class ScoreTextsReply(BaseModel):
    """Scores in the order of the responses."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ScoredText]
    usage: PromptUsage


class PoolingTask(BaseModel):
    """vLLM has more tasks; only this one makes rewards."""

    task: Literal["classify", "reward"] = "classify"


class PoolingRequest(ClassifyRequest, PoolingTask):
    __doc__ = ClassifyRequest.__doc__


class PoolingChatRequest(ClassifyChatRequest, PoolingTask):
    __doc__ = ClassifyChatRequest.__doc__


AnyPoolingRequest = Annotated[
    Annotated[PoolingRequest, Tag(INPUT)] | Annotated[PoolingChatRequest, Tag(MESSAGES)],
    Discriminator(chat_branch),
]


class Pooled(BaseModel):
    """The reward of one dialogue.

    data: one number, the reward.
    partial: whether there was a cohort that was not full.
    """

    index: int
    object: str = "pooling"
    data: list[float]
    partial: bool


class PoolingReply(BaseModel):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: PromptUsage


def score_branch(body: Any) -> str:
    names = {*PROMPTS.choices, *RESPONSES.choices}
    return PAIRS if isinstance(body, dict) and not names.isdisjoint(body) else OWN


EitherRequest = Annotated[
    Annotated[ScoreRequest, Tag(OWN)] | Annotated[ScoreTextsRequest, Tag(PAIRS)], Discriminator(score_branch)
]


@router.post("/v1/score", operation_id="score", responses={**ERRORS})
async def score_either(
    body: EitherRequest, request: Request, options: QueryOptions, context: Context, timeout_ms: TimeoutMs = None
) -> ScoreReply | ScoreTextsReply:
    """With `prompt`: how good responses are, whatever the others are. With `text_1` and `text_2`: as /score."""
    if isinstance(body, ScoreRequest):
        return await own.score(body, request, timeout_ms)
    return await score_pairs(body, options, context)


@router.post("/score", responses={**ERRORS})
async def score_texts(body: ScoreTextsRequest, options: QueryOptions, context: Context) -> ScoreTextsReply:
    """How good responses are, each alone or among all responses to its prompt in the same call."""
    return await score_pairs(body, options, context)


@router.post("/pooling", responses={**ERRORS})
async def pooling(body: AnyPoolingRequest, options: QueryCohortOptions, context: Context) -> PoolingReply:
    """Rewards of whole dialogues, alone or within their cohorts, as /classify returns them."""
    options = context.select_model(options, body.model)
    scores = await score_dialogues(body.split(), options, context)
    return PoolingReply(
        id=f"pool-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=context.resolve(options).manifest.identity,
        data=[
            Pooled(index=i, data=[score.score if body.use_activation else score.reward], partial=score.partial)
            for i, score in enumerate(scores)
        ],
        usage=usage(scores),
    )


async def score_pairs(body: ScoreTextsRequest, options: Options, context: DialectContext) -> ScoreTextsReply:
    prompts, responses = as_list(body.text_1), as_list(body.text_2)
    if len(prompts) not in (1, len(responses)):
        raise InvalidInput(
            f"text_1, text_2: {len(prompts)} prompts and {len(responses)} responses; send one prompt, or one for each "
            "response"
        )
    context.refuse_too_many(len(responses))
    options = context.select_model(options, body.model)
    read = [parse_prompt(prompt) for prompt in prompts]
    pairs = zip(read * len(responses) if len(read) == 1 else read, map(strip_special, responses), strict=True)
    scores = await context.score_groups(options, list(pairs))
    return ScoreTextsReply(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=context.resolve(options).manifest.identity,
        data=[
            ScoredText(index=i, score=one.score if body.use_activation else one.reward) for i, one in enumerate(scores)
        ],
        usage=usage(scores),
    )
