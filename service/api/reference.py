"""The API's description at /openapi.json, and as a page at /docs, which needs nothing but this service."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api.dependencies import get_state
from service.api.document import of_service
from service.api.pages import send_file

router = APIRouter(include_in_schema=False)


# Not `async`: to write the document takes a third of a second the first time, in which other requests go on.
@router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    state = get_state(request)
    return JSONResponse(of_service(request.app.openapi(), state.registry, state.settings.max_batch_items))


# Applications made with FastAPI have a second page at /redoc, so people try it here, too.
@router.get("/docs")
@router.get("/redoc")
async def docs(request: Request) -> Response:
    return await send_file("reference.html", request)
