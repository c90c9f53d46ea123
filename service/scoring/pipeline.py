"""The pipeline of one bundle: encode a comparison, submit it to the queue, read out the result."""

import asyncio
import ctypes
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from service.engine.backend import Backend
from service.engine.types import EngineResult
from service.metrics import TEXTS, Metrics
from tinyrm.chat import Prompt
from tinyrm.comparison import Preference, SwapMode
from tinyrm.deadline import Deadline
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.errors import DeadlineExceeded, EngineFailed, InvalidInput, ShuttingDown, Unavailable
from tinyrm.flops import exact_flops, paper_flops
from tinyrm.manifest import Manifest
from tinyrm.readout import read_out

T = TypeVar("T")

# Texts up to this length are encoded in half a millisecond. Handing them to a thread takes as long, so without other
# requests they are encoded in the event loop.
SHORT_CHARACTERS = 2048
# A tokenizer needs some hundred bytes for each token, also for truncated ones, so longer texts are encoded one at a
# time.
LONG_CHARACTERS = 262_144

NO_DEADLINE = Deadline()


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and how its responses are compared.

    prompt: text, or chat messages, which the model's template renders.
    domain: selects the instruction, and the model if `model` is None.
    instruction: replaces that of the domain.
    swap: None selects the service's default.
    model: name or name@revision.
    """

    prompt: Prompt
    domain: str | None = None
    instruction: str | None = None
    swap: SwapMode | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The result of one comparison.

    model: name@revision.
    tokens: cost of the comparison, in tokens of the sequences that were scored.
    gflops: cost in billions of operations.
    stages: seconds of each of service.metrics.STAGES.
    """

    preference: Preference
    truncation: Truncation
    model: str
    tokens: int
    gflops: float
    stages: dict[str, float]


class Pipeline:
    """Everything between a validated request and its result, for one bundle on one engine."""

    def __init__(
        self, manifest: Manifest, encoder: Encoder, backend: Backend, metrics: Metrics, *, default_swap: SwapMode
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.metrics = metrics
        self._encoder = encoder
        self._active = 0
        self._default_swap: SwapMode = default_swap
        self._one_at_a_time = asyncio.Lock()
        self._encode_threads = ThreadPoolExecutor(thread_name_prefix="encode")
        # Cached: each is a sum over all layers, and lengths repeat.
        self._exact_gflops = lru_cache(maxsize=16384)(lambda tokens: exact_flops(manifest.geometry, tokens) / 1e9)
        self._paper_gflops = lru_cache(maxsize=16384)(
            lambda tokens: paper_flops(manifest.parameters, manifest.geometry, tokens) / 1e9
        )

    def refuse_if_busy(self, deadline: Deadline = NO_DEADLINE) -> None:
        """Raise a subclass of Unavailable if the request would be refused, before any work on it."""
        with self._refusals_counted():
            if deadline.has_passed:
                raise DeadlineExceeded("the request's own time limit passed before it was queued")
            self.backend.refuse_if_busy(deadline.left_s())

    async def compare(
        self,
        question: Question,
        response_a: str,
        response_b: str,
        *,
        fairness_key: Hashable = None,
        deadline: Deadline = NO_DEADLINE,
        wait_for_room: bool = False,
    ) -> CompareResult:
        """Return which of two responses is better.

        fairness_key: work with the same key gets one share of the engine together.
        deadline: when it passes, the comparison is dropped.
        wait_for_room: wait for room in the queue before the work is refused; for items of an accepted list.

        Raises InvalidInput, Unavailable and their subclasses, EngineFailed.
        """
        started = time.perf_counter()
        with self.active():
            if not wait_for_room:
                self.refuse_if_busy(deadline)
            swap = self.choose_swap(question)
            (sequences,) = await self.encode(question, [response_a, response_b], [(0, 1)], swap)
            return await self.score(
                sequences,
                swap,
                encode_s=time.perf_counter() - started,
                fairness_key=fairness_key,
                deadline=deadline,
                wait_for_room=wait_for_room,
            )

    async def encode(
        self, question: Question, responses: Sequence[str], pairs: Sequence[tuple[int, int]], swap: SwapMode
    ) -> list[tuple[Encoding, ...]]:
        """Return the sequences of each pair of `responses`, in one or both orders. Raises InvalidInput."""
        instruction, prompt = self.manifest.spec.resolve(question.prompt, question.domain, question.instruction)
        texts = (instruction, prompt, *responses)

        def encode() -> list[tuple[Encoding, ...]]:
            self.metrics.observe_special_tokens(sum(map(self._encoder.writes_special_token, texts)))
            tokenized = self._encoder.tokenize(instruction, prompt, responses)
            return [self._encoder.assemble(tokenized, a, b, swap=swap != "off") for a, b in pairs]

        characters = sum(map(len, texts))
        if self._active == 1 and len(pairs) == 1 and characters <= SHORT_CHARACTERS:
            return encode()
        if characters <= LONG_CHARACTERS:
            return await self._run_in_thread(encode)
        async with self._one_at_a_time:
            sequences = await self._run_in_thread(encode)
            await asyncio.to_thread(trim_memory)
            return sequences

    async def score(
        self,
        sequences: tuple[Encoding, ...],
        swap: SwapMode,
        *,
        encode_s: float,
        fairness_key: Hashable,
        deadline: Deadline,
        wait_for_room: bool,
    ) -> CompareResult:
        """Return the result of one encoded comparison. Parameters as in `compare`.

        With swap auto, the second order is submitted only if the first is not decisive.
        """
        started = time.perf_counter()

        async def submit(orders: tuple[Encoding, ...], *, wait_for_room: bool) -> EngineResult:
            with self._refusals_counted():
                return await self.backend.submit(
                    orders, fairness_key=fairness_key, timeout_s=deadline.left_s(), wait_for_room=wait_for_room
                )

        scored = sequences[:1] if swap == "auto" else sequences
        result = await submit(scored, wait_for_room=wait_for_room)
        preference = self._read_out(result)
        if len(scored) < len(sequences) and abs(preference.margin) < self._decisive_margin():
            result = result.followed_by(await submit(sequences[1:], wait_for_room=True))
            scored, preference = sequences, self._read_out(result)

        total_s = encode_s + time.perf_counter() - started
        stages = {"encode": encode_s, "queue": result.queue_s, "run": result.run_s, "total": total_s}
        lengths = list(map(len, scored))
        gflops, truncation = sum(map(self._exact_gflops, lengths)), scored[0].truncation

        def observe() -> None:
            self.metrics.observe_stages(stages)
            self.metrics.observe_cost({"exact": gflops, "paper": sum(map(self._paper_gflops, lengths))})
            self.metrics.observe_preference(preference.preferred, preference.margin, preference.order_margins)
            self.metrics.observe_truncation({text: getattr(truncation, text) for text in TEXTS})

        asyncio.get_running_loop().call_soon(observe)  # deferred: the reply goes first
        return CompareResult(preference, truncation, self.manifest.identity, sum(lengths), gflops, stages)

    def choose_swap(self, question: Question) -> SwapMode:
        """Return the question's swap mode, or the default. Raises InvalidInput if the model does not support it."""
        swap = question.swap or self._default_swap
        if swap == "auto":
            self._decisive_margin()
        return swap

    @contextmanager
    def active(self) -> Iterator[None]:
        """Mark work that this pipeline must finish before it is retired."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    async def retire(self, timeout_s: float) -> None:
        """Finish all active requests, also those not queued yet, and stop. For a pipeline that was replaced."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._active:  # noqa: ASYNC110  # rare; an event would cost time in every request
                    await asyncio.sleep(0.01)
        await self.drain(timeout_s)

    async def drain(self, timeout_s: float) -> None:
        """Accept no new work, finish accepted work, and stop."""
        await self.backend.drain(timeout_s)
        self._encode_threads.shutdown(wait=False, cancel_futures=True)

    async def _run_in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in an encoding thread. Raises ShuttingDown if the threads are shut down before it has run."""
        shut_down = ShuttingDown("the service shut down before this request had a result")
        try:
            done = self._encode_threads.submit(work)
        except RuntimeError as error:
            raise shut_down from error
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if done.cancelled() and not (task and task.cancelling()):
                raise shut_down from None
            raise

    def _decisive_margin(self) -> float:
        if self.manifest.auto_swap is None:
            raise InvalidInput(f"{self.manifest.identity} was exported without a margin for swap auto; use on or off")
        return self.manifest.auto_swap.margin

    def _read_out(self, result: EngineResult) -> Preference:
        try:
            return read_out(result.logits, self.manifest.temperature)
        except EngineFailed:
            self.metrics.observe_engine_error()
            raise

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except Unavailable as error:
            self.metrics.observe_shed(error.type)
            raise


def trim_memory() -> None:
    """Return freed memory to the system: glibc keeps hundreds of MiB after a long text. Other systems do not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
