"""`/v1/models`, health checks, `/metrics` and reload: endpoints about the service itself."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.api.dependencies import ERRORS, KEY_ERRORS, get_state
from service.errors import error_response
from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Pipeline, Question
from tinyrm.api import Accuracy, ErrorBody, ModelCard, ModelEntry, ModelList, ScoreScale, Status

ModelName = Annotated[str, Path(description="Of a served model: name or name@revision.")]

router = APIRouter()
# Included only if keys are required, because its operations need the scope `admin`.
admin_router = APIRouter(prefix="/admin", tags=["admin"])


class Accepted(BaseModel):
    """The reload has begun. The log shows how it ends, `/v1/models` which models are served."""

    status: Literal["accepted"] = "accepted"


@router.get("/v1/models", tags=["about"], responses={**KEY_ERRORS})
async def list_models(request: Request) -> ModelList:
    """The served models and their engines; `data` has their names as clients of OpenAI's API read them."""
    registry = get_state(request).registry
    pipelines = registry.pipelines.values()
    return ModelList(
        models=[model_card(pipeline, registry) for pipeline in pipelines],
        data=[model_entry(pipeline.manifest.name, pipeline) for pipeline in pipelines],
    )


@router.get("/v1/models/{name}", tags=["about"], responses={**KEY_ERRORS, 404: ERRORS[404]})
async def get_model(name: ModelName, request: Request) -> ModelEntry:
    """One of the served models as clients of OpenAI's API read it."""
    pipeline = get_state(request).registry.resolve(Question("", model=name))
    return model_entry(name, pipeline)


@router.get("/healthz", tags=["health"])
async def healthz() -> Status:
    """The process is alive."""
    return Status(status="ok")


@router.get("/health", tags=["health"], response_model=Status, responses={503: ERRORS[503]})
async def health(request: Request) -> Any:
    """The same as /readyz, at the path that clients of vLLM, SGLang and text-embeddings-inference ask."""
    return await readyz(request)


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


def model_entry(name: str, pipeline: Pipeline) -> ModelEntry:
    """Return an entry that is the same in each process and replica."""
    try:
        created = int(datetime.fromisoformat(pipeline.manifest.provenance.created).timestamp())
    except ValueError:  # in a manifest that another program wrote
        created = 0
    return ModelEntry(id=name, created=created)


def model_card(pipeline: Pipeline, registry: ModelRegistry) -> ModelCard:
    manifest, spec, engine = pipeline.manifest, pipeline.manifest.spec, pipeline.backend.profile.info
    scale = manifest.score_scale
    return ModelCard(
        name=manifest.name,
        revision=manifest.revision,
        default=pipeline is registry.default,
        demo=manifest.demo,
        accuracy=Accuracy(**accuracy.model_dump()) if (accuracy := manifest.accuracy) else None,
        reads=manifest.reads,
        scores_alone=manifest.head.scores_alone,
        head=manifest.head.kind,
        activation=manifest.head.activation,
        score_scale=ScoreScale(**scale.model_dump()) if scale else None,
        domains=spec.domains,
        truncation={domain: spec.kept(domain) for domain in spec.domains},
        default_domain=spec.default_domain,
        template=spec.template.name,
        max_tokens=spec.max_tokens,
        parameters=manifest.parameters,
        temperature=manifest.temperature,
        temperatures={domain: own.value for domain, own in manifest.calibrated.domains.items()},
        temperature_one_order=manifest.temperature_one_order,
        temperatures_one_order={
            domain: own.of_orders(1) for domain, own in manifest.calibrated.domains.items() if own.divides_one_order
        },
        engine=engine.name,
        precision=engine.precision,
    )
