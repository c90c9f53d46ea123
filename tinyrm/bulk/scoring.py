"""A part of a source -> its table of scores. The same in one process and on many machines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from tinyrm.bulk.output import Done, table_of
from tinyrm.bulk.rows import Row, RowEncoder
from tinyrm.bulk.sources import Part, Reader
from tinyrm.bundle import Bundle
from tinyrm.comparison import Preference
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.errors import EngineFailed, InvalidBundle
from tinyrm.flops import exact_flops
from tinyrm.readout import read_out
from tinyrm.scorer import Scorer

Seen = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of every row. model: the identity that the bundle has to have; empty: any. threads: 0 for all."""

    bundle: Path
    out: Path
    engine: str = "auto"
    precision: str = "fp32"
    threads: int = 0
    domain: str | None = None
    instruction: str | None = None
    model: str = ""

    def open_bundle(self) -> Bundle:
        """Raises InvalidBundle, also if it is another model than the job's."""
        bundle = Bundle.open(self.bundle)
        if self.model not in ("", bundle.manifest.identity):
            raise InvalidBundle(f"{self.bundle} is {bundle.manifest.identity} here, and the job is of {self.model}")
        return bundle

    def row_encoder(self, bundle: Bundle) -> RowEncoder:
        """Raises UnknownDomain, InstructionTooLong."""
        return RowEncoder(bundle.encoder(), bundle.manifest.spec, self.domain, self.instruction)


@dataclass
class PartScorer:
    """An opened bundle and a running engine. Raises what opening them does."""

    job: Job
    _reader: Reader = field(default_factory=Reader)

    def __post_init__(self) -> None:
        job, self.bundle = self.job, self.job.open_bundle()
        self._rows = job.row_encoder(self.bundle)
        engine = open_engine(self.bundle, EngineOptions(job.engine, job.precision, job.threads))
        self._scorer = Scorer(self._rows.encoder, engine, self.bundle.manifest.spec, self.bundle.manifest.temperature)
        # A sum over all layers, and lengths repeat.
        geometry = self.bundle.manifest.geometry
        self._flops = lru_cache(maxsize=16_384)(lambda tokens: exact_flops(geometry, tokens))

    @property
    def engine(self) -> str:
        return self._scorer.engine.info.name

    def encoded(self, part: Part) -> list[Row]:
        """One thread at a time. Raises InvalidInput if the source cannot be read."""
        raw = self._reader.read(part)
        return [self._rows.encode(number, line) for number, line in enumerate(raw, start=part.first_row)]

    def table(self, part: Part, rows: Sequence[Row], seen: Seen | None = None) -> tuple[pa.Table, Done]:
        """seen: called with the number of sequences after each batch. Raises EngineFailed."""
        readings = [reading for row in rows for reading in row.readings]
        logits = self._scorer.logits(readings, seen).reshape(-1, 2, 2)
        scored = iter(zip(logits, map(self._preference, logits), strict=True))
        scores = [next(scored) if row.readings else None for row in rows]
        done = Done(
            rows=len(rows),
            errors=sum(row.error is not None for row in rows),
            tokens=sum(map(len, readings)),
            flops=sum(self._flops(len(reading)) for reading in readings),
        )
        return table_of(part, self.bundle.manifest.identity, rows, scores), done

    def _preference(self, logits: np.ndarray) -> Preference:
        try:
            return read_out(logits, self._scorer.temperature)
        except EngineFailed as error:
            raise EngineFailed(f"{self.engine}: {error}; nothing of this part is written") from error
