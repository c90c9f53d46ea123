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
from tinyrm.errors import InstructionTooLong, InvalidInput, InvalidTemplate
from tinyrm.plain_text import PlainText
from tinyrm.sets import split
from tinyrm.template import RESPONSE_SLOTS, SPECIAL_ROLES, Slot, Template, split_slot
from tinyrm.truncation import Kept, KeptOfResponse, fair_shares, keep, kept_under

# With fewer tokens for prompt and responses together, every verdict would be a guess.
MIN_TEXT_TOKENS = 48
# The longest sequence of a set, in sequences of `max_tokens`: so many tokens more than its prompt and longest response.
SET_FACTOR = 8
# The largest part of the room for texts that the prompt of a set takes, whatever its responses need.
SET_PROMPT_SHARE = 2 / 3


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
        ends: list[int] = np.flatnonzero(ids == self.sep).tolist()
        # Not `np.diff`, which takes many times as long for so few.
        return [end - before for before, end in zip([-1, *ends], ends, strict=False)]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Tokens dropped from each text. In a sequence of one response, that is response_a.

    others: of the third and later responses of a set.

    Exact for texts of up to READ_CHARACTERS for each token of a sequence. A longer text is not read as a whole, so at
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
        Responses of which the same tokens are kept share one; -1 for a response in another set.
    """

    input_ids: NDArray[np.int64]
    truncation: Truncation
    columns: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Ids of a prompt and any number of responses, before truncation.

    unread: 1 for the prompt and for each response of which these ids leave out some, otherwise 0.
    kept: what is kept of a response that is too long.
    """

    instruction: list[int]
    prompt: list[int]
    responses: list[list[int]]
    unread: list[int]
    kept: KeptOfResponse = "start"

    def followed_by(self, other: "Tokenized") -> "Tokenized":
        """Return these texts with the responses of `other` after their own."""
        responses, unread = self.responses + other.responses, self.unread + other.unread[1:]
        return replace(self, responses=responses, unread=unread)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a prompt and of responses, and what is dropped of them where they do not fit.

    longest_sequence: tokens, before truncation, of the longest sequence that would hold some of these texts, with
        instruction and template. Of a model that reads sets: of the prompt and the longest response, which is what
        `max_tokens` limits.
    dropped: from the prompt and from each response, in the sequence where they lose most.

    At least so many for a text that is not read as a whole; see Truncation.
    """

    prompt: int
    responses: tuple[int, ...]
    longest_sequence: int
    dropped: tuple[int, ...]


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
        self._text = PlainText(tokenizer, max_tokens)
        self.template, self.reads = template, template.reads
        self.scores_alone = self.reads == "response" or (self.reads == "set" and scores_alone)
        self.special = special
        self.max_tokens, self.max_set_tokens = max_tokens, SET_FACTOR * max_tokens
        # Segments are split, and those without user text encoded, once and not for every comparison.
        self._parts = tuple(map(split_slot, template.segments))
        self._joints = {slot: joint for joint, slot in self._parts if slot}
        self._text.tokenizer.encode_special_tokens = False
        self._fixed = {
            text: [special.by_role(text)] if text in SPECIAL_ROLES else self._text.ids(text)
            for text, slot in self._parts
            if slot is None
        }
        self._fixed_tokens = sum(len(self._fixed.get(segment, ())) for segment in template.segments)
        # What stands before a message of each speaker, what joins it, and what stands after it.
        self._turns: dict[Role, tuple[list[int], str, list[int]]] = {
            role: (self._text.ids(turn.before), turn.joint, self._text.ids(turn.after))
            for role, turn in (template.turns or {}).items()
        }
        self._text.tokenizer.encode_special_tokens = True
        own = {special.pad: "padding"} | {special.by_role(role): role for role in SPECIAL_ROLES}
        fixed = chain(*self._fixed.values(), *(before + after for before, _, after in self._turns.values()))
        own |= {i: "a token of the template" for i in fixed if i in self._text.added and i not in own}
        for special_id, role in own.items():
            self._text.reserve(special_id, role)
        if self._room_for_text(()) < MIN_TEXT_TOKENS:
            raise InvalidTemplate(f"max_tokens={max_tokens} leaves less than {MIN_TEXT_TOKENS} tokens for the texts")

    @cached_property
    def label_ids(self) -> tuple[int, int]:
        """Ids of the label words (first choice, second choice). Raises InvalidTemplate unless each is one token."""
        words = self.template.label_words
        if words is None:
            raise InvalidTemplate(f"template {self.template.name!r} has no label words, so it cannot be read at a mask")
        first, second = map(self._text.ids, words)
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

        instruction: that of `Spec.resolve`, which states what is kept of responses, too.
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
        kept = kept_under(instruction)
        ids, unread = self._text.read(texts, ["start", "end", *[kept] * len(responses)])
        if unread[0]:
            raise InstructionTooLong(f"the instruction of {len(instruction)} characters is never truncated; shorten it")
        if self._turns:
            ids[1], unread[1] = self._read_turns(prompt)
        instruction_ids, prompt_ids, *response_ids = ids
        return Tokenized(instruction_ids, prompt_ids, response_ids, unread[1:], kept)

    def _read_turns(self, prompt: str) -> tuple[list[int], int]:
        """Return the ids of a prompt's messages, the last ones if they are too long, and 1 if there are more."""
        messages = prompt.messages if isinstance(prompt, Dialogue) else (Message(role="user", content=prompt),)
        ids: list[int] = []
        for message in reversed(messages):
            if len(ids) >= self.max_tokens:
                return ids, 1
            before, joint, after = self._turns[message["role"]]
            (content,), (unread,) = self._text.read([joint + message["content"]], ["end"])
            if unread:
                return content + after + ids, 1
            ids = before + content + after + ids
        return ids, 0

    def assemble(self, texts: Tokenized, a: int, b: int, *, swap: bool) -> tuple[Encoding, ...]:
        """Return the ids of responses number `a` and `b`, as `encode` does. Raises InstructionTooLong.

        The prompt keeps its end, because the question comes last, and a response its start, or both of its ends.
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
        prompt = keep(prompt, keep_prompt, "end")
        response_a, response_b = keep(response_a, keep_a, texts.kept), keep(response_b, keep_b, texts.kept)
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
        room = self._room_for_text(texts.instruction)
        keep_prompt, keep_response, _ = fair_shares(len(prompt), len(response), 0, room)
        truncation = Truncation(
            len(prompt) - keep_prompt + texts.unread[0], len(response) - keep_response + texts.unread[1 + i]
        )
        prompt, response = keep(prompt, keep_prompt, "end"), keep(response, keep_response, texts.kept)
        return Encoding(self._join(texts.instruction, prompt, response), truncation)

    def assemble_sets(
        self, texts: Tokenized, indices: Sequence[int], max_tokens: int | None = None
    ) -> tuple[Encoding, ...]:
        """Return the ids of responses beside each other: one sequence, or several if they would be too long together.

        Responses of which the same tokens are kept are read once, and the order in a sequence follows from the ids: no
        logit depends, not even in its last bit, on the order of `indices`. `columns` of each sequence finds them again;
        see `tinyrm.sets`.

        max_tokens: of a sequence, if less than `max_set_tokens`; at least 2 * max_tokens of this encoder.

        Raises InstructionTooLong.
        """
        keep_prompt, keep_response = self._shares_of_set(texts)
        read = {i: tuple(keep(texts.responses[i], keep_response, texts.kept)) for i in indices}
        distinct = {read[i]: i for i in reversed(indices)}
        members = [distinct[ids] for ids in sorted(distinct)]
        sizes = [len(read[i]) + 2 for i in members]
        room = min(self.max_set_tokens, max_tokens or self.max_set_tokens)
        room -= self.max_tokens - self._room_for_text(texts.instruction) + keep_prompt - 2
        sequences = []
        for part in split(sizes, room, overlapping=not self.scores_alone):
            columns = {read[members[at]]: column for column, at in enumerate(part)}
            own = tuple(columns.get(read[i], -1) for i in indices)
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
        keep_prompt, keep_response = self._shares_of_set(texts)
        prompt = keep(texts.prompt, keep_prompt, "end")
        responses = [keep(texts.responses[i], keep_response, texts.kept) for i in indices]
        ids = [self._join(texts.instruction, prompt, responses[0])]
        end = [self.special.mask, self.special.sep]
        ids += [np.array(response + end, dtype=np.int64) for response in responses[1:]]
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
        keep_prompt, keep_response = self._shares_of_set(texts)
        dropped = [max(0, len(texts.responses[i]) - keep_response) + texts.unread[1 + i] for i in indices]
        first, second, others = dropped[0], sum(dropped[1:2]), tuple(dropped[2:])
        return Truncation(len(texts.prompt) - keep_prompt + texts.unread[0], first, second, others)

    def count_tokens(self, texts: Tokenized) -> TokenCounts:
        """Return the tokens of one or more responses, and what comparing or ranking them would drop of these texts.

        Nothing is assembled: in a pair, a response loses most beside the longest of the others. Raises
        InstructionTooLong.
        """
        room = self._room_for_text(texts.instruction)
        prompt, *responses = map(len, (texts.prompt, *texts.responses))
        longest, second = sorted([*responses, 0], reverse=True)[:2]
        at_longest = responses.index(longest)
        kept_prompt, kept = prompt, list[int]()
        for at, response in enumerate(responses):
            if self.reads == "set":
                keep_prompt, most = self._shares_of_set(texts)
                keep_response = min(response, most)
            else:
                beside = 0 if self.reads == "response" else second if at == at_longest else longest
                keep_prompt, keep_response, _ = self._shares(prompt, response, beside, room)
            kept_prompt = min(kept_prompt, keep_prompt)
            kept.append(keep_response)
        read = (longest, second) if self.reads == "pair" else (longest,)
        counts = [tokens + unread for tokens, unread in zip((prompt, *responses), texts.unread, strict=True)]
        return TokenCounts(
            prompt=counts[0],
            responses=tuple(counts[1:]),
            longest_sequence=self.max_tokens - room + prompt + sum(read),
            dropped=tuple(tokens - kept for tokens, kept in zip(counts, (kept_prompt, *kept), strict=True)),
        )

    def count_scores(self, sequence: Encoding) -> int:
        """Return the number of responses in a sequence of a set."""
        return self.special.count_masks(sequence.input_ids)

    def count_special_texts(self, instruction: str, prompt: str, responses: Sequence[str]) -> int:
        """Return how many of the texts contain a special token. It is encoded as plain text; metrics count it.

        Only the part of each text that is read at first is searched.
        """
        kept: list[Kept] = ["start", "end", *[kept_under(instruction)] * len(responses)]
        texts = (instruction, prompt, *responses)
        return sum(self._text.holds_special(text, which) for text, which in zip(texts, kept, strict=True))

    def count_characters(self, instruction: str, prompt: str, responses: Sequence[str]) -> int:
        """Return the characters of the texts that are tokenized at first."""
        return sum(map(self._text.count_characters, (instruction, prompt, *responses)))

    def _room_for_text(self, instruction_ids: Sequence[int]) -> int:
        room = self.max_tokens - self._fixed_tokens - len(instruction_ids)
        if instruction_ids and room < MIN_TEXT_TOKENS:
            raise InstructionTooLong(
                f"the instruction takes {len(instruction_ids)} of {self.max_tokens} tokens and is never truncated; "
                "shorten it"
            )
        return room

    def _shares(self, prompt: int, a: int, b: int, room: int) -> tuple[int, int, int]:
        """Return how many tokens of prompt, a and b to keep, fairly or by the rule of the template."""
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
