"""From a finished run to its bundle: exported, calibrated, measured on other pairs, with a card, moved into place."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.options import Options as EvaluationOptions
from evaluation.run import evaluate, write
from evaluation.statistics import Share
from export.calibration import evenly
from export.config import ExportOptions
from export.pipeline import export_bundle
from tinyrm.bundle import read_manifest, swap_in
from tinyrm.calibration import MIN_PAIRS
from tinyrm.manifest import Manifest
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.spec import HELD_OUT_FILE, read_run
from training.data.split import split_by_prompt
from training.finetune.prepare import Prepared, in_yaml

# An interval of 3 points to each side. A large base takes a second a pair on a CPU; `tinyrm evaluate` measures more.
MAX_MEASURED = 1_000
# How the parts of the card that evaluation fills are marked.
RESULTS = "<!-- results: begin -->\n<!-- results: end -->"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Halves:
    """Held-out pairs, split by prompt.

    calibration: the temperature is fitted on them.
    measured: the accuracy is measured on them.
    are_same: whether there are too few of them to be split, so that all serve for both.
    """

    calibration: Sequence[PreferencePair]
    measured: Sequence[PreferencePair]
    are_same: bool


@dataclass(frozen=True, slots=True)
class Made:
    """A written bundle. accuracy, longer: on the measured pairs, of the model and of the better rule about length."""

    manifest: Manifest
    accuracy: Share
    longer: float
    halves: Halves


def part(prepared: Prepared, held_out: Sequence[PreferencePair]) -> Halves:
    """Split held-out pairs into those to calibrate on and those to measure on; too few serve for both.

    A tie has a probability and no verdict: it counts in calibration, and not in accuracy.
    """
    if prepared.validation is not None:
        return Halves(held_out, evenly(prepared.validation, MAX_MEASURED), are_same=False)
    # Another seed than that of the first split, in which all of them had a small draw.
    measured, calibration = split_by_prompt(list(held_out), 0.5, prepared.recipe.optimization.seed + 1)
    are_same = min(len(measured), len(calibration)) < MIN_PAIRS
    if are_same:
        measured = calibration = list(held_out)
    verdicts = [pair for pair in measured if not pair.is_tie]
    return Halves(calibration, evenly(verdicts, MAX_MEASURED), are_same)


def make_bundle(prepared: Prepared) -> Made:
    """Export, calibrate and measure a finished run beside `out`, then move it there: what is there is complete.

    Raises what export and evaluation raise; then `out` is as it was.
    """
    out, recipe, run = prepared.out, prepared.recipe, prepared.recipe.output_dir
    held_out = read_pairs(run / HELD_OUT_FILE, ties=True)
    halves = part(prepared, held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        staged, files = Path(folder, out.name), Path(folder, ".files")  # no bundle's name begins with a dot
        files.mkdir()
        calibration = write_pairs(files / "calibration.jsonl", halves.calibration)
        measured = write_pairs(files / "held_out.jsonl", halves.measured)
        card = files / "README.md"
        card.write_text(card_text(prepared, halves, held_out), encoding="utf-8")
        is_adapter = recipe.dora is not None
        export_bundle(
            ExportOptions(
                model=recipe.model if is_adapter else str(run),
                revision=read_run(run).get("base_commit") if is_adapter else None,
                adapter=run if is_adapter else None,
                out=staged,
                calibration=calibration,
                card=card,
            )
        )
        log.info("measuring %d held-out pairs", len(halves.measured))
        options = EvaluationOptions(bundle=staged, pairs=measured, record=True, card=True)
        evaluated = evaluate(options)
        write(options, evaluated)
        swap_in(staged, out)
    whole = evaluated.report.figures["domains"]["all"]
    return Made(read_manifest(out), evaluated.report.headline, whole["length_heuristic"], halves)


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> Path:
    path.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs), encoding="utf-8")
    return path


def card_text(prepared: Prepared, halves: Halves, held_out: Sequence[PreferencePair]) -> str:
    """Return the model card, with a place for the results."""
    recipe, record = prepared.recipe, read_run(prepared.recipe.output_dir)
    sources = ", ".join(f"`{source.path or source.name}`" for source in recipe.sources)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in prepared.dropped.items())
    chosen = [f"| `{c.key}` | `{in_yaml(c.value)}` | {c.why} |" for c in prepared.choices]
    about = [
        f"# {prepared.out.name}",
        "This reward model returns which of several responses to a prompt is better. It was trained from "
        f"`{recipe.model}` on {prepared.pairs:,} pairs of {sources}"
        + (f" ({dropped} were left out)" if dropped else "")
        + f", of which {len(held_out):,} were held out. It is as good, and as "
        "licensed, as these pairs and their base: check both before you publish it.",
        "## Results",
        f"Intervals are 95 %, by bootstrap over prompts. {measured_on(prepared, halves)}",
        RESULTS,
        "## Use",
        f"```bash\nTINYRM_MODEL={prepared.out} tinyrm serve\n```\n\n```python\nimport tinyrm\n\n"
        f'scorer = tinyrm.load("{prepared.out}")\nprint(scorer.compare("Say hello.", "Hello!", "No.").preferred)\n```',
        "## How it was trained",
        f"Recipe and record of the run: `provenance` in `manifest.json`. Base: commit `{record.get('base_commit')}`, "
        f"weights `{str(record.get('base_sha256'))[:12]}`.",
    ]
    if chosen:
        about.append("\n".join(["| chosen by `tinyrm train` | value | because |", "|---|---|---|", *chosen]))
    return "\n\n".join(about) + "\n"


def measured_on(prepared: Prepared, halves: Halves) -> str:
    """Return in words which pairs were measured, and what was chosen on the same ones."""
    count, fitted = len(halves.measured), len(halves.calibration)
    if halves.are_same:
        return (
            f"Measured on all {count:,} held-out pairs, the same that calibration used: split in two, they would be "
            f"too few for either. The accuracy does not depend on calibration; NLL, Brier score and ECE are too good "
            "if a temperature was fitted. More pairs, or `--validation FILE`, measure them honestly."
        )
    source = "pairs of a file of their own" if prepared.validation is not None else "held-out pairs"
    overlap = f" ({prepared.overlap:,} others share a prompt with these and were left out)" if prepared.overlap else ""
    return f"Measured on {count:,} {source}{overlap}; the temperature was fitted on {fitted:,} other held-out pairs."
