"""An engine that computes nothing and returns equal logits, to measure everything else."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding
from tinyrm.engines.base import cpu_info


class NullEngine:
    """Returns a tie for every comparison. `auto` never chooses it."""

    def __init__(self, precision: str, outputs: int = 2) -> None:
        self._outputs = outputs
        self.info = cpu_info("null", precision)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        return np.zeros((len(sequences), self._outputs), dtype=np.float32)
