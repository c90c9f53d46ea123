"""How long a request may wait: for a replica as the settings say, for an answer as it says itself."""

import time
from dataclasses import dataclass, field

from service_ray.hosted import Headers
from tinyrm.api import MAX_TIMEOUT_MS
from tinyrm.errors import DeadlineExceeded, Unavailable

TIMEOUT_MS = b"x-request-timeout-ms"


@dataclass(frozen=True, slots=True)
class Patience:
    """own_s: from its arrival, as its header says; None if it says nothing, or nothing sensible.

    max_wait_s: from when it is complete, which a slow sender may make much later.
    """

    max_wait_s: float
    arrived: float
    own_s: float | None = None
    complete: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, headers: Headers, max_wait_s: float, arrived: float) -> "Patience":
        given = dict(headers).get(TIMEOUT_MS, b"")
        # What is no number of milliseconds goes on as it is, and the replica says what is wrong with it.
        is_sensible = given.isdigit() and len(given) <= len(str(MAX_TIMEOUT_MS)) and 1 <= int(given) <= MAX_TIMEOUT_MS
        return cls(max_wait_s, arrived, int(given) / 1e3 if is_sensible else None)

    def left_s(self) -> float | None:
        """Of the request's own time."""
        return None if self.own_s is None else self.own_s - (time.perf_counter() - self.arrived)

    def wait_s(self) -> float:
        """How much longer it may wait for a replica."""
        allowed_s, left_s = self.max_wait_s - (time.perf_counter() - self.complete), self.left_s()
        return allowed_s if left_s is None else min(allowed_s, left_s)

    def passed_on(self, headers: Headers) -> Headers:
        """The headers with what is left. Raises DeadlineExceeded if that is nothing."""
        left_s = self.left_s()
        if left_s is None:
            return headers
        if left_s <= 0:
            raise self.over()
        others = [(name, value) for name, value in headers if name != TIMEOUT_MS]
        return [*others, (TIMEOUT_MS, str(max(1, round(left_s * 1e3))).encode())]

    def over(self) -> DeadlineExceeded | Unavailable:
        """Which of the two it was."""
        left_s = self.left_s()
        if left_s is not None and left_s <= 0:
            return DeadlineExceeded("the request's own time was over before a replica had answered")
        return Unavailable(f"no replica was free within {self.max_wait_s:g} s")
