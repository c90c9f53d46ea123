"""Reranking: `/rerank` of text-embeddings-inference and infinity, `/v1/rerank` and `/v2/rerank` of Cohere and Jina.

A document is scored as a response to the query: by the mean probability to beat another document, or with a model
that reads responses by its own score, whatever the other documents are.
"""

import json
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Discriminator, Field, Tag

from service.api.dependencies import ERRORS
from service.dialects.bodies import DialectBody, Options, QueryOptions
from service.dialects.context import Context, DialectContext
from service.dialects.errors import ErrorsOfTei
from service.scoring.ranking import GroupScore
from service.settings import split_list
from tinyrm.api import MAX_RESPONSES, Name, NonEmpty
from tinyrm.errors import BRANCH

TEXTS, DOCUMENTS = f"{BRANCH}texts", f"{BRANCH}documents"


class TeiRequest(DialectBody):
    """The request of text-embeddings-inference. Texts are always truncated to fit.

    raw_scores: rewards, which are log-odds or the score of /v1/score, instead of probabilities.
    """

    query: NonEmpty
    texts: list[str] = Field(min_length=1, max_length=MAX_RESPONSES, fail_fast=True)
    raw_scores: bool = False
    return_text: bool = False


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


class Document(BaseModel):
    text: str


class RerankRequest(DialectBody):
    """The request of Cohere, Jina, infinity and vLLM."""

    model: Name | None = Field(default=None, description="Name of a served model.")
    query: NonEmpty
    documents: list[str | Document] = Field(min_length=1, max_length=MAX_RESPONSES, fail_fast=True)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False
    raw_scores: bool = False

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]


class Relevance(BaseModel):
    index: int
    relevance_score: float
    document: str | Document | None = None


class RerankUsage(BaseModel):
    total_tokens: int
    prompt_tokens: int


class RerankReply(BaseModel):
    """The reply of Cohere and Jina, with the best documents first."""

    id: str
    object: str = "rerank"
    created: int
    model: str
    results: list[Relevance]
    usage: RerankUsage
    meta: dict[str, Any]


def request_branch(body: Any) -> str:
    return DOCUMENTS if isinstance(body, dict) and "documents" in body else TEXTS


EitherRequest = Annotated[
    Annotated[TeiRequest, Tag(TEXTS)] | Annotated[RerankRequest, Tag(DOCUMENTS)], Discriminator(request_branch)
]


class ErrorsAsSent(ErrorsOfTei):
    """Sends errors in the format of text-embeddings-inference if the request has that format."""

    async def is_rewritten(self, request: Request) -> bool:
        return not has_documents(await request.body())


router = APIRouter(tags=["rerank", "vllm"])


async def rerank_either(body: EitherRequest, options: QueryOptions, context: Context) -> list[TeiRank] | RerankReply:
    """With `texts`: a list, as text-embeddings-inference returns it. With `documents`: the reply of infinity or vLLM.

    Their replies differ in how they return a document: in the dialect vllm it is an object.
    """
    if isinstance(body, RerankRequest):
        is_vllm = "vllm" in split_list(context.state.settings.dialects)
        return await rerank_documents(body, options, context, to_object if is_vllm else str)
    result = await context.score_whole_group(options, body.query, body.texts)
    return [
        TeiRank(index=i, score=score, text=body.texts[i] if body.return_text else None)
        for i, score in sort_scores(result.scores, raw=body.raw_scores)
    ]


@router.post("/v1/rerank", operation_id="rerankV1", responses={**ERRORS}, response_model_exclude_none=True)
@router.post("/v2/rerank", responses={**ERRORS}, response_model_exclude_none=True)
async def rerank(body: RerankRequest, options: QueryOptions, context: Context) -> RerankReply:
    """Documents by relevance, in the format of Cohere and Jina."""
    return await rerank_documents(body, options, context, to_object)


# Not in another router: its routes would not be among those of `router`.
router.add_api_route(
    "/rerank",
    rerank_either,
    methods=["POST"],
    responses={**ERRORS},
    response_model_exclude_none=True,
    route_class_override=ErrorsAsSent,
)


async def rerank_documents(
    body: RerankRequest, options: Options, context: DialectContext, to_document: Callable[[str], str | Document]
) -> RerankReply:
    options = context.select_model(options, body.model)
    result = await context.score_whole_group(options, body.query, body.texts)
    best = sort_scores(result.scores, raw=body.raw_scores)[: body.top_n]
    results = [
        Relevance(
            index=i, relevance_score=score, document=to_document(body.texts[i]) if body.return_documents else None
        )
        for i, score in best
    ]
    return RerankReply(
        id=f"rerank-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=result.model,
        results=results,
        usage=RerankUsage(total_tokens=result.tokens, prompt_tokens=result.tokens),
        meta={"billed_units": {"search_units": 1}},
    )


def to_object(text: str) -> Document:
    return Document(text=text)


def sort_scores(scores: list[GroupScore], *, raw: bool) -> list[tuple[int, float]]:
    """Return indices and scores, best first; equal scores keep the order of the request."""
    values = [score.reward if raw else score.score for score in scores]
    return sorted(enumerate(values), key=lambda pair: -pair[1])


def has_documents(content: bytes) -> bool:
    try:
        return request_branch(json.loads(content)) == DOCUMENTS
    except ValueError:
        return False
