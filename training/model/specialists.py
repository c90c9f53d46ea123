"""Trained models as merging and distillation open them: full weights, or a base with its adapter folded in."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tinyrm.bundle import sha256, weights_sha256
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.spec import SPEC_FILE, ClozeSpec, read_run
from training.recipe import Specialist

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class TrainedModel:
    """A specialist's folder; each part is read when it is first used."""

    def __init__(self, specialist: Specialist) -> None:
        self.path = specialist.path
        self.folder = Path(specialist.path)
        self._stated_base = specialist.base

    @cached_property
    def base(self) -> str | None:
        """The base of an adapter; None for full weights. Raises InvalidInput if it was trained on other weights."""
        config = self.folder / ADAPTER_FILE
        if not config.is_file():
            return None
        base = self._stated_base or json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise InvalidInput(f"{self.folder} does not name the base of its adapter; give it as `base`")
        trained_on, present = self.run.get("base_sha256"), weights_sha256(base)
        if trained_on and present and present != trained_on:
            raise InvalidInput(f"{self.folder} was trained on other weights than those of {base}; name its own base")
        return str(base)

    @cached_property
    def run(self) -> dict[str, Any]:
        """The record of its training, empty if there is none."""
        return read_run(self.folder)

    @cached_property
    def spec(self) -> ClozeSpec:
        if not (self.folder / SPEC_FILE).is_file():
            raise InvalidInput(f"{self.folder} has no {SPEC_FILE}: it was not trained as a reward model")
        return ClozeSpec.load(self.folder)

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: with the weights or the adapter, else with the base."""
        return str(self.folder) if (self.folder / "tokenizer.json").is_file() else self.base or self.path

    def load(self) -> PreTrainedModel:
        """Return the masked LM, its adapter folded in, on the CPU in fp32."""
        if self.base is None:
            return load_with_adapter(self.path, None)
        return merge(load_with_adapter(self.base, self.folder))

    def sha256(self) -> str | None:
        """Return the hash of the weights, or of the adapter; None for a hub id."""
        adapter = self.folder / ADAPTER_WEIGHTS
        return sha256(adapter) if adapter.is_file() else weights_sha256(self.path)
