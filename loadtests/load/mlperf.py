"""MLPerf Inference's LoadGen, driving the service over HTTP: the Server and the Offline scenario."""

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadtests.payloads import Payloads, batch_request
from loadtests.tally import Tally
from loadtests.wire import Client

Scenario = Literal["Server", "Offline"]
BATCH_ITEMS = 32
# Enough calls at once that the service always has work while an answer travels.
BATCH_CALLS = 4
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. rate: Server, samples offered a second; Offline, what is expected, which decides how many there are."""

    scenario: Scenario
    rate: float
    seconds: float
    p99_bound_s: float
    least_queries: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """valid: LoadGen says so, and every sample was answered. within_bound: the latency alone."""

    valid: bool
    within_bound: bool
    rate: float
    p99_s: float
    queries: int
    unanswered: int

    @classmethod
    def read(cls, summary: str, tally: Tally) -> "Outcome":
        """LoadGen does not know of refusals: here a sample that was not answered makes a run invalid."""
        unanswered = tally.sent + tally.unconnected - tally.answered
        rate = number(summary, "Scheduled samples per second") or number(summary, "Samples per second") or 0
        return cls(
            valid="Result is : VALID" in summary and not unanswered,
            within_bound="Performance constraints satisfied : Yes" in summary and not unanswered,
            rate=rate,
            p99_s=(number(summary, "99.00 percentile latency (ns)") or 0) / 1e9,
            queries=tally.sent + tally.unconnected,
            unanswered=unanswered,
        )


class System:
    """The service as LoadGen's system under test. LoadGen calls from threads of its own; the work is the loop's."""

    def __init__(self, loadgen: Any, client: Client, payloads: Payloads) -> None:
        self.tally = Tally()
        self._loadgen = loadgen
        self._client = client
        self._comparisons = payloads.comparisons
        self._singles = payloads.singles()
        self._loop = asyncio.get_running_loop()
        self._calls = asyncio.Semaphore(BATCH_CALLS)
        self._tasks: set[asyncio.Task[None]] = set()

    def issue_single(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._start(self._single, sample.id, sample.index, time.perf_counter())

    def issue_batches(self, samples: Sequence[Any]) -> None:
        named = [(sample.id, sample.index) for sample in samples]
        for at in range(0, len(named), BATCH_ITEMS):
            self._start(self._batch, named[at : at + BATCH_ITEMS])

    def _start(self, work: Callable[..., Any], *arguments: Any) -> None:
        def start() -> None:
            task = self._loop.create_task(work(*arguments))
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)

    async def _single(self, name: int, index: int, due: float) -> None:
        await self.tally.ask(self._client, self._singles[index], due)
        self._complete([name])

    async def _batch(self, samples: Sequence[tuple[int, int]]) -> None:
        content = batch_request([self._comparisons[index] for _, index in samples])
        async with self._calls:
            reply = await self.tally.ask(self._client, content, time.perf_counter())
        if reply is not None and reply.status == 200 and b'"error"' in reply.body:
            self.tally.failed += 1
            self.tally.answered -= 1
        self._complete([name for name, _ in samples])

    def _complete(self, names: Sequence[int]) -> None:
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(name, 0, 0) for name in names])


async def run(port: int, payloads: Payloads, trial: Trial) -> Outcome:
    """One LoadGen run. Raises ImportError without mlcommons-loadgen."""
    import mlperf_loadgen as loadgen

    client = Client(port, timeout_s=PATIENCE_S)
    system, count = System(loadgen, client, payloads), len(payloads.comparisons)
    issue = system.issue_single if trial.scenario == "Server" else system.issue_batches
    sut = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        logs = loadgen.LogSettings()
        logs.enable_trace = False
        output = loadgen.LogOutputSettings()
        output.outdir = folder
        logs.log_output = output
        await asyncio.to_thread(loadgen.StartTestWithLogSettings, sut, library, settings_of(loadgen, trial), logs)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
    client.close()
    return Outcome.read(summary, system.tally)


def settings_of(loadgen: Any, trial: Trial) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, trial.scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(trial.seconds * 1e3)
    settings.min_query_count = trial.least_queries
    settings.offline_expected_qps = trial.rate
    settings.server_target_qps = trial.rate
    settings.server_target_latency_ns = int(trial.p99_bound_s * 1e9)
    settings.server_target_latency_percentile = 0.99
    return settings


def number(summary: str, label: str) -> float | None:
    found = re.search(rf"^{re.escape(label)}\s*:\s*([0-9.e+]+)", summary, flags=re.MULTILINE)
    return float(found.group(1)) if found else None
