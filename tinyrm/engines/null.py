"""An engine that computes nothing and returns equal logits, to measure everything else."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding
from tinyrm.engines.base import cpu_info


class NullEngine:
    """Returns a tie for every comparison. `auto` never chooses it.

    mask_id: of a model that reads sets, which has a logit at every mask; None for any other.
    """

    def __init__(self, precision: str, outputs: int = 2, *, mask_id: int | None = None) -> None:
        self._outputs, self._mask_id = outputs, mask_id
        self.info = cpu_info("null", precision)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        outputs = self._outputs
        if self._mask_id is not None:
            outputs = max(int(np.count_nonzero(sequence.input_ids == self._mask_id)) for sequence in sequences)
        return np.zeros((len(sequences), outputs), dtype=np.float32)
