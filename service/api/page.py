"""The page at /: compare answers by hand. Three files, sent as they lie in service/page/; nothing builds them."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "page"
# Its own script, its own style, this service, and nothing else: text that plays markup has nothing to run with.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(request: Request) -> Response:
    return await _file("index.html", request)


@router.get("/page/app.js")
async def script(request: Request) -> Response:
    return await _file("app.js", request)


@router.get("/page/style.css")
async def style(request: Request) -> Response:
    return await _file("style.css", request)


async def _file(name: str, request: Request) -> Response:
    """A file of the page, or 304 if the browser has this one."""
    reply = await StaticFiles(directory=FOLDER).get_response(name, request.scope)
    # Kept, but asked about at each use (ETag): a new release's page never runs an old one's script.
    reply.headers["Cache-Control"] = "no-cache"
    if name.endswith(".html"):
        reply.headers["Content-Security-Policy"] = POLICY
    return reply
