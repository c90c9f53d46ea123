"""Skywork-Reward-Preference-80K-v0.2 (arXiv 2410.18451): 77,016 pairs gathered from seven sources."""

from collections.abc import Iterator
from pathlib import Path

from tinyrm.errors import InvalidInput
from training.data.cleaning import Raw, Reason
from training.data.readers.dialogue import read_row
from training.data.rows import Published, rows
from training.data.source import SKYWORK_PAIRS, SKYWORK_PARTS, Source

PUBLISHED = Published("Skywork/Skywork-Reward-Preference-80K-v0.2", ("chosen", "rejected", "source"))
DOMAINS = {name: domain for domain in ("chat", "safety", "reasoning") for name in SKYWORK_PARTS[domain]}


def read(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """`chosen` and `rejected` are lists of {role, content}; `source` names a row's origin."""
    wanted = SKYWORK_PARTS[source.part] if source.part else tuple(SKYWORK_PAIRS)
    for row in rows(PUBLISHED, source, data_dir):
        origin = row["source"]
        if origin not in DOMAINS:
            raise InvalidInput(f"Skywork has a row of source {origin!r}; known sources are {', '.join(DOMAINS)}")
        if origin not in wanted:
            continue
        yield read_row(row, DOMAINS[origin], f"skywork:{origin}")
