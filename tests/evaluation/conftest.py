"""Write benchmarks of a few rows in their published schemas, as copies of their repositories."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from evaluation.benchmarks.rewardbench import SECTIONS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's cache of a file beside the file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def reward_bench_row(number: int, subset: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": f"prompt {number} of {subset}",
        "chosen": chosen,
        "chosen_model": "human",
        "rejected": rejected,
        "rejected_model": "gpt-4",
        "subset": subset,
        "id": number,
    }


@pytest.fixture
def reward_bench(tmp_path: Path) -> Path:
    """Write four rows of every subset; in one of four the right response is longer. `raw` has two more Chat rows."""
    rows = [
        reward_bench_row(number, subset, "good answer" if number == 0 else "good", "bad reply")
        for subsets in SECTIONS.values()
        for subset in subsets
        for number in range(4)
    ]
    more = [reward_bench_row(number, "mt-bench-easy", "good, and long", "bad") for number in (10, 11)]
    folder = tmp_path / "reward-bench"
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "data" / "filtered-00000-of-00001.parquet")
    Dataset.from_list([*rows, *more]).to_parquet(folder / "data" / "raw-00000-of-00001.parquet")
    return folder


def reward_bench_2_row(id_: str, subset: str, chosen: list[str], rejected: list[str]) -> dict[str, Any]:
    return {
        "id": id_,
        "prompt": f"prompt of {subset} {id_}",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["m"],
        "subset": subset,
        "additional_metadata": {"category": None, "method": None, "valid": 1.0},
    }


@pytest.fixture
def reward_bench_2(tmp_path: Path) -> Path:
    subsets = ("Factuality", "Focus", "Math", "Precise IF", "Safety")
    rows = [
        reward_bench_2_row(f"{n}", subset, ["good"], ["bad", "worse", "not so"]) for subset in subsets for n in range(2)
    ]
    for n in range(3):
        rows.append(reward_bench_2_row(f"ref:{n}", "Ties", ["good red"], ["bad", "bad grey", "mud"]))
        rows.append(reward_bench_2_row(f"tied:{n}", "Ties", ["good red", "good blue!"], ["bad", "bad grey", "mud"]))
    folder = tmp_path / "reward-bench-2"
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture
def rm_bench(tmp_path: Path) -> Path:
    """Write total_dataset.json: each style is longer than the one before, for right and wrong responses alike."""
    domains = ("chat", "code", "math", "safety-refuse", "safety-response")
    rows = [
        {
            "id": f"{domain}/{n}",
            "prompt": f"prompt {n} of {domain}",
            "chosen": ["good", "good plain", "good **marked up**"],
            "rejected": ["evil", "evil plain", "evil **marked up**"],
            "domain": domain,
        }
        for domain in domains
        for n in range(2)
    ]
    path = tmp_path / "total_dataset.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def judge_bench(tmp_path: Path) -> Path:
    """Write a file as in the benchmark's own repository."""
    sources = ("mmlu-pro-computer science", "mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
    rows = [
        {
            "pair_id": f"pair {n}",
            "original_id": str(n),
            "source": source,
            "question": f"question {n}",
            "response_model": "gpt-4o-2024-05-13",
            "response_A": "good answer" if n % 2 else "bad answer",
            "response_B": "bad answer" if n % 2 else "good answer",
            "label": "A>B" if n % 2 else "B>A",
        }
        for n, source in enumerate(sources)
    ]
    path = tmp_path / "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
