"""The API's description, as of what is served now, and /docs: Swagger UI, under a policy that lets it run alone."""

import base64
import hashlib
import re
from copy import deepcopy
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse

from service.api.dependencies import get_state
from service.scoring.models import Deployment

SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/"

router = APIRouter()


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    state = get_state(request)
    return JSONResponse(describe(request.app.openapi(), state.deployment, state.settings.max_batch_items))


def describe(api: dict[str, Any], deployment: Deployment, max_batch_items: int) -> dict[str, Any]:
    """The document with what only a running service knows: domains, models, the longest list."""
    described = deepcopy(api)
    schemas = described["components"]["schemas"]
    manifests = [pipeline.manifest for pipeline in deployment.pipelines.values()]
    domains = {domain for manifest in manifests for domain in manifest.spec.domains}
    models = {name for manifest in manifests for name in (manifest.name, manifest.identity)}
    for field, values in (("domain", domains), ("model", models)):
        choice = {"anyOf": [{"type": "string", "enum": sorted(values)}, {"type": "null"}]}
        for question in ("CompareRequest", "RankRequest", "RewardsRequest"):
            schemas[question]["properties"][field] |= choice
    schemas["BatchRequest"]["properties"]["items"]["maxItems"] = max_batch_items
    return described


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="TinyRM",
        swagger_js_url=SWAGGER + "swagger-ui-bundle.js",
        swagger_css_url=SWAGGER + "swagger-ui.css",
        swagger_favicon_url=SWAGGER + "favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = policy(bytes(page.body).decode())
    return page


def policy(page: str) -> str:
    """Only the page's own scripts, named by their hashes, and Swagger UI's files."""
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {SWAGGER} {allowed}; style-src {SWAGGER} 'unsafe-inline'; "
        f"img-src {SWAGGER} data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
