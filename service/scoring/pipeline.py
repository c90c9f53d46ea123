"""A comparison's way through the service: encode, wait and run, read out."""

import asyncio
import ctypes
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from service.engine.backend import Backend
from service.engine.types import EngineResult
from service.metrics import Metrics
from tinyrm.api import CompareRequest, PromptRequest
from tinyrm.comparison import Preference, SwapMode
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.errors import DeadlineExceeded, EngineFailed, InvalidInput, ShuttingDown, Unavailable
from tinyrm.flops import exact_flops, paper_flops
from tinyrm.manifest import Manifest
from tinyrm.readout import read_out

T = TypeVar("T")

# Texts that are encoded in half a millisecond. The way to a thread and back takes as long, and if nothing else is under
# way nobody is held up.
SHORT_CHARACTERS = 2048
# A tokenizer takes some hundred bytes for each token, whatever is cut afterwards: long texts wait for each other.
LONG_CHARACTERS = 262_144


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
        self, manifest: Manifest, encoder: Encoder, backend: Backend, metrics: Metrics, *, default_swap: SwapMode
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.metrics = metrics
        self._encoder = encoder
        self._begun = 0
        self._default_swap: SwapMode = default_swap
        self._one_at_a_time = asyncio.Lock()
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
        started = time.perf_counter()
        with self.begun():
            if not patient:
                self.refuse_if_busy(timeout_s)
            swap = self.swap_of(request)
            (readings,) = await self.encode(request, [request.response_a, request.response_b], [(0, 1)], swap)
            encode_s = time.perf_counter() - started
            left_s = None if timeout_s is None else max(0.0, timeout_s - encode_s)
            return await self.judge(readings, swap, encode_s, flow=flow, timeout_s=left_s, patient=patient)

    async def encode(
        self, asked: PromptRequest, responses: Sequence[str], pairs: Sequence[tuple[int, int]], swap: SwapMode
    ) -> list[tuple[Encoding, ...]]:
        """The readings of comparisons of `responses`, named by their places. Raises InvalidInput's kinds."""
        instruction, prompt = self.manifest.spec.resolve(asked.prompt, asked.domain, asked.instruction)
        texts = (instruction, prompt, *responses)

        def encode() -> list[tuple[Encoding, ...]]:
            self.metrics.observe_special_tokens(sum(map(self._encoder.writes_special_token, texts)))
            tokenized = self._encoder.tokenize(instruction, prompt, responses)
            return [self._encoder.assemble(tokenized, a, b, swap=swap != "off") for a, b in pairs]

        characters = sum(map(len, texts))
        if self._begun == 1 and len(pairs) == 1 and characters <= SHORT_CHARACTERS:
            return encode()
        if characters <= LONG_CHARACTERS:
            return await self._in_thread(encode)
        async with self._one_at_a_time:
            readings = await self._in_thread(encode)
            await asyncio.to_thread(_trim_memory)
            return readings

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Raises ShuttingDown if the threads leave first: a request must not learn of it as a failure of ours."""
        left = ShuttingDown("the service shut down before this request was answered")
        try:
            done = self._encode_threads.submit(work)
        except RuntimeError as error:
            raise left from error
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            if done.cancelled() and not _is_cancelled():
                raise left from None
            raise

    async def judge(
        self, readings: tuple[Encoding, ...], swap: SwapMode, encode_s: float, *,
        flow: Hashable, timeout_s: float | None, patient: bool,
    ) -> Answer:  # fmt: skip
        """The answer to encoded orders of one comparison; with swap auto, of the first alone if that is sure enough."""
        started = time.perf_counter()
        read = readings[:1] if swap == "auto" else readings
        answered = await self._submit(read, flow, timeout_s, patient=patient)
        preference = self._read_out(answered)
        if len(read) < len(readings) and abs(preference.margin) < self._sure_margin():
            left_s = None if timeout_s is None else max(0.0, timeout_s - (time.perf_counter() - started))
            answered = answered.followed_by(await self._submit(readings[1:], flow, left_s, patient=True))
            read, preference = readings, self._read_out(answered)
        total_s = encode_s + time.perf_counter() - started
        stages = {"encode": encode_s, "queue": answered.queue_s, "run": answered.run_s, "total": total_s}
        return self._observed(preference, read, stages)

    def swap_of(self, asked: PromptRequest) -> SwapMode:
        """As the request says, else as the settings do. Raises InvalidInput if the model cannot."""
        swap = asked.swap or self._default_swap
        if swap == "auto":
            self._sure_margin()
        return swap

    def _sure_margin(self) -> float:
        if self.manifest.auto_swap is None:
            raise InvalidInput(f"{self.manifest.identity} was exported without a margin for swap auto; use on or off")
        return self.manifest.auto_swap.margin

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Around everything that this pipeline has to finish before it may leave."""
        self._begun += 1
        try:
            yield
        finally:
            self._begun -= 1

    async def _submit(
        self, readings: tuple[Encoding, ...], flow: Hashable, timeout_s: float | None, *, patient: bool
    ) -> EngineResult:
        try:
            return await self.backend.submit(readings, fairness_key=flow, timeout_s=timeout_s, wait_for_room=patient)
        except Unavailable as error:
            self.metrics.observe_shed(error.type)
            raise

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

    def _read_out(self, answered: EngineResult) -> Preference:
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
        self.metrics.observe_preference(preference.preferred, preference.margin, preference.order_margins)
        self.metrics.observe_truncation(
            {"prompt": cut.prompt, "response_a": cut.response_a, "response_b": cut.response_b}
        )


def _trim_memory() -> None:
    """Return freed memory to the system: glibc keeps hundreds of MiB after a long text. Other systems need nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _is_cancelled() -> bool:
    """Whether it is this task itself that is to end, and not what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _exact_gflops(manifest: Manifest, tokens: int) -> float:
    return exact_flops(manifest.geometry, tokens) / 1e9


def _paper_gflops(manifest: Manifest, tokens: int) -> float:
    return paper_flops(manifest.parameters, manifest.geometry, tokens) / 1e9
