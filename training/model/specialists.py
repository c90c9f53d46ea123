"""Trained models as merging and distillation open them: full weights, or a base with its adapter folded in."""

from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tinyrm.errors import InvalidInput
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.files import ADAPTER_CONFIG, base_of, refuse_other_base, weights_sha256
from tinyrm.spec import SPEC_FILE, HeadKind, Spec, read_run, trained_head
from training.data.cleaning import digest
from training.recipe import Specialist


class TrainedModel:
    """A specialist's folder; each part is read when it is first used."""

    def __init__(self, specialist: Specialist) -> None:
        self.path = specialist.path
        self.folder = Path(specialist.path)
        self._stated_base = specialist.base

    @property
    def base(self) -> str | None:
        """The base of an adapter; None for full weights. Raises InvalidInput if it was trained on other weights."""
        return self._base_and_revision[0]

    @cached_property
    def _base_and_revision(self) -> tuple[str | None, str | None]:
        if not (self.folder / ADAPTER_CONFIG).is_file():
            return None, None
        base, revision = (self._stated_base, None) if self._stated_base else base_of(self.folder)
        refuse_other_base(self.folder, self.run.get("base_sha256"), base, revision)
        return base, revision

    @cached_property
    def run(self) -> dict[str, Any]:
        """The record of its training, empty if there is none."""
        return read_run(self.folder)

    @cached_property
    def spec(self) -> Spec:
        if not (self.folder / SPEC_FILE).is_file():
            raise InvalidInput(f"{self.folder} has no {SPEC_FILE}: it was not trained as a reward model")
        return Spec.load(self.folder)

    @property
    def head(self) -> HeadKind:
        """How it reads a preference; a model without a record is a cloze model."""
        return trained_head(self.folder)

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: with the weights or the adapter, else with the base."""
        return str(self.folder) if (self.folder / "tokenizer.json").is_file() else self.base or self.path

    def load(self) -> PreTrainedModel:
        """Return the masked LM, or the classifier that its head is, its adapter folded in, on the CPU in fp32."""
        base, revision = self._base_and_revision
        adapter = self.folder if base else None
        return merge(load_with_adapter(base or self.path, adapter, revision=revision, head=self.head))

    def sha256(self) -> str:
        """Return the hash of the weights, or of the adapter."""
        return weights_sha256(self.path)

    def identity(self) -> str:
        """Return a digest of all that it computes from: weights, those of an adapter's base, spec, head."""
        base, revision = self._base_and_revision
        of_base = weights_sha256(base, revision) if base else ""
        return digest(self.sha256(), of_base, self.spec.model_dump_json(), self.head).hex()
