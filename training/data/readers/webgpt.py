"""WebGPT comparisons (arXiv 2112.09332): two responses to a question, written with a browser, and a preference."""

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.cleaning import Raw, Reason, tie_of
from training.data.rows import Published, rows
from training.data.source import Source

# The main branch holds a script, which `datasets` does not run; the hub keeps its output on another branch. The columns
# that are not read, quotes and tokens, make up nine tenths of it.
PUBLISHED = Published(
    "openai/webgpt_comparisons",
    ("question", "answer_0", "score_0", "answer_1", "score_1"),
    files=("default/train/*.parquet",),
    revision="refs/convert/parquet",
)
CITATION = re.compile(r"\s?\[\d+(?:,\s*\d+)*\]")


def read(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """The scores of a row add up to 0; both are 0 if neither response was preferred."""
    for row in rows(PUBLISHED, source, data_dir):
        if None in (row["score_0"], row["score_1"]):
            yield "tie"
            continue
        better = int(row["score_1"] > row["score_0"])
        responses = [row["answer_0"], row["answer_1"]]
        if source.part == "without-citations":
            responses = [CITATION.sub("", response or "") for response in responses]
        question = row["question"] or {}
        raw = Raw(question.get("full_text"), responses[better], responses[1 - better], domain="chat", origin="webgpt")
        yield tie_of(raw, source.ties) if row["score_0"] == row["score_1"] else raw
