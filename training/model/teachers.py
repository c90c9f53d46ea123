"""Teachers of a distillation: trained models, bundles, or files of what any other model gave.

A teacher states what it is without loading anything, so that pairs whose targets are known cost nothing.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tinyrm.bundle import read_manifest, sha256
from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.manifest import MANIFEST_FILE, head_of_training
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.pairs import PreferencePair, iterate_pairs
from tinyrm.scorer import Scorer
from training.data.cleaning import digest
from training.model.specialists import TrainedModel
from training.recipe import Specialist


class Teacher(Protocol):
    """A model that gives margins: the log-odds that the chosen response of a pair is the better one."""

    def identity(self) -> str:
        """Return a digest of all that the margins depend on beside the texts. Raises InvalidInput, InvalidBundle."""

    def instruction(self, domain: str) -> str:
        """Return the instruction under which it reads pairs of a domain."""

    def margins(self, pairs: Sequence[PreferencePair], instructions: Sequence[str]) -> NDArray[np.float64]:
        """Return the margin of each pair [pairs], of both orders where it reads pairs. The first call loads it."""


def teacher_at(specialist: Specialist) -> "Teacher | GivenTargets":
    """Return the teacher at a path: a file of targets, the folder of a bundle, or that of a trained model."""
    path = Path(specialist.path)
    if path.is_file():
        return GivenTargets(path)
    return BundleTeacher(path) if (path / MANIFEST_FILE).is_file() else TrainedTeacher(TrainedModel(specialist))


class GivenTargets:
    """A file of pairs, each with a `probability` or a `margin`, such as the training pairs with one more column."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> str:
        return sha256(self.path)

    @cached_property
    def _known(self) -> Mapping[bytes, float]:
        """Digest of the texts -> margin, for either response of a pair as the chosen one."""
        known: dict[bytes, float] = {}
        for place, pair in iterate_pairs(self.path):
            if not pair.is_soft:
                raise InvalidInput(f"{place}: a target is a `probability` or a `margin`, and there is neither")
            known[digest(pair.prompt, pair.chosen, pair.rejected)] = pair.log_odds()
            known[digest(pair.prompt, pair.rejected, pair.chosen)] = -pair.log_odds()
        return known

    def margins(self, pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
        """Return the margin of each pair [pairs]. Raises InvalidInput if the file lacks one."""
        keys = [digest(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
        if missing := sum(key not in self._known for key in keys):
            raise InvalidInput(f"{self.path} has no target for {missing:,} of {len(pairs):,} pairs")
        return np.array([self._known[key] for key in keys])


class BundleTeacher:
    """A bundle on the engine that suits this machine, with its own temperature."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)

    def identity(self) -> str:
        return self.manifest.revision

    def instruction(self, domain: str) -> str:
        return self.manifest.spec.instruction(domain, or_default=True)

    @cached_property
    def _scorer(self) -> Scorer:
        # A launcher gives each of the processes of a machine its share of the threads.
        return Scorer.open(self.folder, threads=torch.get_num_threads())

    def margins(self, pairs: Sequence[PreferencePair], instructions: Sequence[str]) -> NDArray[np.float64]:
        return scorer_margins(self._scorer, pairs, instructions)


class TrainedTeacher:
    """The output folder of a training, with any head that is exported. Its temperature is 1: uncalibrated."""

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    def identity(self) -> str:
        return self.model.identity()

    def instruction(self, domain: str) -> str:
        return self.model.spec.instruction(domain, or_default=True)

    @cached_property
    def _scorer(self) -> Scorer:
        model, spec = self.model, self.model.spec
        head = head_of_training(model.folder)
        tokenizer, special = load_tokenizer(model.tokenizer)
        encoder = Encoder(tokenizer, spec.of_head(model.head).template, special, spec.max_tokens)
        label_ids = encoder.label_ids if head.kind == "cloze" else None
        return Scorer(encoder, TorchEngine(model.load(), special, label_ids, head=head), spec)

    def margins(self, pairs: Sequence[PreferencePair], instructions: Sequence[str]) -> NDArray[np.float64]:
        return scorer_margins(self._scorer, pairs, instructions)


def scorer_margins(scorer: Scorer, pairs: Sequence[PreferencePair], instructions: Sequence[str]) -> NDArray[np.float64]:
    domains = [scorer.spec.find_domain(pair.domain, or_default=True) for pair in pairs]
    preferences = scorer.score([pair.comparison() for pair in pairs], list(instructions), domain=domains)
    return np.array([preference.margin for preference in preferences])
