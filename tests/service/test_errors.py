"""Test that every error has a status and a stable type, and that a bug reveals no details."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import REFUSALS, STATUS_BY_ERROR, TYPE_BY_STATUS, get_status
from service.metrics import STATUSES
from service.scoring.text_encoder import SHORT_CHARACTERS
from tests.service.conftest import PAIR, Served
from tests.support.waiting import PATIENCE_S, wait_until
from tinyrm.api import ErrorBody
from tinyrm.encoding import Encoding
from tinyrm.errors import CallFailed, EngineFailed, TinyRMError


def family(kind: type[TinyRMError]) -> Iterator[type[TinyRMError]]:
    """Return all error classes except those of the client, which the service never raises."""
    yield kind
    for child in kind.__subclasses__():
        if child is not CallFailed:
            yield from family(child)


KINDS = sorted(family(TinyRMError), key=lambda kind: kind.__name__)

# What clients rely on. A change here breaks them.
EXPECTED = {
    "BundleUnavailable": (500, "bundle_unavailable"),
    "IncompleteGroup": (503, "incomplete_group"),
    "Mismatch": (422, "mismatch"),
    "MissingText": (422, "missing_text"),
    "UnknownForm": (422, "unknown_form"),
    "DeadlineExceeded": (504, "deadline_exceeded"),
    "EngineError": (500, "engine_error"),
    "EngineFailed": (500, "engine_failed"),
    "EngineHung": (500, "engine_hung"),
    "EngineRestarting": (503, "engine_restarting"),
    "EngineUnavailable": (500, "engine_unavailable"),
    "InstructionTooLong": (422, "instruction_too_long"),
    "InvalidBundle": (500, "invalid_bundle"),
    "InvalidInput": (422, "invalid_input"),
    "InvalidKeys": (500, "invalid_keys"),
    "InvalidRequest": (422, "invalid_request"),
    "InvalidSettings": (500, "invalid_settings"),
    "InvalidTemplate": (500, "invalid_template"),
    "InvalidText": (422, "invalid_text"),
    "NoCascade": (422, "no_cascade"),
    "NotPointwise": (422, "not_pointwise"),
    "Overloaded": (429, "overloaded"),
    "ParityFailed": (500, "parity_failed"),
    "PrecisionRefused": (500, "precision_refused"),
    "ShuttingDown": (503, "shutting_down"),
    "TamperedBundle": (500, "tampered_bundle"),
    "TiedWeightChanged": (500, "tied_weight_changed"),
    "TinyRMError": (500, "internal_error"),
    "Unavailable": (503, "unavailable"),
    "UnknownDomain": (422, "unknown_domain"),
    "UnknownModel": (404, "unknown_model"),
    "UnknownSchema": (500, "unknown_schema"),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_that_metrics_know_and_a_type(kind: type[TinyRMError]) -> None:
    error = kind("why")
    assert get_status(error) in STATUSES
    assert ErrorBody.of(error).message == "why"
    assert (get_status(error), ErrorBody.of(error).type) == EXPECTED[kind.__name__]


def test_every_type_is_used_once() -> None:
    assert len({kind.type for kind in KINDS}) == len(KINDS)


def test_every_status_in_the_tables_is_observed() -> None:
    assert set(STATUS_BY_ERROR.values()) | set(TYPE_BY_STATUS) | set(REFUSALS.values()) <= set(STATUSES)


def error_of(served: Served) -> tuple[int, Any]:
    reply = served.client.post("/v1/compare", json=PAIR)
    return reply.status_code, reply.json()["error"]


def test_a_failing_engine_is_a_500_until_it_works_again(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(fresh.engine, "run", failing)
        assert error_of(fresh) == (500, {"type": "engine_failed", "message": "no device"})
    fresh.compare()


def failing(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
    raise EngineFailed("no device")


def not_a_number(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
    return np.full((len(sequences), 2), np.nan, dtype=np.float32)


def test_logits_that_are_not_finite_are_never_a_result(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh.engine, "run", not_a_number)
    status, error = error_of(fresh)
    assert (status, error["type"]) == (500, "engine_failed")


def test_a_bug_is_a_500_without_details(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(fresh.pipeline, "compare", bug)
    status, error = error_of(fresh)
    assert (status, error["type"]) == (500, "internal_error")
    assert "secret" not in str(error)


def test_full_queue_is_a_429_with_retry_after(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate, run = threading.Event(), threading.Event(), fresh.engine.run

    def gated(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        entered.set()
        gate.wait(PATIENCE_S)
        return run(sequences)

    monkeypatch.setattr(fresh.engine, "run", gated)
    long = PAIR | {"response_a": "yes " * 300}
    with ThreadPoolExecutor() as clients:
        running = clients.submit(fresh.client.post, "/v1/compare", json=long)
        assert entered.wait(PATIENCE_S)
        waiting = clients.submit(fresh.client.post, "/v1/compare", json=long)
        wait_until(lambda: fresh.pipeline.backend.load().queue_tokens == 512)
        refused = fresh.client.post("/v1/compare", json=PAIR)
        gate.set()
        assert [running.result().status_code, waiting.result().status_code] == [200, 200]
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert fresh.metric("tinyrm_shed_requests_total", reason="overloaded") == 1


def test_drained_service_is_not_ready_and_refuses_with_503(fresh: Served) -> None:
    assert fresh.client.portal is not None
    fresh.client.portal.call(fresh.pipeline.drain, 1.0)
    reply = fresh.client.post("/v1/compare", json=PAIR)
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "shutting_down")
    assert int(reply.headers["Retry-After"]) >= 1
    for path in ("/readyz", "/health"):
        readiness = fresh.client.get(path)
        assert (readiness.status_code, readiness.json()["error"]["type"]) == (503, "not_ready")
    assert fresh.client.get("/healthz").status_code == 200


def test_a_comparison_that_began_before_a_reload_gets_its_result(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that is being encoded is in no queue yet, and must not reach a closed one."""
    encoding, assemble = threading.Event(), fresh.pipeline.texts.encoder.assemble

    def slowly(*args: Any, **options: Any) -> Any:
        encoding.set()
        time.sleep(0.3)
        return assemble(*args, **options)

    monkeypatch.setattr(fresh.pipeline.texts.encoder, "assemble", slowly)
    with ThreadPoolExecutor() as clients:
        begun = clients.submit(fresh.client.post, "/v1/compare", json=PAIR | {"prompt": "word " * SHORT_CHARACTERS})
        assert encoding.wait(PATIENCE_S)
        assert fresh.client.portal is not None
        fresh.client.portal.call(fresh.pipeline.retire, 10.0)
        assert begun.result().status_code == 200
    assert fresh.client.post("/v1/compare", json=PAIR).json()["error"]["type"] == "shutting_down"
