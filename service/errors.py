"""The HTTP status and body of every error, in one table."""

from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from tinyrm.api import ErrorBody, ErrorReply
from tinyrm.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    Overloaded,
    ShuttingDown,
    TinyRMError,
    Unavailable,
    UnknownModel,
    from_validation,
)

# The first class of an error's ancestry that is listed decides.
STATUS_BY_ERROR: dict[type[TinyRMError], int] = {
    UnknownModel: 404,
    InvalidInput: 422,
    Overloaded: 429,
    DeadlineExceeded: 504,
    Unavailable: 503,
    EngineError: 500,
    TinyRMError: 500,
}
# Path -> status of a refusal because of load: some trainers do not survive any 4xx, 429 included.
OverloadStatus = Callable[[str], int]
TYPE_BY_STATUS = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}
# Refusals before any handler sees the request: type -> status.
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
# Logged and counted, never sent: the client left before the reply began.
CLIENT_LEFT = 499


def get_status(error: TinyRMError) -> int:
    return next(STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_BY_ERROR)


def error_response(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorReply(error=body).model_dump(), status, headers)


def refusal(kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the reply to a request that a layer or a connection's limits refuse; `kind` is one of REFUSALS."""
    return error_response(REFUSALS[kind], ErrorBody(type=kind, message=message), headers)


def overload_response(status: int, message: str) -> JSONResponse:
    """Return the reply to a request that is refused before it reaches the queue, which would know how long to wait."""
    return error_response(status, ErrorBody(type=Overloaded.type, message=message), {"Retry-After": "1"})


async def internal_error_response(_: Request, __: Exception) -> JSONResponse:
    """Return the reply to a bug. The server logs the traceback; the client gets no details."""
    return error_response(500, ErrorBody(type="internal_error", message="an unexpected error; the log has the details"))


def install(app: FastAPI, retry_after_s: Callable[[Request], int], overload_status: OverloadStatus) -> None:
    """Make every failure of `app` an ErrorReply.

    retry_after_s: returns the value of the Retry-After header.
    """

    async def on_domain_error(request: Request, error: TinyRMError) -> JSONResponse:
        status = overload_status(request.url.path) if isinstance(error, Overloaded) else get_status(error)
        headers = {"Retry-After": str(retry_after_s(request))} if isinstance(error, Unavailable) else {}
        if isinstance(error, ShuttingDown):
            headers["Connection"] = "close"
        return error_response(status, ErrorBody.of(error), headers)

    async def on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = list(error.errors())
        if errors[0]["type"] == "json_invalid":
            message = f"the body is not JSON: {errors[0]['ctx']['error']}"
            return error_response(400, ErrorBody(type="invalid_json", message=message))
        return error_response(422, ErrorBody.of(from_validation(errors, root="body")))

    async def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        kind = TYPE_BY_STATUS.get(error.status_code, "http_error")
        message = "the body is not JSON in UTF-8" if kind == "invalid_json" else error.detail
        return error_response(error.status_code, ErrorBody(type=kind, message=message), error.headers)

    app.exception_handler(TinyRMError)(on_domain_error)
    app.exception_handler(RequestValidationError)(on_invalid_request)
    app.exception_handler(HTTPException)(on_http_error)
    app.exception_handler(Exception)(internal_error_response)


async def app_error_response(request: Request, error: TinyRMError | RequestValidationError) -> JSONResponse:
    """Return what the application replies to `error`, for a route that sends it in another shape."""
    kind = TinyRMError if isinstance(error, TinyRMError) else RequestValidationError
    reply: JSONResponse = await request.app.exception_handlers[kind](request, error)
    return reply
