"""Score comparisons in this process: encode, run in batches, read out. The service calls the same functions."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tinyrm.batching import pack
from tinyrm.bundle import Bundle
from tinyrm.chat import Prompt, TextOrTurns, to_messages, to_response
from tinyrm.comparison import Comparison, EmptyMode, Preference
from tinyrm.confidence import Temperature, Temperatures
from tinyrm.encoding import Encoder, Encoding, Tokenized
from tinyrm.engines import Engine, EngineOptions, open_engine
from tinyrm.errors import NotPointwise
from tinyrm.places import find
from tinyrm.ranking import Ranking, margin_matrix, place_last, rank, rank_scores, sigmoid
from tinyrm.readout import read_columns, read_out, read_score
from tinyrm.reasoning import Reasoning, is_empty, judged
from tinyrm.schedules import SCHEDULES, Pair
from tinyrm.sets import join, read_set
from tinyrm.spec import Spec


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model on an engine in this process.

        scorer = Scorer.open("models/starter")
        scorer.compare("What is 2 + 2?", "4", "5").preferred

    calibrated: divides margins; that of the bundle unless it was calibrated again.
    max_batch_tokens: tokens of one batch; 0 for the number that suits the engine.
    """

    encoder: Encoder
    engine: Engine
    spec: Spec
    calibrated: Temperatures = field(default_factory=Temperatures)
    max_batch_tokens: int = 0

    @classmethod
    def open(cls, folder: str | Path, engine: str = "auto", *, precision: str = "fp32", threads: int = 0) -> Self:
        """Open a bundle.

        folder: or another place of it: `hf://ORG/NAME@COMMIT`, `https://HOST/NAME.tar.gz#sha256=HEX`.
        engine: name of an engine (tinyrm/engines/registry.py), or `auto` for the fastest that starts on this machine.
        precision: one of the bundle's precisions.
        threads: threads of one run; 0 for all usable processors.

        Raises InvalidInput, InvalidBundle, EngineUnavailable.
        """
        bundle = Bundle.open(find(folder))
        options = EngineOptions(engine, precision, threads)
        manifest = bundle.manifest
        return cls(bundle.encoder(), open_engine(bundle, options), manifest.spec, manifest.calibrated)

    @property
    def temperature(self) -> float:
        """The temperature of domains that have none of their own."""
        return self.calibrated.general.value

    def compare(
        self,
        prompt: TextOrTurns,
        response_a: TextOrTurns,
        response_b: TextOrTurns,
        *,
        domain: str | None = None,
        instruction: str | None = None,
        swap: bool = True,
        reasoning: Reasoning = "keep",
    ) -> Preference:
        """Return which of two responses is better, and with what probability.

        prompt: a text, or chat messages; the responses, too.
        domain: selects the instruction; None selects the model's default domain.
        instruction: replaces the domain's instruction.
        swap: whether to score both orders and average them, so that the first position has no advantage. Only a model
            that reads pairs has orders.
        reasoning: drop if reasoning before a response, between tags such as <think>, must not be judged.

        Raises UnknownDomain, InstructionTooLong, InvalidText, InvalidRequest, EngineFailed.
        """
        prompt, texts = _judged(reasoning, prompt, (response_a, response_b))
        instruction, prompt = self.spec.resolve(prompt, domain, instruction)
        comparison = Comparison(prompt, *texts)
        (preference,) = self.score([comparison], [instruction], domain=domain, swap=swap)
        return preference

    def score(
        self,
        comparisons: Sequence[Comparison],
        instructions: Sequence[str] | None = None,
        *,
        domain: str | Sequence[str | None] | None = None,
        swap: bool = True,
    ) -> list[Preference]:
        """Return one preference for each comparison, in order.

        instructions: one for each comparison; None uses those of `domain`.
        domain: as in `compare`; a list has one for each comparison.
        swap: as in `compare`.
        """
        names = [domain] * len(comparisons) if domain is None or isinstance(domain, str) else domain
        temperatures = [self.calibrated.of(self.spec.find_domain(name)) for name in names]
        if instructions is None:
            instructions = [self.spec.instruction(name) for name in names]
        if self.encoder.reads == "response":
            texts = [
                (instruction, comparison.prompt, response)
                for comparison, instruction in zip(comparisons, instructions, strict=True)
                for response in (comparison.response_a, comparison.response_b)
            ]
            pairs = self.score_texts(texts).reshape(-1, 2, 1)
            return [read_out(pair, temperature) for pair, temperature in zip(pairs, temperatures, strict=True)]
        encoded = [
            self.encoder.encode(comparison, instruction, swap=swap)
            for comparison, instruction in zip(comparisons, instructions, strict=True)
        ]
        rows = iter(self.logits([sequence for sequences in encoded for sequence in sequences]))
        return [
            read_out(read_columns(sequences, np.stack([next(rows) for _ in sequences])), temperature)
            for sequences, temperature in zip(encoded, temperatures, strict=True)
        ]

    def rank(
        self,
        prompt: TextOrTurns,
        responses: Sequence[TextOrTurns],
        *,
        domain: str | None = None,
        instruction: str | None = None,
        strategy: Literal["round_robin", "swiss", "knockout"] = "round_robin",
        swap: bool = True,
        reasoning: Reasoning = "keep",
        empty: EmptyMode = "last",
    ) -> Ranking:
        """Return the strengths and the order of several responses, as `/v1/rank` does.

        strategy: which pairs are compared; see `tinyrm.schedules`. A model that reads responses one by one, or all of
            them at once, scores each once, and compares none.
        empty: whether responses with nothing but white space and special tokens are last, by `ranking.place_last`, or
            judged like the others.

        The other arguments and the errors are those of `compare`.
        """
        prompt, texts = _judged(reasoning, prompt, responses)
        if empty == "last" and (places := [i for i, text in enumerate(texts) if is_empty(text)]):
            others = [text for text in texts if not is_empty(text)]
            ranking = self.rank(prompt, others, domain=domain, instruction=instruction, strategy=strategy, swap=swap)
            return place_last(ranking, places)
        instruction, prompt = self.spec.resolve(prompt, domain, instruction)
        if not texts:
            return rank(np.full((0, 0), np.nan))
        if self.encoder.reads != "pair":
            (scores,) = self.score_groups([(instruction, prompt, texts)])
            return rank_scores(scores, self.calibrated.of(self.spec.find_domain(domain)).value)
        margins: dict[Pair, float] = {}
        schedule = SCHEDULES[strategy](len(texts))
        pairs = next(schedule, [])
        while pairs:
            comparisons = [Comparison(prompt, texts[i], texts[j]) for i, j in pairs]
            preferences = self.score(comparisons, [instruction] * len(pairs), domain=domain, swap=swap)
            margins |= {pair: preference.margin for pair, preference in zip(pairs, preferences, strict=True)}
            try:
                pairs = schedule.send(sigmoid(margin_matrix(len(responses), margins)))
            except StopIteration:
                break
        return rank(margin_matrix(len(responses), margins))

    def score_texts(self, texts: Sequence[tuple[str, str, str]]) -> NDArray[np.float32]:
        """Return the logit [texts] of each instruction, prompt and response; equal texts are scored once.

        Raises NotPointwise for a model whose scores depend on other responses.
        """
        if not self.encoder.scores_alone:
            raise NotPointwise(f"this model reads a {self.encoder.reads} of responses, so none is read alone")
        groups: dict[tuple[str, str], dict[str, None]] = {}
        for instruction, prompt, response in texts:
            groups.setdefault((instruction, prompt), {})[response] = None
        scored = self.score_groups([(*group, list(responses)) for group, responses in groups.items()])
        scores = {
            (*group, response): score
            for (group, responses), own in zip(groups.items(), scored, strict=True)
            for response, score in zip(responses, own.tolist(), strict=True)
        }
        return np.array([scores[text] for text in texts], dtype=np.float32)

    def score_groups(self, groups: Sequence[tuple[str, str, Sequence[str]]]) -> list[NDArray[np.float64]]:
        """Return the logits [responses] of each instruction, prompt and group of responses, for any batches of groups.

        Raises NotPointwise for a model that reads pairs.
        """
        if self.encoder.reads == "pair":
            raise NotPointwise("this model reads a pair of responses, so none is read alone; use rank")
        encoded = [self._encode_each(self.encoder.tokenize(*group)) for group in groups]
        rows = iter(self.logits([sequence for sequences in encoded for sequence in sequences]))
        return [self._read_each(sequences, list(islice(rows, len(sequences)))) for sequences in encoded]

    def score_responses(
        self,
        prompt: TextOrTurns,
        responses: Sequence[TextOrTurns],
        *,
        domain: str | None = None,
        instruction: str | None = None,
        reasoning: Reasoning = "keep",
    ) -> NDArray[np.float64]:
        """Return the logit of each response [responses]: alone, or among these responses if the model reads sets.

        The arguments and the errors are those of `compare`; NotPointwise for a model that reads pairs.
        """
        prompt, texts = _judged(reasoning, prompt, responses)
        instruction, prompt = self.spec.resolve(prompt, domain, instruction)
        (scores,) = self.score_groups([(instruction, prompt, texts)])
        return scores

    def _encode_each(self, texts: Tokenized) -> tuple[Encoding, ...]:
        """Return the sequences in which a model that does not read pairs finds each response."""
        indices = range(len(texts.responses))
        if self.encoder.reads == "set":
            return self.encoder.assemble_sets(texts, indices)
        return tuple(self.encoder.assemble_one(texts, i) for i in indices)

    def _read_each(self, sequences: Sequence[Encoding], rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return the score of each response from the logits of these sequences. Raises EngineFailed."""
        if self.encoder.reads == "set":
            sets = [read_set(row, sequence.columns) for sequence, row in zip(sequences, rows, strict=True)]
            return join(sets, overlapping=not self.encoder.scores_alone)
        return np.array([read_score(row[None]) for row in rows])

    def at(self, temperature: float) -> Self:
        """Return this scorer with another temperature, for all domains."""
        return replace(self, calibrated=Temperatures(Temperature(temperature)))

    def logits(
        self, sequences: Sequence[Encoding], on_batch: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return logits, in order: [sequences, 2], [sequences, 1] of a model that reads responses one by one.

        Of a model that reads sets: [sequences, responses], with zeros behind those of a smaller set.

        on_batch: called with the number of sequences after each batch.
        """
        width = {"pair": 2, "response": 1}.get(self.encoder.reads) or max(
            map(self.encoder.count_scores, sequences), default=1
        )
        logits = np.zeros((len(sequences), width), dtype=np.float32)
        lengths = [len(sequence) for sequence in sequences]
        batches = pack(lengths, self.max_batch_tokens or self.engine.info.max_batch_tokens)

        def run(indices: list[int]) -> NDArray[np.float32]:
            return self.engine.run([sequences[i] for i in indices])

        with ThreadPoolExecutor(self.engine.info.runs_in_flight, thread_name_prefix="engine") as pool:
            for indices, rows in zip(batches, pool.map(run, batches), strict=True):
                logits[indices, : rows.shape[1]] = rows
                if on_batch:
                    on_batch(len(indices))
        return logits


def _judged(
    reasoning: Reasoning, prompt: TextOrTurns, responses: Sequence[TextOrTurns]
) -> tuple[Prompt, Sequence[str]]:
    """Return the prompt and the texts of the responses as they are judged; an empty text stays empty."""
    texts = [response if isinstance(response, str) else to_response(response) for response in responses]
    return judged(reasoning, prompt if isinstance(prompt, str) else to_messages(prompt), texts)


def load(folder: str | Path, engine: str = "auto", *, precision: str = "fp32", threads: int = 0) -> Scorer:
    """Open the bundle in `folder` to score in this process. Arguments and errors are those of `Scorer.open`."""
    return Scorer.open(folder, engine, precision=precision, threads=threads)
