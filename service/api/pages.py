"""The page at /, the API's description at /openapi.json, and Swagger UI at /docs."""

import base64
import hashlib
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from service.api.dependencies import get_state
from service.scoring.models import ModelRegistry

SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/"
FOLDER = Path(__file__).parents[1] / "page"
# The page may only load its own script and style and call this service, so markup in a text cannot run code.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


# Not `async`: to write the document takes a third of a second the first time, in which other requests go on.
@router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    state = get_state(request)
    return JSONResponse(describe_api(request.app.openapi(), state.registry, state.settings.max_batch_items))


def describe_api(api: dict[str, Any], registry: ModelRegistry, max_batch_items: int) -> dict[str, Any]:
    """Return the document with the domains, models and batch limit of the running service."""
    described = deepcopy(api)
    schemas = described["components"]["schemas"]
    manifests = [pipeline.manifest for pipeline in registry.pipelines.values()]
    domains = {domain for manifest in manifests for domain in manifest.spec.domains}
    models = {name for manifest in manifests for name in (manifest.name, manifest.identity)}
    for field, values in (("domain", domains), ("model", models)):
        choice = {"anyOf": [{"type": "string", "enum": sorted(values)}, {"type": "null"}]}
        for body in ("CompareRequest", "RankRequest", "RewardsRequest", "ScoreRequest"):
            schemas[body]["properties"][field] |= choice
    schemas["BatchRequest"]["properties"]["items"]["maxItems"] = max_batch_items
    return described


@router.get("/docs")
async def docs() -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="TinyRM",
        swagger_js_url=SWAGGER + "swagger-ui-bundle.js",
        swagger_css_url=SWAGGER + "swagger-ui.css",
        swagger_favicon_url=SWAGGER + "favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = swagger_policy(bytes(page.body).decode())
    return page


def swagger_policy(page: str) -> str:
    """Return a policy that allows the page's own scripts, by their hashes, and Swagger UI's files."""
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {SWAGGER} {allowed}; style-src {SWAGGER} 'unsafe-inline'; "
        f"img-src {SWAGGER} data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@router.get("/")
async def index(request: Request) -> Response:
    return await send_file("index.html", request)


@router.get("/page/app.js")
async def script(request: Request) -> Response:
    return await send_file("app.js", request)


@router.get("/page/style.css")
async def style(request: Request) -> Response:
    return await send_file("style.css", request)


async def send_file(name: str, request: Request) -> Response:
    """Return a file of service/page/, or 304 if the browser has this version."""
    reply = await StaticFiles(directory=FOLDER).get_response(name, request.scope)
    # The browser keeps it but checks it at each use (ETag), so a new page never runs an old script.
    reply.headers["Cache-Control"] = "no-cache"
    if name.endswith(".html"):
        reply.headers["Content-Security-Policy"] = PAGE_POLICY
    return reply
