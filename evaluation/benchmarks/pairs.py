"""Preference pairs of one's own: accuracy by domain against the length heuristic."""

from pathlib import Path

from evaluation.judge import judge
from evaluation.report import Report, orders_and_length, table
from evaluation.statistics import by_domain
from evaluation.target import Subject
from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_pairs

NAME = "pairs"


def run(subject: Subject, path: Path) -> Report:
    """Judge a file of pairs. Raises InvalidInput."""
    pairs = read_pairs(path)
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs")
    judged = judge(subject, subject.spec, pairs)
    summaries = by_domain(judged)
    orders, lengths = orders_and_length(judged)
    figures = {
        "pairs": path.name,
        "pairs_sha256": sha256(path),
        "engine": subject.engine,
        "domains": {name: summary.model_dump() for name, summary in summaries.items()},
        "length": lengths,
    }
    return Report(NAME, f"{table(summaries)}\n\n{orders}", figures, summaries["all"].accuracy, judged)
