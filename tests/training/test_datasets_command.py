"""Test `python -m training data`: its tables, the pairs that it writes, and errors in one line."""

import json
from pathlib import Path

import datasets
import pytest
import yaml

from tests.training import published
from tests.training.published import jsonl, oasst2_row, parquet, webgpt_row
from tinyrm.tables import read_jsonl
from training.__main__ import main
from training.loading import find_recipe

SHORT = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
LONG = SHORT | {"chosen": "Yes, it is."}
SHARED = "why is the sky so blue in the long days of summer up north"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [webgpt_row(question, ("Yes.", "No."), 1.0) for question in ("Is it?", "Is it?", f"Tell me {SHARED}")]
    parquet([*rows, webgpt_row("Tie?", ("a", "b"), 0.0)], published.WEBGPT, tmp_path / "webgpt.parquet")
    own = {"chosen": "c", "rejected": "r", "domain": "reasoning", "subset": "own"}
    jsonl([own | {"prompt": f"{i} + {i}?"} for i in range(10)], tmp_path / "own.jsonl")
    jsonl([{"prompt": f"Please: {SHARED}?"}], tmp_path / "bench.jsonl")
    return tmp_path


def call(*arguments: str | Path | int) -> int:
    return main(["data", *map(str, arguments)])


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_counts_are_printed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("webgpt", "jsonl:own.jsonl", "--data", data, "--held-out", "0.2") == 0
    head, rule, *rows, blank, held_out = capsys.readouterr().out.splitlines()
    assert cells(head) == ["source", "read", "tie", "duplicate", "pairs"]
    assert [cell.endswith(":") for cell in cells(rule)] == [False, True, True, True, True], "numbers to the right"
    assert [cells(row) for row in rows] == [
        ["webgpt", "4", "1", "1", "2"],
        ["jsonl:own.jsonl", "10", "0", "0", "10"],
        ["together", "14", "1", "1", "12"],
    ]
    assert (blank, held_out) == ("", "held out: 3 pairs (20.0% of the prompts of each subset)")
    assert call("webgpt", "jsonl:own.jsonl", "--data", data, "--held-out", "0.2", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "sources": {
            "webgpt": {"read": 4, "dropped": {"tie": 1, "duplicate": 1}, "pairs": 2},
            "jsonl:own.jsonl": {"read": 10, "dropped": {}, "pairs": 10},
        },
        "pairs": 12,
        "held_out_pairs": 3,
    }


@pytest.mark.parametrize("name", ["own.jsonl", "bench.jsonl"])
def test_a_file_that_is_read_is_not_written_over(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (data / name).read_bytes()
    options = ("--data", data, "--decontaminate", data / "bench.jsonl", "--write", data / "." / name)
    assert call("jsonl:own.jsonl", *options) == 2
    assert "would be written over" in capsys.readouterr().err
    assert (data / name).read_bytes() == before


@pytest.mark.parametrize("name", ["clean.jsonl", "new/clean.jsonl.gz"])
def test_overlap_is_counted_dropped_and_the_rest_written(
    name: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ("--decontaminate", data / "bench.jsonl", "--drop", "13", "--write", data / name)
    assert call("webgpt", "--data", data, *check) == 0
    head, _rule, row, blank, last = capsys.readouterr().out.splitlines()[-5:]
    grams = ["pairs, 8-gram", "prompts, 8-gram", "pairs, 13-gram", "prompts, 13-gram"]
    assert cells(head) == ["evaluation set", "prompts", *grams, "pairs, same prompt", "prompts, same"]
    assert cells(row) == ["bench.jsonl", "1", "1", "1", "1", "1", "0", "0"]
    assert (blank, last) == ("", "1 pairs dropped at n = 13, 1 left")
    assert call("webgpt", "--data", data, *check, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["overlapping_pairs_dropped"], figures["pairs"]) == (1, 1)
    assert figures["overlaps"]["bench.jsonl"]["prompts"] == {"8": 1, "13": 1}
    written = list(read_jsonl(data / name))
    assert written == [{"prompt": "Is it?", "chosen": "Yes.", "rejected": "No.", "domain": "chat", "subset": "webgpt"}]


def test_evaluation_sets_of_one_name_are_both_checked(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "other").mkdir()
    jsonl([{"prompt": "Something else altogether, with no words in common"}], data / "other" / "bench.jsonl")
    benches = (data / "bench.jsonl", data / "other" / "bench.jsonl")
    assert call("webgpt", "--data", data, "--decontaminate", *benches, "--drop", "13") == 0
    out = capsys.readouterr().out
    rows = [cells(line) for line in out.splitlines()]
    assert all([str(bench), "1"] in [row[:2] for row in rows] for bench in benches)
    assert out.endswith("1 pairs dropped at n = 13, 1 left\n")


def test_a_recipe_names_its_sets(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = data / "own.yaml"
    source = {"dataset": "jsonl", "path": "own.jsonl", "domain": "chat", "max_pairs": 4}
    recipe.write_text(yaml.safe_dump({"extends": str(find_recipe("from_scratch/3-short")), "sources": [source]}))
    assert call(f"recipe:{recipe}", "--data", data, "--write", data / "left.jsonl") == 0
    assert [record["domain"] for record in read_jsonl(data / "left.jsonl")] == ["chat"] * 4
    assert call("recipe:from_scratch/2-pretrain", "--data", data) == 2
    assert "no preference pairs" in capsys.readouterr().err


def test_long_pairs_are_left_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [sum(len(row[key]) for key in ("prompt", "chosen", "rejected")) for row in (LONG, SHORT)]
    (data / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (LONG, SHORT)))
    for limit, left in ((lengths[0], [LONG, SHORT]), (lengths[0] - 1, [SHORT]), (lengths[1], [SHORT])):
        options = ("--max-characters", limit, "--write", data / "left.jsonl")
        assert call("jsonl:two.jsonl", "--data", data, *options) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{len(left)} pairs of at most {limit} characters"
        assert list(read_jsonl(data / "left.jsonl")) == left


def test_conversations_are_written_as_the_masked_lm_stage_reads_them(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [oasst2_row("q0", None, "Hello?"), oasst2_row("a1", "q0", "Hi."), oasst2_row("q2", None, "Anybody?")]
    parquet(rows, published.OASST2, data / "oasst2.parquet")
    assert call("oasst2:en", "--data", data, "--conversations", "--write", data / "talk.jsonl") == 0
    written = [json.loads(line) for line in (data / "talk.jsonl").read_text().splitlines()]
    assert written == [{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]}]
    assert capsys.readouterr().out.startswith("1 conversations")
    assert call("oasst2:en", "--data", data, "--conversations", "--write", data / "talk.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"conversations": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["skywork:math"], "no part 'math'"),
        (["jsonl:absent.jsonl"], "absent.jsonl"),
        (["ultrafeedback"], "skywork"),
        (["webgpt", "--decontaminate", "absent.jsonl"], "absent.jsonl"),
        (["webgpt", "--conversations"], "--write"),
        ([], "name at least one data set"),
        (["webgpt", "--conversations", "--write", "never"], "no conversations"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--data", data) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "examples" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("training data: ")
    assert message in lines[0]
