"""A point in time that a whole operation must meet, however many steps it takes."""

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time.

    at_s: on the clock of time.monotonic(); None never passes.
    """

    at_s: float | None = None

    @classmethod
    def after(cls, timeout_s: float | None) -> Self:
        """Return the deadline `timeout_s` from now; None never passes."""
        return cls(None if timeout_s is None else time.monotonic() + timeout_s)

    def left_s(self) -> float | None:
        """Return the seconds left, at least 0; None without a limit. Suits asyncio.timeout and socket timeouts."""
        return None if self.at_s is None else max(0.0, self.at_s - time.monotonic())

    @property
    def has_passed(self) -> bool:
        return self.left_s() == 0.0
