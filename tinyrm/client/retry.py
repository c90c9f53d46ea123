"""When a call is tried again, and after how long."""

from typing import TypedDict

from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from tinyrm.client.wire import Deadline
from tinyrm.errors import ServiceBusy, ServiceUnreachable

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0


class Policy(TypedDict):
    """Arguments of tenacity's Retrying and AsyncRetrying alike."""

    retry: retry_base
    stop: stop_base
    wait: wait_base
    reraise: bool


class _Pause(wait_base):
    """Random, up to twice as long each time ("full jitter"): clients that failed together do not come back together.

    What the service asked for in Retry-After comes first, and the random part on top of it.
    """

    def __init__(self) -> None:
        self._jitter = wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, ServiceBusy) else None
        return (asked_s or 0.0) + self._jitter(state)


def policy(max_retries: int, deadline: Deadline) -> Policy:
    """No try begins after the deadline: with less time left than the pause would take, the last error is raised."""
    return Policy(
        retry=retry_if_exception_type((ServiceBusy, ServiceUnreachable)),
        stop=stop_after_attempt(1 + max_retries) | stop_before_delay(deadline.left_s()),
        wait=_Pause(),
        reraise=True,
    )
