"""Routes of POST, answered without the framework's routing and dependency solving, which take longer than the rest.

Only a request that is as its route declares is answered here. The framework answers every other one, so its errors, its
other routes and its OpenAPI document stay what they are.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fastapi import APIRouter, FastAPI, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.body import replay
from service.http.context import find_header
from tinyrm.errors import TinyRMError

JSON = (b"content-type", b"application/json")


class NotDirect(Exception):
    """The framework must answer."""


class ErrorRoute(APIRoute):
    """A route that sends errors in a shape of its own."""

    async def reply_to_error(self, request: Request, error: TinyRMError | RequestValidationError) -> Response:
        """Return the reply to an error that the application handles."""
        raise NotImplementedError


@dataclass(slots=True)
class Call:
    """One call of a handler.

    reply: holds the headers that the handler sets.
    """

    request: Request
    reply: Response
    body: Any


Function = Callable[..., Awaitable[Any]]
Argument = Callable[[Call], Any]


class DirectRoutes:
    """Answers what can be answered without `app`, and hands on the rest.

    routers: those that `app` includes, in their order.
    """

    def __init__(self, app: FastAPI, routers: Iterable[APIRouter]) -> None:
        self._app = app
        self._routes: dict[str, ASGIApp] = {}
        for route in (route for router in routers for route in router.routes):
            if isinstance(route, APIRoute) and route.methods == {"POST"} and route.path not in self._routes:
                try:
                    self._routes[route.path] = DirectRoute(app, route)
                except NotDirect:
                    self._routes[route.path] = app

    @property
    def paths(self) -> frozenset[str]:
        """The paths that are answered here."""
        return frozenset(path for path, app in self._routes.items() if app is not self._app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        app = self._routes.get(scope["path"], self._app) if is_post else self._app
        await app(scope, receive, send)


class DirectRoute:
    """One route with a JSON body. Raises NotDirect for a route that needs more of the framework."""

    def __init__(self, app: FastAPI, route: APIRoute) -> None:
        if route.status_code or "{" in route.path:
            raise NotDirect
        self._app, self._route = app, route
        self._handler = Handler(route.endpoint)
        if self._handler.body is None:
            raise NotDirect
        self._body = self._handler.body
        self._reply: TypeAdapter[Any] = TypeAdapter(route.response_model)
        self._excludes_none = route.response_model_exclude_none

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        receive = replay(message, receive)
        scope["app"], scope["route"] = self._app, self._route
        request, reply = Request(scope, receive), Response()
        reply.raw_headers.clear()
        try:
            result = await self._handler(Call(request, reply, self._read(message["body"])))
            response = result if isinstance(result, Response) else None
        except NotDirect:
            await self._app(scope, receive, send)
            return
        except Exception as error:  # noqa: BLE001  # the handler of its class decides
            response = await self._reply_to_error(request, error)
        if response is not None:
            await response(scope, receive, send)
            return
        content = self._reply.dump_json(result, exclude_none=self._excludes_none)
        headers = [(b"content-length", b"%d" % len(content)), JSON, *reply.raw_headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _read(self, content: bytes) -> Any:
        try:
            value = json.loads(content)
        except Exception:  # noqa: BLE001  # the framework meets it as well, and knows the reply
            raise NotDirect from None
        try:
            return self._body.validate_python(value)
        except ValidationError as error:
            errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
            raise RequestValidationError(errors, body=value) from error

    async def _reply_to_error(self, request: Request, error: Exception) -> Response:
        """Return the reply of the route or of the application. Raises `error` if it is a bug."""
        handlers = self._app.exception_handlers
        handle = next((handlers[kind] for kind in type(error).__mro__[:-2] if kind in handlers), None)
        if handle is None or handle is handlers.get(Exception):
            raise error
        if isinstance(self._route, ErrorRoute) and isinstance(error, TinyRMError | RequestValidationError):
            return await self._route.reply_to_error(request, error)
        response: Response = await handle(request, error)  # type: ignore[misc]  # all of ours are coroutines
        return response


class Handler:
    """A coroutine function, and where its arguments are found. Raises NotDirect if that is not known here.

    body: reads the body for the parameter that is nothing else; None without one.
    """

    def __init__(self, function: Function) -> None:
        if not inspect.iscoroutinefunction(function):
            raise NotDirect
        self.body: TypeAdapter[Any] | None = None
        self._function = function
        self._arguments: list[tuple[str, Argument]] = []
        self._needed: list[tuple[str, Handler]] = []
        hints = get_type_hints(function, include_extras=True)
        for name, parameter in inspect.signature(function).parameters.items():
            self._add(name, hints[name], parameter.default)

    async def __call__(self, call: Call) -> Any:
        values = {name: argument(call) for name, argument in self._arguments}
        for name, needed in self._needed:
            values[name] = await needed(call)
        return await self._function(**values)

    def _add(self, name: str, hint: Any, default: Any) -> None:
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        found = next((one for one in extras if isinstance(one, params.Param | params.Depends)), None)
        if hint is Request:
            self._arguments.append((name, lambda call: call.request))
        elif hint is Response:
            self._arguments.append((name, lambda call: call.reply))
        elif isinstance(found, params.Depends) and found.dependency:
            needed = Handler(found.dependency)
            if needed.body:
                raise NotDirect
            self._needed.append((name, needed))
        elif isinstance(found, params.Header) and found.alias:
            self._arguments.append((name, header_argument(found.alias, hint, default)))
        elif isinstance(found, params.Query):
            self._arguments.append((name, query_argument(hint)))
        elif found is None and self.body is None and default is inspect.Parameter.empty:
            self.body = TypeAdapter(hint)
            self._arguments.append((name, lambda call: call.body))
        else:
            raise NotDirect


def header_argument(name: str, hint: Any, default: Any) -> Argument:
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    raw_name = name.lower().encode()

    def read(call: Call) -> Any:
        text = find_header(call.request.scope, raw_name)
        if text is None:
            return default
        try:
            return adapter.validate_python(text)
        except ValidationError:
            raise NotDirect from None

    return read


def query_argument(hint: Any) -> Argument:
    """Return what reads the options in a URL that has none, as most have."""
    options = TypeAdapter(hint).validate_python({})

    def read(call: Call) -> Any:
        if call.request.scope["query_string"]:
            raise NotDirect
        return options

    return read
