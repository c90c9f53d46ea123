"""The application over the toy bundle, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.app import build_pipeline, create_app
from service.pipeline import Pipeline
from service.settings import Settings
from tinyrm.scorer import Scorer

Series = tuple[str, frozenset[tuple[str, str]]]

PAIR = {"prompt": "What is 2 + 2?", "response_a": "2 + 2 = 4.", "response_b": "I cannot help with that."}


@dataclass(frozen=True)
class Served:
    """A client, and the pipeline that answers it."""

    client: TestClient
    pipeline: Pipeline

    def compare(self, **changes: Any) -> Any:
        """The reply to PAIR with some fields changed, as JSON."""
        reply = self.client.post("/v1/compare", json=PAIR | changes)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def series(self) -> dict[Series, float]:
        """Every sample of /metrics."""
        text = self.client.get("/metrics").text
        families = text_string_to_metric_families(text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, /, **labels: str) -> float:
        return self.series()[name, frozenset(labels.items())]


@contextmanager
def serve(settings: Settings) -> Iterator[Served]:
    pipeline = build_pipeline(settings)
    app = create_app(settings, lambda _: pipeline)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Served(client, pipeline)


@pytest.fixture(scope="session")
def served(bundle_folder: Path) -> Iterator[Served]:
    """Shared by tests that leave no trace but counts."""
    with serve(Settings(model=bundle_folder)) as one:
        yield one


@pytest.fixture
def fresh(bundle_folder: Path) -> Iterator[Served]:
    """For tests that count, break or stop something. Its queue holds one comparison of full length."""
    with serve(Settings(model=bundle_folder, max_batch_tokens=512, max_queue_tokens=512)) as one:
        yield one


@pytest.fixture(scope="session")
def scorer(bundle_folder: Path) -> Scorer:
    return Scorer.open(bundle_folder)
