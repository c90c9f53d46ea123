"""Test the text of the first two stages."""

import gzip
import json
import random
from pathlib import Path

from tests.training.conftest import toy_pairs
from training.data.corpus import load_texts, render_pair
from training.data.source import Texts


def write_documents(path: Path, texts: list[str]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def test_a_pair_is_used_without_its_label() -> None:
    pair = toy_pairs(1)[0]
    seen = {render_pair(pair, random.Random(seed)) for seed in range(20)}
    assert seen == {
        f"Question: {pair.prompt} Choice 0: {pair.chosen} Choice 1: {pair.rejected}",
        f"Question: {pair.prompt} Choice 0: {pair.rejected} Choice 1: {pair.chosen}",
    }


def test_all_sources_are_shuffled_together_by_the_seed(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl.gz", [f"text {i}" for i in range(50)])
    (tmp_path / "p.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in toy_pairs(50)))
    sources = (Texts(path="d.jsonl.gz", kind="documents"), Texts(path="p.jsonl", kind="pairs"))
    texts = load_texts(sources, tmp_path, seed=1)
    assert len(texts) == 100
    assert 5 < sum(text.startswith("text") for text in texts[:50]) < 45
    assert texts == load_texts(sources, tmp_path, seed=1) != load_texts(sources, tmp_path, seed=2)


def test_a_limit_takes_a_random_part_of_about_that_size(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl.gz", [f"{i:04d}" * 25 for i in range(1000)])
    limited = (Texts(path="d.jsonl.gz", kind="documents", max_mb=0.01),)
    texts = load_texts(limited, tmp_path, seed=1)
    assert len(texts) == 100
    assert max(int(text[:4]) for text in texts) > 500, "not just the head of the file"
