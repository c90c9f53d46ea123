"""An engine that computes nothing and returns two equal logits, to measure everything else."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding
from tinyrm.engines.base import cpu_info


class NullEngine:
    """Returns a tie for every comparison. `auto` never chooses it."""

    def __init__(self, precision: str) -> None:
        self.info = cpu_info("null", precision)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        return np.zeros((len(sequences), 2), dtype=np.float32)
