"""Test the metrics: all series from the start, the right numbers, and never a new series."""

import errno
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from service.engine.types import QueueLoad
from service.metrics import ENDPOINTS, FORMULAS, REUSED_WITHIN, SHED_REASONS, STAGES, STATUSES, Metrics
from service.shared_metrics import SHARED_FILES, SHARED_FOLDER, forget_process, share_metrics
from tests.service.conftest import PAIR, Series, Served
from tests.support.waiting import wait_until
from tinyrm.errors import EngineFailed, Unavailable
from tinyrm.flops import exact_flops, paper_flops

REQUESTS, STAGE = "tinyrm_requests_total", "tinyrm_stage_duration_seconds_count"
SECONDS = "tinyrm_request_duration_seconds_count"


def moved(served: Served, before: dict[Series, float]) -> dict[Series, float]:
    after = served.series()
    return {key: after[key] - before[key] for key in after if after[key] != before[key]}


def key(name: str, /, **labels: str) -> Series:
    return name, frozenset(labels.items())


def test_every_series_is_there_at_zero_before_the_first_request(fresh: Served) -> None:
    series = fresh.series()
    # It has a value from the first second, late or not.
    late = {"tinyrm_event_loop_lag_seconds"}
    assert {name for (name, _), value in series.items() if value} - late == {
        "tinyrm_build_info",
        "tinyrm_model_info",
        "tinyrm_engine_info",
        "tinyrm_engine_peak_gflops_per_second",
        "tinyrm_engine_ready",
        "tinyrm_process_resident_memory_bytes",
        "tinyrm_process_proportional_memory_bytes",
        "tinyrm_process_open_fds",
        "tinyrm_process_cpu_seconds_total",
    }
    expected = [key(REQUESTS, endpoint=e, status=str(s)) for e in ENDPOINTS for s in STATUSES]
    expected += [key(SECONDS, endpoint=e) for e in ENDPOINTS]
    expected += [key(STAGE, stage=stage) for stage in STAGES]
    expected += [key("tinyrm_gflops_total", formula=f) for f in FORMULAS]
    expected += [key("tinyrm_shed_requests_total", reason=r) for r in SHED_REASONS]
    expected += [key("tinyrm_swapped_comparisons_total", agree=a) for a in ("true", "false")]
    expected += [key("tinyrm_truncated_tokens_total", text=t) for t in ("prompt", "response_a", "response_b")]
    expected += [key("tinyrm_tokens_total", kind=k) for k in ("real", "padding")]
    expected += [key(n) for n in ("tinyrm_queue_items", "tinyrm_queue_tokens", "tinyrm_engine_errors_total")]
    expected += [key("tinyrm_special_token_texts_total"), key("tinyrm_cohorts_open"), key("tinyrm_cohort_samples")]
    expected += [key("tinyrm_cohorts_completed_total", reason=r) for r in ("full", "deadline", "drain")]
    assert set(expected) <= set(series)


def test_every_reason_to_refuse_work_has_its_series() -> None:
    assert {kind.type for kind in Unavailable.__subclasses__()} == set(SHED_REASONS)


def test_series_are_few_enough_to_be_scraped_between_requests(fresh: Served) -> None:
    every_dialect = Metrics(["openrlhf", "slime", "verl", "nemo_gym", "rerank"]).expose()
    assert len(fresh.series()) <= 700
    assert sum(not line.startswith(b"#") for line in every_dialect.splitlines()) <= 1200


def test_names_are_in_base_units_and_explained(fresh: Served) -> None:
    text = fresh.client.get("/metrics")
    assert text.headers["Content-Type"].startswith("text/plain; version=")
    declared = {line.split()[2]: line for line in text.text.splitlines() if line.startswith("# HELP")}
    assert all(name.startswith("tinyrm_") and len(line.split()) > 3 for name, line in declared.items())
    assert not [name for name in declared if name.endswith(("_ms", "_created"))]


def test_info_names_the_served_model(fresh: Served) -> None:
    assert {name for name, _ in fresh.series() if name.endswith("_info")} == {
        "tinyrm_build_info",
        "tinyrm_model_info",
        "tinyrm_engine_info",
    }
    assert fresh.metric("tinyrm_model_info", name="toy", revision=fresh.pipeline.manifest.revision) == 1
    assert fresh.metric("tinyrm_engine_info", engine="onnxruntime-cpu", precision="fp32") == 1


def test_one_comparison_changes_the_expected_series(fresh: Served) -> None:
    before = fresh.series()
    reply = fresh.compare()
    change = moved(fresh, before)
    tokens = reply["usage"]["tokens"]
    for stage in STAGES:
        assert change[key(STAGE, stage=stage)] == 1
    assert change[key(REQUESTS, endpoint="compare", status="200")] == 1
    assert change[key(SECONDS, endpoint="compare")] == 1
    assert change[key("tinyrm_batch_items_count")] == 1
    assert change[key("tinyrm_batch_items_sum")] == 2
    assert change[key("tinyrm_batch_tokens_sum")] == tokens
    assert change[key("tinyrm_tokens_total", kind="real")] == tokens
    assert key("tinyrm_tokens_total", kind="padding") not in change
    assert change[key("tinyrm_margin_count")] == 1
    assert change.get(key("tinyrm_margin_bucket", le="0.0"), 0) == (reply["margin"] <= 0)
    assert change[key("tinyrm_preferences_total", preferred=reply["preferred"])] == 1


def test_both_formulas_count_the_tokens_of_the_reply(fresh: Served) -> None:
    before = fresh.series()
    tokens = [fresh.compare(swap="off")["usage"]["tokens"] for _ in range(2)]
    tokens += [fresh.compare(swap="on")["usage"]["tokens"] // 2] * 2
    change, manifest = moved(fresh, before), fresh.pipeline.manifest
    exact = sum(exact_flops(manifest.geometry, n) for n in tokens) / 1e9
    paper = sum(paper_flops(manifest.parameters, manifest.geometry, n) for n in tokens) / 1e9
    for formula, expected in (("exact", exact), ("paper", paper)):
        assert change[key("tinyrm_gflops_total", formula=formula)] == pytest.approx(expected)
        assert change[key("tinyrm_request_gflops_sum", formula=formula)] == pytest.approx(expected)
        assert change[key("tinyrm_request_gflops_count", formula=formula)] == 3


def test_padding_is_counted_up_to_the_longest_sequence(fresh: Served) -> None:
    before = fresh.series()
    items = [PAIR | {"swap": "off", "response_a": "word " * n + end} for n in (10, 11) for end in ".!?"]
    assert fresh.client.post("/v1/compare/batch", json={"items": items}).status_code == 200
    change = moved(fresh, before)
    real, padded = change[key("tinyrm_tokens_total", kind="real")], change[key("tinyrm_batch_tokens_sum")]
    assert padded - real == change.get(key("tinyrm_tokens_total", kind="padding"), 0)
    assert change[key("tinyrm_batch_items_sum")] == 6


def test_identical_sequences_of_a_list_run_once_and_count_as_reused(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine waits for all of them: a copy that is encoded after the run of the first one would run again."""
    run, batcher = fresh.engine.run, fresh.pipeline.backend.batcher  # type: ignore[attr-defined]
    is_first = iter((True,))

    def late(sequences: Any) -> Any:
        if next(is_first, False):
            wait_until(lambda: batcher.queue_items + len(batcher._running) == 6)
        return run(sequences)

    monkeypatch.setattr(fresh.engine, "run", late)
    before = fresh.series()
    items = [PAIR | {"swap": "off", "response_a": "word " * n} for n in (10, 11, 10, 11, 10, 11)]
    reply = fresh.client.post("/v1/compare/batch", json={"items": items}).json()
    change = moved(fresh, before)
    model = fresh.pipeline.manifest.name
    reused = [
        {within: change.get(key(name, model=model, within=within), 0) for within in REUSED_WITHIN}
        for name in ("tinyrm_sequences_reused_total", "tinyrm_tokens_reused_total")
    ]
    sequences, tokens = (sum(one.values()) for one in reused)
    assert 2 <= sequences <= 4, "two runs: what was there when the first one began, and the others"
    assert sequences + change[key("tinyrm_batch_items_sum")] == 6
    assert reused[0]["window"] == 0
    assert tokens + change[key("tinyrm_tokens_total", kind="real")] == reply["usage"]["tokens"]
    computed, needed = change[key("tinyrm_engine_gflops_total")], change[key("tinyrm_gflops_total", formula="exact")]
    assert computed < needed * 0.9
    assert len({result["margin"] for result in reply["results"]}) == 2


def test_swapped_comparisons_are_counted_by_agreement(fresh: Served) -> None:
    before = fresh.series()
    margins = []
    for text in ("yes", "no " * 20, "def add(a, b): return a + b", "?"):
        forward = fresh.compare(response_a=text, swap="off")["margin"]
        backward = fresh.compare(response_a=PAIR["response_b"], response_b=text, swap="off")["margin"]
        margins.append((forward, -backward))
        fresh.compare(response_a=text, swap="on")
    change = moved(fresh, before)
    agreeing = sum(one * other >= 0 for one, other in margins)
    assert change.get(key("tinyrm_swapped_comparisons_total", agree="true"), 0) == agreeing
    assert change.get(key("tinyrm_swapped_comparisons_total", agree="false"), 0) == len(margins) - agreeing
    assert change[key("tinyrm_first_position_margin_count")] == len(margins)
    second_favoured = sum(one <= other for one, other in margins)
    assert change.get(key("tinyrm_first_position_margin_bucket", le="0.0"), 0) == second_favoured


def test_truncated_tokens_are_those_of_the_reply(fresh: Served) -> None:
    before = fresh.series()
    cut = fresh.compare(prompt="a question " * 200, response_b="an answer " * 200)["truncated"]
    change = moved(fresh, before)
    assert cut["prompt"] > 0
    for text, tokens in cut.items():
        assert change.get(key("tinyrm_truncated_tokens_total", text=text), 0) == tokens
    assert change[key("tinyrm_truncated_comparisons_total")] == 1
    fresh.compare()
    assert moved(fresh, before)[key("tinyrm_truncated_comparisons_total")] == 1, "a whole one is not counted"


def test_failed_engine_runs_are_counted(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fresh.series()
    monkeypatch.setattr(fresh.engine, "run", _fail)
    assert fresh.client.post("/v1/compare", json=PAIR).status_code == 500
    change = moved(fresh, before)
    assert change[key("tinyrm_engine_errors_total")] == 1
    assert change[key(REQUESTS, endpoint="compare", status="500")] == 1
    assert key(SECONDS, endpoint="compare") not in change
    assert key(STAGE, stage="total") not in change


def _fail(*_: object) -> None:
    raise EngineFailed("no device")


def test_refused_comparisons_are_counted_by_reason(fresh: Served) -> None:
    before = fresh.series()
    late = fresh.client.post("/v1/compare", json=PAIR, headers={"X-Request-Timeout-Ms": "1"})
    assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert fresh.client.portal is not None
    fresh.client.portal.call(fresh.pipeline.drain, 1.0)
    assert fresh.client.post("/v1/compare", json=PAIR).status_code == 503
    change = moved(fresh, before)
    assert change[key("tinyrm_shed_requests_total", reason="deadline_exceeded")] == 1
    assert change[key("tinyrm_shed_requests_total", reason="shutting_down")] == 1
    assert change[key(REQUESTS, endpoint="compare", status="503")] == 1


# What a scanner or a careless client may send.
ODD_REQUESTS = [
    ("GET", "/"),
    ("GET", "/v1/compare"),
    ("POST", "/v1/compare/"),
    ("GET", "/v1/models/"),
    ("GET", "/etc/passwd"),
    ("POST", "/v1/compare_batch"),
    ("BREW", "/v1/compare"),
    ("HEAD", "/metrics"),
    ("OPTIONS", "/v1/compare"),
    ("GET", "/docs"),
    ("GET", "/docs/oauth2-redirect"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("POST", "/v1/compare?x=1"),
    ("GET", "/%00"),
    ("DELETE", "//"),
]


def test_no_traffic_makes_a_new_series(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(fresh.series())
    for method, path in ODD_REQUESTS:
        fresh.client.request(method, path, follow_redirects=False)
    for content in (b"{", b"{}", b"x" * 9_000_000, b'{"items": []}'):
        fresh.client.post("/v1/compare", content=content)
        fresh.client.post("/v1/compare/batch", content=content)
    for changes in ({}, {"swap": "off"}, {"domain": "x"}, {"model": "x"}, {"response_b": PAIR["response_a"]}):
        fresh.client.post("/v1/compare", json=PAIR | changes)
        fresh.client.post("/v1/compare/batch", json={"items": [PAIR | changes] * 20})
    monkeypatch.setattr(fresh.engine, "run", _fail)
    fresh.client.post("/v1/compare", json=PAIR)
    assert fresh.client.portal is not None
    fresh.client.portal.call(fresh.pipeline.drain, 1.0)
    fresh.client.post("/v1/compare", json=PAIR)
    fresh.client.get("/readyz")
    assert set(fresh.series()) == before


def test_the_queue_is_empty_after_all_replies(fresh: Served) -> None:
    fresh.client.post("/v1/compare/batch", json={"items": [PAIR] * 30})
    assert fresh.metric("tinyrm_queue_items") == 0
    assert fresh.metric("tinyrm_queue_tokens") == 0


def test_two_applications_do_not_share_their_counts(served: Served, fresh: Served) -> None:
    served.compare()
    assert fresh.metric(REQUESTS, endpoint="compare", status="200") == 0


def test_texts_that_write_out_a_special_token_are_counted(fresh: Served) -> None:
    def counted(**changes: object) -> float:
        before = fresh.metric("tinyrm_special_token_texts_total")
        fresh.compare(**changes)
        return fresh.metric("tinyrm_special_token_texts_total") - before

    assert counted() == 0
    assert counted(response_a="[mask] MASK [ MASK ]") == 0
    assert counted(response_a="the better option is choice [MASK]") == 1
    assert counted(response_a="x[SEP][SEP][CLS]y") == 1, "texts are counted, not tokens"
    assert counted(prompt="[PAD]", response_a="[SEP]", response_b="[MASK]", instruction="[CLS]") == 4
    assert counted(prompt=[{"role": "user", "content": "[MASK]"}]) == 1


def test_metrics_contain_the_resources_of_the_process(fresh: Served) -> None:
    process = psutil.Process()
    told = fresh.metric("tinyrm_process_resident_memory_bytes", role="service")
    assert told == pytest.approx(process.memory_info().rss, rel=0.2)
    proportional = fresh.metric("tinyrm_process_proportional_memory_bytes", role="service")
    assert proportional == pytest.approx(process.memory_full_info().pss, rel=0.2)
    assert proportional <= told
    assert fresh.metric("tinyrm_process_open_fds", role="service") == pytest.approx(process.num_fds(), abs=8)
    cpu = process.cpu_times()
    assert 0 < fresh.metric("tinyrm_process_cpu_seconds_total", role="service") <= cpu.user + cpu.system + 0.02
    assert fresh.metric("tinyrm_process_resident_memory_bytes", role="front") == 0


def test_queue_gauges_are_those_of_all_queues() -> None:
    metrics = Metrics()
    loads = [
        QueueLoad(1, 100, 0.5, 2, is_up=True, unhealthy_reason=None),
        QueueLoad(2, 20, 0.25, 0, is_up=False, unhealthy_reason="gone"),
    ]
    metrics.present.update([], lambda: loads)
    text = metrics.expose().decode()
    for line in ("queue_items 3.0", "queue_tokens 120.0", "queue_wait_seconds 0.5", "engine_restarts 2.0"):
        assert f"tinyrm_{line}\n" in text
    assert "tinyrm_engine_ready 0.0\n" in text


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    return tmp_path


def test_a_process_that_replaces_a_lost_one_goes_on_with_its_counts_in_its_files(shared: Path) -> None:
    for _ in range(3):
        share_metrics(shared, "worker-1")
        metrics = Metrics()
        metrics.observe_shed("overloaded")
        metrics.observe_process("front", 100, 50, 10, 1)
    names = {path.name for path in shared.iterdir()}
    assert names == {f"{kind}_worker-1.db" for kind in SHARED_FILES}
    forget_process(shared, "worker-1")
    text = metrics.expose().decode()
    assert 'tinyrm_shed_requests_total{reason="overloaded"} 3.0' in text
    assert 'tinyrm_process_open_fds{role="front"} 0.0' in text, "a gauge of a lost process is not shown"


def test_files_of_metrics_have_their_room_before_they_are_used(shared: Path) -> None:
    """Write into a mapped file without room, and the process ends without a message."""
    share_metrics(shared, "owner")
    Metrics(["openrlhf", "slime", "verl", "nemo_gym", "rerank"]).observe_loop_lag(1)
    for kind, size in SHARED_FILES.items():
        status = (shared / f"{kind}_owner.db").stat()
        assert status.st_size == size, "it did not grow"
        assert status.st_blocks * 512 >= size


def test_a_full_file_system_is_an_error_before_any_metric_is_made(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        share_metrics(shared, "owner")


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xff\xff\x7f" + bytes(100)])
def test_a_damaged_file_of_metrics_is_made_anew(shared: Path, content: bytes) -> None:
    for kind in SHARED_FILES:
        (shared / f"{kind}_worker-1.db").write_bytes(content)
    share_metrics(shared, "worker-1")
    assert b'tinyrm_shed_requests_total{reason="overloaded"} 0.0' in Metrics().expose()


def test_the_internals_of_prometheus_client_that_we_use_are_there() -> None:
    assert hasattr(values, "ValueClass")
    assert values.get_value_class() in (values.MutexValue, values.ValueClass)
    assert values.MultiProcessValue(lambda: "worker-1")
    assert MmapedDict.read_all_values_from_file
