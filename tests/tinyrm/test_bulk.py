"""Test that `tinyrm score --bundle` writes the scorer's own scores as Parquet, from every file format."""

import json
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.conftest import TOY_SPEC
from tests.support.bulk_run import Score, pair, table, words_of, write
from tinyrm.bulk.sources import SUFFIXES, Reader, Shard, find, plan
from tinyrm.bundle import Bundle
from tinyrm.cli import main
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput
from tinyrm.flops import exact_flops
from tinyrm.scorer import Scorer

TOLERANCE = 1e-5


@pytest.fixture
def score(bundle_folder: Path, tmp_path: Path) -> Score:
    """Run the command with the folder `out`."""
    return lambda *words: main(words_of(bundle_folder, tmp_path / "out", *words))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet", "pairs.txt"])
def test_scores_are_those_of_the_scorer(
    score: Score, bundle_folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair(n) for n in range(25)]
    assert score(write(tmp_path / name, *rows), "--rows-per-part", 10) == 0
    found = table(tmp_path / "out")
    scorer, manifest = Scorer.open(bundle_folder, "onnxruntime-cpu"), Bundle.open(bundle_folder).manifest
    comparisons = [Comparison(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    instruction = TOY_SPEC.instruction()
    expected = scorer.score(comparisons, [instruction] * len(rows))
    assert found["margin"].tolist() == pytest.approx([one.margin for one in expected], abs=TOLERANCE)
    assert found["probability_a"].tolist() == pytest.approx([one.p_a for one in expected], abs=TOLERANCE)
    assert found["confidence"].tolist() == [one.confidence for one in expected]
    for at, order in enumerate(("a_first", "b_first")):
        margins = found[f"logit_a_reading_{order}"] - found[f"logit_b_reading_{order}"]
        assert margins.tolist() == pytest.approx([one.order_margins[at] for one in expected], abs=TOLERANCE)
    assert found["margin"].nunique() > 5
    assert found["row"].tolist() == list(range(25))
    assert found["id"].tolist() == [row["id"] for row in rows]
    assert set(found["model"]) == {manifest.identity}
    assert found["error"].isna().all()
    lengths = [len(reading) for c in comparisons for reading in scorer.encoder.encode(c, instruction, swap=True)]
    assert found["tokens"].tolist() == [a + b for a, b in zip(lengths[::2], lengths[1::2], strict=True)]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3
    gflop = sum(exact_flops(manifest.geometry, length) for length in lengths) / 1e9
    first, second = capsys.readouterr().err.splitlines()
    assert f"25 rows in {tmp_path / 'out'}, 25 of them new, 0 with an error" in first
    assert f"{gflop:.1f} GFLOP" in second


def test_a_bundle_that_reads_one_response_scores_both_of_a_row(response_bundle_folder: Path, tmp_path: Path) -> None:
    rows = [*(pair(n) for n in range(5)), {"prompt": "What is 1? " * 300, "chosen": "yes", "rejected": "no " * 300}]
    assert main(words_of(response_bundle_folder, tmp_path / "out", write(tmp_path / "pairs.jsonl", *rows))) == 0
    found, scorer = table(tmp_path / "out"), Scorer.open(response_bundle_folder, "onnxruntime-cpu")
    expected = [scorer.score_responses(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]
    assert found["logit_a"].tolist() == pytest.approx([a for a, _ in expected], abs=TOLERANCE)
    assert found["logit_b"].tolist() == pytest.approx([b for _, b in expected], abs=TOLERANCE)
    margins = [(a - b) / scorer.temperature for a, b in expected]
    assert found["margin"].tolist() == pytest.approx(margins, abs=10 * TOLERANCE)
    assert found["logit_a_reading_a_first"].isna().all()
    with_a, with_b = (
        scorer.encoder.encode_one(TOY_SPEC.instruction(), rows[-1]["prompt"], rows[-1][name])
        for name in ("chosen", "rejected")
    )
    truncated = found[["truncated_prompt", "truncated_response_a", "truncated_response_b"]].iloc[-1].tolist()
    assert truncated == [with_b.truncation.prompt, 0, with_b.truncation.response_a]
    assert with_b.truncation.prompt > with_a.truncation.prompt


def test_a_bundle_that_reads_sets_reads_a_row_once(shared_prompt_bundle_folder: Path, tmp_path: Path) -> None:
    rows = [*(pair(n) for n in range(5)), {"prompt": "What is 1?", "chosen": "yes", "rejected": "yes"}, {"prompt": "?"}]
    rows += [{"prompt": "What is 1?", "chosen": "no " * 300, "rejected": "yes"}]
    words = words_of(shared_prompt_bundle_folder, tmp_path / "out", write(tmp_path / "pairs.jsonl", *rows))
    assert main(words) == 1, "a row has an error"
    found, scorer = table(tmp_path / "out"), Scorer.open(shared_prompt_bundle_folder)
    assert found["error"].isna().tolist() == [True] * 6 + [False, True]
    compared = [row for row in rows if len(row) > 1]
    margins = [scorer.compare(row["prompt"], row["chosen"], row["rejected"]).margin for row in compared]
    kept = found[found["error"].isna()]
    assert kept["margin"].tolist() == pytest.approx(margins, abs=10 * TOLERANCE)
    assert ((kept["logit_a"] - kept["logit_b"]) / scorer.temperature).tolist() == pytest.approx(margins, abs=1e-4)
    assert kept["margin"].tolist()[5] == 0
    assert min(map(abs, margins[:5])) > 1e-3
    encoded = scorer.encoder.encode(Comparison("What is 1?", "no " * 300, "yes"), TOY_SPEC.instruction())
    assert kept["tokens"].tolist()[-1] == sum(map(len, encoded))
    assert kept["truncated_response_a"].tolist()[-1] == encoded[0].truncation.response_a > 0


def test_truncated_tokens_are_counted(score: Score, tmp_path: Path) -> None:
    long = {"prompt": "What is 1? " * 300, "response_a": "yes 1", "response_b": "no 0 " * 300}
    assert score(write(tmp_path / "a.jsonl", long)) == 0
    (row,) = table(tmp_path / "out").to_dict("records")
    assert row["tokens"] == 2 * TOY_SPEC.max_tokens
    assert row["truncated_prompt"] > 0
    assert row["truncated_response_b"] > row["truncated_response_a"] == 0


def test_a_folder_and_equal_names_in_different_folders(score: Score, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "one" / "pairs.jsonl", pair(1), pair(2))
    write(data / "two" / "pairs.jsonl", pair(3))
    write(data / "two" / "pairs.parquet", pair(4))
    write(data / "_left" / "pairs.jsonl", pair(5))
    (data / "README.md").write_text("not pairs")
    single = write(tmp_path / "single.ndjson", pair(6))
    assert score(data, single, data / "one" / "pairs.jsonl", tmp_path / "data" / "*" / "*.parquet") == 0
    found = table(tmp_path / "out")
    assert found["id"].tolist() == ["x1", "x2", "x3", "x4", "x6"]
    assert found["source"].nunique() == 4


def test_an_address_and_a_glob() -> None:
    memory = MemoryFileSystem()
    memory.pipe("/bulk/a.jsonl", b'{"a": 1}\n{"a": 2}')
    try:
        (name,) = find(["memory://bulk/*.jsonl"])
        (shard,) = plan(name, 5).shards
        assert name == "memory:///bulk/a.jsonl"
        assert Reader().read(shard) == [b'{"a": 1}\n', b'{"a": 2}']
    finally:
        memory.rm("/bulk", recursive=True)


@pytest.mark.parametrize("name", [f"pairs{suffix}" for suffix in SUFFIXES if not suffix.endswith(".xz")])
def test_shards_can_be_read_in_any_order(tmp_path: Path, name: str) -> None:
    source = plan(
        str(write(tmp_path / name, *[{"prompt": str(n), "chosen": "c", "rejected": "r"} for n in range(23)])), 5
    )
    assert [(shard.first_row, shard.rows) for shard in source.shards] == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    reader = Reader()
    for number in (0, 1, 4, 3, 3, 0, 2):
        shard = source.shards[number]
        rows = [row if isinstance(row, dict) else json.loads(row) for row in reader.read(shard)]
        assert [row["prompt"] for row in rows] == [str(n) for n in range(shard.first_row, shard.first_row + shard.rows)]
    with pytest.raises(InvalidInput, match="shorter"):
        reader.read(Shard(source.name, 20, 5))


BROKEN = [
    ("{", "invalid_request", "not JSON"),
    ("", "invalid_request", "not JSON"),
    ("[1]", "invalid_request", "not a JSON object"),
    ({"prompt": "p", "chosen": "c"}, "invalid_request", "rejected is missing"),
    ({"prompt": "p", "chosen": "c", "rejected": ""}, "invalid_request", "response_b: an empty text"),
    ({"prompt": [], "chosen": "c", "rejected": "r"}, "invalid_request", "prompt"),
    (
        {"prompt": [{"role": "robot", "content": "p"}], "chosen": "c", "rejected": "r"},
        "invalid_request",
        "role 'robot'",
    ),
    ({**pair(0), "domain": "cooking"}, "unknown_domain", "cooking"),
    ({**pair(0), "instruction": "Which one? " * 300}, "instruction_too_long", "instruction"),
    ({"prompt": "\ud800", "chosen": "c", "rejected": "r", "id": "\ud800"}, "invalid_text", "surrogate"),
]


def test_broken_rows_become_errors_and_their_neighbours_scores(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair(0), *(row for row, _, _ in BROKEN), {**pair(1), "swap": "off", "domain": "safety"}]
    pairs = write(tmp_path / "pairs.jsonl", *rows)
    assert score(pairs) == 1
    assert f"{len(BROKEN)} with an error" in capsys.readouterr().err
    found = table(tmp_path / "out")
    assert found["row"].tolist() == list(range(len(rows)))
    assert found["error"].tolist()[1:-1] == [kind for _, kind, _ in BROKEN]
    for (_, _, reason), message in zip(BROKEN, found["error_message"].tolist()[1:-1], strict=True):
        assert reason in message
    assert found["margin"].notna().tolist() == [True, *[False] * len(BROKEN), True]
    assert score(pairs) == 1, "what an earlier run found is still so"


def test_reasoning_is_dropped_on_request(
    score: Score, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thought = {"prompt": "Why?", "chosen": "<think>Hm.</think>Because.", "rejected": "<think>Hm.</think>No."}
    pairs = write(tmp_path / "pairs.jsonl", thought)
    assert score(pairs, "--reasoning", "drop") == 0
    scorer = Scorer.open(bundle_folder)
    expected = scorer.compare("Why?", "Because.", "No.").margin
    texts = thought["prompt"], thought["chosen"], thought["rejected"]
    assert scorer.compare(*texts, reasoning="drop").margin == expected != scorer.compare(*texts).margin
    assert scorer.rank(texts[0], texts[1:], reasoning="drop").order == scorer.rank("Why?", ["Because.", "No."]).order
    assert table(tmp_path / "out")["margin"].tolist() == pytest.approx([expected], abs=TOLERANCE)
    assert score(pairs) == 2
    assert "reasoning" in capsys.readouterr().err, "a folder has the rows of one kind"


def test_messages_domains_and_instructions(score: Score, bundle_folder: Path, tmp_path: Path) -> None:
    bare = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    safer = TOY_SPEC.domains["safety"]
    rows = [
        {**bare, "domain": "safety"},
        {**bare, "instruction": safer},
        {**bare, "prompt": [{"role": "user", "content": "Why?"}], "domain": "safety"},
        bare,
    ]
    write(tmp_path / "a.jsonl", *rows)
    write(tmp_path / "b.parquet", rows[2])
    assert score(tmp_path / "a.jsonl", tmp_path / "b.parquet", "--domain", "safety") == 0
    (expected,) = Scorer.open(bundle_folder).score([Comparison("Why?", "Because.", "No.")], [safer])
    assert table(tmp_path / "out")["margin"].tolist() == pytest.approx([expected.margin] * 5, abs=TOLERANCE)
    assert main(words_of(bundle_folder, tmp_path / "general", tmp_path / "a.jsonl")) == 0
    assert abs(table(tmp_path / "general")["margin"][3] - expected.margin) > 10 * TOLERANCE
