"""The pipeline of one bundle: encode a comparison, submit it to the queue, read out the result."""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.backend import Backend
from service.engine.types import NO_NEW_WORK, EngineResult, QueueLoad
from service.metrics import PAIR_TEXTS, Metrics
from service.scoring.text_encoder import TextEncoder, Texts
from service.settings import PREFIX
from tinyrm.chat import Prompt
from tinyrm.comparison import Preference, SwapMode
from tinyrm.confidence import Temperature
from tinyrm.counting import flop_counter
from tinyrm.deadline import Deadline
from tinyrm.encoding import Encoder, Encoding, TokenCounts, Truncation
from tinyrm.errors import NOT_ACCEPTED, DeadlineExceeded, EngineFailed, InvalidInput, ShuttingDown
from tinyrm.flops import paper_flops
from tinyrm.manifest import Manifest
from tinyrm.readout import read_columns, read_out, read_score
from tinyrm.reasoning import Reasoning, begins_with_reasoning, is_empty, judged
from tinyrm.sets import read_set

T = TypeVar("T")

log = structlog.get_logger("tinyrm")

NO_DEADLINE = Deadline()


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and how its responses are compared.

    prompt: text, or chat messages, which the model's template renders.
    domain: selects the instruction, and the model if `model` is None.
    instruction: replaces that of the domain.
    swap: None selects the service's default.
    model: name or name@revision.
    reasoning: whether it is judged with the response; None selects the service's default.
    """

    prompt: Prompt
    domain: str | None = None
    instruction: str | None = None
    swap: SwapMode | None = None
    model: str | None = None
    reasoning: Reasoning | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one item of the queue cost.

    sequences: how many the model read.
    tokens: of these sequences.
    gflops: billions of operations.
    stages: seconds of each of service.metrics.STAGES.
    """

    sequences: int
    tokens: int
    gflops: float
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The result of one comparison.

    model: name@revision.
    has_orders: whether the model reads pairs, so that the preference is from one order or both.
    """

    preference: Preference
    truncation: Truncation
    model: str
    cost: Cost
    has_orders: bool


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The result of one response whose score depends on no other.

    logit: what margins are made of; see `tinyrm.readout`.
    raw: what the model's own library returns: the logit after the head's activation.
    standard: the logit on the scale of held-out responses; None without a scale.
    log_odds: to beat a response whose logit is the mean of that scale, or 0 without one.
    tokens: of prompt and response, also if several responses share the prompt.
    """

    logit: float
    raw: float
    standard: float | None
    log_odds: float
    truncation: Truncation
    tokens: int


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """The result of one sequence that holds one response or a set.

    logits: of each response of the request; NaN for those that other sequences hold.
    """

    sequence: Encoding
    logits: NDArray[np.float64]
    cost: Cost


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
        default_reasoning: Reasoning = "keep",
        max_wait_s: float = math.inf,
        max_set_tokens: int | None = None,
    ) -> None:
        self.manifest, self.reads = manifest, encoder.reads
        self._calibrated = manifest.calibrated
        self.scores_alone = encoder.scores_alone
        self.backend = backend
        self.metrics = metrics
        self.texts = TextEncoder(
            encoder,
            metrics,
            max_wait_s,
            is_alone=lambda: self._active == 1,
            refuse_if_closed=backend.refuse_if_closed,
            max_set_tokens=max_set_tokens,
        )
        self._active = self._held = 0
        self._is_draining = False
        self._default_swap: SwapMode = default_swap
        self._default_reasoning: Reasoning = default_reasoning
        self._warned_of_reasoning = False
        self._flops = flop_counter(manifest.geometry, manifest.head, manifest.special_tokens)

    def refuse_if_busy(self, deadline: Deadline = NO_DEADLINE, fairness_key: Hashable = None) -> None:
        """Raise a subclass of Unavailable if the request would be refused, before any work on it."""
        with self.metrics.refusals_counted():
            self._refuse_late_and_new_work(deadline)
            self.backend.refuse_if_busy(deadline.left_s(), fairness_key)

    def _refuse_late_and_new_work(self, deadline: Deadline) -> None:
        if deadline.has_passed:
            raise DeadlineExceeded("the request's own time limit passed before it was queued")
        if self._is_draining:
            raise ShuttingDown(NOT_ACCEPTED)

    def refuse_if_texts_wait(
        self,
        texts: Texts,
        deadline: Deadline = NO_DEADLINE,
        fairness_key: Hashable = None,
        *,
        is_single: bool = False,
    ) -> None:
        """Raise Overloaded if these texts would wait too long to be encoded and scored.

        is_single: whether they are one comparison by itself.
        """
        self.texts.refuse_if_busy(
            texts, fairness_key, deadline, lambda: self.backend.load().next_wait_s, is_single=is_single
        )

    def resolve(self, question: Question, responses: Sequence[str]) -> Texts:
        """Return the texts that the model reads. Raises UnknownDomain, InvalidInput."""
        if not (self._warned_of_reasoning or question.reasoning) and self._default_reasoning == "keep":
            self._warn_of_reasoning(responses)
        prompt, responses = judged(self._reasoning(question), question.prompt, responses)
        return Texts(*self.manifest.spec.resolve(prompt, question.domain, question.instruction), responses)

    def is_empty(self, question: Question, response: str) -> bool:
        """Return whether nothing is judged of a response but white space and special tokens."""
        return is_empty(response, self._reasoning(question))

    def _reasoning(self, question: Question) -> Reasoning:
        return question.reasoning or self._default_reasoning

    def _warn_of_reasoning(self, responses: Sequence[str]) -> None:
        """Log once that reasoning is judged if nobody has asked for it: it may be all that the model reads."""
        if any(map(begins_with_reasoning, responses)):
            self._warned_of_reasoning = True
            log.warning(
                "reasoning is judged",
                model=self.manifest.identity,
                advice=f"responses begin with reasoning, such as <think>, and the model may read little else: set "
                f"{PREFIX}REASONING=drop, or send reasoning=drop, or reasoning=keep if it is to be judged",
            )

    def load(self) -> QueueLoad:
        """Return the load of the queue. A pipeline that drains is not healthy, so that no new work is sent to it."""
        load = self.backend.load()
        return replace(load, unhealthy_reason=NO_NEW_WORK) if self._is_draining else load

    def encode_wait_s(self) -> float:
        """Return the seconds until all texts that wait to be encoded have been."""
        return self.texts.queue.total_s()

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
            texts = self.resolve(question, (response_a, response_b))
            if not wait_for_room:
                self.refuse_if_texts_wait(texts, deadline, fairness_key, is_single=True)
            sequences = await self.texts.encode_pair(
                texts, swap=swap != "off", fairness_key=fairness_key, deadline=deadline, is_listed=wait_for_room
            )
            return await self.score(
                sequences,
                swap,
                self.temperature(question),
                encode_s=time.perf_counter() - started,
                fairness_key=fairness_key,
                deadline=deadline,
                wait_for_room=wait_for_room,
            )

    async def score(
        self,
        sequences: tuple[Encoding, ...],
        swap: SwapMode,
        temperature: Temperature,
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
        scored = sequences[:1] if swap == "auto" else sequences
        result = await self._submit(scored, fairness_key, deadline, wait_for_room=wait_for_room)
        preference = self._read_pair(scored, result, temperature)
        if len(scored) < len(sequences) and not self._is_decisive(preference):
            second = await self._submit(sequences[1:], fairness_key, deadline, wait_for_room=True)
            result, scored = result.followed_by(second), sequences
            preference = self._read_pair(scored, result, temperature)
        cost = self._cost(scored, result, encode_s, started)
        truncation = self.texts.encoder.truncation(sequences)

        def observe() -> None:
            self._observe(cost, {text: getattr(truncation, text) for text in PAIR_TEXTS})
            self.metrics.observe_preference(preference.preferred, preference.margin, preference.order_margins)

        asyncio.get_running_loop().call_soon(observe)  # deferred: the reply goes first
        return CompareResult(preference, truncation, self.manifest.identity, cost, self.reads == "pair")

    async def score_sequence(
        self,
        sequence: Encoding,
        *,
        encode_s: float,
        fairness_key: Hashable,
        deadline: Deadline,
        wait_for_room: bool,
    ) -> SequenceResult:
        """Return the logits of one encoded response, or of one set of them. Parameters as in `compare`."""
        started = time.perf_counter()
        result = await self._submit((sequence,), fairness_key, deadline, wait_for_room=wait_for_room)

        def read() -> NDArray[np.float64]:
            if sequence.columns:
                return read_set(result.logits[0], sequence.columns)
            return np.array([read_score(result.logits)])

        logits, truncation, scale = self._checked(read), sequence.truncation, self.manifest.score_scale
        cost = self._cost((sequence,), result, encode_s, started)

        def observe() -> None:
            self._observe(cost, {"prompt": truncation.prompt, "response": sum(truncation.responses)})
            if scale and self.scores_alone:
                for logit in logits[np.isfinite(logits)].tolist():
                    self.metrics.observe_score(scale.standardise(logit))

        asyncio.get_running_loop().call_soon(observe)
        return SequenceResult(sequence, logits, cost)

    async def count_tokens(
        self, question: Question, responses: Sequence[str], *, fairness_key: Hashable, deadline: Deadline
    ) -> TokenCounts:
        """Return the tokens of a prompt and responses, and what would be dropped of them. The engine has no part in it.

        Parameters and errors are those of `compare`.
        """
        with self.active():
            with self.metrics.refusals_counted():
                self._refuse_late_and_new_work(deadline)
            texts = self.resolve(question, responses)
            self.texts.refuse_if_busy(texts, fairness_key, deadline, lambda: 0.0)
            tokenized = await self.texts.tokenize(texts, fairness_key=fairness_key, deadline=deadline, is_scored=False)
            return self.texts.encoder.count_tokens(tokenized)

    def temperature(self, question: Question) -> Temperature:
        """Return what divides margins in the question's domain. Raises UnknownDomain."""
        return self._calibrated.of(self.manifest.spec.find_domain(question.domain))

    def make_score(self, logit: float, truncation: Truncation, tokens: int, temperature: Temperature) -> ScoreResult:
        """Return what a logit says about a response that was scored alone."""
        manifest, scale = self.manifest, self.manifest.score_scale
        standard = scale.standardise(logit) if scale else None
        log_odds = (logit - (scale.mean if scale else 0.0)) / temperature.value
        return ScoreResult(logit, manifest.head.activate(logit), standard, log_odds, truncation, tokens)

    def choose_swap(self, question: Question) -> SwapMode:
        """Return the question's swap mode, or the default. Raises InvalidInput if the model does not support it.

        A model that does not read pairs has no orders, whatever the question and the default are.
        """
        if self.reads != "pair":
            return "off"
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
        self.texts.queue.shut_down()

    async def _finish_active(self, timeout_s: float) -> None:
        """Wait until no request is active, at most this long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._active or self._held:  # noqa: ASYNC110  # rare; an event would cost time in every request
                    await asyncio.sleep(0.01)

    def _is_decisive(self, preference: Preference) -> bool:
        """Return whether one order is enough. The limit is at the temperature of all domains."""
        return abs(preference.order_margins[0]) / self.manifest.temperature >= self._decisive_margin()

    def _decisive_margin(self) -> float:
        if self.manifest.auto_swap is None:
            raise InvalidInput(f"{self.manifest.identity} was exported without a margin for swap auto; use on or off")
        return self.manifest.auto_swap.margin

    async def _submit(
        self, sequences: tuple[Encoding, ...], fairness_key: Hashable, deadline: Deadline, *, wait_for_room: bool
    ) -> EngineResult:
        with self.metrics.refusals_counted():
            return await self.backend.submit(
                sequences, fairness_key=fairness_key, timeout_s=deadline.left_s(), wait_for_room=wait_for_room
            )

    def _read_pair(self, sequences: Sequence[Encoding], result: EngineResult, temperature: Temperature) -> Preference:
        return self._checked(lambda: read_out(read_columns(sequences, result.logits), temperature))

    def _checked(self, read: Callable[[], T]) -> T:
        """Return what `read` makes of logits. If they are not valid, that counts as an error of the engine."""
        try:
            return read()
        except EngineFailed:
            self.metrics.observe_engine_error()
            raise

    def _cost(self, sequences: Sequence[Encoding], result: EngineResult, encode_s: float, started: float) -> Cost:
        """Return the cost of an item.

        started: when it was submitted, of `time.perf_counter`.
        """
        total_s = encode_s + time.perf_counter() - started
        stages = {"encode": encode_s, "queue": result.queue_s, "run": result.run_s, "total": total_s}
        return Cost(len(sequences), sum(map(len, sequences)), sum(map(self._flops, sequences)) / 1e9, stages)

    def _observe(self, cost: Cost, truncated: Mapping[str, int]) -> None:
        paper = paper_flops(self.manifest.parameters, self.manifest.geometry, cost.tokens) / 1e9
        self.metrics.observe_stages(cost.stages)
        self.metrics.observe_cost({"exact": cost.gflops, "paper": paper})
        self.metrics.observe_truncation(truncated)
