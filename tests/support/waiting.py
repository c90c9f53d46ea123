"""Wait for events: as long as a busy machine may need, and no longer than the watched process lives."""

import time
from collections.abc import Callable
from subprocess import Popen
from typing import Any

# An upper limit that no wait reaches unless something is broken. Nothing here takes a tenth of it on an idle machine.
PATIENCE_S = 150


def wait_until(
    condition: Callable[[], bool], what: str = "what was waited for", *, process: Popen[Any] | None = None
) -> None:
    """Return when `condition` holds. Fail after PATIENCE_S, or as soon as `process` has ended without it."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"process ended with {process.returncode} before {what}")
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_S} s"
        time.sleep(0.01)
