"""`tinyrm train PAIRS`: prepare, train, make the bundle, and print what came out and how to serve it."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyrm.errors import InvalidInput
from training.finetune.prepare import Prepared, prepare
from training.options import Train
from training.output import alone_in
from training.processes import on_main, process_state
from training.stages.learning import run_learning

if TYPE_CHECKING:
    from evaluation.statistics import Share
    from training.finetune.bundle import Made

log = logging.getLogger(__name__)


def finetune(options: Train) -> int:
    """Train on pairs and write a bundle; return the exit code. Several processes train together, one does the rest.

    Raises InvalidInput for what cannot be done, before anything is trained.
    """
    began = time.monotonic()
    try:  # a missing package of the export is reported before the training, not after it
        from training.finetune.bundle import make_bundle
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error}; install what the whole way needs: pip install 'tinyrm[train,export]'") from error
    prepared = on_main(lambda: prepare(options))
    is_main = process_state().is_main_process
    if options.dry_run:
        if is_main:
            print_plan(prepared, options)
        return 0
    if is_main:
        log.info("chosen for these pairs, base and machine:\n%s", prepared.reasons)
    with alone_in(prepared.recipe.output_dir):
        run_learning(prepared.recipe, Path(), resume=options.resume, fresh=options.fresh)
        if is_main:
            made = make_bundle(prepared)
            if options.json:
                print(json.dumps(figures(prepared, made)))
            print(result(prepared, made, time.monotonic() - began), file=sys.stderr if options.json else sys.stdout)
    return 0


def print_plan(prepared: Prepared, options: Train) -> None:
    """Print the plan of the recipe, and why it is as it is."""
    from training.experiments import dry_run

    cost: Any = {"hardware": options.hardware, "price_per_hour": options.price_per_hour}
    if options.json:
        recipe = prepared.recipe.model_dump(mode="json")
        print(
            json.dumps({"out": str(prepared.out), "recipe": recipe} | dry_run.figures(prepared.recipe, Path(), **cost))
        )
        return
    print(dry_run.describe(prepared.recipe, Path(), **cost))
    print(f"\nwrites the bundle:\n  {prepared.out}\n\nchosen, and why:\n{prepared.reasons}")


def figures(prepared: Prepared, made: "Made") -> dict[str, Any]:
    """Return what came out, for programs."""
    accuracy = made.accuracy
    return {
        "model": made.manifest.identity,
        "out": str(prepared.out),
        "run": str(prepared.recipe.output_dir),
        "temperature": made.manifest.temperature,
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high},
        "held_out_pairs": len(made.halves.measured),
    }


def result(prepared: Prepared, made: "Made", seconds: float) -> str:
    """Return what came out, and the lines that serve it and try it."""
    fit, out = made.manifest.calibration, prepared.out
    fitted = (
        f"fitted on {fit.pairs:,} pairs"
        if fit and fit.log_temperature_std
        else "not fitted: these pairs determine none (the log has the reason), and probabilities are not calibrated"
    )
    same = " (those that calibration used: there are too few for a part of their own)" if made.halves.are_same else ""
    minutes = f"{seconds / 60:.1f} minutes" if seconds >= 100 else f"{seconds:.0f} seconds"
    return "\n".join(
        [
            "",
            f"{made.manifest.identity} written to {out} in {minutes}",
            f"accuracy on {len(made.halves.measured):,} held-out pairs{same}: {made.accuracy}, 95 % interval; "
            f"by length alone {made.longer:.1%}",
            *uncertain(made.accuracy),
            f"temperature {made.manifest.temperature:.3f}, {fitted}",
            f"card {out}/README.md, run {prepared.recipe.output_dir}",
            "",
            f"serve it:  TINYRM_MODEL={out} tinyrm serve",
            'try it:    tinyrm compare "Say hello." "Hello!" "No."    (in another terminal)',
        ]
    )


def uncertain(accuracy: "Share") -> list[str]:
    """Return a line if the accuracy may be that of a coin, and what to do; otherwise none."""
    if accuracy.low > 0.5:
        return []
    return [
        "that may be chance: 50 % is inside the interval; train on more pairs or for more epochs, and measure on more "
        "with --validation FILE"
        if accuracy.high >= 0.5
        else "that is worse than chance: look whether `chosen` and `rejected` are exchanged in your pairs"
    ]
