"""All dialects, and the ones that the settings enable."""

from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.dialects import nemo_gym, openrlhf, rerank, slime, verl
from service.settings import PREFIX, Settings, split_list
from tinyrm.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class Dialect:
    """The API of one trainer or reranker.

    has_cohorts: whether samples arrive one by one.
    retries_5xx_only: whether overload must be a 503.
    """

    name: str
    router: APIRouter
    has_cohorts: bool = True
    retries_5xx_only: bool = False

    @property
    def paths(self) -> list[str]:
        return [route.path for route in self.router.routes if isinstance(route, APIRoute)]


ALL_DIALECTS = (
    Dialect("openrlhf", openrlhf.router),
    Dialect("slime", slime.router),
    Dialect("verl", verl.router, retries_5xx_only=True),
    Dialect("nemo-gym", nemo_gym.router),
    Dialect("rerank", rerank.router, has_cohorts=False),
)


def enabled_dialects(settings: Settings) -> list[Dialect]:
    """Return the dialects that the settings name. Raises InvalidSettings."""
    names = split_list(settings.dialects)
    known = {dialect.name: dialect for dialect in ALL_DIALECTS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidSettings(f"{PREFIX}DIALECTS: no dialect {', '.join(unknown)}; available: {', '.join(known)}")
    enabled = [known[name] for name in dict.fromkeys(names)]
    with_cohorts = [dialect.name for dialect in enabled if dialect.has_cohorts]
    if with_cohorts and settings.workers > 1:
        raise InvalidSettings(
            f"{PREFIX}DIALECTS={','.join(with_cohorts)} needs {PREFIX}WORKERS=1: samples of one cohort would arrive in "
            "different processes and never meet"
        )
    return enabled
