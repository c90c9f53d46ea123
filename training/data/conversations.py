"""Conversations -> token ids, with the assistant's tokens marked."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from torch import Tensor

from tinyrm.chat import Message
from tinyrm.encoding import SpecialTokens
from tinyrm.pairs import read_records
from training.data.split import draw


class Conversation(BaseModel):
    """Turns in order. Other fields of a record are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    messages: tuple[Message, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """input_ids int64 [tokens]; is_assistant bool [tokens], true for what the assistant said."""

    input_ids: Tensor
    is_assistant: Tensor


def read_conversations(path: Path) -> list[Conversation]:
    """All conversations of a file. Raises InvalidInput naming the line that is not one."""
    return read_records(path, Conversation)


def encode_conversation(
    conversation: Conversation,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    turn_names: dict[str, str],
    max_tokens: int,
) -> EncodedConversation | None:
    """[CLS], the turns as the reward template writes them, [SEP]; None where the assistant says nothing.

    tokenizer: of `tinyrm.encoding.plain_text_tokenizer`. The text ends with the assistant's last turn. What is too long
    loses its beginning, so that some of that turn is left.
    """
    ids: list[int] = []
    assistant: list[bool] = []
    end = 0
    for number, message in enumerate(conversation.messages):
        joint = "\n\n" if number else ""
        name = _ids(tokenizer, f"{joint}{turn_names[message['role']]}:")
        said = _ids(tokenizer, f" {message['content']}")
        ids += name + said
        assistant += [False] * len(name) + [message["role"] == "assistant"] * len(said)
        if message["role"] == "assistant":
            end = len(ids)
    if not end:
        return None
    first = max(0, end - (max_tokens - 2))
    return EncodedConversation(
        torch.tensor([special.cls, *ids[first:end], special.sep]),
        torch.tensor([False, *assistant[first:end], False]),
    )


def split_by_opening(
    conversations: list[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(learn from, held out). All conversations that open alike, as the branches of a tree do, fall on one side."""

    def is_held_out(conversation: Conversation) -> bool:
        return draw(seed, conversation.messages[0]["content"]) < fraction

    return [c for c in conversations if not is_held_out(c)], [c for c in conversations if is_held_out(c)]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
