"""Distillation: a student learns the preferences of the specialist of each pair's domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction

from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.pairs import PreferencePair
from tinyrm.scorer import Scorer
from tinyrm.spec import read_run
from training.data.collate import Orders, PairCollator, PairDataset
from training.model.specialists import TrainedModel
from training.output import write_run
from training.recipe import DistilRecipe
from training.stages.cloze import ClozeTrainer, preference_metrics, train_cloze

PAIRS_AT_ONCE = 4096


def train_distil(recipe: DistilRecipe, data_dir: Path, *, resume: bool) -> dict[str, float]:
    """Train as `train_cloze` does, with the teachers' probabilities in place of the verdicts.

    The teachers score all pairs once, before training. Raises InvalidInput if a pair's domain has no teacher.
    """

    def make_trainer(**arguments: Any) -> ClozeTrainer:
        for name in ("train_dataset", "eval_dataset"):
            pairs: PairDataset = arguments[name]
            targets = [
                recipe.hard_rate + (1 - recipe.hard_rate) * p for p in teacher_probabilities(pairs.pairs, recipe)
            ]
            arguments[name] = SoftPairs(pairs, targets)
        arguments["data_collator"] = SoftCollator(arguments["data_collator"])
        arguments["compute_metrics"] = distil_metrics
        return DistilTrainer(**arguments)

    metrics = train_cloze(recipe, data_dir, resume=resume, make_trainer=make_trainer)
    if PartialState().is_main_process:
        hashes = {domain: TrainedModel(teacher).sha256() for domain, teacher in recipe.teachers.items()}
        write_run(recipe.output_dir, read_run(recipe.output_dir) | {"teachers_sha256": hashes})
    return metrics


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
    """Adds `targets` [rows] to a PairCollator's batch: the probability that the first choice is the better one."""

    hard: PairCollator

    def __call__(self, pairs: list[SoftPair]) -> dict[str, Tensor]:
        targets = torch.tensor([[pair.target, 1 - pair.target] for pair in pairs])
        return {**self.hard([pair.encodings for pair in pairs]), "targets": targets.flatten()}


class DistilTrainer(ClozeTrainer):
    """Cross-entropy with the teacher at the mask."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        # With its labels the model computes its head at the masks only; the loss of these labels is not used.
        outputs = model(**{name: value for name, value in inputs.items() if name != "targets"})
        label_logits = outputs.logits[:, self.label_ids]
        if self.label_loss:
            log_probabilities = label_logits.float().log_softmax(dim=-1)
        else:
            log_probabilities = outputs.logits.float().log_softmax(dim=-1)[:, self.label_ids]
        loss = soft_cross_entropy(log_probabilities, inputs["targets"])
        return (loss, label_logits) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ClozeTrainer does, with the pairs' targets as labels [pairs]."""
        loss, z, _labels = super().prediction_step(model, inputs)
        return loss, z, inputs["targets"].view(-1, 2)[:, 0].to(z.device)


def soft_cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over rows of -(p log q_first + (1 - p) log q_second).

    log_probabilities: log q, [rows, 2].
    targets: p, [rows].
    """
    return -(targets * log_probabilities[:, 0] + (1 - targets) * log_probabilities[:, 1]).mean()


def distil_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Add to the reward stage's metrics the share of pairs on which student and target prefer the same response."""
    chosen_first, chosen_second = np.asarray(prediction.predictions).T
    prefers_chosen = chosen_first - chosen_second > 0
    agreement = float(np.mean(prefers_chosen == (np.asarray(prediction.label_ids) > 0.5)))
    return {**preference_metrics(prediction), "teacher_agreement": agreement}


def teacher_probabilities(pairs: Sequence[PreferencePair], recipe: DistilRecipe) -> list[float]:
    """Return P(chosen is better), both orders averaged, by the teacher of each pair's domain.

    One teacher is in memory at a time. A pair without a domain belongs to the spec's default domain. Raises
    InvalidInput if a domain has no teacher.
    """
    domains = [pair.domain or recipe.spec.default_domain for pair in pairs]
    if orphans := sorted(set(domains) - recipe.teachers.keys()):
        raise InvalidInput(f"no teacher for pairs of {', '.join(orphans)}: add one to `teachers`, or leave them out")
    probabilities = [0.0] * len(pairs)
    for domain, teacher in recipe.teachers.items():
        own = [i for i, name in enumerate(domains) if name == domain]
        if own:
            scores = score_pairs(TrainedModel(teacher), domain, [pairs[i] for i in own], recipe.teacher_temperature)
            for i, probability in zip(own, scores, strict=True):
                probabilities[i] = probability
    return probabilities


def score_pairs(teacher: TrainedModel, domain: str, pairs: Sequence[PreferencePair], temperature: float) -> list[float]:
    """Return P(chosen is better) by one teacher, under its own template and its own instruction for the domain."""
    spec = teacher.spec
    tokenizer, special = load_tokenizer(teacher.tokenizer)
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens)
    scorer = Scorer(encoder, TorchEngine(teacher.load(), special, encoder.label_ids), spec, temperature)
    instruction = spec.instruction(domain, or_default=True)
    probabilities: list[float] = []
    # In parts: the token ids of all pairs together could be larger than the model.
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        comparisons = [pair.comparison() for pair in pairs[start : start + PAIRS_AT_ONCE]]
        preferences = scorer.score(comparisons, [instruction] * len(comparisons))
        probabilities += [preference.p_a for preference in preferences]
    return probabilities
