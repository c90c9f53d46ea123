"""Distillation: a student learns the preferences of the specialist of each pair's domain."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction

from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.files import write_atomically
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.pairs import PreferencePair, read_jsonl
from tinyrm.scorer import Scorer
from training.data.cleaning import digest
from training.data.collate import Orders, PairCollator, PairDataset
from training.model.specialists import TrainedModel
from training.processes import on_main, process_state
from training.recipe import DistilRecipe
from training.stages.cloze import ClozeTrainer, credit, preference_metrics, train_cloze

PAIRS_AT_ONCE = 4096
TARGETS_FILE = "teacher_probabilities.jsonl"


def train_distil(recipe: DistilRecipe, data_dir: Path, *, resume: bool, fresh: bool = False) -> dict[str, float]:
    """Train as `train_cloze` does, with the teachers' probabilities in place of the verdicts.

    The teachers score each pair once: what they gave is kept in the output folder, and a resumed run reads it there.
    Raises InvalidInput if a pair's domain has no teacher.
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
    # As accuracy is counted, with the teacher's preference in place of the verdict.
    towards_teacher = np.where(np.asarray(prediction.label_ids) > 0.5, 1, -1)
    agreement = float(np.mean(credit((chosen_first - chosen_second) * towards_teacher)))
    return {**preference_metrics(prediction), "teacher_agreement": agreement}


def teacher_probabilities(pairs: Sequence[PreferencePair], recipe: DistilRecipe) -> list[float]:
    """Return P(chosen is better), both orders averaged, by the teacher of each pair's domain.

    What a teacher gave is kept in a file of the output folder; only pairs that are not in it are scored. The processes
    share the pairs, and one teacher at a time is in memory. A pair without a domain belongs to the spec's
    default domain. Raises InvalidInput if a domain has no teacher.
    """
    domains = [pair.domain or recipe.spec.default_domain for pair in pairs]
    if orphans := sorted(set(domains) - recipe.teachers.keys()):
        raise InvalidInput(f"no teacher for pairs of {', '.join(orphans)}: add one to `teachers`, or leave them out")
    marks = on_main(lambda: {name: teacher_mark(recipe, name) for name in recipe.teachers})
    keys = [target_key(marks[domain], pair) for domain, pair in zip(domains, pairs, strict=True)]
    kept = recipe.output_dir / TARGETS_FILE
    known = on_main(lambda: read_targets(kept))
    state = process_state()
    for domain, teacher in recipe.teachers.items():
        todo = {k: p for k, p, name in zip(keys, pairs, domains, strict=True) if name == domain and k not in known}
        if not todo:
            continue
        share = dict(islice(todo.items(), state.process_index, None, state.num_processes))
        scores = score_pairs(TrainedModel(teacher), domain, list(share.values()), recipe.teacher_temperature)
        known |= dict(gather_object(list(zip(share, scores, strict=True))))
        on_main(partial(write_targets, kept, known))
    return [known[key] for key in keys]


def teacher_mark(recipe: DistilRecipe, domain: str) -> str:
    """Return what a target depends on beside the pair, as text: the teacher's weights, its spec, the temperature."""
    teacher = TrainedModel(recipe.teachers[domain])
    fields = (teacher.path, teacher.base, teacher.sha256(), teacher.spec.model_dump_json(), domain)
    return json.dumps([*fields, recipe.teacher_temperature])


def target_key(mark: str, pair: PreferencePair) -> str:
    return digest(mark, pair.prompt, pair.chosen, pair.rejected).hex()


def read_targets(path: Path) -> dict[str, float]:
    """Return key -> probability; empty if there is no such file."""
    return dict(read_jsonl(path)) if path.is_file() else {}


def write_targets(path: Path, targets: Mapping[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{json.dumps(item)}\n" for item in targets.items()))


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
