"""Made-up bad responses: each kind is what it says, only where it applies, and no longer or shorter than good ones."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest

from tests.support.preference_data import (
    CODE,
    TOPICS,
    chat_pairs,
    preference_pairs,
    reasoning_pairs,
    safety_pairs,
)
from tinyrm.negatives import KINDS, SAME_PROMPT, WEIGHTS, Kind, Pool, draw, make, negatives_for
from tinyrm.negatives import wordings as say
from tinyrm.negatives.damage import changed_number, is_code
from tinyrm.negatives.languages import COMMON, SCRIPTS, SENTENCES, language_of
from tinyrm.negatives.wordings import half
from tinyrm.pairs import PreferencePair

PAIRS = preference_pairs()
POOL = Pool(PAIRS)
SEEDS = range(6)
WORDINGS = [value for name, value in vars(say).items() if name.isupper()]


def made(
    kind: Kind, pairs: list[PreferencePair] = PAIRS, *, held_out: bool = False
) -> list[tuple[PreferencePair, str]]:
    """Return all pairs to which a kind applies, with its text, by several seeds."""
    texts = [(pair, make(pair, kind, POOL, seed, held_out=held_out)) for seed in SEEDS for pair in pairs]
    return [(pair, text) for pair, text in texts if text is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_differs_from_the_good_text_and_follows_from_the_seed(kind: Kind) -> None:
    first = made(kind)
    assert first
    assert all(text.strip() != pair.chosen.strip() for pair, text in first)
    assert made(kind) == first
    if kind != "empty":
        assert len({text for _, text in first}) > 1


def test_another_order_of_the_pairs_changes_only_what_comes_from_other_pairs() -> None:
    other = Pool(PAIRS[::-1])
    for kind in KINDS:
        if kind != "off_topic":
            assert [make(pair, kind, POOL, 0) for pair in PAIRS] == [make(pair, kind, other, 0) for pair in PAIRS]


FOREIGN = tuple(text for language, texts in SENTENCES.items() if language != "en" for text in texts)
IS_WHAT_IT_SAYS: dict[Kind, Callable[[PreferencePair, str], bool]] = {
    "empty": lambda pair, text: text == "",
    "blank": lambda pair, text: bool(text) and not text.strip(),
    "one_character": lambda pair, text: len(text) == 1,
    "repetition": lambda pair, text: len(set(text.replace(",", "").split())) <= len(text.split()) / 3 + 1,
    "keyboard_mash": lambda pair, text: not set(text.split()) & set(pair.chosen.split()),
    "shuffled_words": lambda pair, text: (
        sorted(text.split()) == sorted(pair.chosen.split()) and len(text) == len(pair.chosen)
    ),
    "truncated": lambda pair, text: (
        pair.chosen.startswith(text) and text[-1] not in ".!?:;" and len(text) < 0.75 * len(pair.chosen)
    ),
    "off_topic": lambda pair, text: text in {other.chosen for other in PAIRS if other.prompt != pair.prompt},
    "echo": lambda pair, text: pair.prompt.rpartition("Human: ")[2] in text,
    "other_language": lambda pair, text: text.startswith(FOREIGN),
    "refusal": lambda pair, text: any(core[1:] in text for core in say.REFUSAL_CORES),
    "compliance": lambda pair, text: text.startswith(say.COMPLIANCE_OPENINGS),
    "rude": lambda pair, text: text.startswith(say.RUDE),
    "changed_number": lambda pair, text: numberless(text) == numberless(pair.chosen),
    "planted_bug": lambda pair, text: is_code(text) and abs(len(text) - len(CODE)) < 20,
}


def numberless(text: str) -> str:
    return re.sub(r"\d+", "#", text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_what_it_says(kind: Kind) -> None:
    assert [text for pair, text in made(kind) if not IS_WHAT_IT_SAYS[kind](pair, text)] == []


def test_a_hard_negative_has_one_change() -> None:
    for pair, text in made("changed_number"):
        before, after = (re.findall(r"\d+", each) for each in (pair.chosen, text))
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    for pair, text in made("planted_bug"):
        lines = zip(pair.chosen.splitlines(), text.splitlines(), strict=True)
        assert sum(a != b for a, b in lines) == 1


@pytest.mark.parametrize("text", ["1. Sit\n2. Run\n3. Rest", "f(17)", "Nothing to count here", "version2b"])
def test_markers_of_lists_and_calls_have_no_number_to_change(text: str) -> None:
    assert changed_number(text, np.random.default_rng(0)) is None


@pytest.mark.parametrize(("text", "like"), [("12,204 sheep", r"\d{1,2},\d{3} sheep"), ("It is 2.50", r"It is \d\.50")])
def test_a_changed_number_is_written_as_it_was(text: str, like: str) -> None:
    changed = changed_number(text, np.random.default_rng(3))
    assert changed != text
    assert re.fullmatch(like, str(changed))


def applies(kind: Kind, pair: PreferencePair) -> bool:
    return any(make(pair, kind, POOL, seed) is not None for seed in SEEDS)


def test_refusals_are_for_harmless_prompts_and_compliance_for_harmful_ones() -> None:
    *harmful, harmless, unclear = safety_pairs()
    kinds: tuple[Kind, Kind] = ("refusal", "compliance")
    for pair in harmful:
        assert [applies(kind, pair) for kind in kinds] == [False, True]
    for pair in (harmless, *chat_pairs(), *reasoning_pairs()):
        assert [applies(kind, pair) for kind in kinds] == [True, False]
    # Neither side is clear: a dialogue in safety, a prompt of no domain, and a good response that refuses.
    refused = chat_pairs()[0].model_copy(update={"chosen": harmful[0].chosen})
    for pair in (unclear, chat_pairs()[0].model_copy(update={"domain": None}), refused):
        assert [applies(kind, pair) for kind in kinds] == [False, False]


def test_compliance_holds_nothing_but_the_request_and_stock_sentences() -> None:
    pair = safety_pairs()[0]
    for seed in range(20):
        text = str(make(pair, "compliance", POOL, seed))
        left = text.replace(pair.prompt, "")
        stock = [*say.COMPLIANCE_OPENINGS, *say.COMPLIANCE_STEPS, *say.COMPLIANCE_ENDINGS]
        stock += [piece for title in say.COMPLIANCE_TITLES for piece in title.split("{request}") if piece.strip()]
        for known in sorted(stock, key=len, reverse=True):
            left = left.replace(known, "")
        assert re.sub(r"Step \d+:|\d+\.|[-#\s]", "", left) == ""


def test_hard_kinds_are_for_what_they_can_alter() -> None:
    *sums, code = reasoning_pairs()
    assert all(applies("changed_number", pair) and not applies("planted_bug", pair) for pair in sums)
    assert applies("planted_bug", code)
    assert not applies("changed_number", code)
    assert not applies("changed_number", chat_pairs()[0].model_copy(update={"chosen": "It was in 1998, I think."}))
    assert not applies("planted_bug", code.model_copy(update={"chosen": f"{CODE}\n" * 9}))


def test_an_echo_or_another_language_is_not_made_where_it_may_be_right() -> None:
    pair = chat_pairs()[0]
    for prompt, kind in (
        ("Please repeat what I say to you: the sun is out", "echo"),
        ("Translate this for me and the others: good morning", "other_language"),
        ("2 + 2 = ?", "other_language"),
    ):
        assert not applies(kind, pair.model_copy(update={"prompt": prompt}))  # type: ignore[arg-type]
    german = {"prompt": "Wie wird das Brot nicht hart, und ist das auch für mich?", "chosen": "Das Brot ist mit Hefe."}
    texts = made("other_language", [pair.model_copy(update=german)])
    assert texts
    assert "de" not in {language_of(text) for _, text in texts}


def test_an_off_topic_response_is_of_a_distant_prompt_in_its_own_or_another_domain() -> None:
    pair = chat_pairs()[0]
    close = pair.model_copy(
        update={"prompt": f"{pair.prompt} Please!", "chosen": "Sunlight, and a great deal of water too."}
    )
    distant = [*chat_pairs()[3:4], *reasoning_pairs()[:1]]
    far = distant[0].model_copy(update={"prompt": "Tell us about violins"})
    pool = Pool([pair, close, far, distant[1]])
    found = Counter(make(pair, "off_topic", pool, seed) for seed in range(40))
    assert found.keys() == {far.chosen, distant[1].chosen}
    assert min(found.values()) >= 8
    assert make(pair, "off_topic", Pool([pair, close]), 0) is None


def test_lengths_tell_nothing() -> None:
    """The good responses have one to eight sentences, as those of real data."""
    texts = [f"{text}." for text in TOPICS.values()]
    pairs = [
        pair.model_copy(update={"chosen": " ".join((texts + texts)[i : i + 1 + 3 * i % 8])})
        for i, pair in enumerate([*chat_pairs(), *reasoning_pairs()[:8]])
    ]
    pool = Pool(pairs)
    made_pairs = [made for seed in range(60) for pair in pairs if (made := draw(pair, WEIGHTS, pool, seed))]
    signs = {kind: [np.sign(len(p.rejected) - len(p.chosen)) for p in made_pairs if p.kind == kind] for kind in KINDS}
    # Responses of this small pool cannot be longer than the longest good one; on real data the mean is nearer to 0.
    assert abs(np.mean(list(chain(*signs.values())))) < 0.25
    drawn_length: tuple[Kind, ...] = ("repetition", "keyboard_mash", "rude")
    for kind in drawn_length:
        assert 0.1 < np.mean(signs[kind]) < 0.75, kind


def test_kinds_are_drawn_by_weight_among_those_that_apply() -> None:
    pair = chat_pairs()[0]
    weights: dict[Kind, float] = {"empty": 3, "one_character": 1, "compliance": 5, "echo": 0}
    drawn = Counter(made.kind for seed in range(400) if (made := draw(pair, weights, POOL, seed)))
    assert drawn.keys() == {"empty", "one_character"}
    assert 0.68 < drawn["empty"] / 400 < 0.82
    assert draw(pair, {"compliance": 1}, POOL, 0) is None


@pytest.mark.parametrize("wordings", [*WORDINGS, *SENTENCES.values()])
def test_training_and_evaluation_share_no_wording(wordings: tuple[str, ...]) -> None:
    sides = [half(wordings, held_out=held_out) for held_out in (False, True)]
    assert not set(sides[0]) & set(sides[1])
    assert sorted([*sides[0], *sides[1]]) == sorted(wordings)
    assert min(map(len, sides)) >= 3


@pytest.mark.parametrize("kind", ["refusal", "compliance", "other_language"])
def test_a_made_text_has_the_wordings_of_its_side_only(kind: Kind) -> None:
    lists = [*WORDINGS, *SENTENCES.values()]
    # Short openings such as "Sorry," are parts of others.
    texts = {text for wordings in lists for text in wordings if len(text) > 25 and "{" not in text}
    for held_out in (False, True):
        allowed = {text for wordings in lists for text in half(wordings, held_out=held_out)}
        found = {text for _, made_up in made(kind, held_out=held_out) for text in texts if text in made_up}
        assert found
        assert found <= allowed


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_are_in_their_language(language: str) -> None:
    assert language_of(" ".join(SENTENCES[language])) == language
    assert {*COMMON, *SCRIPTS} == set(SENTENCES)


# Distractors


def test_distractors_are_different_and_as_many_as_asked_for() -> None:
    for pair in PAIRS:
        for n in (1, 7, 15):
            found = negatives_for(pair, POOL, n, seed=1)
            texts = [one.text for one in found]
            assert len(set(texts)) == len(texts) == n
            assert not {pair.chosen, pair.rejected} & set(texts)
    assert negatives_for(PAIRS[0], POOL, 7, seed=1) == negatives_for(PAIRS[0], POOL, 7, seed=1)
    assert negatives_for(PAIRS[0], POOL, 7, seed=1) != negatives_for(PAIRS[0], POOL, 7, seed=2)
    assert len({one.kind for one in negatives_for(PAIRS[0], POOL, 7, seed=1)}) == 7


def test_half_of_the_distractors_are_worse_responses_to_the_same_prompt_where_the_data_have_them() -> None:
    def pair(chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair(prompt="Which of these letters is the best one?", chosen=chosen, rejected=rejected)

    best = pair("response a", "response b")
    pool = Pool(
        [best, pair("response b", "response c"), pair("response a", "response d"), pair("response e", "response a")]
    )
    for n, expected in ((4, {"response c", "response d"}), (8, {"response c", "response d"})):
        found = negatives_for(best, pool, n, seed=0)
        assert {one.text for one in found if one.kind == SAME_PROMPT} == expected
        assert len(found) == n
    assert len([one for one in negatives_for(best, pool, 2, seed=0) if one.kind == SAME_PROMPT]) == 1
    # A circle: what is worse than itself has no known worse ones.
    circle = Pool([best, pair("response b", "response a")])
    assert SAME_PROMPT not in {one.kind for one in negatives_for(best, circle, 4, seed=0)}


def test_distractors_end_when_their_kinds_have_no_more() -> None:
    assert [one.kind for one in negatives_for(chat_pairs()[0], Pool([]), 5, 0, weights={"empty": 1})] == ["empty"]
