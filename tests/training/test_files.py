"""Test every file that training reads: with a byte order mark it is the same file, and a damaged one is named."""

import gzip
import json
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_pairs, read_records
from training.data.conversations import Conversation
from training.data.corpus import load_texts
from training.data.decontamination import read_prompts
from training.data.mixture import load
from training.data.source import Source, Texts
from training.loading import read_recipe

PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
TALK = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
Reader = Callable[[Path], Any]
# What reads -> (a record, its reader).
READERS: dict[str, tuple[dict[str, Any], Reader]] = {
    "pairs": (PAIR, read_pairs),
    "source": (PAIR, lambda path: load(Source(dataset="jsonl", path=path.name), path.parent).pairs),
    "published": (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        lambda path: load(Source(dataset="hh-rlhf", path=path.name), path.parent).pairs,
    ),
    "talks": (TALK, lambda path: read_records(path, Conversation)),
    "documents": (
        {"text": "Some words."},
        lambda path: load_texts((Texts(path=path.name, kind="documents"),), path.parent, 1),
    ),
    "texts": (PAIR, lambda path: load_texts((Texts(path=path.name, kind="pairs"),), path.parent, 1)),
    "prompts": ({"prompt": "Why?"}, read_prompts),
}


def lines(record: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record | {"id": i}) + "\n" for i in range(400)).encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_changes_nothing(name: str, packed: bool, tmp_path: Path) -> None:
    record, read = READERS[name]
    found = []
    for mark in (b"", BOM_UTF8):
        path = tmp_path / f"{len(mark)}.jsonl{'.gz' if packed else ''}"
        path.write_bytes((gzip.compress if packed else bytes)(mark + lines(record)))
        found.append(read(path))
    assert found[0] == found[1]
    assert found[0]


def test_a_byte_order_mark_before_a_recipe_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(BOM_UTF8 + yaml.safe_dump({"task": "cloze"}).encode())
    assert read_recipe(path) == {"task": "cloze"}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_archive_is_named_wherever_the_damage_is(name: str, tmp_path: Path) -> None:
    record, read = READERS[name]
    whole = bytearray(gzip.compress(lines(record)))
    path = tmp_path / "damaged.jsonl.gz"
    for place in range(10, len(whole) - 8, max(1, len(whole) // 12)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(InvalidInput, match=r"damaged\.jsonl\.gz"):
            read(path)


# What `datasets` reads is left to it.
@pytest.mark.parametrize("name", [name for name in READERS if name not in {"published", "prompts"}])
def test_a_line_nested_too_deeply_is_named(name: str, tmp_path: Path) -> None:
    record, read = READERS[name]
    path = tmp_path / "deep.jsonl"
    path.write_bytes(lines(record) + b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    with pytest.raises(InvalidInput, match=r"deep\.jsonl"):
        read(path)


def test_a_file_that_is_missing_is_named_with_the_option_and_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"train\.jsonl\.gz does not exist: .* --data names$"):
        load(Source(dataset="jsonl", path="train.jsonl.gz"), tmp_path)
    (tmp_path / "train.jsonl").touch()
    for texts in (Texts(path="train.jsonl.gz", kind="documents"), Texts(path="train.jsonl.xz", kind="pairs")):
        with pytest.raises(InvalidInput, match=r"there is .*/train\.jsonl, which the recipe may name instead"):
            load_texts((texts,), tmp_path, 1)


@pytest.mark.parametrize("record", [{"txt": "a"}, {"text": None}, {"text": 3}, ["a"], "a", None])
def test_a_document_without_a_text_is_named(record: object, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(f'{{"text": "a"}}\n{json.dumps(record)}\n')
    with pytest.raises(InvalidInput, match=r"corpus\.jsonl, line 2"):
        load_texts((Texts(path="corpus.jsonl", kind="documents"),), tmp_path, 1)
