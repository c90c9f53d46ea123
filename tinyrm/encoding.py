"""Texts -> token ids under a budget. Only texts are truncated, never the template, and dropped tokens are counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from tinyrm.chat import Dialogue, Message, Role
from tinyrm.comparison import Comparison
from tinyrm.errors import InstructionTooLong, InvalidInput, InvalidTemplate, InvalidText
from tinyrm.sets import split
from tinyrm.template import RESPONSE_SLOTS, SPECIAL_ROLES, Slot, Template, split_slot

# With fewer tokens for prompt and responses together, every verdict would be a guess.
MIN_TEXT_TOKENS = 48
# Characters that are tokenized of one text, for each token that fits into a sequence. What lies beyond could not be
# kept, and would only cost time and memory. The second bound is for a text that has too few tokens within the first
# one, such as one of blanks.
READ_CHARACTERS, MAX_READ_CHARACTERS = 16, 128
# The longest sequence of a set, in sequences of `max_tokens`: so many tokens more than its prompt and longest response.
SET_FACTOR = 8
# The largest part of the room for texts that the prompt of a set takes, whatever its responses need.
SET_PROMPT_SHARE = 2 / 3
# Texts are tokenized together up to this size: together they need fewer calls, but memory for all of them at once.
CALL_CHARACTERS = 65_536


class SpecialTokens(BaseModel):
    """Ids of the tokens with a role. `mask` must not be producible by ordinary text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cls: int
    sep: int
    mask: int
    pad: int

    def by_role(self, role: str) -> int:
        return {"[CLS]": self.cls, "[SEP]": self.sep, "[MASK]": self.mask}[role]

    def count_masks(self, ids: NDArray[np.int64]) -> int:
        """Return the number of masks in a sequence, which no text can produce: one for each response of a set."""
        return int(np.count_nonzero(ids == self.mask))

    def part_lengths(self, ids: NDArray[np.int64]) -> list[int]:
        """Return the tokens of a set's prompt and of each of its responses; each part ends in [SEP]."""
        lengths: list[int] = np.diff(np.flatnonzero(ids == self.sep), prepend=-1).tolist()
        return lengths


@dataclass(frozen=True, slots=True)
class Truncation:
    """Tokens dropped from each text. In a sequence of one response, that is response_a.

    others: of the third and later responses of a set.

    Exact for texts of up to READ_CHARACTERS for each token of a sequence. A longer text is not read to its end, so at
    least this many were dropped.
    """

    prompt: int = 0
    response_a: int = 0
    response_b: int = 0
    others: tuple[int, ...] = ()

    @property
    def responses(self) -> tuple[int, ...]:
        """The tokens dropped from each response of a set; a set of one has a second number, which is 0."""
        return (self.response_a, self.response_b, *self.others)

    @property
    def total(self) -> int:
        return self.prompt + self.response_a + self.response_b + sum(self.others)

    def swapped(self) -> "Truncation":
        return Truncation(self.prompt, self.response_b, self.response_a)


@dataclass(frozen=True, slots=True)
class Encoding:
    """Ids of one sequence, int64 [tokens]: of a comparison in one order, of one response, or of a set.

    columns: of a set that `Encoder.assemble_sets` made, for each response that it was given the column of its logit.
        Equal responses share one; -1 for a response in another set.
    """

    input_ids: NDArray[np.int64]
    truncation: Truncation
    columns: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Ids of a prompt and any number of responses, before truncation.

    unread: 1 for the prompt and for each response that goes on beyond these ids, otherwise 0.
    """

    instruction: list[int]
    prompt: list[int]
    responses: list[list[int]]
    unread: list[int]

    def followed_by(self, other: "Tokenized") -> "Tokenized":
        """Return these texts with the responses of `other` after their own."""
        responses, unread = self.responses + other.responses, self.unread + other.unread[1:]
        return Tokenized(self.instruction, self.prompt, responses, unread)


def plain_text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that neither pads nor truncates, and that encodes text like `[MASK]` as plain text.

    A copy, because these switches must not change the caller's tokenizer.
    """
    own = Tokenizer.from_str(tokenizer.to_str())
    own.encode_special_tokens = True
    own.no_padding()
    own.no_truncation()
    return own


class Encoder:
    """Encodes comparisons for one tokenizer, one template and one length.

    reads: whether a sequence holds a pair of responses, one response, or a set of them.
    max_tokens: of a sequence; of a set, those of its prompt together with any one response.
    max_set_tokens: of a sequence that holds a set.
    scores_alone: whether the logit of a response depends on no other response: always if a sequence holds one. Of a
        model that reads sets, its head says so.

    Raises InvalidTemplate if special tokens written in user text would become special, or if the template does not fit
    into `max_tokens`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        special: SpecialTokens,
        max_tokens: int,
        *,
        scores_alone: bool = False,
    ) -> None:
        self._tokenizer = plain_text_tokenizer(tokenizer)
        self.template, self.reads = template, template.reads
        self.scores_alone = self.reads == "response" or (self.reads == "set" and scores_alone)
        self.special = special
        self.max_tokens, self.max_set_tokens = max_tokens, SET_FACTOR * max_tokens
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_texts = tuple(token.content for token in added.values() if token.special)
        # Segments are split, and those without user text encoded, once and not for every comparison.
        self._parts = tuple(map(split_slot, template.segments))
        self._joints = {slot: joint for joint, slot in self._parts if slot}
        # A Unigram vocabulary spells special tokens too. Plain text with their ids gets those of the token's two parts.
        self._spelled: dict[int, list[int]] = {}
        self._tokenizer.encode_special_tokens = False
        self._fixed = {
            text: [special.by_role(text)] if text in SPECIAL_ROLES else self._ids(text)
            for text, slot in self._parts
            if slot is None
        }
        # What stands before a message of each speaker, what joins it, and what stands after it.
        self._turns: dict[Role, tuple[list[int], str, list[int]]] = {
            role: (self._ids(turn.before), turn.joint, self._ids(turn.after))
            for role, turn in (template.turns or {}).items()
        }
        self._tokenizer.encode_special_tokens = True
        own = {special.pad: "padding"} | {special.by_role(role): role for role in SPECIAL_ROLES}
        fixed = chain(*self._fixed.values(), *(before + after for before, _, after in self._turns.values()))
        own |= {i: "a token of the template" for i in fixed if i in added and i not in own}
        for special_id, role in own.items():
            token = self._tokenizer.id_to_token(special_id)
            if token is None or special_id in self._ids(f"x {token} {token}x"):
                parts = self._ids(token[:1]) + self._ids(token[1:]) if token in self._special_texts else [special_id]
                if token is None or special_id in parts:
                    raise InvalidTemplate(
                        f"user text could forge {role}, the token {token!r}: it is not marked as special"
                    )
                self._spelled[special_id] = parts
        if self._room_for_text(()) < MIN_TEXT_TOKENS:
            raise InvalidTemplate(f"max_tokens={max_tokens} leaves less than {MIN_TEXT_TOKENS} tokens for the texts")

    @cached_property
    def label_ids(self) -> tuple[int, int]:
        """Ids of the label words (first choice, second choice). Raises InvalidTemplate unless each is one token."""
        words = self.template.label_words
        if words is None:
            raise InvalidTemplate(f"template {self.template.name!r} has no label words, so it cannot be read at a mask")
        first, second = map(self._ids, words)
        for word, ids in zip(words, (first, second), strict=True):
            if len(ids) != 1:
                raise InvalidTemplate(f"label word {word!r} is {len(ids)} tokens in this tokenizer; it must be one")
        return first[0], second[0]

    def encode(self, comparison: Comparison, instruction: str, *, swap: bool = False) -> tuple[Encoding, ...]:
        """Return the ids of one order (A first), or with `swap` of both (A first, B first).

        Both orders keep the same tokens of each text. An encoder that reads responses returns one sequence of A and one
        of B, and one that reads sets one sequence of both, whatever `swap` is. Raises InvalidText, InstructionTooLong.
        """
        texts = self.tokenize(instruction, comparison.prompt, (comparison.response_a, comparison.response_b))
        return self.assemble(texts, 0, 1, swap=swap)

    def encode_one(self, instruction: str, prompt: str, response: str) -> Encoding:
        """Return the ids of one response, for an encoder that reads responses. Raises as `encode` does."""
        return self.assemble_one(self.tokenize(instruction, prompt, [response]), 0)

    def truncation(self, sequences: Sequence[Encoding]) -> Truncation:
        """Return the tokens dropped in a comparison with these sequences, as `assemble` returns them."""
        first = sequences[0].truncation
        if self.reads != "response":
            return first
        second = sequences[1].truncation
        return Truncation(max(first.prompt, second.prompt), first.response_a, second.response_a)

    def tokenize(self, instruction: str, prompt: str, responses: Sequence[str]) -> Tokenized:
        """Encode each text once, for any number of comparisons of these responses.

        prompt: a text, or the messages of a Dialogue if the template has turns.

        Raises InvalidText, InstructionTooLong.
        """
        joints = self._joints
        joint = joints[RESPONSE_SLOTS[self.reads][0]]  # a template has the same one for both responses
        texts = [
            joints["instruction"] + instruction if "instruction" in joints else "",
            "" if self._turns else joints["prompt"] + prompt,
            *(joint + response for response in responses),
        ]
        ids, unread = self._read(texts, prompt_at=1)
        if unread[0]:
            raise InstructionTooLong(f"the instruction of {len(instruction)} characters is never truncated; shorten it")
        if self._turns:
            ids[1], unread[1] = self._read_turns(prompt)
        instruction_ids, prompt_ids, *response_ids = ids
        return Tokenized(instruction_ids, prompt_ids, response_ids, unread[1:])

    def _read(self, texts: list[str], *, prompt_at: int) -> tuple[list[list[int]], list[int]]:
        """Return the ids of texts, and 1 for each that goes on beyond them. The prompt is read from its end."""
        read = [self._readable(text, READ_CHARACTERS, is_prompt=at == prompt_at) for at, text in enumerate(texts)]
        ids = self._encode_texts(read)
        for at, text in enumerate(texts):
            if len(read[at]) < len(text) and len(ids[at]) < self.max_tokens:
                read[at] = self._readable(text, MAX_READ_CHARACTERS, is_prompt=at == prompt_at)
                (ids[at],) = self._encode_texts([read[at]])
        return ids, [int(len(part) < len(text)) for part, text in zip(read, texts, strict=True)]

    def _read_turns(self, prompt: str) -> tuple[list[int], int]:
        """Return the ids of a prompt's messages, the last ones if they are too long, and 1 if there are more."""
        messages = prompt.messages if isinstance(prompt, Dialogue) else (Message(role="user", content=prompt),)
        ids: list[int] = []
        for message in reversed(messages):
            if len(ids) >= self.max_tokens:
                return ids, 1
            before, joint, after = self._turns[message["role"]]
            (content,), (unread,) = self._read([joint + message["content"]], prompt_at=0)
            if unread:
                return content + after + ids, 1
            ids = before + content + after + ids
        return ids, 0

    def assemble(self, texts: Tokenized, a: int, b: int, *, swap: bool) -> tuple[Encoding, ...]:
        """Return the ids of responses number `a` and `b`, as `encode` does. Raises InstructionTooLong.

        The prompt is truncated on its left, because the question comes last, and the responses on their right.
        """
        if self.reads == "response":
            return self.assemble_one(texts, a), self.assemble_one(texts, b)
        if self.reads == "set":
            return self.assemble_sets(texts, (a, b))
        prompt, response_a, response_b = texts.prompt, texts.responses[a], texts.responses[b]
        room = self._room_for_text(texts.instruction)
        keep_prompt, keep_a, keep_b = self._shares(len(prompt), len(response_a), len(response_b), room)
        unread_prompt, *unread = texts.unread
        truncation = Truncation(
            len(prompt) - keep_prompt + unread_prompt,
            len(response_a) - keep_a + unread[a],
            len(response_b) - keep_b + unread[b],
        )
        prompt, response_a, response_b = prompt[len(prompt) - keep_prompt :], response_a[:keep_a], response_b[:keep_b]
        a_first = Encoding(self._join(texts.instruction, prompt, response_a, response_b), truncation)
        if not swap:
            return (a_first,)
        return a_first, Encoding(self._join(texts.instruction, prompt, response_b, response_a), truncation.swapped())

    def assemble_one(self, texts: Tokenized, i: int) -> Encoding:
        """Return the ids of response number `i` alone, as `encode_one` does. Raises InstructionTooLong."""
        if self.reads == "pair":
            raise InvalidInput(f"template {self.template.name!r} holds two responses, so none is read alone")
        if self.reads == "set":
            return self.assemble_sets(texts, (i,))[0]
        prompt, response = texts.prompt, texts.responses[i]
        keep_prompt, keep, _ = fair_shares(len(prompt), len(response), 0, self._room_for_text(texts.instruction))
        truncation = Truncation(len(prompt) - keep_prompt + texts.unread[0], len(response) - keep + texts.unread[1 + i])
        prompt = prompt[len(prompt) - keep_prompt :]
        return Encoding(self._join(texts.instruction, prompt, response[:keep]), truncation)

    def assemble_sets(
        self, texts: Tokenized, indices: Sequence[int], max_tokens: int | None = None
    ) -> tuple[Encoding, ...]:
        """Return the ids of responses beside each other: one sequence, or several if they would be too long together.

        Equal responses are read once, and the order in a sequence follows from the ids: no logit depends, not even in
        its last bit, on the order of `indices`. `columns` of each sequence finds them again; see `tinyrm.sets`.

        max_tokens: of a sequence, if less than `max_set_tokens`; at least 2 * max_tokens of this encoder.

        Raises InstructionTooLong.
        """
        distinct = {tuple(texts.responses[i]): i for i in reversed(indices)}
        members = [distinct[ids] for ids in sorted(distinct)]
        keep_prompt, keep = self._shares_of_set(texts)
        sizes = [min(len(texts.responses[i]), keep) + 2 for i in members]
        room = min(self.max_set_tokens, max_tokens or self.max_set_tokens)
        room -= self.max_tokens - self._room_for_text(texts.instruction) + keep_prompt - 2
        sequences = []
        for part in split(sizes, room, overlapping=not self.scores_alone):
            columns = {tuple(texts.responses[members[at]]): column for column, at in enumerate(part)}
            own = tuple(columns.get(tuple(texts.responses[i]), -1) for i in indices)
            held = [i for i, column in zip(indices, own, strict=True) if column >= 0]
            sequence = self.assemble_set(texts, [members[at] for at in part])
            sequences.append(replace(sequence, truncation=self._truncation_of_set(texts, held), columns=own))
        return tuple(sequences)

    def assemble_set(self, texts: Tokenized, indices: Sequence[int]) -> Encoding:
        """Return the ids of several responses beside each other, in this order, for an encoder that reads sets.

        What a text loses depends on the prompt and on itself alone: neither the order of the responses nor the others
        change what the model reads of each. Raises InstructionTooLong; InvalidInput for a sequence of more than
        `max_set_tokens`.
        """
        keep_prompt, keep = self._shares_of_set(texts)
        prompt, responses = texts.prompt[len(texts.prompt) - keep_prompt :], [texts.responses[i] for i in indices]
        ids = [self._join(texts.instruction, prompt, responses[0][:keep])]
        end = [self.special.mask, self.special.sep]
        ids += [np.array(response[:keep] + end, dtype=np.int64) for response in responses[1:]]
        whole = np.concatenate(ids)
        if len(whole) > self.max_set_tokens:
            raise InvalidInput(f"a set of {len(whole):,} tokens is longer than {self.max_set_tokens:,}; split it")
        return Encoding(whole, self._truncation_of_set(texts, indices))

    def _shares_of_set(self, texts: Tokenized) -> tuple[int, int]:
        """Return how many tokens of the prompt and at most of each response to keep. Raises InvalidInput."""
        if self.reads != "set":
            raise InvalidInput(f"template {self.template.name!r} holds a {self.reads}, not a set of responses")
        room = self._room_for_text(texts.instruction)
        keep_prompt = min(len(texts.prompt), round(SET_PROMPT_SHARE * room))
        return keep_prompt, room - keep_prompt

    def _truncation_of_set(self, texts: Tokenized, indices: Sequence[int]) -> Truncation:
        keep_prompt, keep = self._shares_of_set(texts)
        dropped = [max(0, len(texts.responses[i]) - keep) + texts.unread[1 + i] for i in indices]
        first, second, others = dropped[0], sum(dropped[1:2]), tuple(dropped[2:])
        return Truncation(len(texts.prompt) - keep_prompt + texts.unread[0], first, second, others)

    def count_scores(self, sequence: Encoding) -> int:
        """Return the number of responses in a sequence of a set."""
        return self.special.count_masks(sequence.input_ids)

    def count_special_texts(self, instruction: str, prompt: str, responses: Sequence[str]) -> int:
        """Return how many of the texts contain a special token. It is encoded as plain text; metrics count it.

        Only the part of each text that is read at first is searched.
        """
        limit = READ_CHARACTERS * self.max_tokens
        texts = (instruction[:limit], prompt[-limit:], *(response[:limit] for response in responses))
        return sum(any(token in text for token in self._special_texts) for text in texts)

    def count_characters(self, instruction: str, prompt: str, responses: Sequence[str]) -> int:
        """Return the characters of the texts that are tokenized at first."""
        limit = READ_CHARACTERS * self.max_tokens
        return sum(min(len(text), limit) for text in (instruction, prompt, *responses))

    def _readable(self, text: str, characters_per_token: int, *, is_prompt: bool) -> str:
        """Return the part of `text` that is read: the end of a prompt, the beginning of any other text.

        It is cut at a blank if there is one, because tokenizers split there as well: its tokens are those of the whole.
        """
        limit = characters_per_token * self.max_tokens
        if len(text) <= limit:
            return text
        if is_prompt:
            start = len(text) - limit
            return text[max(start, text.find(" ", start, start + limit // 2)) :]
        end = text.rfind(" ", limit // 2, limit)
        return text[: end if end > 0 else limit]

    def _room_for_text(self, instruction_ids: Sequence[int]) -> int:
        used = sum(len(self._fixed.get(segment, ())) for segment in self.template.segments)
        room = self.max_tokens - used - len(instruction_ids)
        if instruction_ids and room < MIN_TEXT_TOKENS:
            raise InstructionTooLong(
                f"the instruction takes {len(instruction_ids)} of {self.max_tokens} tokens and is never truncated; "
                "shorten it"
            )
        return room

    def _shares(self, prompt: int, a: int, b: int, room: int) -> tuple[int, int, int]:
        """Return how many tokens of prompt, a and b to keep, fairly or as the template says."""
        if self.template.prompt_share is None:
            return fair_shares(prompt, a, b, room)
        prompt = min(prompt, round(self.template.prompt_share * room))
        half = (room - prompt) // 2
        return prompt, min(a, half), min(b, half)

    def _join(self, instruction: list[int], prompt: list[int], *responses: list[int]) -> NDArray[np.int64]:
        slots: dict[Slot, list[int]] = {"instruction": instruction, "prompt": prompt}
        slots |= zip(RESPONSE_SLOTS[self.reads], responses, strict=True)
        pieces = (slots[slot] if slot else self._fixed[text] for text, slot in self._parts)
        return np.fromiter(chain.from_iterable(pieces), dtype=np.int64)

    def _ids(self, text: str) -> list[int]:
        return self._encode_texts([text])[0]

    def _without_special(self, ids: list[int]) -> list[int]:
        """Return the ids of a text with those of special tokens replaced, which its normalizer may have spelled."""
        if self._spelled.keys().isdisjoint(ids):
            return ids
        return [plain for i in ids for plain in self._spelled.get(i, (i,))]

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        is_small = sum(map(len, texts)) <= CALL_CHARACTERS
        try:
            # Unlike `encode`, this call releases the interpreter lock, and it does not track offsets.
            return [
                self._without_special(encoded.ids)
                for part in ([texts] if is_small else [[text] for text in texts])
                for encoded in self._tokenizer.encode_batch_fast(part, add_special_tokens=False)
            ]
        except (TypeError, UnicodeEncodeError) as error:  # which one depends on the tokenizer's version
            raise InvalidText("a text contains a lone surrogate, which is not valid Unicode; remove it") from error


def fair_shares(prompt: int, a: int, b: int, room: int) -> tuple[int, int, int]:
    """Return how many tokens of prompt, a and b to keep: max-min fair, and the same for each response in both orders.

    All texts are truncated to one length, the largest that fits; a shorter text stays whole and leaves its share to the
    others. Tokens that cannot be shared equally go to the prompt, so that neither response is favoured.
    """
    if prompt + a + b <= room:
        return prompt, a, b
    shortest, middle, _ = sorted((prompt, a, b))
    # The largest length if none, one or two of the texts are shorter than it.
    longest_kept = max(room // 3, (room - shortest) // 2, room - shortest - middle)
    keep_a, keep_b = min(a, longest_kept), min(b, longest_kept)
    return min(prompt, room - keep_a - keep_b), keep_a, keep_b
