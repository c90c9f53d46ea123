"""How long a request may wait: for a free replica by the settings, for its reply by its own header."""

import time
from dataclasses import dataclass
from typing import Self

from service_ray.asgi import Headers
from tinyrm.api import MAX_TIMEOUT_MS
from tinyrm.deadline import Deadline
from tinyrm.errors import DeadlineExceeded, Unavailable

TIMEOUT_MS = b"x-request-timeout-ms"


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """The two deadlines of one request."""

    reply: Deadline  # from its arrival, by its header; without a valid header, it never passes
    replica: Deadline  # from the end of its body, which may arrive much later
    max_wait_s: float

    @classmethod
    def parse(cls, headers: Headers, max_wait_s: float, arrived_s: float) -> Self:
        """Return the limits of a request whose body is complete now.

        arrived_s: when the request arrived, on the clock of time.monotonic().
        """
        given = dict(headers).get(TIMEOUT_MS, b"")
        # An invalid header is forwarded as it is; the replica replies with the error.
        is_valid = given.isdigit() and len(given) <= len(str(MAX_TIMEOUT_MS)) and 1 <= int(given) <= MAX_TIMEOUT_MS
        reply = Deadline(arrived_s + int(given) / 1e3) if is_valid else Deadline()
        return cls(reply, Deadline(time.monotonic() + max_wait_s), max_wait_s)

    def replica_s(self) -> float:
        """Return the seconds that the request may still wait for a replica: the shorter of the two deadlines."""
        left_s = (self.replica.left_s(), self.reply.left_s())
        return min(seconds for seconds in left_s if seconds is not None)

    def update_headers(self, headers: Headers) -> Headers:
        """Return the headers with the remaining time. Raises DeadlineExceeded if there is none."""
        left_s = self.reply.left_s()
        if left_s is None:
            return headers
        if self.reply.has_passed:
            raise self.error()
        others = [(name, value) for name, value in headers if name != TIMEOUT_MS]
        return [*others, (TIMEOUT_MS, str(max(1, round(left_s * 1e3))).encode())]

    def error(self) -> DeadlineExceeded | Unavailable:
        """Return the error of the deadline that passed."""
        if self.reply.has_passed:
            return DeadlineExceeded("the request's own time limit passed before a replica replied")
        return Unavailable(f"no replica was free within {self.max_wait_s:g} s")
