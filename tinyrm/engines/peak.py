"""What this machine's matrix products reach, the limit that useful work is measured against."""

import time

import numpy as np

SIZE = 1024
RUNS = 5


def matrix_product_gflops_per_s() -> float:
    """Best of a few fp32 products of 1024 x 1024, about 10 ms each on two cores."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((SIZE, SIZE), dtype=np.float32) for _ in range(2))
    best = min(_seconds(a, b) for _ in range(RUNS))
    return 2 * SIZE**3 / best / 1e9


def _seconds(a: np.ndarray, b: np.ndarray) -> float:
    started = time.perf_counter()
    a @ b
    return time.perf_counter() - started
