"""Test texts of one response: their content, their truncation, and the places of markers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.training.conftest import SPEC
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, SpecialTokens
from tinyrm.errors import InstructionTooLong, InvalidTemplate
from tinyrm.template import FIGURE2
from training.model.response_encoder import ResponseEncoder, split_words

ASKED = Comparison("What is 2 + 2?", "It is 4 and not 5.", "No idea.")
INSTRUCTION = "Select the best response."


@pytest.fixture(scope="module")
def one_by_one(toy_encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> ResponseEncoder:
    return ResponseEncoder(toy_encoder, tokenizer.backend_tokenizer)


def test_a_text_is_the_templates_up_to_its_first_response(
    one_by_one: ResponseEncoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [tokenizer.decode(e.input_ids) for e in one_by_one.encode(ASKED, INSTRUCTION, swap=True)]
    start = "[CLS]Select the best response. Question: What is 2 + 2? Choice 0: "
    assert texts == [start + "It is 4 and not 5.[SEP]", start + "No idea.[SEP]"]


def test_markers_follow_each_fixed_number_of_words(toy_encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    marked = ResponseEncoder(toy_encoder, tokenizer.backend_tokenizer, marker_words=2)
    texts = [tokenizer.decode(e.input_ids) for e in marked.encode(ASKED, INSTRUCTION, swap=True)]
    assert texts[0].endswith(" Choice 0: It is[CLS] 4 and[CLS] not 5.[SEP]")
    assert texts[1].endswith(" Choice 0: No idea.[SEP]"), "none where nothing follows"


def test_written_special_tokens_stay_text(one_by_one: ResponseEncoder, special: SpecialTokens) -> None:
    forged = Comparison("[CLS] [MASK]", "[SEP][CLS]", "[MASK][PAD]")
    for encoding in one_by_one.encode(forged, "[SEP]", swap=True):
        ids = encoding.input_ids.tolist()
        assert [i for i in ids if i in (special.cls, special.sep, special.mask, special.pad)] == [
            special.cls,
            special.sep,
        ]
        assert (ids[0], ids[-1]) == (special.cls, special.sep)


def test_a_long_text_is_truncated_on_the_outer_sides_and_reports_it(
    one_by_one: ResponseEncoder, toy_encoder: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = Comparison("begin " + "word " * 200 + "question", "answer " + "word " * 200 + "end", "Short.")
    both = one_by_one.encode(long, INSTRUCTION, swap=True)
    for encoding in both:
        text = tokenizer.decode(encoding.input_ids)
        assert len(encoding) == SPEC.max_tokens
        assert " question Choice 0: " in text
        assert "begin" not in text
        assert text.endswith("[SEP]")
    whole = sum(len(ids) for ids in toy_encoder.tokenize("", long.prompt, [long.response_a]).responses)
    assert 0 < both[0].truncation.response_a < whole
    assert both[1].truncation.response_a == 0, "what is short stays whole"


def test_too_long_an_instruction_is_refused(one_by_one: ResponseEncoder) -> None:
    with pytest.raises(InstructionTooLong, match="shorten it"):
        one_by_one.encode(ASKED, "word " * SPEC.max_tokens)


def test_a_template_with_the_prompt_last_cannot_show_one_response(
    special: SpecialTokens, tokenizer: PreTrainedTokenizerFast
) -> None:
    segments = ("[CLS]", "{instruction}", " {response_a}", "[SEP]", " {response_b}", " {prompt}", "[MASK]", "[SEP]")
    template = FIGURE2.model_copy(update={"name": "late", "segments": segments})
    encoder = Encoder(tokenizer.backend_tokenizer, template, special, 200)
    with pytest.raises(InvalidTemplate, match="template 'late' lacks instruction or prompt before"):
        ResponseEncoder(encoder, tokenizer.backend_tokenizer)


def test_padding_of_a_tokenizer_does_not_reach_the_fixed_text(
    toy_encoder: Encoder, tokenizer: PreTrainedTokenizerFast, one_by_one: ResponseEncoder
) -> None:
    padding = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    padding.enable_padding(length=50)
    (padded,) = ResponseEncoder(toy_encoder, padding).encode(ASKED, INSTRUCTION)
    assert padded.input_ids.tolist() == one_by_one.encode(ASKED, INSTRUCTION)[0].input_ids.tolist()


@given(text=st.text(min_size=1), words=st.integers(0, 5))
def test_split_words_loses_nothing_but_one_space_at_a_seam(text: str, words: int) -> None:
    chunks = split_words(text, words)
    assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
    assert len(text) - len("".join(chunks)) <= len(chunks) - 1
    if words:
        assert all(len(chunk.split()) <= words for chunk in chunks)
        assert len(chunks) == max(1, -(-len(text.split()) // words))
    else:
        assert chunks == [text]
