"""Test the properties of the vocabulary that the cloze text needs."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.conftest import SENTENCES
from training.data.source import Texts
from training.recipe import TokenizerRecipe
from training.stages.tokenizer import SPECIAL_NAMES, train_bpe, train_tokenizer, wrap

# Built here and not in a fixture: hypothesis runs one test many times. The numbers are frequent enough that a
# vocabulary which could join their digits would.
TOKENIZER = wrap(train_bpe([*SENTENCES, "2026 17 2026 17 2026 17"] * 20, vocab_size=420))


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("label", [" 0", " 1", "0", "1"])
def test_label_words_are_single_tokens(label: str) -> None:
    assert len(ids(label)) == 1


def test_each_digit_is_a_token_of_its_own() -> None:
    assert ids("2026 17") == [*ids("2"), *ids("0"), *ids("2"), *ids("6"), *ids(" 1"), *ids("7")]


def test_the_mask_includes_the_space_on_its_left_only() -> None:
    assert ids("choice [MASK]") == ids("choice[MASK]") == [*ids("choice"), TOKENIZER.mask_token_id]
    assert ids("[MASK] choice") == [TOKENIZER.mask_token_id, *ids(" choice")]
    assert ids("choice [SEP]") == [*ids("choice"), *ids(" "), TOKENIZER.sep_token_id]


def test_special_tokens_come_first_and_have_their_roles() -> None:
    assert TOKENIZER.convert_ids_to_tokens(range(5)) == list(SPECIAL_NAMES)
    roles = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.pad_token_id, TOKENIZER.mask_token_id
    assert roles == (1, 2, 3, 4)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    backend = TOKENIZER.backend_tokenizer
    plain = re.sub(r"\[(UNK|CLS|SEP|PAD|MASK)\]", "", text)
    normal = backend.normalizer.normalize_str(plain)
    assert backend.decode(backend.encode(plain, add_special_tokens=False).ids, skip_special_tokens=False) == normal


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_needs_the_unknown_token(text: str) -> None:
    assert TOKENIZER.unk_token_id not in ids(text.replace("[", ""))


def test_recipe_writes_a_tokenizer_that_loads(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "some words, some more words"}\n' * 50)
    sources = (Texts(path="texts.jsonl", kind="documents"),)
    train_tokenizer(
        TokenizerRecipe(task="tokenizer", output_dir=tmp_path / "out", vocab_size=301, texts=sources), tmp_path
    )
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert loaded.mask_token == "[MASK]"
    assert len(loaded(" words", add_special_tokens=False)["input_ids"]) == 1
