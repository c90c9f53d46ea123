"""POST /v1/tokens."""

from typing import Annotated

from pydantic import ConfigDict, Field

from tinyrm.api.base import MAX_RESPONSES, Reply
from tinyrm.api.compare import PromptRequest
from tinyrm.api.group import GROUP_EXAMPLE
from tinyrm.api.texts import Draft, Member


class TokensRequest(PromptRequest):
    """How many tokens do a prompt and responses have, and do they fit? Texts may be empty, as while they are typed."""

    model_config = ConfigDict(json_schema_extra={"examples": [GROUP_EXAMPLE]})

    prompt: Draft = Field(description="As in /v1/compare; it may be empty.")
    responses: Annotated[list[Member], Field(min_length=1, max_length=MAX_RESPONSES, fail_fast=True)] = Field(
        description="Texts or messages; they may be empty."
    )


class DroppedTokens(Reply):
    """Tokens that would be dropped to fit the model, as in the reply to a comparison."""

    prompt: int = Field(description="In the sequence where the prompt loses most.")
    responses: list[int] = Field(description="Of each response, in the sequence where it loses most.")


class TokensReply(Reply):
    """The tokens of each text before truncation, as the model reads it.

    Exact for a text of up to 16 characters for each token of `max_tokens`. A longer text is not read as a whole, and
    has at least this many tokens.
    """

    model: str = Field(description="name@revision of the model that would read them.")
    max_tokens: int = Field(description="Most tokens of a sequence; of a set, of its prompt with any one response.")
    prompt: int = Field(description="Tokens of the prompt.")
    responses: list[int] = Field(description="Tokens of each response, in the order of the request.")
    longest_sequence: int = Field(
        description="Tokens, before truncation, of the longest sequence that comparing or ranking these would read, "
        "with instruction and template: prompt and two responses for a model that reads pairs, prompt and one response "
        "for any other, as `max_tokens` counts them."
    )
    truncated: DroppedTokens = Field(description="Tokens that the model would not read.")
