"""Run `service.engine.worker` with an engine that states the limits of a GPU, without a GPU.

A run with the id TOGETHER in it returns only when another one has begun beside it, so a caller that keeps one run in
flight gets an error.
"""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine import worker as engine
from tinyrm.encoding import Encoding
from tinyrm.engines.base import gpu_info

TOGETHER = 60
TOGETHER_S = 60.0


class GpuEngine:
    """Return a tie for every comparison. together: ids that make a run wait for another run; none: every run waits."""

    def __init__(self, *together: int) -> None:
        self.info = gpu_info("fake-gpu", "bf16", pads=False)
        self.max_tokens = 0
        self._together = together
        self._two = threading.Barrier(2, timeout=TOGETHER_S)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        ids = np.concatenate([sequence.input_ids for sequence in sequences])
        self.max_tokens = max(self.max_tokens, ids.size)
        if not self._together or np.isin(ids, self._together).any():
            self._two.wait()
        return np.zeros((len(sequences), 2), dtype=np.float32)


def main() -> None:
    engine.open_engine = lambda *_, **__: GpuEngine(TOGETHER)  # type: ignore[assignment]
    engine.main()


if __name__ == "__main__":
    main()
