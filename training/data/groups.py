"""Preference pairs -> groups of responses to one prompt, and the batches of a model that reads them together."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinyrm.batching import collate
from tinyrm.encoding import Encoder, Encoding
from tinyrm.negatives import Pool, negatives_for
from tinyrm.pairs import PreferencePair
from training.data.collate import PairSampling


class PairLabel(NamedTuple):
    """The probability that one response of a group is better than another, and the weight of that in the loss."""

    better: int
    other: int
    target: float
    weight: float


@dataclass(frozen=True, slots=True)
class Group:
    """Responses to one prompt.

    worse: for each response the numbers of those that are known to be worse.
    labels: all that is known of pairs, if that is more; otherwise empty.
    """

    prompt: str
    domain: str | None
    responses: tuple[str, ...]
    worse: tuple[tuple[int, ...], ...]
    labels: tuple[PairLabel, ...] = ()

    @classmethod
    def of_pair(cls, pair: PreferencePair, *, labelled: bool = False) -> "Group":
        """labelled: whether a plain verdict is a label too, because other pairs have weights."""
        labels = (PairLabel(0, 1, pair.target, pair.weight),) if labelled or pair.is_soft else ()
        return cls(pair.prompt, pair.domain, (pair.chosen, pair.rejected), (() if pair.is_tie else (1,), ()), labels)


def groups_of(pairs: Iterable[PreferencePair], max_responses: int, seed: int) -> list[Group]:
    """Return groups that hold every pair exactly once, with at most `max_responses` different responses each.

    Pairs of one prompt and domain are joined in an order that follows from `seed`.

    A group with a pair that has a probability has labels, and all have where pairs have weights. The mean weight of a
    group is 1 in the mean over groups.
    """
    pairs = list(pairs)
    weighted = any(pair.weight != 1 for pair in pairs)
    if max_responses == 2:
        return normalised([Group.of_pair(pair, labelled=weighted) for pair in pairs])
    of_prompt: dict[tuple[str, str | None], list[PreferencePair]] = {}
    for pair in pairs:
        of_prompt.setdefault((pair.prompt, pair.domain), []).append(pair)
    groups: list[Group] = []
    for (prompt, _), own in of_prompt.items():
        random.Random(f"{seed}:{prompt}").shuffle(own)
        left = own
        while left:
            texts: dict[str, int] = {}
            taken, rest = list[PreferencePair](), list[PreferencePair]()
            for pair in left:
                new = {pair.chosen, pair.rejected} - texts.keys()
                if len(texts) + len(new) > max_responses:
                    rest.append(pair)
                    continue
                for text in (pair.chosen, pair.rejected):
                    texts.setdefault(text, len(texts))
                taken.append(pair)
            groups.append(joined(taken, texts, labelled=weighted))
            left = rest
    return normalised(groups)


def joined(pairs: Sequence[PreferencePair], texts: Mapping[str, int], *, labelled: bool) -> Group:
    """Return the group of pairs of one prompt. texts: response -> its number. labelled: as of `Group.of_pair`."""
    worse: list[list[int]] = [[] for _ in texts]
    for pair in pairs:
        if not pair.is_tie:
            worse[texts[pair.chosen]].append(texts[pair.rejected])
    labels: tuple[PairLabel, ...] = ()
    if labelled or any(pair.is_soft for pair in pairs):
        labels = tuple(PairLabel(texts[p.chosen], texts[p.rejected], p.target, p.weight) for p in pairs)
    return Group(pairs[0].prompt, pairs[0].domain, tuple(texts), tuple(map(tuple, worse)), labels)


def normalised(groups: list[Group]) -> list[Group]:
    """Return groups whose mean weights are 1 in the mean over groups, so that the loss has its usual size."""
    if not any(label.weight != 1 for group in groups for label in group.labels):
        return groups
    mean = fmean(fmean(label.weight for label in group.labels) for group in groups)
    return [
        replace(group, labels=tuple(label._replace(weight=label.weight / mean) for label in group.labels))
        for group in groups
    ]


def with_distractors(groups: Iterable[Group], pool: Pool, count: int, seed: int) -> list[Group]:
    """Return the groups with `count` more responses each, worse than one that is better than another.

    They are what `tinyrm.negatives` makes, among it other responses to the same prompt. What else they are worse than
    is not known. A group of ties alone has no response that is better than another, and gets none.
    """
    larger: list[Group] = []
    for group in groups:
        best = next((i for i, others in enumerate(group.worse) if others), None)
        if best is None:
            larger.append(group)
            continue
        pair = PreferencePair(
            prompt=group.prompt,
            chosen=group.responses[best],
            rejected=group.responses[group.worse[best][0]],
            domain=group.domain,
        )
        made = [each.text for each in negatives_for(pair, pool, count, seed) if each.text not in group.responses]
        places = range(len(group.responses), len(group.responses) + len(made))
        worse = [(*others, *places) if i == best else others for i, others in enumerate(group.worse)]
        labels = group.labels
        if labels:
            weight = fmean(label.weight for label in labels)
            labels += tuple(PairLabel(best, place, 1.0, weight) for place in places)
        larger.append(
            replace(group, responses=(*group.responses, *made), worse=(*worse, *[()] * len(made)), labels=labels)
        )
    return larger


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One sequence of a group's responses, and which of them are worse than which."""

    encoding: Encoding
    worse: tuple[tuple[int, ...], ...]
    labels: tuple[PairLabel, ...] = ()


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
        return EncodedGroup(self._encoder.assemble_set(texts, range(len(group.responses))), group.worse, group.labels)

    def lengths(self) -> list[int]:
        """Return the tokens of each group's sequence."""
        return [len(self[i].encoding.input_ids) for i in range(len(self))]


@dataclass(frozen=True, slots=True)
class GroupCollator:
    """Groups -> ids and attention_mask [groups, tokens], and `is_worse`, bool [groups, responses, responses].

    is_worse[g, i, j]: whether response j of group g is known to be worse than response i.

    labelled: whether groups may have labels. Then there are also `targets` and `weights`, [groups, responses,
        responses]: the probability that i is better than j, and the weight of that, which is 0 where nothing is known
        and in groups without labels.
    """

    pad_id: int
    labelled: bool = False

    def __call__(self, groups: Sequence[EncodedGroup]) -> dict[str, Tensor]:
        batch = collate([group.encoding for group in groups], self.pad_id)
        most = max(len(group.worse) for group in groups)
        is_worse = torch.zeros(len(groups), most, most, dtype=torch.bool)
        for g, group in enumerate(groups):
            for i, others in enumerate(group.worse):
                is_worse[g, i, list(others)] = True
        ids, mask = map(torch.from_numpy, batch)
        inputs = {"input_ids": ids, "attention_mask": mask, "is_worse": is_worse}
        if not self.labelled:
            return inputs
        # A verdict is a certain pair, for what reads the probabilities of held-out pairs.
        targets, weights = is_worse.float(), torch.zeros_like(is_worse, dtype=torch.float)
        for g, group in enumerate(groups):
            for better, other, target, weight in group.labels:
                targets[g, better, other], weights[g, better, other] = target, weight
        return inputs | {"targets": targets, "weights": weights}
