"""Your own preference pairs: accuracy by domain beside the length heuristic."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.report import Report, domain_table, orders_and_length
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.statistics import Estimate, by_domain, split_domains, split_lengths
from evaluation.target import Target
from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_pairs

NAME = "pairs"


def run(target: Target, path: Path) -> Report:
    """Score a file of pairs. Raises InvalidInput."""
    file_hash = sha256(path)  # before the work: it refuses a pipe
    read = read_pairs(path, ties=True)
    pairs = [pair for pair in read if not pair.is_tie]
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs" + (", only ties" if read else ""))
    scored = score_pairs(target, pairs)
    summaries = by_domain(scored)
    orders, lengths = orders_and_length(scored)
    figures = {
        "pairs": path.name,
        "pairs_sha256": file_hash,
        "engine": target.engine,
        "domains": {name: summary.model_dump() for name, summary in summaries.items()},
        "length": lengths,
    } | ({"ties_left_out": ties} if (ties := len(read) - len(pairs)) else {})
    parts = split_domains(scored) | split_lengths(scored) | {"all": scored}
    estimates = {name: estimate(part) for name, part in parts.items()}
    tables = f"{domain_table(summaries)}\n\n{orders}"
    if ties:
        tables += f"\n\n{ties} ties of the file are left out: they are no verdicts."
    return Report(NAME, tables, figures, summaries["all"].accuracy, estimates, scored)


def estimate(scored: Sequence[ScoredPair]) -> Estimate:
    """Return the accuracy, drawn by prompts; a tie counts one half."""
    return Estimate.of([j.credit for j in scored], [j.pair.prompt for j in scored])
