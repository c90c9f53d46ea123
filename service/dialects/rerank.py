"""Reranking: `/rerank` of text-embeddings-inference and infinity, `/v1/rerank` and `/v2/rerank` of Cohere and Jina.

A document is scored as a response to the query: by the mean probability to beat another document, or with a model
that reads responses by its own score, whatever the other documents are.
"""

import json
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Discriminator, Field, Tag

from service.api.dependencies import ERRORS
from service.dialects.context import Context, DialectBody, DialectContext, Options, QueryOptions
from service.errors import app_error_response
from service.scoring.ranking import GroupScore
from tinyrm.api import MAX_RESPONSES, Name, NonEmpty
from tinyrm.errors import BRANCH, TinyRMError

TEXTS, DOCUMENTS = f"{BRANCH}texts", f"{BRANCH}documents"
# Headers that a client needs, whatever the format of the body.
KEPT_HEADERS = ("retry-after", "connection")
# The error types of text-embeddings-inference, by status.
TEI_ERRORS = {429: "Overloaded", 503: "Overloaded", 500: "Backend", 504: "Backend"}


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

    model: Name | None = Field(default=None, description="Name of a served model; any other is refused.")
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


class TeiErrors(APIRoute):
    """Sends errors in the format of text-embeddings-inference if the request has that format."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_as_tei(request: Request) -> Response:
            try:
                return await handle(request)
            except (TinyRMError, RequestValidationError) as error:
                reply = await app_error_response(request, error)
                return reply if has_documents(await request.body()) else to_tei_error(reply)

        return handle_as_tei


router = APIRouter(tags=["rerank"])


async def rerank_either(body: EitherRequest, options: QueryOptions, context: Context) -> list[TeiRank] | RerankReply:
    """With `texts`: a list, as text-embeddings-inference returns it. With `documents`: the reply of infinity."""
    if isinstance(body, RerankRequest):
        return await rerank_documents(body, options, context, lambda text: text)
    result = await context.score_whole_group(options, body.query, body.texts)
    return [
        TeiRank(index=i, score=score, text=body.texts[i] if body.return_text else None)
        for i, score in sort_scores(result.scores, raw=body.raw_scores)
    ]


@router.post("/v1/rerank", responses={**ERRORS}, response_model_exclude_none=True)
@router.post("/v2/rerank", responses={**ERRORS}, response_model_exclude_none=True)
async def rerank(body: RerankRequest, options: QueryOptions, context: Context) -> RerankReply:
    """Documents by relevance, in the format of Cohere and Jina."""
    return await rerank_documents(body, options, context, lambda text: Document(text=text))


# Not in another router: its routes would not be among those of `router`.
router.add_api_route(
    "/rerank",
    rerank_either,
    methods=["POST"],
    responses={**ERRORS},
    response_model_exclude_none=True,
    route_class_override=TeiErrors,
)


async def rerank_documents(
    body: RerankRequest, options: Options, context: DialectContext, to_document: Callable[[str], str | Document]
) -> RerankReply:
    if body.model:
        options = options.model_copy(update={"model": body.model})
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


def sort_scores(scores: list[GroupScore], *, raw: bool) -> list[tuple[int, float]]:
    """Return indices and scores, best first; equal scores keep the order of the request."""
    values = [score.reward if raw else score.score for score in scores]
    return sorted(enumerate(values), key=lambda pair: -pair[1])


def has_documents(content: bytes) -> bool:
    try:
        return request_branch(json.loads(content)) == DOCUMENTS
    except ValueError:
        return False


def to_tei_error(reply: JSONResponse) -> JSONResponse:
    error = json.loads(bytes(reply.body))["error"]
    headers = {name: value for name, value in reply.headers.items() if name in KEPT_HEADERS}
    kind = TEI_ERRORS.get(reply.status_code, "Validation")
    return JSONResponse({"error": error["message"], "error_type": kind}, reply.status_code, headers)
