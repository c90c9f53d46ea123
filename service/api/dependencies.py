"""What handlers and dialects need of the application around them."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request

from service.scoring.groups import Cohorts
from service.scoring.models import Deployment
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class AppState:
    """Everything that lives as long as the application."""

    settings: Settings
    deployment: Deployment
    cohorts: Cohorts[Any]


def get_state(request: Request) -> AppState:
    """Return what the application's lifespan built."""
    state: AppState = request.state.app
    return state
