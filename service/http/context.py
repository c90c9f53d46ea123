"""The state that middleware, handler and access log share about one request."""

import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from service.metrics import CLIENT_LEFT


@dataclass(slots=True)
class RequestStats:
    """Figures of one request for the access log and the trace."""

    status: int = CLIENT_LEFT  # of the reply, once it has begun
    items: int = 0
    tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # seconds by stage, of the slowest comparison
    ended_ns: int = 0  # when the slowest comparison ended

    def add(self, tokens: int, stages: dict[str, float]) -> None:
        """Count one comparison."""
        self.tokens += tokens
        if stages["total"] > self.stages.get("total", 0):
            self.stages, self.ended_ns = stages, time.time_ns()


@dataclass(slots=True)
class RequestContext:
    """The state of one request."""

    started_s: float = field(default_factory=time.monotonic)
    client_id: str | None = None  # the name of its API key, if keys are required
    refusal: str | None = None  # why its connection refuses it: a type of service.errors.REFUSALS
    is_forwarded: bool = False  # another process replied, and counts and logs the request
    is_partial: bool = False  # its reply holds a reward without all responses of its group
    is_whole: bool = False  # its body has arrived, so that reading it takes no time
    has_left: bool = False  # its client has disconnected
    on_leave: Callable[[], None] | None = None  # called when that happens
    stats: RequestStats = field(default_factory=RequestStats)

    def leave(self) -> None:
        """Note that the client has disconnected."""
        self.has_left = True
        if self.on_leave:
            self.on_leave()


def find_header(scope: Mapping[str, Any], name: bytes) -> str | None:
    """Return the first header of this name, which is in lower case. Cheaper than `Headers`, which makes an object."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def get_context(scope: MutableMapping[str, Any]) -> RequestContext:
    """Return the context of the request; the first caller creates it."""
    state = scope.setdefault("state", {})
    if "context" not in state:
        state["context"] = RequestContext()
    context: RequestContext = state["context"]
    return context
