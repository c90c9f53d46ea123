"""Run the application over the toy bundle, in this process."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.api.dependencies import AppState
from service.app import create_app, create_metrics, create_state
from service.engine.backend import LocalBackend, start_backend
from service.engine.types import BatchOutput, EngineProfile
from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Pipeline
from service.settings import Settings
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding
from tinyrm.engines import Engine, open_engine
from tinyrm.scorer import Scorer

Series = tuple[str, frozenset[tuple[str, str]]]

PAIR = {"prompt": "What is 2 + 2?", "response_a": "2 + 2 = 4.", "response_b": "I cannot help with that."}


@dataclass(frozen=True)
class Served:
    """A client, the pipeline and the engine behind it, and the application's state."""

    client: TestClient
    pipeline: Pipeline
    engine: Engine
    state: AppState

    def compare(self, **changes: Any) -> Any:
        """Return the reply to PAIR with some fields changed, as JSON."""
        reply = self.client.post("/v1/compare", json=PAIR | changes)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def series(self, name: str = "") -> dict[Series, float]:
        """Return the samples of /metrics whose names begin with `name`."""
        lines = self.client.get("/metrics").text.splitlines()
        families = text_string_to_metric_families("\n".join(line for line in lines if line.startswith(name)) + "\n")
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, /, **labels: str) -> float:
        return self.series(name)[name, frozenset(labels.items())]


class EngineHere:
    """Run the bundle's engine in this process, so that a test can change it. The engine process has its own tests."""

    is_up = True
    restarts = 0
    pid = None

    def __init__(self, bundle: Bundle) -> None:
        self.engine = open_engine(bundle)
        self.profile = EngineProfile(bundle.manifest.identity, self.engine.info, 10_000, 100)

    def unhealthy_reason(self) -> str | None:
        return None

    async def run(self, sequences: Sequence[Encoding]) -> BatchOutput:
        started = time.perf_counter()
        logits = await asyncio.to_thread(self.engine.run, sequences)
        return BatchOutput(logits, time.perf_counter() - started)

    async def stop(self) -> None:
        pass


@contextmanager
def serve(settings: Settings) -> Iterator[Served]:
    """Run the application. `engine` and `pipeline` are those of the default bundle."""
    engines: list[EngineHere] = []
    metrics = create_metrics(settings)

    async def open_here(_: Settings, bundle: Bundle) -> EngineHere:
        engines.append(EngineHere(bundle))
        return engines[-1]

    async def start_here(bundle: Bundle) -> LocalBackend:
        return await start_backend(settings, bundle, metrics, open_here)

    state = create_state(settings, ModelRegistry(settings, metrics, start_here))
    with TestClient(create_app(state), raise_server_exceptions=False) as client:
        yield Served(client, state.registry.default, engines[0].engine, state)


@pytest.fixture(scope="session")
def served(bundle_folder: Path) -> Iterator[Served]:
    """Return an application for tests that change nothing except counts."""
    with serve(Settings(model=bundle_folder)) as one:
        yield one


@pytest.fixture
def fresh(bundle_folder: Path) -> Iterator[Served]:
    """Return an application that a test may break or stop. Its queue holds one comparison of full length."""
    with serve(Settings(model=bundle_folder, max_batch_tokens=512, max_queue_tokens=512)) as one:
        yield one


@pytest.fixture(scope="session")
def pointwise(response_bundle_folder: Path) -> Iterator[Served]:
    """Return an application over the bundle that reads responses, for tests that change nothing except counts."""
    with serve(Settings(model=response_bundle_folder)) as one:
        yield one


@pytest.fixture
def fresh_pointwise(response_bundle_folder: Path) -> Iterator[Served]:
    """Return the same for tests that break or stop it."""
    with serve(Settings(model=response_bundle_folder, max_batch_tokens=512, max_queue_tokens=512)) as one:
        yield one


@pytest.fixture(scope="session")
def response_scorer(response_bundle_folder: Path) -> Scorer:
    return Scorer.open(response_bundle_folder)


@pytest.fixture(scope="session")
def scorer(bundle_folder: Path) -> Scorer:
    return Scorer.open(bundle_folder)
