"""Reranking: `/rerank` of text-embeddings-inference and of infinity, `/v1/rerank` and `/v2/rerank` of Cohere and Jina.

A document is a response to the query; its score is the mean probability to beat another document.
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
from service.dialects.context import Desk, DeskOf, Options, OptionsOf
from service.errors import app_error_response
from service.scoring.groups import Placed
from tinyrm.api import MAX_RESPONSES, Name, NonEmpty
from tinyrm.errors import BRANCH, TinyRMError

TEXTS, DOCUMENTS = f"{BRANCH}texts", f"{BRANCH}documents"
# What a client has to hear whatever the shape of the body.
KEPT_HEADERS = ("retry-after", "connection")
# The kinds of error that text-embeddings-inference has, by our status.
TEI_ERRORS = {429: "Overloaded", 503: "Overloaded", 500: "Backend", 504: "Backend"}


class TeiRequest(BaseModel):
    """raw_scores: log-odds instead of probabilities. Texts are always cut to fit."""

    query: NonEmpty
    texts: list[str] = Field(min_length=1, max_length=MAX_RESPONSES)
    raw_scores: bool = False
    return_text: bool = False


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


class Document(BaseModel):
    text: str


class RerankRequest(BaseModel):
    """Of Cohere, Jina, infinity and vLLM."""

    model: Name | None = Field(default=None, description="Refused if another model is served.")
    query: NonEmpty
    documents: list[str | Document] = Field(min_length=1, max_length=MAX_RESPONSES)
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
    """Best first."""

    id: str
    object: str = "rerank"
    created: int
    model: str
    results: list[Relevance]
    usage: RerankUsage
    meta: dict[str, Any]


def _form_of(body: Any) -> str:
    return DOCUMENTS if isinstance(body, dict) and "documents" in body else TEXTS


EitherRequest = Annotated[
    Annotated[TeiRequest, Tag(TEXTS)] | Annotated[RerankRequest, Tag(DOCUMENTS)], Discriminator(_form_of)
]


class TeiErrors(APIRoute):
    """Errors in the shape of text-embeddings-inference for whoever asks in its shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_as_tei(request: Request) -> Response:
            try:
                return await handle(request)
            except (TinyRMError, RequestValidationError) as error:
                reply = await app_error_response(request, error)
                return reply if _has_documents(await request.body()) else _as_tei(reply)

        return handle_as_tei


router = APIRouter(tags=["rerank"])


async def rerank_either(body: EitherRequest, options: OptionsOf, desk: DeskOf) -> list[TeiRank] | RerankReply:
    """`texts`: as text-embeddings-inference, a bare list. `documents`: as infinity."""
    if isinstance(body, RerankRequest):
        return await _reranked(body, options, desk, lambda text: text)
    placed = (await desk.compare_all(options, body.query, body.texts)).placed
    return [
        TeiRank(index=i, score=score, text=body.texts[i] if body.return_text else None)
        for i, score in _sorted(placed, raw=body.raw_scores)
    ]


@router.post("/v1/rerank", responses={**ERRORS}, response_model_exclude_none=True)
@router.post("/v2/rerank", responses={**ERRORS}, response_model_exclude_none=True)
async def rerank(body: RerankRequest, options: OptionsOf, desk: DeskOf) -> RerankReply:
    """Documents by relevance, as Cohere and Jina answer."""
    return await _reranked(body, options, desk, lambda text: Document(text=text))


# Not by a router of its own: what such a one includes is hidden from who reads this one's routes.
router.add_api_route(
    "/rerank", rerank_either, methods=["POST"], responses={**ERRORS}, response_model_exclude_none=True,
    route_class_override=TeiErrors,
)  # fmt: skip


async def _reranked(
    body: RerankRequest, options: Options, desk: Desk, shown: Callable[[str], str | Document]
) -> RerankReply:
    asked = options.model_copy(update={"model": body.model}) if body.model else options
    standing = await desk.compare_all(asked, body.query, body.texts)
    best = _sorted(standing.placed, raw=body.raw_scores)[: body.top_n]
    results = [
        Relevance(index=i, relevance_score=score, document=shown(body.texts[i]) if body.return_documents else None)
        for i, score in best
    ]
    return RerankReply(
        id=f"rerank-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=standing.model,
        results=results,
        usage=RerankUsage(total_tokens=standing.tokens, prompt_tokens=standing.tokens),
        meta={"billed_units": {"search_units": 1}},
    )


def _sorted(placed: list[Placed], *, raw: bool) -> list[tuple[int, float]]:
    """Places and scores, best first; equals in the order of the request."""
    scores = [one.reward if raw else one.score for one in placed]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def _has_documents(content: bytes) -> bool:
    try:
        return _form_of(json.loads(content)) == DOCUMENTS
    except ValueError:
        return False


def _as_tei(reply: JSONResponse) -> JSONResponse:
    error = json.loads(bytes(reply.body))["error"]
    headers = {name: value for name, value in reply.headers.items() if name in KEPT_HEADERS}
    kind = TEI_ERRORS.get(reply.status_code, "Validation")
    return JSONResponse({"error": error["message"], "error_type": kind}, reply.status_code, headers)
