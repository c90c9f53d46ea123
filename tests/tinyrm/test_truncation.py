"""Test what is kept of long texts: the start of a response or both of its ends, by domain, in every reading."""

import pickle
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding, SpecialTokens, Truncation
from tinyrm.plain_text import MAX_READ_CHARACTERS, READ_CHARACTERS
from tinyrm.spec import Spec
from tinyrm.template import ANSWER_COLON, FIGURE2
from tinyrm.truncation import Instruction, KeptOfResponse, keep, kept_under

INSTRUCTION = "Select the best response."
ENDS = Instruction.of(INSTRUCTION, "ends")
TEMPLATES = {
    "pair": FIGURE2,
    "pair with shares": ANSWER_COLON.model_copy(update={"prompt_share": 0.4}),
    "response": FIGURE2.of_one_response(),
    "set": FIGURE2.of_a_set(),
}

# Long and short ones: of two responses none, one or both are truncated. Numbered, so that no two parts are the same.
strange = st.lists(st.sampled_from(["two", "[MASK]", "日本", "e\u0301", "  ", "I cannot"]), max_size=20)
texts = st.builds(
    lambda count, others: " ".join([*(f"{n} is {others[n % len(others)]}" for n in range(count)), *others]),
    st.integers(0, 40),
    strange.filter(bool),
)
comparisons = st.builds(Comparison, texts, texts, texts)


@pytest.fixture(scope="module", params=TEMPLATES)
def tight(request: pytest.FixtureRequest, fast_tokenizer: Tokenizer, special: SpecialTokens) -> Encoder:
    """Return an encoder with so little room that most texts are truncated."""
    return Encoder(fast_tokenizer, TEMPLATES[request.param], special, max_tokens=128)


def kept_parts(encoder: Encoder, comparison: Comparison, instruction: str) -> dict[str, list[int]]:
    """Return what sequences hold of each response, found by the text around it."""
    found: dict[str, list[int]] = {}
    sequences = encoder.encode(comparison, instruction, swap=True)
    if encoder.reads == "pair":
        first, second = (sequence.input_ids.tolist() for sequence in sequences)
        before, between, after = pieces(encoder)
        for ids, order in ((first, "ab"), (second, "ba")):
            start = last_index(ids, between, len(ids))
            found[f"{order}: {order[1]}"] = ids[start + len(between) : last_index(ids, after, len(ids))]
            found[f"{order}: {order[0]}"] = ids[last_index(ids, before, start) + len(before) : start]
        return found
    if encoder.reads == "response":
        for name, sequence in zip("ab", sequences, strict=True):
            ids = sequence.input_ids.tolist()
            before = encoder._fixed[" Choice 0:"] if " Choice 0:" in encoder._fixed else encoder._fixed["[SEP]"]
            found[name] = ids[last_index(ids, before, len(ids)) + len(before) : -1]
        return found
    (sequence,) = sequences
    ids, sep = sequence.input_ids.tolist(), encoder.special.sep
    ends = [at for at, token in enumerate(ids) if token == sep]
    parts = [ids[a + 1 : b - 1] for a, b in pairwise(ends)]
    return {name: parts[column] for name, column in zip("ab", sequence.columns, strict=True)}


def pieces(encoder: Encoder) -> list[list[int]]:
    """Return the ids of the fixed texts before the first response, between both, and after the second."""
    segments = encoder.template.segments
    first, second = (at for at, text in enumerate(segments) if "{response" in text)
    fixed = [segments[first - 1 : first], segments[first + 1 : second], segments[second + 1 :]]
    return [[i for text in texts for i in encoder._fixed[text]] for texts in fixed]


def last_index(ids: list[int], piece: list[int], before: int) -> int:
    return max(at for at in range(before) if ids[at : at + len(piece)] == piece and at + len(piece) <= before)


def masks(encoder: Encoder, sequence: Encoding) -> int:
    return encoder.special.count_masks(sequence.input_ids)


@given(comparisons)
def test_both_ends_never_exceed_the_budget_and_leave_the_masks_alone(tight: Encoder, comparison: Comparison) -> None:
    start, ends = (tight.encode(comparison, instruction, swap=True) for instruction in (INSTRUCTION, ENDS))
    assert len(start) == len(ends)
    # If the same tokens of both responses are kept, a set holds them once.
    assume(all(max(sequence.columns, default=1) == 1 for sequence in (*start, *ends)))
    for one, other in zip(start, ends, strict=True):
        assert len(one) == len(other) <= (tight.max_set_tokens if tight.reads == "set" else tight.max_tokens)
        assert masks(tight, one) == masks(tight, other)
        assert one.columns == other.columns or tight.reads == "set"
    assert tight.truncation(start).prompt == tight.truncation(ends).prompt
    assert sorted(tight.truncation(start).responses) == sorted(tight.truncation(ends).responses)


@given(comparisons)
def test_a_long_response_keeps_both_ends_in_equal_parts(tight: Encoder, comparison: Comparison) -> None:
    whole = tight.tokenize(ENDS, comparison.prompt, (comparison.response_a, comparison.response_b))
    dropped = tight.truncation(tight.encode(comparison, ENDS, swap=True))
    for name, part in kept_parts(tight, comparison, ENDS).items():
        full = whole.responses["ab".index(name[-1])]
        assert len(full) - len(part) == dropped.responses["ab".index(name[-1])]
        head = -(-len(part) // 2)
        assert part == (full if len(part) == len(full) else full[:head] + full[len(full) - (len(part) - head) :])


@given(comparisons)
def test_both_orders_keep_the_same_tokens_of_each_response(tight: Encoder, comparison: Comparison) -> None:
    parts = kept_parts(tight, comparison, ENDS)
    swapped = kept_parts(tight, comparison.swapped(), ENDS)
    for name, part in parts.items():
        exchanged = name.translate(str.maketrans("ab", "ba"))
        assert swapped[exchanged] == part
        assert all(other == part for key, other in parts.items() if key[-1] == name[-1])


@given(comparisons)
def test_the_start_is_kept_as_before(tight: Encoder, comparison: Comparison) -> None:
    whole = tight.tokenize(INSTRUCTION, comparison.prompt, (comparison.response_a, comparison.response_b))
    for name, part in kept_parts(tight, comparison, INSTRUCTION).items():
        assert part == whole.responses["ab".index(name[-1])][: len(part)]


@given(st.lists(st.integers(), max_size=30), st.integers(0, 40))
def test_what_is_kept_is_the_number_asked_for_in_order(ids: list[int], count: int) -> None:
    count = min(count, len(ids))
    assert keep(ids, count, "start") == ids[:count]
    assert keep(ids, count, "end") == ids[len(ids) - count :]
    ends = keep(ids, count, "ends")
    assert len(ends) == count
    assert ends[: (count + 1) // 2] == ids[: (count + 1) // 2]
    assert ends[(count + 1) // 2 :] == ids[len(ids) - count // 2 :]


@pytest.mark.parametrize(
    ("count", "kept"), [(0, []), (1, [0]), (2, [0, 9]), (3, [0, 1, 9]), (9, [0, 1, 2, 3, 4, 6, 7, 8, 9])]
)
def test_an_odd_token_goes_to_the_start(count: int, kept: list[int]) -> None:
    assert keep(list(range(10)), count, "ends") == kept
    assert keep(list(range(10)), 10, "ends") is not kept


# Texts that are not read as a whole


def test_both_ends_of_a_text_of_megabytes_are_read_and_no_more(tight: Encoder) -> None:
    read: list[int] = []
    huge = "first " + "middle " * 500_000 + "last"
    tokenize = tight._text.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tight._text, "encode", lambda texts: (read.extend(map(len, texts)), tokenize(texts))[1])
        sequences = tight.encode(Comparison("Why?", huge, "short"), ENDS, swap=True)
    assert sum(read) <= READ_CHARACTERS * tight.max_tokens + 100
    text = tight._text.tokenizer.decode(max(sequences, key=len).input_ids.tolist(), skip_special_tokens=False)
    assert "first middle" in text
    assert "middle last" in text
    assert max(tight.truncation(sequences).responses) > tight.max_tokens


@pytest.mark.parametrize("poor_end", ["start", "end"])
def test_an_end_with_too_few_tokens_is_read_further(
    tight: Encoder, monkeypatch: pytest.MonkeyPatch, poor_end: str
) -> None:
    """The other end has enough, and must not stand for both."""
    monkeypatch.setattr(tight._text, "encode", lambda texts: [[7] * len(text.split()) for text in texts])
    blanks, many = " " * READ_CHARACTERS * tight.max_tokens, "word " * 100_000
    (ids,), (unread,) = tight._text.read([blanks + many if poor_end == "start" else many + blanks], ["ends"])
    half = MAX_READ_CHARACTERS * tight.max_tokens // 2
    assert len(ids) > (half + half - len(blanks)) / len("word ") - 3
    assert unread == 1


def test_ends_that_are_read_apart_have_the_ids_of_the_whole(tight: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison("Why?", " ".join(f"{n} + {n}" for n in range(3000)), "short")
    found = tight.encode(comparison, ENDS, swap=True)
    monkeypatch.setattr("tinyrm.plain_text.READ_CHARACTERS", 10**6)
    whole = tight.encode(comparison, ENDS, swap=True)
    assert [one.input_ids.tolist() for one in found] == [one.input_ids.tolist() for one in whole]
    assert 0 < max(tight.truncation(found).responses) <= max(tight.truncation(whole).responses)


def test_special_tokens_are_counted_in_what_is_read(tight: Encoder) -> None:
    hidden = "x " * 20_000 + "[SEP]"
    assert tight.count_special_texts(INSTRUCTION, "p", [hidden, hidden]) == 0
    assert tight.count_special_texts(ENDS, "p", [hidden, hidden]) == 2


def test_the_steps_of_a_long_group_keep_the_same(tight: Encoder) -> None:
    whole = tight.tokenize(ENDS, "p", ["a", "b"])
    steps = tight.tokenize(ENDS, "p", ["a"]).followed_by(tight.tokenize(Instruction.of("", "ends"), "", ["b"]))
    assert steps == whole
    assert whole.kept == "ends"


# The domain


SPEC = Spec(domains={"math": "Right?", "chat": "Right?"}, default_domain="chat", truncation={"math": "ends"})


@pytest.mark.parametrize(("domain", "kept"), [("math", "ends"), ("chat", "start"), (None, "start"), ("code", "start")])
def test_a_domain_states_what_is_kept(domain: str | None, kept: KeptOfResponse) -> None:
    assert kept_under(SPEC.instruction(domain, or_default=True)) == kept
    assert kept_under(SPEC.resolve("p", domain, "Better?", or_default=True).instruction) == kept
    assert SPEC.instruction(domain, or_default=True) == Instruction.of("Right?", kept)


def test_one_value_is_that_of_all_domains() -> None:
    both = SPEC.model_copy(update={"truncation": "ends"})
    assert {both.kept(domain) for domain in both.domains} == {"ends"}


def test_an_instruction_is_its_text_and_what_is_kept() -> None:
    assert ENDS != INSTRUCTION
    assert INSTRUCTION != ENDS
    assert Instruction.of("Right?", "ends") != ENDS
    assert Instruction.of(ENDS, "start") == INSTRUCTION
    assert {Instruction.of(INSTRUCTION, "ends"): 1, str(ENDS): 2} == {ENDS: 1, INSTRUCTION: 2}
    assert pickle.loads(pickle.dumps(ENDS)) == ENDS


def test_a_spec_without_the_key_is_written_as_before() -> None:
    spec = Spec(domains={"math": "Right?"}, default_domain="math")
    assert "truncation" not in spec.model_dump()
    assert "truncation" not in spec.model_dump_json()
    assert spec.truncation == "start"
    assert Spec.model_validate_json(SPEC.model_dump_json()) == SPEC


@pytest.mark.parametrize(("truncation", "message"), [("middle", "'start' or 'ends'"), ({"code": "ends"}, "code")])
def test_an_unknown_truncation_or_domain_is_refused(truncation: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Spec.model_validate(SPEC.model_dump() | {"truncation": truncation})


def test_a_truncation_of_nothing_drops_nothing(tight: Encoder) -> None:
    sequences = tight.encode(Comparison("p", "a", "b"), ENDS, swap=True)
    assert tight.truncation(sequences) == Truncation()
