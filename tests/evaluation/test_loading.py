"""Read published schemas from a folder, a file or a saved data set; errors name the reason."""

import gzip
import json
import math
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from evaluation.benchmarks.rewardbench import RewardBenchRow
from evaluation.loading import Row, load_rows
from evaluation.scoring import score_pairs
from evaluation.targets.bundle import open_bundle
from tests.evaluation.conftest import reward_bench_row
from tinyrm.errors import InvalidInput
from tinyrm.hub import has_split

ROWS = [reward_bench_row(n, "math-prm", "good", "bad") for n in range(3)]


class Prompt(Row):
    prompt: str


def test_the_splits_of_a_folder_are_read(reward_bench: Path) -> None:
    assert len(load_rows(str(reward_bench), "filtered", RewardBenchRow)) == 92
    assert len(load_rows(str(reward_bench), "raw", RewardBenchRow)) == 94
    assert has_split(str(reward_bench), "raw")
    assert not has_split(str(reward_bench), "cooked")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_is_one_split(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(ROWS) if suffix == ".json" else lines)
    assert [row.prompt for row in load_rows(str(path), "any", Prompt)] == [row["prompt"] for row in ROWS]
    assert not has_split(str(path), "raw")


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    DatasetDict({"raw": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert len(load_rows(str(tmp_path / "saved"), "raw", Prompt)) == 3
    assert len(load_rows(str(tmp_path / "one"), "any", Prompt)) == 3
    assert has_split(str(tmp_path / "saved"), "raw")
    assert not has_split(str(tmp_path / "saved"), "filtered")
    assert not has_split(str(tmp_path / "one"), "raw"), "whatever it is, it is one split"
    with pytest.raises(InvalidInput, match="no split 'filtered'"):
        load_rows(str(tmp_path / "saved"), "filtered", Prompt)


def test_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q"}) + "\n")
    with pytest.raises(InvalidInput, match=r"row 0: prompt: Field required"):
        load_rows(str(path), "any", Prompt)


def test_an_absent_file_or_split_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="name a hub id, a folder or a file"):
        load_rows("nobody/nothing", "test", Prompt)
    with pytest.raises(InvalidInput, match="could not be listed"):
        has_split("nobody/nothing", "raw")
    (tmp_path / "rows.txt").write_text("text")
    with pytest.raises(InvalidInput, match="could be read"):
        load_rows(str(tmp_path / "rows.txt"), "test", Prompt)


def test_an_empty_response_is_scored_as_a_blank(bundle_folder: Path) -> None:
    row = RewardBenchRow.model_validate(reward_bench_row(0, "donotanswer", "I would rather not.", ""))
    target = open_bundle(bundle_folder)
    (scored,) = score_pairs(target, [row.pair()])
    assert scored.pair.domain == "safety"
    assert math.isfinite(scored.preference.margin)
