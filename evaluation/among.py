"""python -m evaluation.among: does a pair keep its verdict among other responses, and is the best of a set found?

Each pair is judged alone, and again with worse responses beside it: others to the same prompt, answers to another
question, damaged ones (`tinyrm.negatives`). A model that scores responses alone keeps every verdict; one whose
responses see each other need not. The best is found if the chosen response scores above all others.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from evaluation.report import table
from evaluation.statistics import Share
from evaluation.targets.checkpoint import checkpoint_scorer
from tinyrm.bundle import sha256
from tinyrm.command_line import parse
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.manifest import MANIFEST_FILE
from tinyrm.negatives import Pool, negatives_for
from tinyrm.output import standard_output
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer

log = logging.getLogger(__name__)

COLUMNS = ("model", "others", "pairs", "verdict kept", "pair right", "best found", "at random")


@dataclass(frozen=True, slots=True)
class Options:
    """Judge pairs alone and among other responses."""

    models: Positional[tuple[Path, ...]]
    """Bundles, or folders of trainings, of models that give each response a score."""
    pairs: Path
    """Preference pairs that no model was trained on."""
    others: tuple[int, ...] = (4, 8, 16)
    """Responses beside the pair."""
    max_pairs: int = 200
    """Pairs, drawn by seed; 0 takes all."""
    seed: int = 0
    """Seed of the pairs that are drawn and of the responses beside them."""
    out: Path | None = None
    """File for the same as JSON."""


@dataclass(frozen=True, slots=True)
class Case:
    """A pair and the worse responses beside it, as many as the largest set needs."""

    pair: PreferencePair
    others: tuple[str, ...]


def cases_of(pairs: Sequence[PreferencePair], others: int, count: int, seed: int) -> list[Case]:
    """Return up to `count` pairs that have enough worse responses; 0 for all."""
    pool, cases = Pool(pairs), []
    for place in np.random.default_rng(seed).permutation(len(pairs)).tolist():
        made = negatives_for(pairs[place], pool, others, seed, held_out=True)
        if len(made) == others:
            # In an order of their own: those that come first are the others of the smaller sets.
            order = np.random.default_rng([seed, place]).permutation(others).tolist()
            cases.append(Case(pairs[place], tuple(made[i].text for i in order)))
        if count and len(cases) == count:
            break
    if not cases:
        raise InvalidInput(f"no pair has {others} worse responses")
    return cases


def open_model(folder: Path) -> Scorer:
    """Open a bundle, or the output folder of a training. Raises InvalidInput for a model that reads pairs."""
    scorer = Scorer.open(folder) if (folder / MANIFEST_FILE).is_file() else checkpoint_scorer(folder)[0]
    if scorer.encoder.reads == "pair":
        raise InvalidInput(f"{folder} reads a pair; name models that give each response a score")
    return scorer


def scores(scorer: Scorer, case: Case, others: int) -> NDArray[np.float64]:
    """Return the scores of the chosen response, the rejected one and `others` more: [2 + others]."""
    domain = case.pair.domain if case.pair.domain in scorer.spec.domains else None
    responses = (case.pair.chosen, case.pair.rejected, *case.others[:others])
    return scorer.score_responses(case.pair.prompt, responses, domain=domain)


def measure(scorer: Scorer, cases: Sequence[Case], others: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each number of other responses, the pair alone first."""
    prompts = [case.pair.prompt for case in cases]
    rows: list[dict[str, Any]] = []
    alone: NDArray[np.bool_] | None = None
    for count in (0, *others):
        scored = np.array([scores(scorer, case, count) for case in cases])
        right = scored[:, 0] > scored[:, 1]
        alone = right if alone is None else alone
        found = scored[:, 0] > scored[:, 1:].max(axis=1)
        shares = {"kept": right == alone, "right": right, "found": found}
        rows.append(
            {"others": count, "pairs": len(cases), "at_random": 1 / (2 + count)}
            | {name: Share.of(values.astype(float).tolist(), prompts).model_dump() for name, values in shares.items()}
        )
        log.info("among %d others: %s", count, Share(**rows[-1]["found"]))
    return rows


def markdown(models: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            model["model"],
            row["others"],
            row["pairs"],
            *(str(Share(**row[name])) for name in ("kept", "right", "found")),
            f"{row['at_random']:.1%}",
        ]
        for model in models
        for row in model["rows"]
    ]
    return table(list(COLUMNS), lines)


def run(options: Options) -> tuple[str, dict[str, Any]]:
    """Return the results as Markdown and as JSON values. Raises TinyRMError."""
    others = sorted(set(options.others))
    if not options.models or not others or others[0] < 1 or options.max_pairs < 0:
        raise InvalidInput("name models, and numbers of other responses of at least 1; --max-pairs is 0 or more")
    cases = cases_of(read_pairs(options.pairs), others[-1], options.max_pairs, options.seed)
    models = []
    for folder in options.models:
        log.info("%s", folder)
        models.append({"model": folder.name, "rows": measure(open_model(folder), cases, others)})
    return markdown(models), {"pairs_sha256": sha256(options.pairs), "seed": options.seed, "models": models}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure with the options of a command line, by default this process's. Return the exit code."""
    options = parse(Options, arguments, prog="python -m evaluation.among")
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        text, content = run(options)
        print(text, flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except (TinyRMError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
