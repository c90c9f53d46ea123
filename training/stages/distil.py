"""Distillation: a student learns the preferences of teachers, whatever they and the student read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction

from tinyrm.errors import InvalidInput
from tinyrm.negatives import MadePair
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import sigmoid
from training.data.collate import Orders, PairCollator, PairDataset, characters
from training.data.targets import pair_key, read_targets, write_targets
from training.model.heads import RowCollator
from training.model.teachers import GivenTargets, Teacher, teacher_at
from training.processes import on_main, process_state
from training.recipe import DistilRecipe
from training.stages.cloze import ClozeTrainer, credit, preference_metrics, train_cloze

# What an interrupted scoring loses at most, in each process.
PAIRS_AT_ONCE = 512

log = logging.getLogger(__name__)


def train_distil(recipe: DistilRecipe, data_dir: Path, *, resume: bool, fresh: bool = False) -> dict[str, float]:
    """Train as `train_cloze` does, with the teachers' probabilities in place of the verdicts.

    The teachers score each pair once: what they gave is kept in `recipe.targets_folder`, and a resumed run, or another
    student, reads it there.
    Raises InvalidInput if a pair's domain has no teacher.
    """

    def make_trainer(**arguments: Any) -> ClozeTrainer:
        datasets: list[PairDataset] = [arguments[name] for name in ("train_dataset", "eval_dataset")]
        learn, held_out = (dataset.pairs for dataset in datasets)
        # Made-up pairs stand last, and are certain: a teacher may fall for what its student must not fall for.
        of_data = [pair for pair in learn if not isinstance(pair, MadePair)]
        targets = [
            recipe.hard_rate + (1 - recipe.hard_rate) * p for p in teacher_probabilities([*of_data, *held_out], recipe)
        ]
        targets[len(of_data) : len(of_data)] = [1.0] * (len(learn) - len(of_data))
        arguments["train_dataset"] = SoftPairs(datasets[0], targets[: len(learn)])
        arguments["eval_dataset"] = SoftPairs(datasets[1], targets[len(learn) :])
        arguments["data_collator"] = SoftCollator(arguments["data_collator"])
        arguments["compute_metrics"] = distil_metrics
        return DistilTrainer(**arguments)

    return train_cloze(recipe, data_dir, resume=resume, fresh=fresh, make_trainer=make_trainer)


@dataclass(frozen=True, slots=True)
class SoftPair:
    """A pair's encodings, chosen first and second, and the probability that its chosen response is the better one."""

    encodings: Orders
    target: float


class SoftPairs(Dataset[SoftPair]):
    """targets: one probability for each pair of `pairs`, in order."""

    def __init__(self, pairs: PairDataset, targets: Sequence[float]) -> None:
        self._pairs = pairs
        self._targets = targets

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> SoftPair:
        return SoftPair(self._pairs[index], self._targets[index])

    def lengths(self) -> list[int]:
        return self._pairs.lengths()


@dataclass(frozen=True, slots=True)
class SoftCollator:
    """Adds `targets` [rows] to a collator's batch: the probability that the first choice is the better one."""

    hard: PairCollator | RowCollator

    def __call__(self, pairs: list[SoftPair]) -> dict[str, Tensor]:
        targets = torch.tensor([[pair.target, 1 - pair.target] for pair in pairs])
        return {**self.hard([pair.encodings for pair in pairs]), "targets": targets.flatten()}


class DistilTrainer(ClozeTrainer):
    """Cross-entropy with the teachers, at the mask or between what a head makes of the two choices."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        texts = {name: value for name, value in inputs.items() if name != "targets"}
        # The verdicts' own loss is not used. With its labels, the cloze computes its head at the masks only.
        if self.read != self.read_mask:
            _loss, label_logits = self.read(model, texts)
            log_probabilities = label_logits.float().log_softmax(dim=-1)
        else:
            logits = model(**texts).logits
            label_logits = logits[:, self.label_ids]
            if self.label_loss:
                log_probabilities = label_logits.float().log_softmax(dim=-1)
            else:
                log_probabilities = logits.float().log_softmax(dim=-1)[:, self.label_ids]
        loss = soft_cross_entropy(log_probabilities, inputs["targets"])
        return (loss, label_logits) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ClozeTrainer does, with the pairs' targets as labels [pairs]."""
        loss, z, _labels = super().prediction_step(model, inputs)
        return loss, z, inputs["targets"].view(-1, 2)[:, 0].to(z.device)


def soft_cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over rows of -(p log q_first + (1 - p) log q_second), the loss of arXiv 1503.02531.

    For a head that scores responses alone, q_first = sigmoid(s_first - s_second), so this is the Bradley-Terry loss
    with p in place of the verdict: -(p log sigmoid(d) + (1 - p) log sigmoid(-d)), d = s_first - s_second. With
    RankNet's target probabilities it is RankNet's cost (Burges et al., ICML 2005).

    log_probabilities: log q, [rows, 2].
    targets: p, [rows].
    """
    return -(targets * log_probabilities[:, 0] + (1 - targets) * log_probabilities[:, 1]).mean()


def distil_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Add to the reward stage's metrics the share of pairs on which student and target prefer the same response."""
    chosen_first, chosen_second = np.asarray(prediction.predictions).T
    # As accuracy is counted, with the teacher's preference in place of the verdict.
    towards_teacher = np.where(np.asarray(prediction.label_ids) > 0.5, 1, -1)
    agreement = float(np.mean(credit((chosen_first - chosen_second) * towards_teacher)))
    return {**preference_metrics(prediction), "teacher_agreement": agreement}


def teacher_probabilities(pairs: Sequence[PreferencePair], recipe: DistilRecipe) -> list[float]:
    """Return P(chosen is better) by the teachers of each pair's domain: the sigmoid of their mean margin / temperature.

    One teacher at a time is in memory. A pair without a domain belongs to the spec's default domain.

    Raises InvalidInput if a domain has no teacher, or a file of targets lacks a pair.
    """
    domains = [pair.domain or recipe.spec.default_domain for pair in pairs]
    counts = np.array([len(recipe.teachers_of(domain)) for domain in domains])
    if orphans := sorted({domain for domain, count in zip(domains, counts, strict=True) if not count}):
        raise InvalidInput(f"no teacher for pairs of {', '.join(orphans)}: add one to `teachers`, or leave them out")
    margins = np.zeros(len(pairs))
    for described in recipe.all_teachers():
        teacher = teacher_at(described)
        own = [place for place, domain in enumerate(domains) if described in recipe.teachers_of(domain)]
        learned = [pairs[place] for place in own]
        if isinstance(teacher, GivenTargets):
            margins[own] += teacher.margins(learned)
        else:
            instructions = [teacher.instruction(domains[place]) for place in own]
            margins[own] += kept_margins(teacher, learned, instructions, recipe.targets_folder)
    probabilities: list[float] = sigmoid(margins / (counts * recipe.teacher_temperature)).tolist()
    return probabilities


def kept_margins(
    teacher: Teacher, pairs: Sequence[PreferencePair], instructions: Sequence[str], folder: Path
) -> NDArray[np.float64]:
    """Return a teacher's margins [pairs], from `folder` where they are known; it scores the others, once.

    The processes share the pairs. The longest come first: what does not fit in memory fails at once.
    """
    kept = folder / on_main(teacher.identity)
    keys = [pair_key(instruction, pair) for instruction, pair in zip(instructions, pairs, strict=True)]
    known = on_main(lambda: read_targets(kept))
    unknown = {key: place for place, key in enumerate(keys) if key not in known}
    todo = sorted(unknown.items(), key=lambda item: characters(pairs[item[1]]), reverse=True)
    state = process_state()
    share = todo[state.process_index :: state.num_processes]
    found: dict[str, float] = {}
    for start in range(0, len(share), PAIRS_AT_ONCE):
        part = share[start : start + PAIRS_AT_ONCE]
        scored = teacher.margins([pairs[place] for _, place in part], [instructions[place] for _, place in part])
        targets = {key: float(margin) for (key, _), margin in zip(part, scored, strict=True)}
        write_targets(kept, targets)
        found |= targets
        log.info("%s: %d of %d pairs scored, %d were known", kept, start + len(part), len(share), len(known))
    if todo:
        known |= dict(gather_object(list(found.items())))
    return np.array([known[key] for key in keys])
