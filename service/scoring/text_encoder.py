"""Make sequences from the texts of requests, in the threads of the encode queue."""

import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from service.metrics import Metrics
from service.scoring.encode_queue import EncodeQueue
from tinyrm.deadline import Deadline
from tinyrm.encoding import Encoder, Encoding, Tokenized
from tinyrm.engines.base import usable_cpus
from tinyrm.truncation import Instruction, kept_under

T = TypeVar("T")

# Texts up to this length are encoded in half a millisecond. Handing them to a thread takes twice as long, because event
# loop and thread wait for each other's lock: a single comparison is encoded in the event loop. A part of a list or of a
# group is so only without other requests, which a long list would hold up.
SHORT_CHARACTERS = 2048
# Responses of a group are tokenized in steps of this many characters; other keys' texts have their turn between them.
STEP_CHARACTERS = 65_536
# Making the sequences of a tokenized pair takes as long as tokenizing this many characters.
PAIR_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one request."""

    instruction: str
    prompt: str
    responses: Sequence[str]


class TextEncoder:
    """The encoder of one bundle, behind a queue of its own.

    is_alone: returns whether no other request is active.
    refuse_if_closed: raises ShuttingDown if no engine will read what would be encoded.
    max_set_tokens: of a sequence that holds a set; None for the most that the encoder allows.

    Methods raise InvalidInput, DeadlineExceeded, ShuttingDown; fairness_key and deadline as in `Pipeline.compare`.
    """

    def __init__(
        self,
        encoder: Encoder,
        metrics: Metrics,
        max_wait_s: float,
        *,
        is_alone: Callable[[], bool],
        refuse_if_closed: Callable[[], None],
        max_set_tokens: int | None = None,
    ) -> None:
        self.encoder = encoder
        self._max_set_tokens = max_set_tokens
        self.queue = EncodeQueue(usable_cpus(), max_wait_s)
        self._metrics = metrics
        self._is_alone, self._refuse_if_closed = is_alone, refuse_if_closed

    def refuse_if_busy(
        self,
        texts: Texts,
        fairness_key: Hashable,
        deadline: Deadline,
        engine_wait_s: Callable[[], float],
        *,
        is_single: bool = False,
    ) -> None:
        """Raise Overloaded if these texts would wait too long; see `EncodeQueue.refuse_if_busy`.

        is_single: whether they are one comparison by itself.
        """
        characters = self._count_characters(texts)
        if not self._is_encoded_at_once(characters, is_single=is_single):
            with self._metrics.refusals_counted():
                self.queue.refuse_if_busy(characters, fairness_key, deadline, engine_wait_s)

    async def encode_pair(
        self, texts: Texts, *, swap: bool, fairness_key: Hashable, deadline: Deadline, is_listed: bool = False
    ) -> tuple[Encoding, ...]:
        """Return the sequences of one comparison; with `swap`, a model that reads pairs gets both orders.

        is_listed: whether it is one of many that arrived together.
        """

        def work() -> tuple[Encoding, ...]:
            return self.encoder.assemble(self._tokenize(texts), 0, 1, swap=swap)

        characters = self._count_characters(texts)
        return await self._run(work, characters, fairness_key, deadline, is_single=not is_listed)

    async def encode_responses(
        self, texts: Texts, *, fairness_key: Hashable, deadline: Deadline
    ) -> AsyncIterator[tuple[list[Encoding], float]]:
        """Yield the sequences of one step of responses after another, and the seconds that each sequence took.

        The engine can read the first responses while later ones are being encoded. Sets are known when all are.
        """
        if self.encoder.reads == "set":
            started = time.perf_counter()
            read = await self.tokenize(texts, fairness_key=fairness_key, deadline=deadline)
            sets = await self._run(
                lambda: list(self.encoder.assemble_sets(read, range(len(texts.responses)), self._max_set_tokens)),
                PAIR_CHARACTERS * len(texts.responses),
                fairness_key,
                deadline,
            )
            yield sets, (time.perf_counter() - started) / len(sets)
            return
        tokenized: Tokenized | None = None
        for step in self._steps(texts):
            started = time.perf_counter()

            def work(before: Tokenized | None = tokenized, step: Texts = step) -> tuple[Tokenized, list[Encoding]]:
                new = self._tokenize(step)
                read = new if before is None else before.followed_by(new)
                added = range(len(read.responses) - len(step.responses), len(read.responses))
                return read, [self.encoder.assemble_one(read, at) for at in added]

            tokenized, sequences = await self._run(work, self._count_characters(step), fairness_key, deadline)
            yield sequences, (time.perf_counter() - started) / len(sequences)

    async def tokenize(
        self, texts: Texts, *, fairness_key: Hashable, deadline: Deadline, is_scored: bool = True
    ) -> Tokenized:
        """Return the ids of each text, for any number of pairs of the responses.

        is_scored: whether they will be; metrics of texts are about those that are.
        """

        async def tokenize(step: Texts) -> Tokenized:
            def work() -> Tokenized:
                return self._tokenize(step, is_scored=is_scored)

            return await self._run(work, self._count_characters(step), fairness_key, deadline)

        first, *others = self._steps(texts)
        tokenized = await tokenize(first)
        for step in others:
            tokenized = tokenized.followed_by(await tokenize(step))
        return tokenized

    async def assemble(
        self,
        tokenized: Tokenized,
        pairs: Sequence[tuple[int, int]],
        *,
        swap: bool,
        fairness_key: Hashable,
        deadline: Deadline,
    ) -> list[tuple[Encoding, ...]]:
        """Return the sequences of each pair of responses, in one or both orders."""

        def work() -> list[tuple[Encoding, ...]]:
            return [self.encoder.assemble(tokenized, a, b, swap=swap) for a, b in pairs]

        return await self._run(work, PAIR_CHARACTERS * len(pairs), fairness_key, deadline)

    async def _run(
        self,
        work: Callable[[], T],
        characters: int,
        fairness_key: Hashable,
        deadline: Deadline,
        *,
        is_single: bool = False,
    ) -> T:
        with self._metrics.refusals_counted():
            # Thousands of items of a long list may be left when the service stops at once.
            self._refuse_if_closed()
            if self._is_encoded_at_once(characters, is_single=is_single):
                return work()
            return await self.queue.run(work, characters, fairness_key, deadline)

    def _is_encoded_at_once(self, characters: int, *, is_single: bool) -> bool:
        return characters <= SHORT_CHARACTERS and (is_single or self._is_alone())

    def _tokenize(self, texts: Texts, *, is_scored: bool = True) -> Tokenized:
        parts = texts.instruction, texts.prompt, texts.responses
        if is_scored:
            self._metrics.observe_special_tokens(self.encoder.count_special_texts(*parts))
        return self.encoder.tokenize(*parts)

    def _count_characters(self, texts: Texts) -> int:
        return self.encoder.count_characters(texts.instruction, texts.prompt, texts.responses)

    def _steps(self, texts: Texts) -> Iterator[Texts]:
        """Split the responses into steps of at most STEP_CHARACTERS that are read, or of one response.

        Instruction and prompt are in the first step only; what is kept of responses is in all.
        """
        instruction, prompt = texts.instruction, texts.prompt
        step: list[str] = []
        characters = 0
        for response in texts.responses:
            more = self.encoder.count_characters("", "", [response])
            if step and characters + more > STEP_CHARACTERS:
                yield Texts(instruction, prompt, step)
                instruction, prompt = Instruction.of("", kept_under(instruction)), ""
                step, characters = [], 0
            step.append(response)
            characters += more
        yield Texts(instruction, prompt, step)
