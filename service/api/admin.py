"""What an operator asks of a running service. Spoken only where keys are asked for, and needs the scope `admin`."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.api.routes import KEY_ERRORS, deployment_of

router = APIRouter(prefix="/admin", tags=["admin"])


class Accepted(BaseModel):
    """It is being done; the log says how it ended, `/v1/models` what is served."""

    status: Literal["accepted"] = "accepted"


@router.post("/reload", status_code=202, responses={**KEY_ERRORS})
async def reload(request: Request) -> Accepted:
    """Serve what the folders of the bundles hold now, as SIGHUP does. Those that did not change go on as they are."""
    deployment_of(request).ask_reload()
    return Accepted()
