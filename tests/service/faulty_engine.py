"""`service.engine.worker` with an engine that misbehaves when it reads certain ids: a real process doing real harm."""

import os
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine import worker as engine

RAISES, CRASHES, HANGS, ANSWERS_NAN, GOES_MAD, WRONG_SHAPE = 40, 41, 42, 43, 44, 45


class FaultyEngine:
    """The real engine, until an id is one of those above."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._mad = False
        self.info = real.info

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if (input_ids == CRASHES).any():
            os.abort()
        if (input_ids == HANGS).any():
            time.sleep(3600)
        if (input_ids == RAISES).any():
            raise ValueError("no device")
        logits: NDArray[np.float32] = self._real.run(input_ids, attention_mask)
        if (input_ids == WRONG_SHAPE).any():
            return logits[:, :1]
        self._mad = self._mad or bool((input_ids == GOES_MAD).any())
        logits[(input_ids == ANSWERS_NAN).any(axis=1) | self._mad] = np.nan
        return logits


def main() -> int:
    start = engine.open_engine
    engine.open_engine = lambda *args, **options: FaultyEngine(start(*args, **options))  # type: ignore[assignment]
    return engine.main()


if __name__ == "__main__":
    sys.exit(main())
