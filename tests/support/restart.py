"""A service that stops in the middle of a rollout and starts again at the same address."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.support.processes import Process, free_port, started
from tests.support.waiting import PATIENCE_S

T = TypeVar("T")


def through_a_restart(
    model: Path,
    work: Callable[[int, Path], T],
    *,
    after: int,
    down_s: float = 1.0,
    within_s: float = PATIENCE_S,
    gives_up: bool = False,
    **settings: object,
) -> T:
    """Return what `work` returns, called with the port of a service that is stopped and started while it runs.

    work: its second argument is a file that is there once the first service has stopped. It must hold a part of its
        requests until then, as tests/support/rollouts.py does for late samples, so that no machine is too slow to stop
        the service in time: these meet a closed port, and only the second service can serve them.
    after: replies to requests for rewards or scores, after which the service is stopped.
    down_s: how long nothing listens, beside the time that the start takes.
    within_s: limit of the work until the stop, and after the second start.
    gives_up: whether the client may have given up before the second one is there.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        stopped = Path(folder) / "stopped"
        try:
            with started(model, port=port, **settings) as first:
                result = thread.submit(work, port, stopped)
                deadline = time.monotonic() + within_s
                while replies(first) < after:
                    assert not result.done(), f"the work was done before the service stopped: {result.result()}"
                    assert time.monotonic() < deadline, f"the service had no {after} requests within {within_s} s"
                    time.sleep(0.01)
                first.stop()
        finally:
            stopped.touch()  # also after a failure, or the work would wait for ever
        time.sleep(down_s)
        with started(model, port=port, **settings) as second:
            done = result.result(within_s)
            assert gives_up or replies(second) > 0
            return done


def replies(process: Process) -> float:
    """Return how many requests for rewards or scores were served, by any path."""
    lines = process.get("/metrics").text.splitlines()
    served = [line for line in lines if line.startswith("tinyrm_requests_total{") and 'status="200"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in served if 'endpoint="other"' not in line)
