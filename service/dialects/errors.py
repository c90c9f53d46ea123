"""Errors in the shape of another server, for routes of its API."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from service.api.direct import ErrorRoute
from service.errors import app_error_response
from tinyrm.errors import TinyRMError

# The error types of text-embeddings-inference, by status.
TEI_TYPES = {429: "Overloaded", 503: "Overloaded", 500: "Backend", 504: "Backend"}
# Headers of an error that a client needs, whatever the format of the body.
KEPT_HEADERS = ("retry-after", "connection")


class ErrorsAs(ErrorRoute, ABC):
    """A route whose errors have the shape of another server."""

    @abstractmethod
    def rewrite(self, error: dict[str, Any], status: int) -> dict[str, Any]:
        """Return the body of a reply.

        error: `type` and `message`.
        """

    async def is_rewritten(self, request: Request) -> bool:  # noqa: ARG002  # those that override it read it
        return True

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_as(request: Request) -> Response:
            try:
                return await handle(request)
            except (TinyRMError, RequestValidationError) as error:
                return await self.reply_to_error(request, error)

        return handle_as

    async def reply_to_error(self, request: Request, error: TinyRMError | RequestValidationError) -> Response:
        reply = await app_error_response(request, error)
        if not await self.is_rewritten(request):
            return reply
        body = self.rewrite(json.loads(bytes(reply.body))["error"], reply.status_code)
        headers = {name: value for name, value in reply.headers.items() if name in KEPT_HEADERS}
        return JSONResponse(body, reply.status_code, headers)


class ErrorsOfOpenAI(ErrorsAs):
    """Adds what clients of OpenAI's API read, as vLLM does."""

    def rewrite(self, error: dict[str, Any], status: int) -> dict[str, Any]:
        return {"error": error | {"param": None, "code": status}}


class ErrorsOfTei(ErrorsAs):
    """Sends errors in the format of text-embeddings-inference."""

    def rewrite(self, error: dict[str, Any], status: int) -> dict[str, Any]:
        return {"error": error["message"], "error_type": TEI_TYPES.get(status, "Validation")}
