"""How long a start takes, part by part, from the start of the process."""

import os
import time
from pathlib import Path


class Phases:
    """Seconds of each phase of a start, in order. The first begins when the process was started."""

    def __init__(self) -> None:
        self._last_s = self._first_s = time.monotonic() - age_s()
        self._ended: dict[str, float] = {}

    def end(self, name: str) -> None:
        """End a phase; the next one begins."""
        now = time.monotonic()
        self._ended[name] = now - self._last_s
        self._last_s = now

    def for_log(self) -> dict[str, float]:
        """Return `start_s`, and `NAME_s` for each phase, in seconds."""
        total = {"start": self._last_s - self._first_s}
        return {f"{name}_s": round(seconds, 3) for name, seconds in (total | self._ended).items()}


def age_s() -> float:
    """Return the seconds since this process was started; 0 where /proc does not show it."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the boot, as CLOCK_BOOTTIME counts
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
