"""What became of every request that was sent. `lost` is the number that has to be 0."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loadtests.bench.statistics import percentile
from loadtests.wire import Client, NoAnswer, Reply, Unconnected

REFUSALS = (429, 503, 504)
# A refusal that asks to come back says when. A deadline that has passed is the caller's own.
RETRIABLE = (429, 503)


@dataclass(slots=True)
class Tally:
    """sent = answered + refused + failed + lost, once nothing is under way.

    refused: 429, 503, 504. failed: any other status but 200. lost: no HTTP answer at all. unconnected: nobody listened,
    so nothing was sent. seconds: of the answered, from when the request was due.
    """

    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    lost: int = 0
    unconnected: int = 0
    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    slowest_error_s: float = 0

    async def ask(self, client: Client, content: bytes, due: float) -> Reply | None:
        """Send one request and count what comes of it. due: by the performance counter; loops have coarse clocks."""
        self.sent += 1
        try:
            reply = await client.ask(content)
        except Unconnected:
            self.sent -= 1
            self.unconnected += 1
            return None
        except NoAnswer as error:
            self.lost += 1
            self.losses[str(error)] += 1
            return None
        self.count(reply, time.perf_counter() - due)
        return reply

    def count(self, reply: Reply, seconds: float) -> None:
        if reply.status == 200:
            self.answered += 1
            self.seconds.append(seconds)
            return
        self.kinds[f"{reply.status} {error_type(reply)}"] += 1
        self.slowest_error_s = max(self.slowest_error_s, seconds)
        if reply.status in RETRIABLE and not reply.headers.get("retry-after", "").isdigit():
            self.without_retry_after += 1
        if reply.status in REFUSALS:
            self.refused += 1
        else:
            self.failed += 1

    def percentile_s(self, share: float) -> float | None:
        return percentile(self.seconds, share) if self.seconds else None

    def figures(self) -> dict[str, Any]:
        """As the record has them."""
        counts = {name: getattr(self, name) for name in ("sent", "answered", "refused", "failed", "lost")}
        return counts | {
            "unconnected": self.unconnected,
            "p50_s": self.percentile_s(0.5),
            "p99_s": self.percentile_s(0.99),
            "slowest_error_s": self.slowest_error_s,
            "kinds": dict(self.kinds),
            "losses": dict(self.losses),
            "without_retry_after": self.without_retry_after,
        }

    def broken(self) -> list[str]:
        """What no case allows: a lost request, or a refusal that does not say when to come back."""
        found = []
        if self.lost:
            found.append(f"{self.lost} requests lost: {dict(self.losses)}")
        if self.without_retry_after:
            found.append(f"{self.without_retry_after} refusals without Retry-After")
        if self.sent != self.answered + self.refused + self.failed + self.lost:
            found.append("the counts do not add up")
        return found


def error_type(reply: Reply) -> str:
    """The stable type of an error; empty if the body is not one."""
    try:
        return str(json.loads(reply.body)["error"]["type"])
    except (ValueError, KeyError, TypeError):
        return ""
