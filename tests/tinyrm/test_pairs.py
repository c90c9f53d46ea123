"""Test that pairs are read from plain and packed files, and that a bad line is named."""

import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from evaluation.benchmarks import pairs as pairs_benchmark
from tinyrm.bundle import sha256
from tinyrm.chat import Dialogue
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.tables import read_jsonl

RECORD = {"prompt": "Grüß Gott\u2028", "chosen": "🙂", "rejected": "no", "domain": "chat", "origin": "ignored"}


def write(path: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text))
    return path


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.jsonl.xz"])
def test_pairs_are_read_plain_and_packed(tmp_path: Path, name: str) -> None:
    pairs = read_pairs(write(tmp_path / name, RECORD, RECORD | {"chosen": "second"}))
    assert [pair.chosen for pair in pairs] == ["🙂", "second"]
    assert pairs[0] == PreferencePair(prompt="Grüß Gott\u2028", chosen="🙂", rejected="no", domain="chat")


def test_the_chosen_response_is_a() -> None:
    pair = PreferencePair(prompt="p", chosen="good", rejected="bad")
    assert pair.comparison() == Comparison("p", "good", "bad")


@pytest.mark.parametrize("wrong", [{"chosen": ""}, {"prompt": None}, {"rejected": 3}])
def test_a_record_that_is_not_a_pair_is_named_by_its_line(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = write(tmp_path / "pairs.jsonl", RECORD, RECORD | wrong, RECORD)
    with pytest.raises(InvalidInput, match=r"pairs\.jsonl, line 2"):
        read_pairs(path)


def test_conversations_become_the_texts_of_training(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    chosen, rejected = ([*asked, {"role": "assistant", "content": text}] for text in ("Because.", "No."))
    (pair,) = read_pairs(write(tmp_path / "pairs.jsonl", {"chosen": chosen, "rejected": rejected, "domain": "chat"}))
    expected = PreferencePair(
        prompt="System: Be brief.\n\nHuman: Why?", chosen="Because.", rejected="No.", domain="chat"
    )
    assert pair.model_dump_json() == expected.model_dump_json()
    assert isinstance(pair.prompt, Dialogue)
    assert list(pair.prompt.messages) == asked
    assert pair.comparison().prompt is pair.prompt


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "p", "response_0": "c", "response_1": "r"}, "the keys prompt, response_0, response_1"),
        ({"chosen": [{"speaker": "x"}], "rejected": [{}]}, "the keys speaker"),
        ([1], "must be an object"),
    ],
)
def test_a_record_in_another_form_is_refused_with_what_it_has(tmp_path: Path, record: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"line 1: .*{reason}"):
        read_pairs(write(tmp_path / "pairs.jsonl", record))


def test_a_missing_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 1"):
        read_pairs(write(tmp_path / "pairs.jsonl", {"prompt": "p", "chosen": "c"}))


@pytest.mark.parametrize("line", ["{", "", "not json"])
def test_a_line_that_is_not_json_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{line}\n{json.dumps(RECORD)}\n")
    with pytest.raises(InvalidInput, match="line 2"):
        read_pairs(path)


def test_an_empty_file_holds_no_pairs(tmp_path: Path) -> None:
    assert read_pairs(write(tmp_path / "none.jsonl")) == []


def test_a_line_that_is_not_json_is_named_with_its_column_alone(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": oops}\n')
    with pytest.raises(InvalidInput) as raised:
        list(read_jsonl(path))
    assert str(raised.value) == f"{path}, line 2: not JSON at column 12: Expecting value"


def test_read_jsonl_yields_any_json_value(tmp_path: Path) -> None:
    assert list(read_jsonl(write(tmp_path / "values.jsonl", 1, "two", None, [4]))) == [1, "two", None, [4]]


def test_what_needs_a_hash_refuses_a_pipe_before_it_reads_it(tmp_path: Path) -> None:
    """The hash of a pipe that has been read would be that of nothing."""
    os.mkfifo(pipe := tmp_path / "pairs.jsonl")
    nobody: Any = None
    for read in (sha256, lambda path: pairs_benchmark.run(nobody, path)):
        with pytest.raises(InvalidInput, match="a pipe, which cannot be read twice"):
            read(pipe)
