"""Your own preference pairs: accuracy by domain beside the length heuristic."""

from pathlib import Path

from evaluation.report import Report, domain_table, orders_and_length
from evaluation.scoring import score_pairs
from evaluation.statistics import by_domain
from evaluation.target import Target
from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_pairs

NAME = "pairs"


def run(target: Target, path: Path) -> Report:
    """Score a file of pairs. Raises InvalidInput."""
    file_hash = sha256(path)  # before the work: it refuses a pipe
    pairs = read_pairs(path)
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs")
    scored = score_pairs(target, pairs)
    summaries = by_domain(scored)
    orders, lengths = orders_and_length(scored)
    figures = {
        "pairs": path.name,
        "pairs_sha256": file_hash,
        "engine": target.engine,
        "domains": {name: summary.model_dump() for name, summary in summaries.items()},
        "length": lengths,
    }
    return Report(NAME, f"{domain_table(summaries)}\n\n{orders}", figures, summaries["all"].accuracy, scored)
