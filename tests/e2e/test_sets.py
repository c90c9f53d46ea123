"""Test sets of different sizes that meet in one real service with several workers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import started
from tinyrm.scorer import Scorer

pytestmark = pytest.mark.slow

SIZES = (2, 16, 3, 1, 32, 5, 2, 24, 7)
GROUPS = [[f"{i} apples, and {'very ' * (i % 5)}few pears." for i in range(size)] for size in SIZES]


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_of_different_widths_reach_their_requests(local_set_bundle_folder: Path, workers: int) -> None:
    scorer = Scorer.open(local_set_bundle_folder)

    def ask(group: list[str]) -> Any:
        reference = {} if len(group) > 1 else {"strategy": "reference", "reference": "Four.", "scale": "unit"}
        reply = service.post("/v1/rewards", {"prompt": "How many?", "responses": group, **reference})
        assert reply.status_code == 200, reply.text
        return reply.json()

    # Small batches of several sets, and a queue that fills.
    with started(local_set_bundle_folder, workers=workers, max_batch_tokens=2048) as service:
        alone = [ask(group) for group in GROUPS]
        with ThreadPoolExecutor(len(GROUPS)) as clients:
            together = list(clients.map(ask, GROUPS * 4))
    assert together == alone * 4, "to the last bit, whatever is in the batch"
    for group, reply in zip(GROUPS, alone, strict=True):
        assert (reply["sets"], reply["usage"]["sequences"]) == (1, 1)
        if len(group) > 1:
            expected = scorer.rank("How many?", group).strengths.values.tolist()
            assert reply["rewards"] == pytest.approx(expected, abs=1e-4)
