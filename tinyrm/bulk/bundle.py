"""Score shards with a bundle: rows are encoded, run and read out. The same in one process and on many machines."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from tinyrm.bulk.parquet import Row, ShardStats, make_table
from tinyrm.bulk.rows import PairRow, parse_fields, validate
from tinyrm.bulk.sources import Reader, Shard
from tinyrm.bundle import Bundle
from tinyrm.chat import Message
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.errors import EngineFailed, InvalidBundle, InvalidInput, InvalidRequest
from tinyrm.flops import exact_flops
from tinyrm.readout import read_out
from tinyrm.scorer import Scorer
from tinyrm.spec import ClozeSpec

MESSAGES = TypeAdapter(list[Message])


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Encodes rows in both orders.

    domain, instruction: of rows that do not set them. Raises UnknownDomain, InstructionTooLong if they fit no row.
    """

    encoder: Encoder
    spec: ClozeSpec
    domain: str | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        instruction, _ = self.spec.resolve("", self.domain, self.instruction)
        if not instruction:
            raise InvalidInput("an empty instruction; leave it out, and the domain's own is used")
        self.encoder.encode(Comparison("prompt", "a", "b"), instruction)

    def encode(self, number: int, raw: Any) -> Row:
        """Encode a line, or the columns of a Parquet row. An error of the row becomes the row's result."""
        name = None
        try:
            # Both orders are scored, whatever a row says of swap. Columns of a table may be null.
            fields = {key: value for key, value in parse_fields(raw).items() if value is not None and key != "swap"}
            if (given := fields.get("id")) is not None:
                name = _printable(given if isinstance(given, str) else json.dumps(given, default=str))
            return Row(number, name, self._encode(fields))
        except InvalidInput as error:
            return Row(number, name, (), error.type, _printable(str(error)))

    def _encode(self, fields: dict[str, Any]) -> tuple[Encoding, ...]:
        pair: PairRow = validate(PairRow.model_validate, fields)
        given = pair.prompt if isinstance(pair.prompt, str) else _messages(pair.prompt)
        texts = {"response_a": pair.response_a, "response_b": pair.response_b, "instruction": pair.instruction}
        empty = [name for name, text in {"prompt": given, **texts}.items() if text in ("", [])]
        if empty:
            raise InvalidRequest(f"{empty[0]}: an empty text")
        instruction, prompt = self.spec.resolve(
            given,
            self.domain if pair.domain is None else pair.domain,
            self.instruction if pair.instruction is None else pair.instruction,
        )
        return self.encoder.encode(Comparison(prompt, pair.response_a, pair.response_b), instruction, swap=True)


def _messages(messages: list[dict[str, Any]]) -> list[Message]:
    # In a Parquet column every message has the keys of all.
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    validated: list[Message] = validate(MESSAGES.validate_python, given, "prompt")
    return validated


def _printable(text: str) -> str:
    """Return text that UTF-8 can write: a lone surrogate becomes its escape."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class BundleJob:
    """What is done with every row.

    threads: of the engine; 0 for all processors.
    model: the identity that the bundle must have; empty for any.
    """

    bundle: Path
    out: Path
    engine: str = "auto"
    precision: str = "fp32"
    threads: int = 0
    domain: str | None = None
    instruction: str | None = None
    model: str = ""

    def open_bundle(self) -> Bundle:
        """Open the bundle. Raises InvalidBundle, also if it is another model than the job's."""
        bundle = Bundle.open(self.bundle)
        if self.model not in ("", bundle.manifest.identity):
            raise InvalidBundle(f"{self.bundle} is {bundle.manifest.identity} here; the job is of {self.model}")
        return bundle

    def row_encoder(self, bundle: Bundle) -> RowEncoder:
        """Raises UnknownDomain, InstructionTooLong."""
        return RowEncoder(bundle.encoder(), bundle.manifest.spec, self.domain, self.instruction)


@dataclass
class ShardScorer:
    """An open bundle and a running engine. Raises what opening them raises."""

    job: BundleJob
    _reader: Reader = field(default_factory=Reader)

    def __post_init__(self) -> None:
        job, self.bundle = self.job, self.job.open_bundle()
        manifest = self.bundle.manifest
        self._rows = job.row_encoder(self.bundle)
        engine = open_engine(self.bundle, EngineOptions(job.engine, job.precision, job.threads))
        self._scorer = Scorer(self._rows.encoder, engine, manifest.spec, manifest.temperature)
        # A sum over all layers, and lengths repeat.
        self._flops = lru_cache(maxsize=16_384)(lambda tokens: exact_flops(manifest.geometry, tokens))

    @property
    def engine(self) -> str:
        return self._scorer.engine.info.name

    def read(self, shard: Shard) -> list[Row]:
        """Read and encode a shard's rows, in one thread at a time. Raises InvalidInput."""
        return [self._rows.encode(number, raw) for number, raw in enumerate(self._reader.read(shard), shard.first_row)]

    def score(
        self, shard: Shard, rows: Sequence[Row], on_batch: Callable[[int], None] | None = None
    ) -> tuple[pa.Table, ShardStats]:
        """Return the shard's table and counts. Raises EngineFailed.

        on_batch: called with the number of sequences after each batch.
        """
        sequences = [sequence for row in rows for sequence in row.sequences]
        logits = self._scorer.logits(sequences, on_batch).reshape(-1, 2, 2)
        try:
            scored = iter([(both, read_out(both, self._scorer.temperature)) for both in logits])
        except EngineFailed as error:
            raise EngineFailed(f"{self.engine}: {error}; nothing of these rows is written") from error
        stats = ShardStats(
            rows=len(rows),
            errors=sum(row.error is not None for row in rows),
            tokens=sum(map(len, sequences)),
            flops=sum(self._flops(len(sequence)) for sequence in sequences),
        )
        scores = [next(scored) if row.sequences else None for row in rows]
        return make_table(shard, self.bundle.manifest.identity, rows, scores), stats
