"""The page at /, and its files."""

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "page"
# The page may only load its own files and call this service, so markup in a text cannot run code.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Of the files that the page loads. Not left to the machine's own table, which may call a script something else: a
# browser runs a module only if its type is right.
MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(request: Request) -> Response:
    return await send_file("index.html", request)


@router.get("/page/service.json")
async def service(request: Request) -> JSONResponse:
    return JSONResponse({"version": request.app.version})


@router.get("/page/{name}")
async def page_file(name: str, request: Request) -> Response:
    if name not in page_files():
        raise HTTPException(404)
    return await send_file(name, request)


@cache
def page_files() -> frozenset[str]:
    """Return the names of the files that the page may load: nothing else of the folder is sent."""
    return frozenset(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)


async def send_file(name: str, request: Request) -> Response:
    """Return a file of service/page/, or 304 if the browser has this version."""
    reply = await StaticFiles(directory=FOLDER).get_response(name, request.scope)
    # The browser keeps it but checks it at each use (ETag), so a new page never runs an old script.
    reply.headers["Cache-Control"] = "no-cache"
    suffix = Path(name).suffix
    if suffix in MEDIA_TYPES and reply.status_code == 200:
        reply.headers["Content-Type"] = MEDIA_TYPES[suffix]
    if suffix == ".html":
        reply.headers["Content-Security-Policy"] = PAGE_POLICY
    return reply
