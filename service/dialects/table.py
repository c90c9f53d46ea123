"""All dialects, and the ones that the settings enable."""

from dataclasses import dataclass
from importlib import import_module

from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.api import score
from service.scoring.models import bundle_folders
from service.settings import PREFIX, Settings, split_list
from tinyrm.bundle import read_manifest
from tinyrm.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class Dialect:
    """The API of one trainer, reranker or other server. Several may share a router.

    modules: of service.dialects, each with a router. Imported when it is needed: all of them take a tenth of a start.
    has_cohorts: whether samples arrive only one by one, so that a model that does not score them alone needs cohorts.
    retries_5xx_only: whether overload must be a 503.
    replaces: a router of the service's own API whose paths the dialect has too; it answers both.
    """

    name: str
    modules: tuple[str, ...]
    has_cohorts: bool = True
    retries_5xx_only: bool = False
    replaces: APIRouter | None = None

    @property
    def routers(self) -> tuple[APIRouter, ...]:
        return tuple(import_module(f"service.dialects.{name}").router for name in self.modules)

    @property
    def paths(self) -> list[str]:
        return [route.path for router in self.routers for route in router.routes if isinstance(route, APIRoute)]


ALL_DIALECTS = (
    Dialect("openrlhf", ("openrlhf",)),
    Dialect("slime", ("slime",)),
    Dialect("verl", ("dialogues",), retries_5xx_only=True),
    Dialect("nemo-gym", ("nemo_gym",)),
    Dialect("rerank", ("rerank", "tei"), has_cohorts=False),
    Dialect("vllm", ("vllm", "dialogues", "rerank"), has_cohorts=False, replaces=score.router),
    Dialect("sglang", ("dialogues",)),
    Dialect("llamafactory", ("llamafactory",), has_cohorts=False),
)


def enabled_dialects(settings: Settings) -> list[Dialect]:
    """Return the dialects that the settings name. Raises InvalidSettings."""
    names = split_list(settings.dialects)
    known = {dialect.name: dialect for dialect in ALL_DIALECTS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidSettings(f"{PREFIX}DIALECTS: no dialect {', '.join(unknown)}; available: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def explain_missing(path: str) -> str | None:
    """Return which setting a path needs that no enabled dialect has; None for a path of no dialect."""
    names = [dialect.name for dialect in ALL_DIALECTS if path in dialect.paths]
    return f"{path} needs a dialect: set {PREFIX}DIALECTS to {' or '.join(names)}" if names else None


def refuse_scattered_cohorts(settings: Settings) -> None:
    """Refuse cohorts in several processes, unless a model needs none; before any model is started.

    If only some of the models need cohorts, requests for these are refused one by one.

    Raises InvalidSettings, InvalidBundle.
    """
    names = [dialect.name for dialect in enabled_dialects(settings) if dialect.has_cohorts]
    if not names:
        return
    manifests = [read_manifest(folder) for folder in bundle_folders(settings)]
    if not any(manifest.head.scores_alone for manifest in manifests):
        raise InvalidSettings(
            f"{PREFIX}DIALECTS={','.join(names)} needs {PREFIX}WORKERS=1, and no replicas on Ray, with "
            f"{' and '.join(manifest.identity for manifest in manifests)}: a model that does not score responses "
            "alone compares the samples of a cohort, and they would arrive in different processes and never meet"
        )
