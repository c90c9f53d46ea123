"""HH-RLHF (arXiv 2204.05862): dialogues with two last responses, one of them more helpful or less harmful."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tinyrm.errors import InvalidInput
from training.data.cleaning import Raw, Reason
from training.data.readers.dialogue import read_row
from training.data.rows import Published, find_local, rows
from training.data.source import HH_PAIRS, Source

PUBLISHED = Published("Anthropic/hh-rlhf", ("chosen", "rejected"))
# In harmless-base the better response is the less harmful one, and often the less helpful.
DOMAINS = {"harmless-base": "safety"}


def read(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """`chosen` and `rejected` are whole dialogues in one string; the prompt is all before the last `Assistant:`.

    Read folder by folder, by name: `red-team-attempts` is beside them and holds no pairs.
    """
    local = find_local(source, data_dir)
    if local and not any((local / folder).is_dir() for folder in HH_PAIRS):
        # A copy in one file, as the hub converts it, has lost the folders.
        if source.part:
            raise InvalidInput(f"{local} has none of the folders {', '.join(HH_PAIRS)}, so {source.part} is not known")
        yield from read_pairs(PUBLISHED, source, data_dir, "hh-rlhf", "chat")
        return
    for folder in (source.part,) if source.part else HH_PAIRS:
        path = str((local / folder).relative_to(data_dir)) if local else None
        if local and not (local / folder).is_dir():
            if source.part:
                raise InvalidInput(f"{local} has no folder {folder}")
            continue
        there = replace(PUBLISHED, files=(f"{folder}/train.jsonl.gz",))
        yield from read_pairs(
            there, source.model_copy(update={"path": path}), data_dir, f"hh-rlhf:{folder}", DOMAINS.get(folder, "chat")
        )


def read_pairs(
    published: Published, source: Source, data_dir: Path, origin: str, domain: str
) -> Iterator[Raw | Reason]:
    for row in rows(published, source, data_dir):
        yield read_row(row, domain, origin)
