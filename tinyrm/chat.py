"""Dialogues: a chat message, as every part of the product has it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic does not accept typing.TypedDict before Python 3.12


@with_config(ConfigDict(extra="forbid"))
class Message(TypedDict):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]
