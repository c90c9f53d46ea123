"""Drive the service over HTTP with MLPerf Inference's LoadGen: Offline, and the best valid rate of Server."""

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loadtests.payloads import Payloads, batch_request
from loadtests.report import Target
from loadtests.service_process import started
from loadtests.traffic import Tally, closed_loop
from loadtests.wire import Client

Scenario = Literal["Server", "Offline"]
BATCH_ITEMS = 32
# Enough calls at once that the service has work while a reply travels.
BATCH_CALLS = 4
CLIENT_TIMEOUT_S = 120
MIN_SHARE = 0.8
# Fewer responses than this cannot show a 99th percentile with LoadGen's confidence, however fast they are.
MIN_QUERIES = 459
# A short trial flatters: the bound that it kept may not hold for longer. The long run is tried again a little lower.
STEP_DOWN, FINAL_ATTEMPTS = 0.8, 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one LoadGen run found.

    valid: LoadGen's own verdict, and every sample has a response.
    within_bound: the same for the latency alone.
    """

    valid: bool
    within_bound: bool
    rate: float
    p99_s: float
    queries: int
    unanswered: int

    @classmethod
    def read(cls, summary: str, tally: Tally) -> "Outcome":
        """Parse LoadGen's summary. LoadGen does not know refusals: here an unanswered sample makes a run invalid."""
        unanswered = tally.sent + tally.unconnected - tally.answered

        def number(label: str) -> float | None:
            found = re.search(rf"^{re.escape(label)}\s*:\s*([0-9.e+]+)", summary, flags=re.MULTILINE)
            return float(found.group(1)) if found else None

        return cls(
            valid="Result is : VALID" in summary and not unanswered,
            within_bound="Performance constraints satisfied : Yes" in summary and not unanswered,
            rate=number("Scheduled samples per second") or number("Samples per second") or 0,
            p99_s=(number("99.00 percentile latency (ns)") or 0) / 1e9,
            queries=tally.sent + tally.unconnected,
            unanswered=unanswered,
        )


class System:
    """The service as LoadGen's system under test. LoadGen calls from its own threads; the loop does the work."""

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
        pairs = [(sample.id, sample.index) for sample in samples]
        for at in range(0, len(pairs), BATCH_ITEMS):
            self._start(self._batch, pairs[at : at + BATCH_ITEMS])

    def _start(self, work: Callable[..., Any], *arguments: Any) -> None:
        def start() -> None:
            task = self._loop.create_task(work(*arguments))
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)

    async def _single(self, sample_id: int, index: int, due: float) -> None:
        await self.tally.send(self._client, self._singles[index], due)
        self._complete([sample_id])

    async def _batch(self, samples: Sequence[tuple[int, int]]) -> None:
        content = batch_request([self._comparisons[index] for _, index in samples])
        async with self._calls:
            reply = await self.tally.send(self._client, content, time.perf_counter())
        if reply is not None and reply.status == 200 and b'"error"' in reply.body:
            self.tally.failed += 1
            self.tally.answered -= 1
        self._complete([sample_id for sample_id, _ in samples])

    def _complete(self, ids: Sequence[int]) -> None:
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(one, 0, 0) for one in ids])


async def run(
    port: int,
    payloads: Payloads,
    scenario: Scenario,
    *,
    rate: float,
    seconds: float,
    p99_bound_s: float,
    min_queries: int = 1,
) -> Outcome:
    """Run LoadGen once. Raises ImportError without mlcommons-loadgen.

    rate: samples a second: offered (Server), or expected, which decides how many there are (Offline).
    """
    import mlperf_loadgen as loadgen

    client = Client(port, timeout_s=CLIENT_TIMEOUT_S)
    system, count = System(loadgen, client, payloads), len(payloads.comparisons)
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1e3)
    settings.min_query_count = min_queries
    settings.offline_expected_qps = rate
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(p99_bound_s * 1e9)
    settings.server_target_latency_percentile = 0.99
    sut = loadgen.ConstructSUT(system.issue_single if scenario == "Server" else system.issue_batches, lambda: None)
    library = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        logs, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
        logs.enable_trace = False
        output.outdir = folder
        logs.log_output = output
        await asyncio.to_thread(loadgen.StartTestWithLogSettings, sut, library, settings, logs)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
    client.close()
    return Outcome.read(summary, system.tally)


async def measure(
    payloads: Payloads,
    settings: Mapping[str, object],
    *,
    trial_seconds: float = 12,
    final_seconds: float = 60,
    offline_seconds: float = 30,
    steps: int = 5,
    p99_bound_s: float = 0.13,
    min_queries: int = MIN_QUERIES,
) -> dict[str, Any]:
    """Run Offline, then search for the highest valid rate of Server.

    Short trials halve the interval `steps` times; then one long run must be valid.
    """
    trials: list[dict[str, Any]] = []
    final, low = None, 0.0
    async with started(**settings) as service:
        expected = await batch_rate(service.port, payloads, trial_seconds / 2)
        offline = await run(
            service.port, payloads, "Offline", rate=expected, seconds=offline_seconds, p99_bound_s=p99_bound_s
        )

        async def attempt(rate: float, seconds: float, queries: int) -> Outcome:
            outcome = await run(
                service.port,
                payloads,
                "Server",
                rate=rate,
                seconds=seconds,
                p99_bound_s=p99_bound_s,
                min_queries=queries,
            )
            trials.append({"target_rate": rate, "seconds": seconds} | asdict(outcome))
            return outcome

        high = offline.rate
        for _ in range(steps):
            rate = (low + high) / 2
            if (await attempt(rate, trial_seconds, 1)).within_bound:
                low = rate
            else:
                high = rate
        for number in range(FINAL_ATTEMPTS if low else 0):
            outcome = await attempt(low * STEP_DOWN**number, final_seconds, min_queries)
            if outcome.valid:
                final = outcome
                break
    share = final.rate / offline.rate if final and offline.rate else None
    return {
        "payloads": payloads.origin,
        "p99_bound_s": p99_bound_s,
        "offline": asdict(offline),
        "offline_min_duration_s": offline_seconds,
        "server": asdict(final) if final else None,
        "server_min_duration_s": final_seconds,
        "server_min_query_count": min_queries,
        "trials": trials,
        "targets": [Target("Server rate as a share of the Offline rate", share, MIN_SHARE, "at least").record()],
    }


async def batch_rate(port: int, payloads: Payloads, seconds: float) -> float:
    """Return comparisons a second in batches: Offline must know in advance how many samples fill its duration."""
    client = Client(port, timeout_s=CLIENT_TIMEOUT_S)
    started_at = time.perf_counter()
    tally = await closed_loop(client, payloads.batches(BATCH_ITEMS), 2, seconds)
    client.close()
    return max(tally.answered * BATCH_ITEMS / (time.perf_counter() - started_at), 1)
