"""Score shards with a bundle: encode, run and read out their rows. The same in one process and on many machines."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tinyrm.bulk.parquet import Row, Score, ShardStats, make_table
from tinyrm.bulk.rows import parse_fields, parse_pair
from tinyrm.bulk.sources import Reader, Shard
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.counting import flop_counter
from tinyrm.encoding import Encoder
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.errors import EngineFailed, InvalidBundle, InvalidInput, InvalidRequest
from tinyrm.readout import read_columns, read_out
from tinyrm.reasoning import Reasoning, judged
from tinyrm.scorer import Scorer
from tinyrm.spec import Spec


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Encodes rows: each as two sequences, which are both orders of a pair, or both responses, or as a set of both.

    domain: of rows that do not set one; None for the model's default.
    instruction: of rows that do not set one; None for that of the domain.
    reasoning: whether it is judged with the responses.

    Raises UnknownDomain, InstructionTooLong.
    """

    encoder: Encoder
    spec: Spec
    domain: str | None = None
    instruction: str | None = None
    reasoning: Reasoning = "keep"

    def __post_init__(self) -> None:
        instruction, _ = self.spec.resolve("", self.domain, self.instruction)
        if self.instruction == "":
            raise InvalidInput("the instruction is empty; leave it out to use the domain's own")
        self.encoder.encode(Comparison("prompt", "a", "b"), instruction)

    def encode(self, number: int, raw: Any) -> Row:
        """Encode a line, or the columns of a Parquet row. An error of the row becomes the row's result."""
        name = None
        try:
            # Both orders are scored, whatever `swap` of a row is.
            fields = {key: value for key, value in parse_fields(raw).items() if key != "swap"}
            if (given := fields.get("id")) is not None:
                name = _printable(given if isinstance(given, str) else json.dumps(given, default=str))
            pair = parse_pair(fields)
            texts = {name: getattr(pair, name) for name in ("prompt", "response_a", "response_b", "instruction")}
            empty = [name for name, text in texts.items() if text == ""]
            if empty:
                raise InvalidRequest(f"{empty[0]}: an empty text")
            domain = self.spec.find_domain(self.domain if pair.domain is None else pair.domain)
            prompt, responses = judged(self.reasoning, pair.prompt, (pair.response_a, pair.response_b))
            instruction, text = self.spec.resolve(
                prompt,
                domain,
                self.instruction if pair.instruction is None else pair.instruction,
            )
            comparison = Comparison(text, *responses)
            sequences = self.encoder.encode(comparison, instruction, swap=True)
            return Row(number, name, domain, sequences, self.encoder.truncation(sequences))
        except InvalidInput as error:
            return Row(number, name, error=error.type, error_message=_printable(str(error)))


def _printable(text: str) -> str:
    """Return text that UTF-8 can represent: a lone surrogate becomes its escape."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class BundleJob:
    """How to score every row.

    threads: of the engine; 0 for all processors.
    domain: of rows that do not set one.
    instruction: of rows that do not set one.
    reasoning: whether it is judged with the responses.
    model: the identity that the bundle must have; empty for any.
    """

    bundle: Path
    out: Path
    engine: str = "auto"
    precision: str = "fp32"
    threads: int = 0
    domain: str | None = None
    instruction: str | None = None
    reasoning: Reasoning = "keep"
    model: str = ""

    def open_bundle(self) -> Bundle:
        """Open the bundle. Raises InvalidBundle, also if it holds another model than the job's."""
        bundle = Bundle.open(self.bundle)
        if self.model not in ("", bundle.manifest.identity):
            raise InvalidBundle(f"{self.bundle} is {bundle.manifest.identity} here; the job needs {self.model}")
        return bundle

    def row_encoder(self, bundle: Bundle) -> RowEncoder:
        """Return an encoder with the job's options. Raises UnknownDomain, InstructionTooLong."""
        return RowEncoder(bundle.encoder(), bundle.manifest.spec, self.domain, self.instruction, self.reasoning)


@dataclass
class ShardScorer:
    """An open bundle and a running engine. Raises InvalidBundle, UnknownDomain, EngineUnavailable."""

    job: BundleJob
    _reader: Reader = field(default_factory=Reader)

    def __post_init__(self) -> None:
        job, self.bundle = self.job, self.job.open_bundle()
        manifest = self.bundle.manifest
        self._rows = job.row_encoder(self.bundle)
        engine = open_engine(self.bundle, EngineOptions(job.engine, job.precision, job.threads))
        self._scorer = Scorer(self._rows.encoder, engine, manifest.spec, manifest.calibrated)
        self._flops = flop_counter(manifest.geometry, manifest.head, manifest.special_tokens)

    @property
    def engine(self) -> str:
        return self._scorer.engine.info.name

    def read(self, shard: Shard) -> list[Row]:
        """Read and encode a shard's rows. Only one thread at a time may call it. Raises InvalidInput."""
        return [self._rows.encode(number, raw) for number, raw in enumerate(self._reader.read(shard), shard.first_row)]

    def score(
        self, shard: Shard, rows: Sequence[Row], on_batch: Callable[[int], None] | None = None
    ) -> tuple[pa.Table, ShardStats]:
        """Return the shard's table and counts. Raises EngineFailed.

        on_batch: called with the number of sequences after each batch.
        """
        sequences = [sequence for row in rows for sequence in row.sequences]
        logits = iter(self._scorer.logits(sequences, on_batch))

        def read(row: Row) -> Score:
            own = read_columns(row.sequences, np.stack([next(logits) for _ in row.sequences]))
            return own, read_out(own, self._scorer.calibrated.of(row.domain))

        try:
            scores = [read(row) if row.sequences else None for row in rows]
        except EngineFailed as error:
            raise EngineFailed(f"{self.engine}: {error}; these rows were not written") from error
        stats = ShardStats(
            rows=len(rows),
            errors=sum(row.error is not None for row in rows),
            tokens=sum(map(len, sequences)),
            flops=sum(map(self._flops, sequences)),
        )
        return make_table(shard, self.bundle.manifest.identity, rows, scores), stats
