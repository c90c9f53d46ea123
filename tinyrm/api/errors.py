"""The body of every error."""

from typing import Self

from pydantic import Field

from tinyrm.api.base import Reply
from tinyrm.errors import TinyRMError

# Errors that do not depend on the request: a later try may succeed.
TRANSIENT = frozenset(("overloaded", "unavailable", "engine_restarting", "shutting_down"))


class ErrorBody(Reply):
    """`type` is stable and meant for programs; `message` describes the error for people."""

    type: str = Field(description="Stable, for programs.")
    message: str = Field(description="What is wrong and what to do, for people.")

    @classmethod
    def of(cls, error: TinyRMError) -> Self:
        return cls(type=error.type, message=str(error))

    @property
    def is_transient(self) -> bool:
        """Whether a later try with the same item may succeed."""
        return self.type in TRANSIENT


class ErrorReply(Reply):
    error: ErrorBody = Field(description="What is wrong.")
