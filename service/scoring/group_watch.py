"""What is known about cohorts over time: how long they take, and why they are incomplete."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from service.settings import PREFIX

log = structlog.get_logger("tinyrm")

# A trainer whose samples do not meet has hundreds of incomplete cohorts in each step; one line names them all.
WARN_EVERY_S = 60.0

# Weight of the last cohort in the pace of judging.
NEWEST = 0.1

ADVICE_FOR_ONE = (
    f"if the trainer makes one response to a prompt, nothing can be compared with it: serve a model that scores "
    f"responses alone, or set {PREFIX}GROUP_SIZE=1 or ?group_size=1, which returns neutral rewards at once; otherwise "
    f"raise {PREFIX}COHORT_TIMEOUT_S; a client with a limit of connections must send groups together"
)
ADVICE = (
    f"set {PREFIX}GROUP_SIZE or ?group_size= to the trainer's samples of one prompt, {{most}} it seems, or raise "
    f"{PREFIX}COHORT_TIMEOUT_S; a client with a limit of connections must send groups together"
)


@dataclass(slots=True)
class Pace:
    """Measures how long cohorts take, one after another, from those that have been judged."""

    cost: float = 0.0
    seconds: float = 0.0
    last_end: float = -math.inf

    def observe(self, cost: float, started: float, ended: float) -> None:
        """Count one cohort; only its time since the end of the one before is its own."""
        weight = NEWEST if self.cost else 1.0
        self.cost += weight * (cost - self.cost)
        self.seconds += weight * (ended - max(started, self.last_end) - self.seconds)
        self.last_end = ended

    def estimate_s(self, cost: float) -> float:
        """Return the seconds that work of this cost takes; 0 before the first cohort."""
        return cost * self.seconds / self.cost if self.cost else 0.0


class IncompleteLog:
    """Logs that cohorts are incomplete, at most once in WARN_EVERY_S for each source: trainers do not see it.

    timeout_s: of the cohorts.
    clock: seconds, for the pauses.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._warned_at: dict[str, float] = {}
        # By source: how many samples the incomplete cohorts since then had.
        self._since: dict[str, Counter[int]] = {}

    def warn(self, source: str, samples: int, size: int) -> None:
        """Count a cohort that has so many samples instead of `size`, and log it, with those before, if it is time."""
        since, now = self._since.setdefault(source, Counter()), self._clock()
        since[samples] += 1
        if now - self._warned_at.get(source, -math.inf) < WARN_EVERY_S:
            return
        ((most, _),) = since.most_common(1)
        log.warning(
            "incomplete groups",
            dialect=source,
            groups=since.total(),
            samples=most,
            group_size=size,
            advice=f"mostly {most} of {size} samples arrived within {self._timeout_s:g} s: "
            + (ADVICE_FOR_ONE if most == 1 else ADVICE.format(most=most)),
        )
        self._warned_at[source], self._since[source] = now, Counter()
