"""What to export, and what the folders of a trained model record."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import UseAppendAction, arg

from tinyrm.command_line import Flag, option
from tinyrm.errors import InvalidInput
from tinyrm.manifest import BUNDLE_NAME, Head, head_of_training
from tinyrm.modernbert.files import checkpoint_folder, refuse_other_base
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.spec import HELD_OUT_FILE, RUN_FILE, SPEC_FILE, Spec, read_run, trained_head
from tinyrm.template import TEMPLATES

Precision = Literal["fp32", "bf16", "int8"]
Stored = Literal["fp32", "fp16", "mixed", "int8"]
# The names of tinyrm.template.TEMPLATES.
TemplateName = Literal[
    "figure2", "answer-colon", "bert-pair", "roberta-pair", "pairrm", "chatml", "llama-3", "human-assistant"
]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Turn a trained model into a bundle: merge, compile, check, calibrate, write. A failing check writes nothing.

    Examples:
      tinyrm export --model runs/mine --out models/mine
      tinyrm export --model answerdotai/ModernBERT-base --adapter runs/dora --out models/dora --weights
      tinyrm export --model cross-encoder/ms-marco-MiniLM-L6-v2 --out models/minilm --calibration pairs.jsonl
      tinyrm export --model runs/mine --out models/mine --precision int8 --json | jq .revision
    """

    model: Annotated[str, arg(metavar="MODEL")]
    """Folder or hub id: a masked LM, a reward model or a cross-encoder."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Bundle folder to write, such as models/mine."""
    revision: Annotated[str | None, option("COMMIT")] = None
    """Branch, tag or commit of `model`, if it is a hub id."""
    adapter: Annotated[Path | None, option("FOLDER")] = None
    """Folder of a DoRA or LoRA adapter trained on the model."""
    calibration: Annotated[Path | None, option("FILE")] = None
    """Pairs that fit the temperature; default: those that training held out."""
    demo: Flag = False
    """Mark the bundle as a demonstration that is too weak for real work; the page and /v1/models say so."""
    card: Annotated[Path | None, option("FILE")] = None
    """Model card; becomes the bundle's README.md."""
    template: Annotated[TemplateName | None, option("|".join(get_args(TemplateName)))] = None
    """For a model trained elsewhere; default: figure2 for a masked LM, for others what their tokenizer writes."""
    max_tokens: Annotated[int | None, option("N")] = None
    """For a model trained elsewhere; default: 2048, or what it was made for if that is less."""
    graph: Literal["auto", "plain", "optimised"] = "auto"
    """auto: optimised for ModernBERT, BERT, RoBERTa and ELECTRA, else plain, as transformers computes it."""
    max_calibration_pairs: int = 1000
    """Calibrate on at most this many pairs, spread over domains and lengths; 0 for all."""
    precisions: Annotated[tuple[Precision, ...], arg(name="precision"), UseAppendAction] = ()
    """A precision to write beside fp32 if it passes the gate. May be repeated."""
    max_weighted_flips: float = 0.001
    """Share of the calibration preferences, each weighted by the size of its margin, that a lower precision, or
    `stored`, may change. A near tie that changes counts next to nothing, for nothing is lost by it."""
    max_flips: Annotated[float | None, option("FLOAT")] = None
    """The same share unweighted, if it is to be limited, too."""
    stored: Stored = "fp32"
    """Weights in the files: fp16 is half the size, int8 a quarter; mixed has tables, such as the embeddings, in int8
    and matrices in fp16. They are widened at load, and the graph computes in fp32 at the same speed. All checks, the
    temperature and the gate see the rounded weights."""
    weights: Flag = False
    """Also write weights for the torch-cuda engine, which runs no graph."""
    json: Flag = False
    """Print the manifest as JSON on standard output, and what was checked on standard error."""

    @property
    def trained(self) -> Path:
        """Return the folder that the last training stage wrote."""
        return self.adapter or Path(self.model)

    @property
    def tokenizer(self) -> str:
        """Return where the tokenizer is: in `trained`, else with the base that an adapter belongs to."""
        is_own = (self.trained / "tokenizer.json").is_file()
        return str(self.trained if is_own else checkpoint_folder(self.model, self.revision))

    def spec(self) -> Spec:
        """Return the spec of the training; for a model trained elsewhere, one of these options. Raises InvalidInput."""
        if (self.trained / SPEC_FILE).is_file():
            if self.template or self.max_tokens is not None:
                raise InvalidInput(f"{self.trained / SPEC_FILE} sets template and token budget; leave both options out")
            return Spec.load(self.trained).of_head(trained_head(self.trained))
        template = TEMPLATES[self.template or "figure2"]
        if template.label_words is None:
            raise InvalidInput(f"{self.model} fills a mask, and the template {template.name} has none; use figure2")
        return Spec(template=template, max_tokens=self.token_budget(default=2048))

    def token_budget(self, *, default: int) -> int:
        """Return the tokens of a sequence for a model trained elsewhere. Raises InvalidInput."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInput(f"--max-tokens {self.max_tokens} must be at least 1")
        return self.max_tokens or default

    def is_trained_here(self) -> bool:
        """Return whether the folder has a record of our own training."""
        return self.adapter is not None or any((self.trained / file).is_file() for file in (SPEC_FILE, RUN_FILE))

    def run(self) -> dict[str, Any]:
        """Return the record of the training run; empty for a model trained elsewhere."""
        return read_run(self.trained)

    def head(self) -> Head:
        """Return where the model reads. Raises InvalidInput for a head that is not served."""
        return head_of_training(self.trained)

    def refuse_other_base(self) -> None:
        """Raise InvalidInput if the adapter was trained on other weights than those of `model`."""
        if self.adapter:
            refuse_other_base(self.adapter, self.run().get("base_sha256"), self.model, self.revision)

    def lower_precisions(self) -> list[Precision]:
        """Return the precisions to write beside fp32."""
        return [precision for precision in dict.fromkeys(self.precisions) if precision != "fp32"]

    def gated(self) -> list[str]:
        """Return what the gate has to pass: precisions beside fp32, and weights that are rounded in the files."""
        return [*self.lower_precisions(), *([] if self.stored == "fp32" else [f"stored {self.stored}"])]

    def check(self) -> None:
        """Raise InvalidInput for what would be refused after minutes of work: names, files that are missing."""
        existing = next(parent for parent in self.out.absolute().parents if parent.exists())
        pairs = self.calibration_pairs()
        rules: tuple[tuple[object, str], ...] = (
            (
                not re.fullmatch(BUNDLE_NAME, self.out.name),
                f"the folder's name is the bundle's: {self.out.name!r} must begin with a letter or digit and hold only "
                "letters, digits, '.', '_' and '-'",
            ),
            (
                not existing.is_dir() or not os.access(existing, os.W_OK),
                f"{self.out} cannot be written: {existing} is no folder that this user may write into",
            ),
            (self.card and not self.card.is_file(), f"there is no model card {self.card}"),
            (self.adapter and not self.adapter.is_dir(), f"there is no folder {self.adapter} with an adapter"),
            (self.max_calibration_pairs < 0, "--max-calibration-pairs must not be negative; 0 takes all pairs"),
            (
                self.gated() and pairs is None,
                f"{', '.join(self.gated())} needs calibration pairs: name them with --calibration",
            ),
            (
                self.graph == "plain" and (self.weights or self.gated()),
                "--weights, lower precisions and --stored need an optimised graph; leave out --graph plain",
            ),
            (
                self.stored != "fp32" and (self.weights or self.lower_precisions()),
                f"--stored {self.stored} is for a bundle of one precision: leave out --weights and lower precisions",
            ),
        )
        for is_wrong, instead in rules:
            if is_wrong:
                raise InvalidInput(instead)

    def calibration_pairs(self) -> Path | None:
        """Return the file of `calibration`, else of the pairs that training held out, else None."""
        held_out = self.trained / HELD_OUT_FILE
        return self.calibration or (held_out if held_out.is_file() else None)

    def holds_out(self, pairs: Sequence[PreferencePair]) -> bool:
        """Return whether training held out all of these pairs: they are of its own file, or a part of it."""
        if self.calibration is None:
            return True
        own = self.trained / HELD_OUT_FILE
        return own.is_file() and set(pairs) <= set(read_pairs(own))
