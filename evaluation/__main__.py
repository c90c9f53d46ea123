"""python -m evaluation --bundle models/NAME --pairs FILE: how often a bundle agrees with people, and how surely.

Prints a Markdown table; its last line is JSON. With --record the results go into the bundle's manifest, with --card the
bundle's README.md gets the table between its markers.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evaluation.card import update_card
from evaluation.judge import judge
from evaluation.report import table
from evaluation.statistics import by_domain
from tinyrm.bundle import Bundle, record_evaluation, sha256
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.manifest import CARD_FILE
from tinyrm.pairs import read_pairs
from tinyrm.scorer import Scorer


def main() -> int:
    arguments = _parser().parse_args()
    try:
        return evaluate(arguments)
    except TinyRMError as error:
        print(f"evaluation: {error.type}: {error}", file=sys.stderr)
        return 1


def evaluate(arguments: argparse.Namespace) -> int:
    manifest = Bundle.open(arguments.bundle).manifest
    pairs = read_pairs(arguments.pairs)
    if not pairs:
        raise InvalidInput(f"{arguments.pairs} holds no pairs")
    scorer = Scorer.open(arguments.bundle, arguments.engine)
    summaries = by_domain(judge(scorer, manifest.spec, pairs))
    shown = table(summaries)
    results: dict[str, Any] = {
        "pairs": arguments.pairs.name,
        "pairs_sha256": sha256(arguments.pairs),
        "engine": scorer.engine.name,
        "domains": {name: summary.model_dump() for name, summary in summaries.items()},
    }
    print(f"{manifest.identity} on {arguments.pairs.name}\n\n{shown}\n")
    if arguments.record:
        record_evaluation(arguments.bundle, results)
    if arguments.card:
        title = f"`{manifest.identity}`, calibration temperature {manifest.temperature:.3f}:"
        update_card(arguments.bundle / CARD_FILE, f"{title}\n\n{shown}")
    print(json.dumps({"model": manifest.identity, **results}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder")
    parser.add_argument("--pairs", type=Path, required=True, help="preference pairs, .jsonl, .jsonl.gz or .jsonl.xz")
    parser.add_argument("--engine", default="auto", help="runtime to score with")
    parser.add_argument("--record", action="store_true", help="write the results into the manifest")
    parser.add_argument("--card", action="store_true", help="write the table into the bundle's README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
