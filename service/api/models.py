"""`/v1/models`, health checks, `/metrics` and reload: endpoints about the service itself."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.api.dependencies import ERRORS, KEY_ERRORS, get_state
from service.errors import error_response
from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Pipeline
from tinyrm.api import ErrorBody, ModelCard, ModelList, ScoreScale, Status

router = APIRouter()
# Included only if keys are required, because its operations need the scope `admin`.
admin_router = APIRouter(prefix="/admin", tags=["admin"])


class Accepted(BaseModel):
    """The reload has begun. The log shows how it ends, `/v1/models` which models are served."""

    status: Literal["accepted"] = "accepted"


@router.get("/v1/models", tags=["about"], responses={**KEY_ERRORS})
async def models(request: Request) -> ModelList:
    """The served models and their engines."""
    registry = get_state(request).registry
    return ModelList(models=[model_card(pipeline, registry) for pipeline in registry.pipelines.values()])


@router.get("/healthz", tags=["health"])
async def healthz() -> Status:
    """The process is alive."""
    return Status(status="ok")


@router.get("/readyz", tags=["health"], response_model=Status, responses={503: ERRORS[503]})
async def readyz(request: Request) -> Any:
    """The model is loaded, the engine has run, and new work is accepted."""
    reason = get_state(request).registry.unhealthy_reason()
    return error_response(503, ErrorBody(type="not_ready", message=reason)) if reason else Status(status="ready")


@router.get("/metrics", tags=["health"], response_class=Response, responses={**KEY_ERRORS})
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    content = get_state(request).registry.metrics.expose()
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


@admin_router.post("/reload", status_code=202, responses={**KEY_ERRORS})
async def reload(request: Request) -> Accepted:
    """Open the bundles again, as on SIGHUP, and serve new revisions. Unchanged models continue to run."""
    get_state(request).request_reload()
    return Accepted()


def model_card(pipeline: Pipeline, registry: ModelRegistry) -> ModelCard:
    manifest, spec, engine = pipeline.manifest, pipeline.manifest.spec, pipeline.backend.profile.info
    scale = manifest.score_scale
    return ModelCard(
        name=manifest.name,
        revision=manifest.revision,
        default=pipeline is registry.default,
        reads=manifest.reads,
        scores_alone=manifest.head.scores_alone,
        head=manifest.head.kind,
        activation=manifest.head.activation,
        score_scale=ScoreScale(**scale.model_dump()) if scale else None,
        domains=spec.domains,
        default_domain=spec.default_domain,
        template=spec.template.name,
        max_tokens=spec.max_tokens,
        parameters=manifest.parameters,
        temperature=manifest.temperature,
        temperatures={domain: one.temperature for domain, one in manifest.temperatures.items()},
        engine=engine.name,
        precision=engine.precision,
    )
