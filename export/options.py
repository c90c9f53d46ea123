"""What to export, and what the folders already know."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyrm.spec import SPEC_FILE, ClozeSpec
from tinyrm.template import TEMPLATES

RUN_FILE = "training.json"
HELD_OUT_FILE = "held_out.jsonl"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """model: folder or hub id. adapter: folder, if any. calibration: pairs that fit the temperature."""

    model: str
    out: Path
    adapter: Path | None = None
    calibration: Path | None = None
    card: Path | None = None
    template: str = "figure2"
    max_tokens: int = 2048

    @property
    def trained(self) -> Path:
        """The folder that the last training stage wrote."""
        return self.adapter or Path(self.model)

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: with what was trained last, else with the base that an adapter belongs to."""
        return str(self.trained) if (self.trained / "tokenizer.json").is_file() else self.model

    def spec(self) -> ClozeSpec:
        """As trained; for a model that has none, the template and budget asked for."""
        if (self.trained / SPEC_FILE).is_file():
            return ClozeSpec.load(self.trained)
        return ClozeSpec(template=TEMPLATES[self.template], max_tokens=self.max_tokens)

    def run(self) -> dict[str, Any]:
        """The record of the training run, empty for a model trained elsewhere."""
        path = self.trained / RUN_FILE
        record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return record

    def calibration_pairs(self) -> Path | None:
        """The pairs asked for, else those that training held out."""
        held_out = self.trained / HELD_OUT_FILE
        return self.calibration or (held_out if held_out.is_file() else None)
