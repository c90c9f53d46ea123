"""Preference pairs -> groups of responses to one prompt, and the batches of a model that reads them together."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinyrm.batching import collate
from tinyrm.encoding import Encoder, Encoding
from tinyrm.negatives import Pool, negatives_for
from tinyrm.pairs import PreferencePair
from training.data.collate import PairSampling


@dataclass(frozen=True, slots=True)
class Group:
    """Responses to one prompt.

    worse: for each response the numbers of those that are known to be worse.
    """

    prompt: str
    domain: str | None
    responses: tuple[str, ...]
    worse: tuple[tuple[int, ...], ...]

    @classmethod
    def of_pair(cls, pair: PreferencePair) -> "Group":
        return cls(pair.prompt, pair.domain, (pair.chosen, pair.rejected), ((1,), ()))


def groups_of(pairs: Iterable[PreferencePair], max_responses: int, seed: int) -> list[Group]:
    """Return groups that hold every pair exactly once, with at most `max_responses` different responses each.

    Pairs of one prompt and domain are joined in an order that follows from `seed`.
    """
    if max_responses == 2:
        return [Group.of_pair(pair) for pair in pairs]
    of_prompt: dict[tuple[str, str | None], list[PreferencePair]] = {}
    for pair in pairs:
        of_prompt.setdefault((pair.prompt, pair.domain), []).append(pair)
    groups: list[Group] = []
    for (prompt, domain), own in of_prompt.items():
        random.Random(f"{seed}:{prompt}").shuffle(own)
        left = own
        while left:
            texts: dict[str, int] = {}
            worse: dict[int, list[int]] = {}
            rest = []
            for pair in left:
                new = {pair.chosen, pair.rejected} - texts.keys()
                if len(texts) + len(new) > max_responses:
                    rest.append(pair)
                    continue
                better, other = (texts.setdefault(text, len(texts)) for text in (pair.chosen, pair.rejected))
                worse.setdefault(better, []).append(other)
            known = tuple(tuple(worse.get(i, ())) for i in range(len(texts)))
            groups.append(Group(prompt, domain, tuple(texts), known))
            left = rest
    return groups


def with_distractors(groups: Iterable[Group], pool: Pool, count: int, seed: int) -> list[Group]:
    """Return the groups with `count` more responses each, worse than one that is better than another.

    They are what `tinyrm.negatives` makes, among it other responses to the same prompt. What else they are worse than
    is not known.
    """
    larger: list[Group] = []
    for group in groups:
        best = next(i for i, others in enumerate(group.worse) if others)
        pair = PreferencePair(
            prompt=group.prompt,
            chosen=group.responses[best],
            rejected=group.responses[group.worse[best][0]],
            domain=group.domain,
        )
        made = [each.text for each in negatives_for(pair, pool, count, seed) if each.text not in group.responses]
        places = range(len(group.responses), len(group.responses) + len(made))
        worse = [(*others, *places) if i == best else others for i, others in enumerate(group.worse)]
        larger.append(replace(group, responses=(*group.responses, *made), worse=(*worse, *[()] * len(made))))
    return larger


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One sequence of a group's responses, and which of them are worse than which."""

    encoding: Encoding
    worse: tuple[tuple[int, ...], ...]


class GroupDataset(Dataset[EncodedGroup]):
    """Group i -> its sequence, with the instruction that training draws for it."""

    def __init__(self, groups: Sequence[Group], encoder: Encoder, sampling: PairSampling) -> None:
        self.groups, self._encoder, self._sampling = groups, encoder, sampling

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> EncodedGroup:
        group = self.groups[index]
        instruction = self._sampling.instruction(index, group.domain)
        texts = self._encoder.tokenize(instruction, group.prompt, group.responses)
        return EncodedGroup(self._encoder.assemble_set(texts, range(len(group.responses))), group.worse)

    def lengths(self) -> list[int]:
        """Return the tokens of each group's sequence."""
        return [len(self[i].encoding.input_ids) for i in range(len(self))]


@dataclass(frozen=True, slots=True)
class GroupCollator:
    """Groups -> ids and attention_mask [groups, tokens], and `is_worse`, bool [groups, responses, responses].

    is_worse[g, i, j]: whether response j of group g is known to be worse than response i.
    """

    pad_id: int

    def __call__(self, groups: Sequence[EncodedGroup]) -> dict[str, Tensor]:
        batch = collate([group.encoding for group in groups], self.pad_id)
        most = max(len(group.worse) for group in groups)
        is_worse = torch.zeros(len(groups), most, most, dtype=torch.bool)
        for g, group in enumerate(groups):
            for i, others in enumerate(group.worse):
                is_worse[g, i, list(others)] = True
        ids, mask = map(torch.from_numpy, batch)
        return {"input_ids": ids, "attention_mask": mask, "is_worse": is_worse}
