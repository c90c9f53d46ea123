"""What to export, and what the folders already know."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyrm.bundle import weights_sha256
from tinyrm.errors import InvalidInput
from tinyrm.spec import HELD_OUT_FILE, SPEC_FILE, ClozeSpec, read_run, trained_head
from tinyrm.template import TEMPLATES


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """model: folder or hub id. adapter: folder, if any. calibration: pairs that fit the temperature.

    graph: `auto` is `optimised` for the ModernBERT family, `plain` for any other masked LM. precisions: fp32 is always
    written; int8 and bf16 have to pass the gate, which allows max_flips, a share of the calibration pairs. weights:
    for the torch engine, which runs no graph.
    """

    model: str
    out: Path
    adapter: Path | None = None
    calibration: Path | None = None
    card: Path | None = None
    template: str | None = None
    max_tokens: int | None = None
    graph: Literal["auto", "plain", "optimised"] = "auto"
    precisions: tuple[str, ...] = ("fp32",)
    max_flips: float = 0.005
    weights: bool = False

    @property
    def trained(self) -> Path:
        """The folder that the last training stage wrote."""
        return self.adapter or Path(self.model)

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer is: with what was trained last, else with the base that an adapter belongs to."""
        return str(self.trained) if (self.trained / "tokenizer.json").is_file() else self.model

    def spec(self) -> ClozeSpec:
        """As trained; for a model trained elsewhere, the template and budget asked for. Raises InvalidInput."""
        if (self.trained / SPEC_FILE).is_file():
            if self.template or self.max_tokens:
                raise InvalidInput(f"{self.trained / SPEC_FILE} says template and token budget; leave both options out")
            return ClozeSpec.load(self.trained)
        return ClozeSpec(template=TEMPLATES[self.template or "figure2"], max_tokens=self.max_tokens or 2048)

    def run(self) -> dict[str, Any]:
        """The record of the training run, empty for a model trained elsewhere."""
        return read_run(self.trained)

    def refuse_heads(self) -> None:
        """Raise InvalidInput for a model that reads the preference elsewhere than at the mask."""
        head = trained_head(self.trained)
        if head != "cloze":
            raise InvalidInput(f"{self.trained} was trained with head: {head}; only cloze models become bundles")

    def refuse_other_base(self) -> None:
        """Raise InvalidInput if the adapter was trained on other weights than those of `model`."""
        trained_on, present = self.run().get("base_sha256"), weights_sha256(self.model)
        if self.adapter and trained_on and present and present != trained_on:
            raise InvalidInput(f"{self.adapter} was trained on other weights than {self.model}; name its own base")

    def calibration_pairs(self) -> Path | None:
        """The pairs asked for, else those that training held out."""
        held_out = self.trained / HELD_OUT_FILE
        return self.calibration or (held_out if held_out.is_file() else None)
