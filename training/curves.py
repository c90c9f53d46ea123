"""The learning curves of runs, read from their log.jsonl, and what they show in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyrm.errors import InvalidInput

LOG_FILE = "log.jsonl"
# The smoothed loss is a mean in which older values count less: half as much after this share of the run.
HALF_LIFE = 0.03
MEASURED = ("eval_loss", "eval_nll", "eval_accuracy")
# Held-out loss that is this much above its best is said to rise; less is the noise of a few steps.
RISES = 0.01

Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Curves:
    """What a run logged: (step, value), in order.

    loss, rate: of training, every few steps.
    held_out: of each evaluation, by name without `eval_`.
    """

    name: str
    loss: Points
    rate: Points
    held_out: dict[str, Points]


def read_curves(run: Path, name: str) -> Curves:
    """Read the log of a run's folder, or a log itself. Raises InvalidInput if there is none or nothing in it."""
    path = run / LOG_FILE if run.is_dir() else run
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # What was logged again, as the last evaluation is, counts once.
        values = {(str(key), int(entry["step"])): value for entry in entries for key, value in entry.items()}
        points: dict[str, Points] = {key: [] for key in ("loss", "learning_rate", *MEASURED)}
        for (key, step), value in sorted(values.items(), key=lambda item: item[0]):
            if key in points:
                points[key].append((step, float(value)))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidInput(f"{path} is not the log of a run ({LOG_FILE} in its folder): {error}") from error
    held_out = {key.removeprefix("eval_"): points[key] for key in MEASURED if points[key]}
    curves = Curves(name, points["loss"], points["learning_rate"], held_out)
    if not (curves.loss or curves.held_out):
        raise InvalidInput(f"{path} has no losses yet; the first is logged after `logging_steps` steps")
    return curves


def read_all(runs: Sequence[Path]) -> list[Curves]:
    """Return the curves of each run, named by its folder, with those above where names repeat."""
    folders = [run.resolve() if run.is_dir() else run.resolve().parent for run in runs]
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return [read_curves(run, "/".join(folder.parts[-depth:])) for run, folder in zip(runs, folders, strict=True)]


def describe(curves: Curves) -> str:
    """Return what the curves show: where training and held-out loss ended, the best step, and whether it overfits."""
    lines = [f"{curves.name}:"]
    if curves.loss:
        smooth = smoothed(curves.loss)
        lines.append(
            f"training loss {smooth[0][1]:.4f} at step {smooth[0][0]:,}, {smooth[-1][1]:.4f} at step {smooth[-1][0]:,} "
            "(smoothed)"
        )
    for name, points in curves.held_out.items():
        best = (max if name == "accuracy" else min)(points, key=lambda point: point[1])
        last = points[-1]
        shown = "held-out " + name
        lines.append(f"{shown} {last[1]:.4f} at the last step, {last[0]:,}; best {best[1]:.4f} at step {best[0]:,}")
    lines.append(verdict(curves))
    return "\n  ".join(lines)


def verdict(curves: Curves) -> str:
    """Return in a sentence what the held-out loss shows."""
    points = curves.held_out.get("loss") or []
    if len(points) < 2:
        return "fewer than two evaluations: set eval_steps lower to see whether more steps help"
    (best_step, best), (last_step, last) = min(points, key=lambda point: point[1]), points[-1]
    if last > best * (1 + RISES):
        risen = f"{last / best - 1:.1%}" if best else f"{last:.4f}"
        return (
            f"held-out loss rises after step {best_step:,}, by {risen} until the end: it overfits; fewer "
            "epochs, more pairs, or early_stopping_patience, which keeps the best checkpoint"
        )
    if best_step == last_step and points[-2][1] > last * (1 + RISES):
        return "held-out loss still falls at the end: more epochs may help"
    return "held-out loss is level at the end: more epochs would change little"


def smoothed(points: Points) -> Points:
    """Return the running mean of values, in which earlier ones count less and less."""
    span = max(1.0, HALF_LIFE * (points[-1][0] - points[0][0]))
    total = weight = 0.0
    before, found = points[0][0], []
    for step, value in points:
        decay = 0.5 ** ((step - before) / span)
        total, weight, before = total * decay + value, weight * decay + 1, step
        found.append((step, total / weight))
    return found
