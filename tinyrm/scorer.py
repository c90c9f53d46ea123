"""Score comparisons in this process: encode, run in batches, read out. The service calls the same functions."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tinyrm import starter
from tinyrm.batching import pack
from tinyrm.bundle import Bundle
from tinyrm.chat import TextOrTurns, to_response
from tinyrm.comparison import Comparison, Preference
from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines import Engine, EngineOptions, open_engine
from tinyrm.errors import EngineFailed
from tinyrm.ranking import Ranking, margin_matrix, rank, rank_scores, sigmoid
from tinyrm.readout import read_out
from tinyrm.schedules import SCHEDULES, Pair
from tinyrm.spec import Spec


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model on an engine in this process.

        scorer = Scorer.open("models/starter")
        scorer.compare("What is 2 + 2?", "4", "5").preferred

    temperature: divides margins; that of the bundle unless it was calibrated again.
    max_batch_tokens: tokens of one batch; 0 for the number that suits the engine.
    """

    encoder: Encoder
    engine: Engine
    spec: Spec
    temperature: float = 1.0
    max_batch_tokens: int = 0

    @classmethod
    def open(cls, folder: str | Path, engine: str = "auto", *, precision: str = "fp32", threads: int = 0) -> Self:
        """Open the bundle in `folder`.

        engine: name of an engine (tinyrm/engines/registry.py), or `auto` for the fastest that starts on this machine.
        precision: one of the bundle's precisions.
        threads: threads of one run; 0 for all usable processors.

        Raises InvalidBundle, EngineUnavailable.
        """
        bundle = Bundle.open(starter.resolve(folder))
        options = EngineOptions(engine, precision, threads)
        manifest = bundle.manifest
        return cls(bundle.encoder(), open_engine(bundle, options), manifest.spec, manifest.temperature)

    def compare(
        self,
        prompt: TextOrTurns,
        response_a: TextOrTurns,
        response_b: TextOrTurns,
        *,
        domain: str | None = None,
        instruction: str | None = None,
        swap: bool = True,
    ) -> Preference:
        """Return which of two responses is better, and with what probability.

        prompt: a text, or chat messages; the responses, too.
        domain: selects the instruction; None selects the model's default domain.
        instruction: replaces the domain's instruction.
        swap: whether to score both orders and average them, so that the first position has no advantage. A model that
            reads responses one by one has no orders.

        Raises UnknownDomain, InstructionTooLong, InvalidText, InvalidRequest, EngineFailed.
        """
        instruction, prompt = self.spec.resolve(prompt, domain, instruction)
        comparison = Comparison(prompt, _text(response_a), _text(response_b))
        (preference,) = self.score([comparison], [instruction], swap=swap)
        return preference

    def score(
        self,
        comparisons: Sequence[Comparison],
        instructions: Sequence[str] | None = None,
        *,
        domain: str | None = None,
        swap: bool = True,
    ) -> list[Preference]:
        """Return one preference for each comparison, in order.

        instructions: one for each comparison; None uses the instruction of `domain` for all.
        domain: as in `compare`.
        swap: as in `compare`.
        """
        if instructions is None:
            instructions = [self.spec.instruction(domain)] * len(comparisons)
        if self.encoder.reads == "response":
            texts = [
                (instruction, comparison.prompt, response)
                for comparison, instruction in zip(comparisons, instructions, strict=True)
                for response in (comparison.response_a, comparison.response_b)
            ]
            return [read_out(pair, self.temperature) for pair in self.score_texts(texts).reshape(-1, 2, 1)]
        sequences = [
            sequence
            for comparison, instruction in zip(comparisons, instructions, strict=True)
            for sequence in self.encoder.encode(comparison, instruction, swap=swap)
        ]
        if self.encoder.reads == "set":
            return [read_out(pair, self.temperature) for pair in self.logits(sequences).reshape(-1, 2, 1)]
        orders = 2 if swap else 1
        return [read_out(rows, self.temperature) for rows in self.logits(sequences).reshape(-1, orders, 2)]

    def rank(
        self,
        prompt: TextOrTurns,
        responses: Sequence[TextOrTurns],
        *,
        domain: str | None = None,
        instruction: str | None = None,
        strategy: Literal["round_robin", "swiss", "knockout"] = "round_robin",
        swap: bool = True,
    ) -> Ranking:
        """Return the strengths and the order of several responses, as `/v1/rank` does.

        strategy: which pairs are compared; see `tinyrm.schedules`. A model that reads responses one by one scores each
            once, and compares none.

        The other arguments and the errors are those of `compare`.
        """
        if self.encoder.reads == "response":
            scores = self.score_responses(prompt, responses, domain=domain, instruction=instruction)
            return rank_scores(scores, self.temperature)
        instruction, prompt = self.spec.resolve(prompt, domain, instruction)
        texts = [_text(response) for response in responses]
        margins: dict[Pair, float] = {}
        schedule = SCHEDULES[strategy](len(responses))
        pairs = next(schedule, [])
        while pairs:
            comparisons = [Comparison(prompt, texts[i], texts[j]) for i, j in pairs]
            preferences = self.score(comparisons, [instruction] * len(pairs), swap=swap)
            margins |= {pair: preference.margin for pair, preference in zip(pairs, preferences, strict=True)}
            try:
                pairs = schedule.send(sigmoid(margin_matrix(len(responses), margins)))
            except StopIteration:
                break
        return rank(margin_matrix(len(responses), margins))

    def score_texts(self, texts: Sequence[tuple[str, str, str]]) -> NDArray[np.float32]:
        """Return the logit [texts] of each instruction, prompt and response; equal texts are scored once.

        For a model that reads responses one by one; InvalidInput for one that reads pairs.
        """
        unique = list(dict.fromkeys(texts))
        rows = self.logits([self.encoder.encode_one(*text) for text in unique])
        places = {text: place for place, text in enumerate(unique)}
        scores: NDArray[np.float32] = rows[[places[text] for text in texts], 0]
        return scores

    def score_responses(
        self,
        prompt: TextOrTurns,
        responses: Sequence[TextOrTurns],
        *,
        domain: str | None = None,
        instruction: str | None = None,
    ) -> NDArray[np.float64]:
        """Return the logit of each response [responses], for a model that reads responses one by one.

        The arguments and the errors are those of `compare`; InvalidInput for a model that reads pairs.
        """
        instruction, prompt = self.spec.resolve(prompt, domain, instruction)
        texts = self.encoder.tokenize(instruction, prompt, [_text(response) for response in responses])
        rows = self.logits([self.encoder.assemble_one(texts, i) for i in range(len(responses))])
        if not np.isfinite(rows).all():
            raise EngineFailed(f"expected finite scores, got {rows.tolist()}")
        return rows[:, 0].astype(np.float64)

    def at(self, temperature: float) -> Self:
        """Return this scorer with another temperature."""
        return replace(self, temperature=temperature)

    def logits(
        self, sequences: Sequence[Encoding], on_batch: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return logits, in order: [sequences, 2], [sequences, 1] of a model that reads responses one by one.

        Of a model that reads sets: [sequences, responses], with zeros behind those of a smaller set.

        on_batch: called with the number of sequences after each batch.
        """
        width = {"pair": 2, "response": 1}.get(self.encoder.reads) or max(map(self.encoder.count_scores, sequences))
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


def _text(response: TextOrTurns) -> str:
    """Return the text of a response; an empty text stays empty."""
    return response if isinstance(response, str) else to_response(response)


def load(folder: str | Path, engine: str = "auto", *, precision: str = "fp32", threads: int = 0) -> Scorer:
    """Open the bundle in `folder` to score in this process. Arguments and errors are those of `Scorer.open`."""
    return Scorer.open(folder, engine, precision=precision, threads=threads)
