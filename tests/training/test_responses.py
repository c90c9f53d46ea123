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
from training.model.marked_encoder import MarkedEncoder, split_words

ASKED = Comparison("What is 2 + 2?", "It is 4 and not 5.", "No idea.")
INSTRUCTION = "Select the best response."


@pytest.fixture(scope="module")
def one_by_one(toy_encoder: Encoder, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> Encoder:
    return Encoder(tokenizer.backend_tokenizer, toy_encoder.template.of_one_response(), special, toy_encoder.max_tokens)


def test_a_text_is_the_templates_up_to_its_first_response(
    one_by_one: Encoder, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [tokenizer.decode(e.input_ids) for e in one_by_one.encode(ASKED, INSTRUCTION, swap=True)]
    start = "[CLS]Select the best response. Question: What is 2 + 2? Choice 0: "
    assert texts == [start + "It is 4 and not 5.[SEP]", start + "No idea.[SEP]"]


def test_markers_follow_each_fixed_number_of_words(one_by_one: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    marked = MarkedEncoder(one_by_one, marker_words=2)
    texts = [tokenizer.decode(e.input_ids) for e in marked.encode(ASKED, INSTRUCTION, swap=True)]
    assert texts[0].endswith(" Choice 0: It is[CLS] 4 and[CLS] not 5.[SEP]")
    assert texts[1].endswith(" Choice 0: No idea.[SEP]"), "none where nothing follows"


def test_written_special_tokens_stay_text(one_by_one: Encoder, special: SpecialTokens) -> None:
    forged = Comparison("[CLS] [MASK]", "[SEP][CLS]", "[MASK][PAD]")
    for encoding in one_by_one.encode(forged, "[SEP]", swap=True):
        ids = encoding.input_ids.tolist()
        assert [i for i in ids if i in (special.cls, special.sep, special.mask, special.pad)] == [
            special.cls,
            special.sep,
        ]
        assert (ids[0], ids[-1]) == (special.cls, special.sep)


def test_a_long_text_is_truncated_on_the_outer_sides_and_reports_it(
    one_by_one: Encoder, toy_encoder: Encoder, tokenizer: PreTrainedTokenizerFast
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


def test_too_long_an_instruction_is_refused(one_by_one: Encoder) -> None:
    with pytest.raises(InstructionTooLong, match="shorten it"):
        one_by_one.encode(ASKED, "word " * SPEC.max_tokens)


@pytest.mark.parametrize("segment", [" {response_b}", " {prompt}", "{instruction}"])
def test_a_template_with_a_text_after_the_first_response_cannot_show_one(segment: str) -> None:
    segments = [part for part in FIGURE2.segments if part != segment]
    early_b = segments.index(" {response_a}") if segment == " {response_b}" else len(segments) - 2
    segments.insert(early_b, segment)
    template = FIGURE2.model_copy(update={"name": "late", "segments": tuple(segments)})
    with pytest.raises(InvalidTemplate, match="template 'late' lacks instruction or prompt before"):
        template.of_one_response()


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
