"""An engine that knows nothing and says so at once: two equal logits. For measuring what is around an engine."""

import numpy as np
from numpy.typing import NDArray

from tinyrm.engines.base import cpu_info


class NullEngine:
    """Every comparison is a tie. Never chosen by `auto`."""

    def __init__(self, precision: str) -> None:
        self.info = cpu_info("null", precision)

    def run(self, input_ids: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros((len(input_ids), 2), dtype=np.float32)
