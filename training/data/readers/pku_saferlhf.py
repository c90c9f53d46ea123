"""PKU-SafeRLHF-30K (arXiv 2307.04657): two responses to a question that invites harm. Not for
commercial use (CC BY-NC 4.0)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from training.data.cleaning import Raw, Reason, tie_of
from training.data.rows import Published, rows
from training.data.source import Source

PUBLISHED = Published("PKU-Alignment/PKU-SafeRLHF-30K", ("prompt", "response_0", "response_1"))


def read(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """Annotators chose the safer response and, separately, the better one. `part` selects; the default is safer."""
    verdict = f"{source.part or 'safer'}_response_id"
    published = replace(PUBLISHED, columns=(*PUBLISHED.columns, verdict))
    for row in rows(published, source, data_dir):
        winner = row[verdict]
        responses = (row["response_0"], row["response_1"])
        first = int(winner == 1)
        raw = Raw(row["prompt"], responses[first], responses[1 - first], domain="safety", origin="pku-saferlhf")
        yield raw if winner in (0, 1) else tie_of(raw, source.ties)
