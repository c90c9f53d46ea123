"""Comparisons in, preferences out: render, encode, collate, run, read out. The service uses the same functions."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tinyrm.batching import collate, pack
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison, Preference
from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines import Engine, open_engine
from tinyrm.readout import read_out


@dataclass(frozen=True, slots=True)
class Scorer:
    """Offline scoring with any engine."""

    encoder: Encoder
    engine: Engine
    temperature: float = 1.0
    max_batch_tokens: int = 0  # 0: what suits the engine

    @classmethod
    def open(cls, folder: Path, engine: str = "auto") -> Self:
        """A scorer over a bundle."""
        bundle = Bundle.open(folder)
        return cls(bundle.encoder(), open_engine(bundle, engine), bundle.manifest.temperature)

    def score(
        self, comparisons: Sequence[Comparison], instructions: Sequence[str], *, swap: bool = True
    ) -> list[Preference]:
        """One preference for each comparison, in order; `swap` reads both orders."""
        readings = [
            reading
            for comparison, instruction in zip(comparisons, instructions, strict=True)
            for reading in self.encoder.encode(comparison, instruction, swap=swap)
        ]
        orders = 2 if swap else 1
        return [read_out(rows, self.temperature) for rows in self.logits(readings).reshape(-1, orders, 2)]

    def logits(self, readings: Sequence[Encoding], seen: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Label logits [readings, 2], in order. seen: told of the readings of each batch that is done."""
        logits = np.empty((len(readings), 2), dtype=np.float32)
        batches = pack(
            [len(reading) for reading in readings], self.max_batch_tokens or self.engine.info.max_batch_tokens
        )

        def run(indices: list[int]) -> NDArray[np.float32]:
            batch = collate([readings[i] for i in indices], self.encoder.special.pad)
            return self.engine.run(batch.input_ids, batch.attention_mask)

        with ThreadPoolExecutor(self.engine.info.runs_in_flight, thread_name_prefix="engine") as pool:
            for indices, rows in zip(batches, pool.map(run, batches), strict=True):
                logits[indices] = rows
                if seen:
                    seen(len(indices))
        return logits
