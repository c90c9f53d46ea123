"""Domain error -> status and body, in one table and nowhere else."""

from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from service.api.schemas import ErrorBody, ErrorReply, describe_first
from tinyrm.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    Overloaded,
    ShuttingDown,
    TinyRMError,
    Unavailable,
    UnknownModel,
)

# The first class of an error's ancestry that stands here decides.
STATUS_OF: dict[type[TinyRMError], int] = {
    UnknownModel: 404,
    InvalidInput: 422,
    Overloaded: 429,
    DeadlineExceeded: 504,
    Unavailable: 503,
    EngineError: 500,
    TinyRMError: 500,
}
# Path -> status of a refusal because too much waits: some trainers die of any 4xx, 429 included.
OverloadStatus = Callable[[str], int]
TYPE_OF_STATUS = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}
# What is refused before any handler sees it.
REFUSALS = {
    "invalid_http": 400,
    "invalid_json": 400,
    "origin_refused": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "body_timeout": 408,
    "header_timeout": 408,
    "body_too_large": 413,
    "headers_too_large": 431,
    "too_many_connections": 503,
}
# Logged and counted, never sent: nobody is there to read it.
CLIENT_LEFT = 499
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 422, 429, 431, CLIENT_LEFT, 500, 503, 504)


def status_of(error: TinyRMError) -> int:
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def body_of(error: TinyRMError) -> ErrorBody:
    return ErrorBody(type=error.type, message=str(error))


def error_response(status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorReply(error=body).model_dump(), status, headers)


def refusal(kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The reply to what middleware or a connection's limits refuse; `kind` stands in REFUSALS."""
    return error_response(REFUSALS[kind], ErrorBody(type=kind, message=message), headers)


def install(app: FastAPI, retry_after_s: Callable[[Request], int], overload_status: OverloadStatus) -> None:
    """Make every failure of `app` an ErrorReply."""

    async def on_domain_error(request: Request, error: TinyRMError) -> JSONResponse:
        status = overload_status(request.url.path) if isinstance(error, Overloaded) else status_of(error)
        headers = {"Retry-After": str(retry_after_s(request))} if isinstance(error, Unavailable) else {}
        if isinstance(error, ShuttingDown):
            headers["Connection"] = "close"
        return error_response(status, body_of(error), headers)

    app.exception_handler(TinyRMError)(on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)
    app.exception_handler(Exception)(_on_bug)


async def reply_to(request: Request, error: TinyRMError | RequestValidationError) -> JSONResponse:
    """What the application answers, for a route that says it in another shape."""
    kind = TinyRMError if isinstance(error, TinyRMError) else RequestValidationError
    reply: JSONResponse = await request.app.exception_handlers[kind](request, error)
    return reply


async def _on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    errors = list(error.errors())
    if errors[0]["type"] == "json_invalid":
        return error_response(
            400, ErrorBody(type="invalid_json", message=f"the body is not JSON: {errors[0]['ctx']['error']}")
        )
    return error_response(422, describe_first(errors))


async def _on_http_error(_: Request, error: HTTPException) -> JSONResponse:
    kind = TYPE_OF_STATUS.get(error.status_code, "http_error")
    message = "the body is not JSON in UTF-8" if kind == "invalid_json" else error.detail
    return error_response(error.status_code, ErrorBody(type=kind, message=message), dict(error.headers or {}))


async def _on_bug(_: Request, __: Exception) -> JSONResponse:
    """The server logs the traceback; the client learns nothing of the inside."""
    return error_response(500, ErrorBody(type="internal_error", message="an unexpected error; the log has the details"))
