"""Distillation: a student learns the preferences of teachers, whatever they and the student read."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from transformers import EvalPrediction

from tinyrm.errors import InvalidInput
from tinyrm.negatives import MadePair
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import sigmoid
from training.data.collate import PairDataset, characters
from training.data.soft import SoftCollator, SoftPairs
from training.data.targets import pair_key, read_targets, write_targets
from training.model.teachers import GivenTargets, Teacher, teacher_at
from training.processes import on_main, process_state
from training.recipe import DistilRecipe
from training.stages.cloze import ClozeTrainer, credit, measured, train_cloze

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
        datasets = [plain(arguments[name]) for name in ("train_dataset", "eval_dataset")]
        learn, held_out = (dataset.pairs for dataset in datasets)
        # Made-up pairs stand last, and are certain: a teacher may fall for what its student must not fall for.
        of_data = [pair for pair in learn if not isinstance(pair, MadePair)]
        asked = [*of_data, *held_out]
        targets = [
            recipe.hard_rate * pair.target + (1 - recipe.hard_rate) * p
            for pair, p in zip(asked, teacher_probabilities(asked, recipe), strict=True)
        ]
        targets[len(of_data) : len(of_data)] = [1.0] * (len(learn) - len(of_data))
        arguments["train_dataset"] = SoftPairs(datasets[0], targets[: len(learn)])
        arguments["eval_dataset"] = SoftPairs(datasets[1], targets[len(learn) :])
        if not isinstance(arguments["data_collator"], SoftCollator):
            arguments["data_collator"] = SoftCollator(arguments["data_collator"])
        arguments["compute_metrics"] = partial(distil_metrics, known=np.array([pair.target for pair in held_out]))
        return ClozeTrainer(**arguments)

    return train_cloze(recipe, data_dir, resume=resume, fresh=fresh, make_trainer=make_trainer)


def plain(dataset: PairDataset | SoftPairs) -> PairDataset:
    """Return the data set without the probabilities of its pairs."""
    return dataset.dataset if isinstance(dataset, SoftPairs) else dataset


def distil_metrics(prediction: EvalPrediction, known: NDArray[np.float64] | None = None) -> dict[str, float]:
    """Add to the reward stage's metrics the share of pairs on which student and target prefer the same response.

    known: what the data say of the pairs, [pairs], as `measured` takes it; None: all are verdicts. The prediction's
        labels are the targets.
    """
    margins = np.asarray(prediction.predictions)
    chosen_first, chosen_second = margins.T
    # As accuracy is counted, with the teacher's preference in place of the verdict.
    towards_teacher = np.where(np.asarray(prediction.label_ids) > 0.5, 1, -1)
    agreement = float(np.mean(credit((chosen_first - chosen_second) * towards_teacher)))
    own = measured(margins, np.ones(len(margins)) if known is None else known)
    return {**own, "teacher_agreement": agreement}


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
