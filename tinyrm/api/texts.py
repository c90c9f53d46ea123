"""The prompts and responses of requests: texts, or chat messages as in OpenAI's API."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from tinyrm import chat
from tinyrm.api.base import NonEmpty, is_unicode, refuse_unknown_keys
from tinyrm.chat import LIST, TEXT, ChatMessage, Message, text_branch
from tinyrm.errors import InvalidInput

# Of one dialogue. Each takes ten microseconds to read, and no model reads the text of so many.
MAX_MESSAGES = 10_000
MESSAGE_KEYS = frozenset(ChatMessage.__annotations__)
PLAIN_KEYS = frozenset(("role", "content"))
MESSAGE_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


def _read_draft(message: Any, validate: ValidatorFunctionWrapHandler) -> tuple[chat.Speaker, str]:
    """Return the speaker and the text, which may be empty.

    A message of a role and a text is not validated field by field, which would take many times as long as parsing the
    body. Any other one is, also in fields that are not read: what the OpenAPI document forbids is refused.

    Raises PydanticCustomError, so that the error names the place of the message.
    """
    is_plain = (
        type(message) is dict
        and message.keys() == PLAIN_KEYS
        and type(message["content"]) is str
        and type(message["role"]) is str
        and message["role"] in MESSAGE_ROLES
    )
    if not is_plain:
        validate(refuse_unknown_keys(message, MESSAGE_KEYS))
    try:
        speaker, text = chat.read_turn(message)
    except InvalidInput as error:
        raise PydanticCustomError("message", "{reason}", {"reason": str(error)}) from None
    if not is_unicode(text):
        raise PydanticCustomError("string_unicode", "half of a surrogate pair is no valid text")
    return speaker, text


def _read_message(message: Any, validate: ValidatorFunctionWrapHandler) -> tuple[chat.Speaker, str]:
    """Return the same. Only the assistant and tools may be silent: theirs may be a call, or no result."""
    speaker, text = _read_draft(message, validate)
    if not text and speaker not in ("assistant", "tool"):
        raise PydanticCustomError("message", "a message of the {speaker} must have a text", {"speaker": speaker})
    return speaker, text


def _read_texts(turns: list[tuple[chat.Speaker, str]]) -> list[Message] | str:
    return [chat.to_message(speaker, text) for speaker, text in turns if text] or ""


def _read_prompt(turns: list[tuple[chat.Speaker, str]]) -> list[Message] | str:
    if not (messages := _read_texts(turns)):
        raise PydanticCustomError("messages", "no message has a text")
    return messages


def _read_member(turns: list[tuple[chat.Speaker, str]]) -> str:
    if any(speaker in ("system", "user") for speaker, _ in turns):
        raise PydanticCustomError(
            "messages", "a response has messages of the assistant and of its tools; others belong to the prompt"
        )
    return chat.join_turns(turns)


def _read_response(turns: list[tuple[chat.Speaker, str]]) -> str:
    if not (text := _read_member(turns)):
        raise PydanticCustomError("messages", "no message has a text")
    return text


if TYPE_CHECKING:  # what is left after validation
    Prompt = str | list[Message]
    Draft = str | list[Message]
    Response = str
    Member = str
else:
    Turns = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    Messages = Annotated[list[Annotated[ChatMessage, WrapValidator(_read_message)]], Turns]
    Drafts = Annotated[list[Annotated[ChatMessage, WrapValidator(_read_draft)]], Turns]
    Prompt = Annotated[
        Annotated[NonEmpty, Tag(TEXT)] | Annotated[Messages, AfterValidator(_read_prompt), Tag(LIST)],
        Discriminator(text_branch),
    ]
    # A prompt that is being written, and may have no text yet.
    Draft = Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[Drafts, AfterValidator(_read_texts), Tag(LIST)],
        Discriminator(text_branch),
    ]
    Response = Annotated[
        Annotated[NonEmpty, Tag(TEXT)] | Annotated[Messages, AfterValidator(_read_response), Tag(LIST)],
        Discriminator(text_branch),
    ]
    # Of a group, where a response without a text has a place.
    Member = Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[Messages, AfterValidator(_read_member), Tag(LIST)],
        Discriminator(text_branch),
    ]
