"""Load with a page in the browser: locust -f loadtests/locustfile.py --host http://127.0.0.1:8000

LOCUST_PAIRS names a file of preference pairs; without it, texts are synthetic if data/validation.jsonl.gz is absent.
"""

import os
from pathlib import Path

from locust import HttpUser, between, task

from loadtests.payloads import BATCH, COMPARE, VALIDATION, read_payloads


class Trainer(HttpUser):
    """Sends single comparisons, and a batch for one in ten. The page lists refusals by their status."""

    wait_time = between(0.05, 0.5)

    def on_start(self) -> None:
        self.comparisons = read_payloads(Path(os.environ.get("LOCUST_PAIRS", VALIDATION))).comparisons
        self.place = id(self) % len(self.comparisons)

    @task(9)
    def compare(self) -> None:
        self.client.post(COMPARE, json=self.next(1)[0])

    @task(1)
    def batch(self) -> None:
        self.client.post(BATCH, json={"items": self.next(8)})

    def next(self, count: int) -> list[dict[str, object]]:
        chosen = [self.comparisons[(self.place + offset) % len(self.comparisons)] for offset in range(count)]
        self.place += count
        return chosen
