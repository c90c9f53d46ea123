"""The HTTP status and the body of every error."""

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

# The first listed class among an error's class and its bases decides.
STATUS_BY_ERROR: dict[type[TinyRMError], int] = {
    UnknownModel: 404,
    InvalidInput: 422,
    Overloaded: 429,
    DeadlineExceeded: 504,
    Unavailable: 503,
    EngineError: 500,
    TinyRMError: 500,
}
# Returns the status of a refusal under overload at a path: some trainers end after any 4xx, 429 included.
OverloadStatus = Callable[[str], int]
TYPE_BY_STATUS = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}
# Refusals before a handler is called: type -> status.
REFUSALS = {
    "invalid_http": 400,
    "invalid_json": 400,
    "origin_refused": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "body_timeout": 408,
    "header_timeout": 408,
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "headers_too_large": 431,
    "too_many_connections": 503,
}
# Families whose errors requests get. The others end a start, an export, or a call of the client.
SENT: tuple[type[TinyRMError], ...] = (InvalidInput, EngineError, Unavailable)
# A bug, a service that is not ready, and whatever else the framework may refuse.
OTHERS = {TinyRMError.type: 500, "not_ready": 503, "http_error": 400}


def get_status(error: TinyRMError) -> int:
    return status_of(type(error))


def status_of(kind: type[TinyRMError]) -> int:
    return next(STATUS_BY_ERROR[base] for base in kind.__mro__ if base in STATUS_BY_ERROR)


def status_by_type() -> dict[str, int]:
    """Return the type of every error that a request may get, with its status."""
    kinds = list(SENT)
    for kind in kinds:
        kinds += kind.__subclasses__()
    of_paths = {kind: status for status, kind in TYPE_BY_STATUS.items()}
    return OTHERS | REFUSALS | of_paths | {kind.type: status_of(kind) for kind in kinds}


def error_response(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorReply(error=body).model_dump(), status, headers)


def refusal(kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the reply to a request that a middleware or a connection refuses.

    kind: one of REFUSALS.
    """
    return error_response(REFUSALS[kind], ErrorBody(type=kind, message=message), headers)


def overload_response(status: int, message: str) -> JSONResponse:
    """Return the reply to a request that is refused before it reaches the queue, so without an estimated wait."""
    return error_response(status, ErrorBody(type=Overloaded.type, message=message), {"Retry-After": "1"})


async def internal_error_response(_: Request, __: Exception) -> JSONResponse:
    """Return the reply after an unexpected exception. The server logs the traceback; the client gets no details."""
    return error_response(500, ErrorBody(type="internal_error", message="an unexpected error; the log has the details"))


def install(
    app: FastAPI,
    retry_after_s: Callable[[Request], int],
    overload_status: OverloadStatus,
    explain_missing: Callable[[str], str | None],
) -> None:
    """Install handlers that turn every failure of `app` into an ErrorReply.

    retry_after_s: returns the value of the Retry-After header, in seconds.
    overload_status: returns the status of a refusal under overload.
    explain_missing: returns why a path is not there, if that can be said.
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

    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = TYPE_BY_STATUS.get(error.status_code, "http_error")
        message = "the body is not JSON in UTF-8" if kind == "invalid_json" else error.detail
        if kind == "not_found":
            message = explain_missing(request.url.path) or message
        return error_response(error.status_code, ErrorBody(type=kind, message=message), error.headers)

    app.exception_handler(TinyRMError)(on_domain_error)
    app.exception_handler(RequestValidationError)(on_invalid_request)
    app.exception_handler(HTTPException)(on_http_error)
    app.exception_handler(Exception)(internal_error_response)


async def app_error_response(request: Request, error: TinyRMError | RequestValidationError) -> JSONResponse:
    """Return the application's reply to `error`, for a route that sends it in another shape."""
    kind = TinyRMError if isinstance(error, TinyRMError) else RequestValidationError
    reply: JSONResponse = await request.app.exception_handlers[kind](request, error)
    return reply
