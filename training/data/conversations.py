"""Conversations -> token ids, with the assistant's tokens marked."""

from dataclasses import dataclass

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator
from tokenizers import Tokenizer
from torch import Tensor

from tinyrm.chat import Message, list_turns, to_messages
from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput


class Conversation(BaseModel):
    """Turns in order, in any form that `tinyrm.chat` reads. Other fields of a record are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    messages: tuple[Message, ...] = Field(min_length=1, validation_alias=AliasChoices("messages", "conversations"))

    @field_validator("messages", mode="before")
    @classmethod
    def _one_form(cls, turns: object) -> list[Message]:
        try:
            return to_messages(list_turns(turns, "messages"))
        except InvalidInput as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """The tokens of a conversation.

    input_ids: int64 [tokens].
    is_assistant: bool [tokens], true for the assistant's words.
    """

    input_ids: Tensor
    is_assistant: Tensor


def encode_conversation(
    conversation: Conversation,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    turn_names: dict[str, str],
    max_tokens: int,
) -> EncodedConversation | None:
    """Return [CLS], the turns as the reward template writes them, [SEP]; None if there is no turn of the assistant.

    tokenizer: as `tinyrm.plain_text.plain_text_tokenizer` returns it.

    The text ends with the assistant's last turn. The beginning of a text that is too long is dropped, so that some of
    that turn is left.
    """
    ids: list[int] = []
    assistant: list[bool] = []
    end = 0
    for number, message in enumerate(conversation.messages):
        joint = "\n\n" if number else ""
        name: list[int] = tokenizer.encode(f"{joint}{turn_names[message['role']]}:", add_special_tokens=False).ids
        content: list[int] = tokenizer.encode(f" {message['content']}", add_special_tokens=False).ids
        ids += name + content
        assistant += [False] * len(name) + [message["role"] == "assistant"] * len(content)
        if message["role"] == "assistant":
            end = len(ids)
    if not end:
        return None
    first = max(0, end - (max_tokens - 2))
    return EncodedConversation(
        torch.tensor([special.cls, *ids[first:end], special.sep]),
        torch.tensor([False, *assistant[first:end], False]),
    )
