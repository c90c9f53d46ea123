"""The pipeline of one bundle: encode a comparison, submit it to the queue, read out the result."""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from service.engine.backend import Backend
from service.engine.types import NO_NEW_WORK, EngineResult, QueueLoad
from service.metrics import TEXTS, Metrics
from service.scoring.encode_queue import EncodeQueue
from tinyrm.chat import Prompt
from tinyrm.comparison import Preference, SwapMode
from tinyrm.deadline import Deadline
from tinyrm.encoding import Encoder, Encoding, Tokenized, Truncation
from tinyrm.engines.base import usable_cpus
from tinyrm.errors import NOT_ACCEPTED, DeadlineExceeded, EngineFailed, InvalidInput, ShuttingDown, Unavailable
from tinyrm.flops import exact_flops, paper_flops
from tinyrm.manifest import Manifest
from tinyrm.readout import read_out

T = TypeVar("T")

# Texts up to this length are encoded in half a millisecond. Handing them to a thread takes as long, so without other
# requests they are encoded in the event loop.
SHORT_CHARACTERS = 2048
# Responses of a group are tokenized in steps of this many characters; other keys' texts have their turn between them.
STEP_CHARACTERS = 65_536
# Making the sequences of a tokenized pair takes as long as tokenizing this many characters.
PAIR_CHARACTERS = 256

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
        self,
        manifest: Manifest,
        encoder: Encoder,
        backend: Backend,
        metrics: Metrics,
        *,
        default_swap: SwapMode,
        max_wait_s: float = math.inf,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.metrics = metrics
        self._encoder = encoder
        self._active = self._held = 0
        self._is_draining = False
        self._default_swap: SwapMode = default_swap
        self._encode_queue = EncodeQueue(usable_cpus(), max_wait_s)
        # Cached: each is a sum over all layers, and lengths repeat.
        self._exact_gflops = lru_cache(maxsize=16384)(lambda tokens: exact_flops(manifest.geometry, tokens) / 1e9)
        self._paper_gflops = lru_cache(maxsize=16384)(
            lambda tokens: paper_flops(manifest.parameters, manifest.geometry, tokens) / 1e9
        )

    def refuse_if_busy(self, deadline: Deadline = NO_DEADLINE, fairness_key: Hashable = None) -> None:
        """Raise a subclass of Unavailable if the request would be refused, before any work on it."""
        with self._refusals_counted():
            if deadline.has_passed:
                raise DeadlineExceeded("the request's own time limit passed before it was queued")
            if self._is_draining:
                raise ShuttingDown(NOT_ACCEPTED)
            self.backend.refuse_if_busy(deadline.left_s(), fairness_key)

    def load(self) -> QueueLoad:
        """Return the load of the queue. A pipeline that drains is not healthy, so that no new work is sent to it."""
        load = self.backend.load()
        return replace(load, unhealthy_reason=NO_NEW_WORK) if self._is_draining else load

    def encode_wait_s(self) -> float:
        """Return the seconds until all texts that wait to be encoded have been."""
        return self._encode_queue.total_s()

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
                self.refuse_if_busy(deadline, fairness_key)
            swap = self.choose_swap(question)
            sequences = await self._encode(
                question, (response_a, response_b), swap, fairness_key, deadline, is_accepted=wait_for_room
            )
            return await self.score(
                sequences,
                swap,
                encode_s=time.perf_counter() - started,
                fairness_key=fairness_key,
                deadline=deadline,
                wait_for_room=wait_for_room,
            )

    async def tokenize(
        self, question: Question, responses: Sequence[str], *, fairness_key: Hashable, deadline: Deadline
    ) -> Tokenized:
        """Tokenize the texts of an accepted group. Raises InvalidInput, DeadlineExceeded, ShuttingDown."""
        instruction, prompt = self.manifest.spec.resolve(question.prompt, question.domain, question.instruction)

        async def tokenize(instruction: str, prompt: str, responses: Sequence[str]) -> Tokenized:
            def work() -> Tokenized:
                self.metrics.observe_special_tokens(self._encoder.count_special_texts(instruction, prompt, responses))
                return self._encoder.tokenize(instruction, prompt, responses)

            characters = self._encoder.count_characters(instruction, prompt, responses)
            return await self._in_thread(work, characters, fairness_key, deadline)

        first, *others = self._steps(responses)
        tokenized = await tokenize(instruction, prompt, first)
        for step in others:
            tokenized = tokenized.followed_by(await tokenize("", "", step))
        return tokenized

    async def assemble(
        self,
        tokenized: Tokenized,
        pairs: Sequence[tuple[int, int]],
        swap: SwapMode,
        *,
        fairness_key: Hashable,
        deadline: Deadline,
    ) -> list[tuple[Encoding, ...]]:
        """Return the sequences of each pair of responses, in one or both orders. Raises as `tokenize` does."""

        def work() -> list[tuple[Encoding, ...]]:
            return [self._encoder.assemble(tokenized, a, b, swap=swap != "off") for a, b in pairs]

        return await self._in_thread(work, PAIR_CHARACTERS * len(pairs), fairness_key, deadline)

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
    def held(self) -> Iterator[None]:
        """Keep the pipeline from being retired while a list of comparisons goes on."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Mark work that this pipeline must finish before it is retired."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    def refuse_new_work(self) -> None:
        """Refuse what is not accepted yet; accepted lists and groups go on."""
        self._is_draining = True

    async def retire(self, timeout_s: float) -> None:
        """Finish all active requests, also those not queued yet, and stop. For a pipeline that was replaced."""
        await self._finish_active(timeout_s)
        await self.drain(timeout_s)

    async def drain(self, timeout_s: float) -> None:
        """Accept no new work, finish accepted work, also what is not queued yet, and stop.

        A list or a ranking has most of its comparisons outside the queue until others have a result.
        """
        self.refuse_new_work()
        deadline = Deadline.after(timeout_s)
        await self._finish_active(timeout_s)
        await self.backend.drain(deadline.left_s() or 0.0)
        self._encode_queue.shut_down()

    async def _finish_active(self, timeout_s: float) -> None:
        """Wait until no request is active, at most this long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._active or self._held:  # noqa: ASYNC110  # rare; an event would cost time in every request
                    await asyncio.sleep(0.01)

    async def _encode(
        self,
        question: Question,
        responses: tuple[str, str],
        swap: SwapMode,
        fairness_key: Hashable,
        deadline: Deadline,
        *,
        is_accepted: bool,
    ) -> tuple[Encoding, ...]:
        """Return the sequences of one comparison, in one or both orders. Raises InvalidInput, Unavailable."""
        instruction, prompt = self.manifest.spec.resolve(question.prompt, question.domain, question.instruction)
        encoder, characters = self._encoder, self._encoder.count_characters(instruction, prompt, responses)

        def work() -> tuple[Encoding, ...]:
            self.metrics.observe_special_tokens(encoder.count_special_texts(instruction, prompt, responses))
            return encoder.assemble(encoder.tokenize(instruction, prompt, responses), 0, 1, swap=swap != "off")

        if self._active == 1 and characters <= SHORT_CHARACTERS:
            return work()
        if not is_accepted:
            with self._refusals_counted():
                self._encode_queue.refuse_if_busy(
                    characters, fairness_key, deadline, lambda: self.backend.load().next_wait_s
                )
        return await self._in_thread(work, characters, fairness_key, deadline)

    async def _in_thread(self, work: Callable[[], T], characters: int, fairness_key: Hashable, deadline: Deadline) -> T:
        with self._refusals_counted():
            return await self._encode_queue.run(work, characters, fairness_key, deadline)

    def _steps(self, responses: Sequence[str]) -> Iterator[list[str]]:
        """Split responses into steps of at most STEP_CHARACTERS that are read, or of one response."""
        step: list[str] = []
        characters = 0
        for response in responses:
            more = self._encoder.count_characters("", "", [response])
            if step and characters + more > STEP_CHARACTERS:
                yield step
                step, characters = [], 0
            step.append(response)
            characters += more
        yield step

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
