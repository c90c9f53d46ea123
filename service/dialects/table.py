"""Which dialects there are, and which of them a service speaks."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.dialects import nemo_gym, openrlhf, rerank, slime, verl
from service.settings import PREFIX, Settings, split_list
from tinyrm.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class Dialect:
    """has_cohorts: samples come one by one. retries_5xx_only: it has to hear 503 when too much waits."""

    name: str
    router: APIRouter
    has_cohorts: bool = True
    retries_5xx_only: bool = False

    @property
    def paths(self) -> list[str]:
        return [route.path for route in self.router.routes if isinstance(route, APIRoute)]


def spoken(settings: Settings) -> list[Dialect]:
    """Those that the settings name. Raises InvalidSettings."""
    names = split_list(settings.dialects)
    known = {dialect.name: dialect for dialect in every_dialect()}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidSettings(f"{PREFIX}DIALECTS: no dialect {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)]
    alone = [dialect.name for dialect in chosen if dialect.has_cohorts]
    if alone and settings.workers > 1:
        raise InvalidSettings(
            f"{PREFIX}DIALECTS={','.join(alone)} needs {PREFIX}WORKERS=1: samples of one cohort would arrive in "
            "different processes and never meet"
        )
    return chosen


def every_dialect() -> Iterable[Dialect]:
    return (
        Dialect("openrlhf", openrlhf.router),
        Dialect("slime", slime.router),
        Dialect("verl", verl.router, retries_5xx_only=True),
        Dialect("nemo-gym", nemo_gym.router),
        Dialect("rerank", rerank.router, has_cohorts=False),
    )
