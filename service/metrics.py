"""Every metric and its buckets. All series exist, at zero, before the first request.

The methods take plain numbers, so this file imports none of the code that reports them. Each application has its own
registry; nothing is registered at import.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import product
from typing import Literal, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.shared_metrics import SHARED_FOLDER
from tinyrm import __version__
from tinyrm.errors import Unavailable

# The status of a request whose client disconnected before the reply began: logged and counted, never sent.
CLIENT_LEFT = 499

M = TypeVar("M", Counter, Gauge, Histogram)
# How the gauges of several processes become one number.
GaugeMode = Literal["livesum", "livemax"]

ENDPOINTS = ("compare", "compare_batch", "rank", "rewards", "score", "tokens", "other")
# A fixed set of labels, whatever paths clients request.
ENDPOINT_BY_PATH = {f"/v1/{name.replace('_', '/')}": name for name in ENDPOINTS}
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, CLIENT_LEFT, 500, 503, 504)
# Where the first of identical sequences was: in the same batch, in the queue, or in an earlier batch.
REUSED_WITHIN = ("batch", "window")
STAGES = ("encode", "queue", "run", "total")
SHED_REASONS = ("overloaded", "deadline_exceeded", "engine_restarting", "incomplete_group", "shutting_down")
FORMULAS = ("exact", "paper")
COHORT_ENDS = ("full", "deadline", "drain")
PAIR_TEXTS = ("prompt", "response_a", "response_b")
TEXTS = (*PAIR_TEXTS, "response")  # the last one of a response that was read alone or in a set
# Of a process: `service` owns the queue; `front` is a worker, which serves HTTP if there are several.
ROLES = ("service", "front", "engine")

MILLISECONDS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000, 2000, 5000, 10000, 30000)
SECONDS = tuple(milliseconds / 1000 for milliseconds in MILLISECONDS)
ITEMS = tuple(2**i for i in range(11))
TOKENS = tuple(2**i for i in range(5, 18))
GFLOPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
SCORES = (-4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4)
MARGINS = (-8, -4, -2, -1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The labels and the peak of one model."""

    name: str
    revision: str
    engine: str
    precision: str
    peak_gflops_per_s: float


class LoadFigures(Protocol):
    """The load of one queue and its engine."""

    @property
    def queue_items(self) -> int: ...

    @property
    def queue_tokens(self) -> int: ...

    @property
    def wait_s(self) -> float: ...

    @property
    def restarts(self) -> int: ...

    @property
    def unhealthy_reason(self) -> str | None: ...


class Metrics:
    """All metrics of the service.

    dialects: further names of endpoints.

    `present` shows the served models and their load, read at each scrape.
    """

    def __init__(self, dialects: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each child, which nothing reads
        self.registry = CollectorRegistry()
        self.present = Present()
        self.registry.register(self.present)
        self._declare_requests((*ENDPOINTS, *dialects))
        self._declare_batches()
        self._declare_judgement()
        self._declare_cohorts((*ENDPOINTS, *dialects))
        self._declare_processes()

    def expose(self) -> bytes:
        """Return the metrics in Prometheus' text format: of this process, or of all that share its folder."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        shared.register(self.present)
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)

    def observe_request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        # Refusals are fast and would make an overloaded service look fast. Separate histograms for them, which no panel
        # needs, would make a scrape half as long again.
        if status < HTTPStatus.MULTIPLE_CHOICES:
            self._request_seconds.labels(endpoint).observe(seconds)

    def observe_shed(self, reason: str) -> None:
        self._shed.labels(reason).inc()

    @contextmanager
    def refusals_counted(self) -> Iterator[None]:
        """Count a refusal that is raised here."""
        try:
            yield
        except Unavailable as error:
            self.observe_shed(error.type)
            raise

    def observe_batch(
        self, sequences: int, real_tokens: int, padded_tokens: int, seconds: float, gflops: float = 0.0
    ) -> None:
        """Count one engine run.

        padded_tokens: tokens computed, padding included.
        gflops: billions of useful operations, counted exactly.
        """
        self._engine_gflops.inc(gflops)
        self._batch_items.observe(sequences)
        self._batch_tokens.observe(padded_tokens)
        self._tokens.labels("real").inc(real_tokens)
        self._tokens.labels("padding").inc(padded_tokens - real_tokens)
        self._engine_seconds.inc(seconds)

    def observe_mfu(self, ratio: float) -> None:
        """Set the useful operations per second of the last run, counted exactly, as a share of the engine's peak."""
        self._mfu.set(ratio)

    def declare_reuse(self, model: str) -> None:
        """Show the counters of a model, at zero."""
        create_children(self._sequences_reused, {"model": (model,), "within": REUSED_WITHIN})
        create_children(self._tokens_reused, {"model": (model,), "within": REUSED_WITHIN})

    def observe_reuse(self, model: str, within: str, sequences: int, tokens: int) -> None:
        """Count sequences that did not run, because an identical one had.

        within: one of REUSED_WITHIN.
        """
        self._sequences_reused.labels(model, within).inc(sequences)
        self._tokens_reused.labels(model, within).inc(tokens)

    def observe_engine_error(self) -> None:
        """Count a run that failed, or one of its results that is not valid, such as NaN."""
        self._engine_errors.inc()

    def observe_special_tokens(self, texts: int) -> None:
        """Count the texts of a comparison that contain a special token as text."""
        if texts:
            self._special_token_texts.inc(texts)

    def observe_stages(self, seconds: dict[str, float]) -> None:
        for stage, value in seconds.items():
            self._stage_seconds.labels(stage).observe(value)

    def observe_cost(self, gflops: dict[str, float]) -> None:
        for formula, value in gflops.items():
            self._gflops.labels(formula).inc(value)
            self._request_gflops.labels(formula).observe(value)

    def observe_cohorts(self, open_cohorts: int, waiting_samples: int) -> None:
        self._cohorts.set(open_cohorts)
        self._cohort_samples.set(waiting_samples)

    def observe_cohort_end(self, reason: str) -> None:
        self._cohort_ends.labels(reason).inc()

    def observe_partial(self, endpoint: str) -> None:
        """Count a reward that was not made from all responses of its group."""
        self._partial.labels(endpoint).inc()

    def observe_preference(self, preferred: str, margin: float, order_margins: Sequence[float]) -> None:
        """Count one comparison.

        order_margins: uncalibrated margins for A: (A first,) or (A first, A second).
        """
        self._preferences.labels(preferred).inc()
        self._margin.observe(margin)
        if len(order_margins) == 2:
            a_first, a_second = order_margins
            self._first_position.observe((a_first - a_second) / 2)
            self._swaps.labels(str(a_first * a_second >= 0).lower()).inc()

    def observe_score(self, score: float) -> None:
        """Count one response that was read alone, by its score on the scale of held-out responses."""
        self._score.observe(score)

    def observe_truncation(self, tokens: Mapping[str, int]) -> None:
        """Count the tokens that were truncated in one comparison or from one response, by some of TEXTS."""
        if any(tokens.values()):
            self._truncated_comparisons.inc()
            for text, dropped in tokens.items():
                self._truncated.labels(text).inc(dropped)

    def observe_process(
        self, role: str, resident_bytes: float, proportional_bytes: float, open_files: float, cpu_s: float
    ) -> None:
        """Set the resources that the processes of one role use.

        proportional_bytes: a page that several processes share counts as a part in each of them.
        cpu_s: CPU time since the last call.
        """
        self._resident.labels(role).set(resident_bytes)
        self._proportional.labels(role).set(proportional_bytes)
        self._open_files.labels(role).set(open_files)
        self._cpu.labels(role).inc(cpu_s)

    def observe_loop_lag(self, seconds: float) -> None:
        self._loop_lag.set(seconds)

    def observe_encode_wait(self, seconds: float) -> None:
        """Set the seconds until all texts that wait in this process have been encoded."""
        self._encode_wait.set(seconds)

    def _declare_requests(self, endpoints: tuple[str, ...]) -> None:
        self._requests = self._counter(
            "tinyrm_requests", "Requests that ended.", endpoint=endpoints, status=tuple(map(str, STATUSES))
        )
        self._request_seconds = self._histogram(
            "tinyrm_request_duration_seconds",
            "From the arrival of a request to its reply, if that is 2xx.",
            SECONDS,
            endpoint=endpoints,
        )
        self._stage_seconds = self._histogram(
            "tinyrm_stage_duration_seconds",
            "Stages of one comparison, of one response read alone, or of one set.",
            SECONDS,
            stage=STAGES,
        )
        self._shed = self._counter("tinyrm_shed_requests", "Comparisons refused or dropped.", reason=SHED_REASONS)
        self._gflops = self._counter(
            "tinyrm_gflops",
            "Billions of operations of completed work, that of reused sequences included.",
            formula=FORMULAS,
        )
        self._request_gflops = self._histogram(
            "tinyrm_request_gflops",
            "Billions of operations of one comparison, of one response read alone, or of one set.",
            GFLOPS,
            formula=FORMULAS,
        )
        self._special_token_texts = self._counter(
            "tinyrm_special_token_texts",
            "Texts that contain a special token, such as [MASK], which is encoded as text.",
        )

    def _declare_batches(self) -> None:
        self._batch_items = self._histogram("tinyrm_batch_items", "Sequences in one engine run.", ITEMS)
        self._batch_tokens = self._histogram(
            "tinyrm_batch_tokens", "Tokens of one engine run, padding included.", TOKENS
        )
        self._tokens = self._counter("tinyrm_tokens", "Tokens that the engine computed.", kind=("real", "padding"))
        labels = ("model", "within")
        self._sequences_reused = Counter(
            "tinyrm_sequences_reused",
            "Sequences that did not run: an identical one did.",
            labels,
            registry=self.registry,
        )
        self._tokens_reused = Counter(
            "tinyrm_tokens_reused", "Tokens of the sequences that did not run.", labels, registry=self.registry
        )
        self._engine_seconds = self._counter("tinyrm_engine_run_seconds", "Time that the engine spent in runs.")
        self._engine_gflops = self._counter(
            "tinyrm_engine_gflops", "Billions of useful operations that the engine computed, exact count."
        )
        self._engine_errors = self._counter("tinyrm_engine_errors", "Engine runs that failed.")
        self._mfu = self._gauge(
            "tinyrm_engine_mfu_ratio", "Useful operations per second of the last run, as a share of the peak."
        )

    def _declare_cohorts(self, endpoints: tuple[str, ...]) -> None:
        self._cohorts = self._gauge("tinyrm_cohorts_open", "Cohorts that wait for samples.")
        self._cohort_samples = self._gauge("tinyrm_cohort_samples", "Samples that wait for their cohort's scores.")
        self._cohort_ends = self._counter("tinyrm_cohorts_completed", "Cohorts scored, by reason.", reason=COHORT_ENDS)
        self._partial = self._counter(
            "tinyrm_partial_rewards", "Rewards not made from all responses of their group.", endpoint=endpoints
        )
        self.observe_cohorts(0, 0)  # with several processes, a gauge that was never set is not shown

    def _declare_judgement(self) -> None:
        self._preferences = self._counter(
            "tinyrm_preferences", "Comparisons by preferred response.", preferred=("a", "b", "tie")
        )
        self._margin = self._histogram("tinyrm_margin", "Log-odds that A is better.", MARGINS)
        self._swaps = self._counter(
            "tinyrm_swapped_comparisons",
            "Comparisons in both orders, by agreement of the orders.",
            agree=("true", "false"),
        )
        self._first_position = self._histogram(
            "tinyrm_first_position_margin", "How much the first position adds to a response's margin.", MARGINS
        )
        self._score = self._histogram(
            "tinyrm_score", "Scores of single responses, in standard deviations of held-out ones.", SCORES
        )
        self._truncated = self._counter("tinyrm_truncated_tokens", "Tokens truncated from texts.", text=TEXTS)
        self._truncated_comparisons = self._counter(
            "tinyrm_truncated_comparisons", "Comparisons, responses read alone, and sets, with truncated texts."
        )

    def _declare_processes(self) -> None:
        self._resident = self._gauge("tinyrm_process_resident_memory_bytes", "Resident memory.", role=ROLES)
        self._proportional = self._gauge(
            "tinyrm_process_proportional_memory_bytes",
            "Resident memory, in which a page that n processes share counts as 1/n of a page in each.",
            role=ROLES,
        )
        self._open_files = self._gauge("tinyrm_process_open_fds", "Open file descriptors.", role=ROLES)
        self._cpu = self._counter("tinyrm_process_cpu_seconds", "User and system CPU time.", role=ROLES)
        self._loop_lag = self._gauge(
            "tinyrm_event_loop_lag_seconds", "Delay of the event loop in the last second.", mode="livemax"
        )

        self._encode_wait = self._gauge(
            "tinyrm_encode_wait_seconds", "Estimated time until all waiting texts have been encoded.", mode="livemax"
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], /, **labels: tuple[str, ...]) -> Histogram:
        metric = Histogram(name, text, tuple(labels), buckets=buckets, registry=self.registry)
        return create_children(metric, labels)

    def _counter(self, name: str, text: str, /, **labels: tuple[str, ...]) -> Counter:
        return create_children(Counter(name, text, tuple(labels), registry=self.registry), labels)

    def _gauge(self, name: str, text: str, /, mode: GaugeMode = "livesum", **labels: tuple[str, ...]) -> Gauge:
        metric = Gauge(name, text, tuple(labels), registry=self.registry, multiprocess_mode=mode)
        return create_children(metric, labels)


class Present(Collector):
    """The served models and their load, read at each scrape and stored nowhere.

    Not in shared files: they would keep replaced revisions, and the last figures of a process that is not scraped.
    Every process has all of these figures, so any of them can be scraped.
    """

    def __init__(self) -> None:
        self._served: Sequence[ServedModel] = ()
        self._loads: Callable[[], Sequence[LoadFigures]] = tuple

    def update(self, served: Sequence[ServedModel], loads: Callable[[], Sequence[LoadFigures]]) -> None:
        """Show these models from now on.

        loads: returns the current load of each model.
        """
        self._served, self._loads = served, loads

    def collect(self) -> Iterator[GaugeMetricFamily]:
        models = [{"name": model.name, "revision": model.revision} for model in self._served]
        engines = [{"engine": model.engine, "precision": model.precision} for model in self._served]
        yield info_family("tinyrm_build_info", "Version of the service.", [{"version": __version__}])
        yield info_family("tinyrm_model_info", "A served model.", models)
        yield info_family("tinyrm_engine_info", "An engine that runs a model.", engines)
        peak = max((model.peak_gflops_per_s for model in self._served), default=0)
        yield gauge_family("tinyrm_engine_peak_gflops_per_second", "The peak that MFU is relative to.", peak)
        loads = self._loads()
        items, tokens = sum(load.queue_items for load in loads), sum(load.queue_tokens for load in loads)
        wait_s = max((load.wait_s for load in loads), default=0)
        is_ready = bool(loads) and all(load.unhealthy_reason is None for load in loads)
        restarts = sum(load.restarts for load in loads)
        yield gauge_family("tinyrm_queue_items", "Comparisons waiting for the engine.", items)
        yield gauge_family("tinyrm_queue_tokens", "Tokens waiting for the engine.", tokens)
        yield gauge_family("tinyrm_queue_wait_seconds", "Estimated time until all the work that waits has run.", wait_s)
        yield gauge_family("tinyrm_engine_ready", "Whether the engine is ready: a recent run succeeded.", is_ready)
        yield gauge_family("tinyrm_engine_restarts", "Engines started since the first one.", restarts)


def gauge_family(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def info_family(name: str, text: str, found: list[dict[str, str]]) -> GaugeMetricFamily:
    """Return a family with the value 1 for each distinct set of labels: what Info is in the text format."""
    family = GaugeMetricFamily(name, text, labels=list(found[0]) if found else ())
    for labels in {tuple(one.values()) for one in found}:
        family.add_metric(labels, 1)
    return family


def create_children(metric: M, labels: dict[str, tuple[str, ...]]) -> M:
    """Create every combination of labels, so that rates and alerts see zeros instead of no series."""
    if labels:
        for values in product(*labels.values()):
            metric.labels(*values)
    return metric
