"""A comparison's way through the service: encode, wait and run, read out."""

import asyncio
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

from service.backend import Backend
from service.metrics import Metrics
from service.schemas import CompareRequest
from service.waiting import Answered
from tinyrm.comparison import Comparison, Preference
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.errors import DeadlineExceeded, EngineFailed, Unavailable
from tinyrm.flops import exact_flops, paper_flops
from tinyrm.manifest import Manifest
from tinyrm.readout import read_out

# Texts that are encoded in half a millisecond. The way to a thread and back takes as long, and if nothing else is under
# way nobody is held up.
SHORT_CHARACTERS = 2048


@dataclass(frozen=True, slots=True)
class Answer:
    """A preference, what it cost, and how long each stage took in seconds."""

    preference: Preference
    truncation: Truncation
    tokens: int
    gflops: float
    stages: dict[str, float]


class Pipeline:
    """Everything between a validated request and its answer, for one bundle on one engine."""

    def __init__(
        self, manifest: Manifest, encoder: Encoder, backend: Backend, metrics: Metrics, *, default_swap: str
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.metrics = metrics
        self._encoder = encoder
        self._begun = 0
        self._swap_by_default = default_swap == "on"
        self._encode_threads = ThreadPoolExecutor(thread_name_prefix="encode")
        # Two sums over all layers: lengths repeat.
        self._exact_gflops = lru_cache(maxsize=16384)(partial(_exact_gflops, manifest))
        self._paper_gflops = lru_cache(maxsize=16384)(partial(_paper_gflops, manifest))

    def refuse_if_busy(self, timeout_s: float | None = None) -> None:
        """Raise one of Unavailable's kinds, before any work is spent on a request."""
        try:
            if timeout_s is not None and timeout_s <= 0:
                raise DeadlineExceeded("the request's own time was over before its turn came")
            self.backend.refuse_if_busy(timeout_s)
        except Unavailable as error:
            self.metrics.observe_shed(error.type)
            raise

    async def compare(
        self, request: CompareRequest, *, flow: Hashable = None, timeout_s: float | None = None, patient: bool = False
    ) -> Answer:
        """Raises InvalidInput and its kinds, Unavailable and its kinds, EngineFailed.

        flow: whose request this is; each gets its part of the engine. timeout_s: an answer later than that is not
        wanted. patient: it was accepted as part of a list, and waits for room.
        """
        self._begun += 1
        try:
            return await self._compare(request, flow, timeout_s, patient=patient)
        finally:
            self._begun -= 1

    async def _compare(
        self, request: CompareRequest, flow: Hashable, timeout_s: float | None, *, patient: bool
    ) -> Answer:
        started = time.perf_counter()
        if not patient:
            self.refuse_if_busy(timeout_s)
        readings = await self._encode(request)
        encoded = time.perf_counter()
        left_s = None if timeout_s is None else max(0.0, timeout_s - (encoded - started))
        try:
            answered = await self.backend.submit(readings, flow=flow, timeout_s=left_s, patient=patient)
        except Unavailable as error:
            self.metrics.observe_shed(error.type)
            raise
        preference = self._read_out(answered)
        stages = {
            "encode": encoded - started,
            "queue": answered.queue_s,
            "run": answered.run_s,
            "total": time.perf_counter() - started,
        }
        return self._observed(preference, readings, stages)

    async def retire(self, timeout_s: float) -> None:
        """Another takes its place: answer what has begun here, even if it is not in the queue yet, and leave."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._begun:  # noqa: ASYNC110  # rare, and no request should pay for an event
                    await asyncio.sleep(0.01)
        await self.drain(timeout_s)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, answer what was accepted, leave."""
        await self.backend.drain(timeout_s)
        self._encode_threads.shutdown(wait=False, cancel_futures=True)

    async def _encode(self, request: CompareRequest) -> tuple[Encoding, ...]:
        spec = self.manifest.spec
        own_instruction = spec.instruction(request.domain)
        instruction = own_instruction if request.instruction is None else request.instruction
        prompt = request.prompt if isinstance(request.prompt, str) else spec.template.render_messages(request.prompt)
        comparison = Comparison(prompt, request.response_a, request.response_b)
        swap = self._swap_by_default if request.swap is None else request.swap == "on"

        texts = (instruction, prompt, comparison.response_a, comparison.response_b)

        def encode() -> tuple[Encoding, ...]:
            self.metrics.observe_special_tokens(sum(map(self._encoder.writes_special_token, texts)))
            return self._encoder.encode(comparison, instruction, swap=swap)

        if self._begun == 1 and sum(map(len, texts)) <= SHORT_CHARACTERS:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._encode_threads, encode)

    def _read_out(self, answered: Answered) -> Preference:
        try:
            return read_out(answered.logits, self.manifest.temperature)
        except EngineFailed:
            self.metrics.observe_engine_error()
            raise

    def _observed(self, preference: Preference, readings: tuple[Encoding, ...], stages: dict[str, float]) -> Answer:
        lengths = list(map(len, readings))
        exact, truncation = sum(map(self._exact_gflops, lengths)), readings[0].truncation
        # Nobody waits for the metrics: the reply leaves first.
        asyncio.get_running_loop().call_soon(self._observe, preference, truncation, lengths, exact, stages)
        return Answer(preference, truncation, sum(lengths), exact, stages)

    def _observe(
        self, preference: Preference, cut: Truncation, lengths: list[int], exact: float, stages: dict[str, float]
    ) -> None:
        self.metrics.observe_stages(stages)
        self.metrics.observe_cost({"exact": exact, "paper": sum(map(self._paper_gflops, lengths))})
        self.metrics.observe_preference(preference, cut)


def _exact_gflops(manifest: Manifest, tokens: int) -> float:
    return exact_flops(manifest.geometry, tokens) / 1e9


def _paper_gflops(manifest: Manifest, tokens: int) -> float:
    return paper_flops(manifest.parameters, manifest.geometry, tokens) / 1e9
