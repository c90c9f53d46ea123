"""Run `service.engine.worker` with an engine that fails at certain ids: a real process with real faults."""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine import worker as engine
from tinyrm.encoding import Encoding

RAISES, CRASHES, HANGS, ANSWERS_NAN, GOES_MAD, WRONG_SHAPE = 40, 41, 42, 43, 44, 45


class FaultyEngine:
    """The real engine, until an id is one of the ids above."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._mad = False
        self.info = real.info

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        ids = set(np.concatenate([sequence.input_ids for sequence in sequences]).tolist())
        if CRASHES in ids:
            os.abort()
        if HANGS in ids:
            time.sleep(3600)
        if RAISES in ids:
            raise ValueError("no device")
        logits: NDArray[np.float32] = self._real.run(sequences)
        if WRONG_SHAPE in ids:
            return logits[:, :1]
        self._mad = self._mad or GOES_MAD in ids
        logits[[self._mad or ANSWERS_NAN in sequence.input_ids for sequence in sequences]] = np.nan
        return logits


def main() -> None:
    start = engine.open_engine
    engine.open_engine = lambda *args, **options: FaultyEngine(start(*args, **options))  # type: ignore[assignment]
    engine.main()


if __name__ == "__main__":
    main()
