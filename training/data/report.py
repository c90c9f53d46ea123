"""Counts as Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import get_args

from training.data.cleaning import Loaded, Reason
from training.data.decontamination import SIZES, Overlap
from training.data.mixture import Mixture


def source_table(mixture: Mixture) -> str:
    """A row for each source and one for all of them; a column for each reason that dropped any pair."""
    every = mixture.loaded
    known = [*get_args(Reason), *sorted(set(every.dropped) - set(get_args(Reason)))]
    reasons = [reason for reason in known if every.dropped.get(reason)]
    rows = [_counts(name, part, reasons) for name, part in mixture.parts.items()]
    if len(rows) > 1:
        rows.append(_counts("together", every, reasons))
    return _table(["source", "read", *reasons, "pairs"], rows)


def overlap_table(overlaps: Mapping[str, Overlap]) -> str:
    """A row for each evaluation set: training pairs that share n words in a row with it, and its prompts touched."""
    head = ["evaluation set", "prompts"]
    for n in SIZES:
        head += [f"pairs, {n}-gram", f"prompts, {n}-gram"]
    rows: list[list[str | int]] = []
    for name, overlap in overlaps.items():
        counts = [number for n in SIZES for number in (overlap.pairs[n], overlap.prompts[n])]
        rows.append([name, overlap.evaluation_prompts, *counts, overlap.same_pairs, overlap.same_prompts])
    return _table([*head, "pairs, same prompt", "prompts, same"], rows)


def _counts(name: str, loaded: Loaded, reasons: Sequence[str]) -> list[str | int]:
    return [name, loaded.read, *(loaded.dropped.get(reason, 0) for reason in reasons), len(loaded.pairs)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
