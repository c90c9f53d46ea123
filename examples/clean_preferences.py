"""Clean preference data without a service: list the pairs whose label the model doubts, and drop the surest of these.

    python examples/clean_preferences.py --bundle models/starter --pairs pairs.jsonl --scores scores --out clean.jsonl

--scores is the folder that `tinyrm score pairs.jsonl --bundle ... --out scores` writes; with --bundle it is written, or
completed, here. --pairs reads JSON lines with prompt, chosen and rejected; without it, two built-in pairs are
used. Needs `tinyrm[bulk]`.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tinyrm.cli import main as tinyrm
from tinyrm.files import open_text
from tinyrm.tables import read_jsonl

PROMPT = "Natalia sold 48 clips in April and half as many in May. How many in all?"
RIGHT = "In May she sold 48 / 2 = 24. In all she sold 48 + 24 = 72 clips."
WRONG = "In May she sold 48 * 2 = 96. In all she sold 48 + 96 = 144 clips."
# The second pair is the first one with a wrong label.
PAIRS = [
    {"prompt": PROMPT, "chosen": RIGHT, "rejected": WRONG},
    {"prompt": PROMPT, "chosen": WRONG, "rejected": RIGHT},
]
SHOWN = 5


def scores_of(folder: Path, pairs: Path) -> list[dict[str, Any]]:
    """One for each pair, in order; the chosen response is A."""
    columns = ["row", "probability_a", "margin"]
    rows = pq.read_table(folder, columns=columns, filters=[("source", "==", str(pairs))]).to_pylist()
    return sorted(rows, key=lambda row: row["row"])


def show(title: str, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    print(f"{len(found)} {title}")
    for pair, score in found[:SHOWN]:
        print(f"  {score['probability_a']:.3f}  row {score['row']}  {pair['chosen'][:60]!r}")


def clean(pairs: Path, scores: Path, out: Path, *, min_probability: float, low_margin: float) -> None:
    texts, rows = list(read_jsonl(pairs)), scores_of(scores, pairs)
    if len(texts) != len(rows):
        raise SystemExit(
            f"{pairs} has {len(texts)} pairs and {scores} has scores of {len(rows)} of them; score it first"
        )
    scored = [(text, row) for text, row in zip(texts, rows, strict=True) if row["margin"] is not None]
    by_doubt = sorted(scored, key=lambda one: one[1]["margin"])
    show("pairs where the model prefers the rejected response", [one for one in by_doubt if one[1]["margin"] < 0])
    show(f"pairs with a margin below {low_margin:g}", [one for one in by_doubt if abs(one[1]["margin"]) < low_margin])
    kept = [text for text, row in scored if row["probability_a"] >= min_probability]
    with open_text(out, "wt") as file:
        file.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in kept)
    print(f"{len(kept)} of {len(texts)} pairs kept in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder of the model; without it --scores must be complete")
    parser.add_argument("--pairs", type=Path, help="JSON lines, plain or packed")
    parser.add_argument("--scores", type=Path, help="folder of the scores")
    parser.add_argument("--out", type=Path, default=Path("clean.jsonl"))
    parser.add_argument("--min-probability", type=float, default=0.2, help="of the label; below it a pair is left out")
    parser.add_argument("--low-margin", type=float, default=0.1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pairs, scores = arguments.pairs, arguments.scores or Path(scratch, "scores")
        if pairs is None:
            pairs = Path(scratch, "pairs.jsonl")
            pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        if arguments.bundle and tinyrm(["score", str(pairs), "--bundle", arguments.bundle, "--out", str(scores)]) == 2:
            raise SystemExit(2)
        clean(
            Path(os.path.abspath(pairs)),  # noqa: PTH100  # the scores name their source so, links and all
            scores,
            arguments.out,
            min_probability=arguments.min_probability,
            low_margin=arguments.low_margin,
        )


if __name__ == "__main__":
    main()
