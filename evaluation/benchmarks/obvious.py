"""Ten pairs that a visitor would try first: what any judge must get right before its other figures count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from evaluation.report import Report, table
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.statistics import Estimate, Share
from evaluation.target import Target
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair, read_records

NAME: Final = "obvious"
SOURCE: Final = Path(__file__).with_suffix(".jsonl")


class ObviousPair(PreferencePair):
    """A pair with a name for reports. The rejected response may be empty."""

    name: str
    rejected: str


def run(target: Target, source: Path = SOURCE) -> Report:
    """Score a file of named pairs. Raises InvalidInput."""
    pairs = read_records(source, ObviousPair)
    if not pairs:
        raise InvalidInput(f"{source} holds no pairs")
    return report([pair.name for pair in pairs], score_pairs(target, pairs))


def report(names: Sequence[str], scored: Sequence[ScoredPair]) -> Report:
    """Return the verdict on each pair, and which ones are wrong; as everywhere, a tie is not right."""
    named = list(zip(names, scored, strict=True))
    wrong = [name for name, j in named if not j.is_right]
    rows = [[name, j.pair.prompt, "right" if j.is_right else "wrong", f"{j.preference.p_a:.1%}"] for name, j in named]
    count = f"{len(named) - len(wrong)} of {len(named)} are right." + (f" Wrong: {', '.join(wrong)}." if wrong else "")
    figures: dict[str, Any] = {
        "right": len(named) - len(wrong),
        "of": len(named),
        "wrong": wrong,
        "probabilities": {name: j.preference.p_a for name, j in named},
    }
    estimate = Estimate.of([float(j.is_right) for j in scored], names)
    tables = f"{table(('pair', 'prompt', 'verdict', 'probability of the better one'), rows)}\n\n{count}"
    return Report(NAME, tables, figures, Share.from_estimate(estimate), {"all": estimate}, list(scored))
