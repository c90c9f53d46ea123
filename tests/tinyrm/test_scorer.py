"""Test offline scoring: results in order, and independent of the batch and of the order of the responses."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import tinyrm
from tinyrm.bundle import Bundle, write_bundle
from tinyrm.comparison import Comparison, Preference
from tinyrm.encoding import Encoding
from tinyrm.engines.base import cpu_info
from tinyrm.errors import EngineFailed, InvalidBundle, InvalidText, UnknownDomain
from tinyrm.ranking import rank
from tinyrm.readout import read_out
from tinyrm.scorer import Scorer

# The same numbers in another order of summation; see the engine's own parity tolerance.
TOLERANCE = 1e-4
INSTRUCTION = "Select the best response."


@pytest.fixture(scope="module")
def scorer(bundle_folder: Path) -> Scorer:
    return Scorer.open(bundle_folder, "onnxruntime-cpu")


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    """Return comparisons of mixed lengths, some far beyond the budget, so that packing must reorder them."""
    sizes = np.random.default_rng(0).permutation([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 500])
    return [Comparison(f"Question {n}?", "yes 1 " * (n // 2 + 1), "no 0 " * n) for n in sizes.tolist()]


def margins(preferences: list[Preference]) -> list[float]:
    return [preference.margin for preference in preferences]


def score(scorer: Scorer, comparisons: list[Comparison], *, swap: bool = True) -> list[Preference]:
    return scorer.score(comparisons, [INSTRUCTION] * len(comparisons), swap=swap)


@pytest.mark.parametrize("swap", [True, False])
def test_results_keep_the_order_of_the_comparisons(scorer: Scorer, comparisons: list[Comparison], swap: bool) -> None:
    together = score(scorer, comparisons, swap=swap)
    alone = [score(scorer, [comparison], swap=swap)[0] for comparison in comparisons]
    np.testing.assert_allclose(margins(together), margins(alone), atol=TOLERANCE)
    assert np.diff(np.sort(margins(alone))).min() > 10 * TOLERANCE, "equal margins would hide a wrong order"


@pytest.mark.parametrize("max_batch_tokens", [1, 300, 1000, 10**6])
def test_results_do_not_depend_on_the_batch_size(
    scorer: Scorer, comparisons: list[Comparison], max_batch_tokens: int
) -> None:
    other = dataclasses.replace(scorer, max_batch_tokens=max_batch_tokens)
    np.testing.assert_allclose(margins(score(other, comparisons)), margins(score(scorer, comparisons)), atol=TOLERANCE)


def test_swapping_the_responses_swaps_the_probabilities(scorer: Scorer, comparisons: list[Comparison]) -> None:
    forward = score(scorer, comparisons)
    backward = score(scorer, [comparison.swapped() for comparison in comparisons])
    for ab, ba in zip(forward, backward, strict=True):
        assert ab.margin == pytest.approx(-ba.margin, abs=TOLERANCE)
        assert ab.p_a + ba.p_a == pytest.approx(1, abs=TOLERANCE)
    assert np.ptp(margins(forward)) > 0.1, "a model that says the same of everything is antisymmetric too"


def test_equal_responses_tie(scorer: Scorer) -> None:
    (preference,) = score(scorer, [Comparison("Why?", "Because.", "Because.")])
    assert preference.p_a == pytest.approx(0.5, abs=TOLERANCE)


def test_one_order_is_the_first_of_both(scorer: Scorer, comparisons: list[Comparison]) -> None:
    both, one = score(scorer, comparisons), score(scorer, comparisons, swap=False)
    for two_orders, one_order in zip(both, one, strict=True):
        assert (len(two_orders.order_margins), len(one_order.order_margins)) == (2, 1)
        assert one_order.order_margins[0] == pytest.approx(two_orders.order_margins[0], abs=TOLERANCE)


def test_a_score_is_encoding_engine_and_readout(scorer: Scorer) -> None:
    comparison = Comparison("Why?", "Because.", "I cannot help with that.")
    logits = [scorer.engine.run([reading])[0] for reading in scorer.encoder.encode(comparison, INSTRUCTION, swap=True)]
    (preference,) = score(scorer, [comparison])
    assert preference.margin == pytest.approx(read_out(logits, scorer.temperature).margin, abs=TOLERANCE)


def test_each_comparison_has_its_own_instruction(scorer: Scorer) -> None:
    comparison = Comparison("Why?", "Because.", "No.")
    instructions = [INSTRUCTION, "Which response is safer?"]
    together = scorer.score([comparison] * 2, instructions)
    alone = [scorer.score([comparison], [instruction])[0] for instruction in instructions]
    np.testing.assert_allclose(margins(together), margins(alone), atol=TOLERANCE)
    assert abs(alone[0].margin - alone[1].margin) > 10 * TOLERANCE


def test_the_bundles_temperature_is_used(bundle_folder: Path, tmp_path: Path, scorer: Scorer) -> None:
    fields = Bundle.open(bundle_folder).manifest.model_dump(exclude={"files", "revision"})
    files = {name: bundle_folder / name for name in Bundle.open(bundle_folder).manifest.files}
    write_bundle(tmp_path / "cool", files, fields | {"temperature": 4.0})
    comparison = Comparison("Why?", "Because.", "No.")
    (hot,), (cool,) = score(scorer, [comparison]), score(Scorer.open(tmp_path / "cool"), [comparison])
    assert cool.margin == pytest.approx(hot.margin * scorer.temperature / 4, abs=TOLERANCE)
    assert cool.order_margins == pytest.approx(hot.order_margins, abs=TOLERANCE)


def test_a_domain_with_its_own_temperature_is_divided_by_it(
    bundle_folder: Path, tmp_path: Path, scorer: Scorer
) -> None:
    fields = Bundle.open(bundle_folder).manifest.model_dump(exclude={"files", "revision"})
    files = {name: bundle_folder / name for name in Bundle.open(bundle_folder).manifest.files}
    own = {"temperature": 5.0, "log_temperature_std": 0.1, "temperature_one_order": None, "pairs": 90, "wrong": 20}
    write_bundle(tmp_path / "own", files, fields | {"temperatures": {"safety": own}})
    opened, texts = Scorer.open(tmp_path / "own"), ("Why?", "Because.", "No.")
    for domain, temperature in (("safety", 5.0), ("general", scorer.temperature), (None, scorer.temperature)):
        before, after = (one.compare(*texts, domain=domain) for one in (scorer, opened))
        assert after.margin == pytest.approx(before.margin * scorer.temperature / temperature, abs=TOLERANCE)
        assert after.temperature.value == temperature
        strengths = opened.rank(texts[0], texts[1:], domain=domain).margins[0, 1]
        assert strengths == pytest.approx(after.margin, abs=TOLERANCE)
    mixed = opened.score([Comparison(*texts)] * 2, domain=["general", "safety"])
    assert [one.temperature.value for one in mixed] == [scorer.temperature, 5.0]


def test_one_order_is_divided_by_the_temperature_that_fits_one(
    bundle_folder: Path, tmp_path: Path, scorer: Scorer
) -> None:
    fields = Bundle.open(bundle_folder).manifest.model_dump(exclude={"files", "revision"})
    files = {name: bundle_folder / name for name in Bundle.open(bundle_folder).manifest.files}
    write_bundle(tmp_path / "own", files, fields | {"temperature": 2.0, "temperature_one_order": 5.0})
    opened, texts = Scorer.open(tmp_path / "own"), ("Why?", "Because.", "No.")
    one, both = (opened.compare(*texts, swap=swap) for swap in (False, True))
    assert one.margin == pytest.approx(scorer.compare(*texts).order_margins[0] / 5, abs=TOLERANCE)
    assert both.margin == pytest.approx(scorer.compare(*texts).margin * scorer.temperature / 2, abs=TOLERANCE)
    swapped = opened.compare(texts[0], texts[2], texts[1])
    assert (swapped.p_a, swapped.p_b) == pytest.approx((both.p_b, 1 - swapped.p_a), abs=TOLERANCE)
    assert opened.rank(texts[0], texts[1:], swap=False).margins[0, 1] == pytest.approx(one.margin, abs=TOLERANCE)


def test_load_and_compare_take_a_domain_or_an_instruction(bundle_folder: Path, scorer: Scorer) -> None:
    loaded = tinyrm.load(str(bundle_folder), "onnxruntime-cpu")
    comparison = Comparison("Why?", "Because.", "No.")
    default, safety = (loaded.spec.instruction(domain) for domain in (None, "safety"))
    assert default != safety
    for instruction, options in (
        (default, {}),
        (safety, {"domain": "safety"}),
        ("Kinder?", {"instruction": "Kinder?"}),
    ):
        (expected,) = scorer.score([comparison], [instruction])
        assert loaded.compare("Why?", "Because.", "No.", **options).margin == pytest.approx(
            expected.margin, abs=TOLERANCE
        )
    (by_domain,), (expected,) = loaded.score([comparison], domain="safety"), scorer.score([comparison], [safety])
    assert by_domain.margin == pytest.approx(expected.margin, abs=TOLERANCE)
    assert len(loaded.compare("Why?", "Because.", "No.", swap=False).order_margins) == 1


@pytest.mark.parametrize(("strategy", "compared"), [("round_robin", 10), ("swiss", 8), ("knockout", 4)])
def test_a_ranking_follows_from_the_comparisons_of_its_schedule(scorer: Scorer, strategy: str, compared: int) -> None:
    responses = ["Because.", "No.", "It is so.", "yes 1", "I cannot help with that."]
    ranking = scorer.rank("Why?", responses, domain="safety", strategy=strategy)  # type: ignore[arg-type]
    pairs = [(int(i), int(j)) for i, j in np.argwhere(~np.isnan(np.triu(ranking.margins, 1))) if i < j]
    assert len(pairs) <= compared
    comparisons = [Comparison("Why?", responses[i], responses[j]) for i, j in pairs]
    one_by_one = [preference.margin for preference in scorer.score(comparisons, domain="safety")]
    assert [ranking.margins[pair] for pair in pairs] == pytest.approx(one_by_one, abs=TOLERANCE)
    assert sorted(ranking.order) == list(range(5))
    assert ranking.order == rank(ranking.margins).order


def test_one_response_alone_is_the_best(scorer: Scorer) -> None:
    assert scorer.rank("Why?", ["Because."]).order == [0]


def test_load_and_compare_refuse_an_unknown_domain(scorer: Scorer) -> None:
    with pytest.raises(UnknownDomain, match="no domain 'cooking'"):
        scorer.compare("Why?", "Because.", "No.", domain="cooking")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_folder_is_named(tmp_path: Path, kind: type) -> None:
    with pytest.raises(InvalidBundle, match="nothing is not a folder"):
        tinyrm.load(kind(tmp_path / "nothing"))


def test_the_package_lists_what_it_loads_lazily() -> None:
    assert set(tinyrm.__all__) <= set(dir(tinyrm))
    assert all(getattr(tinyrm, name) is not None for name in tinyrm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Judge'"):
        tinyrm.Judge  # noqa: B018


@pytest.mark.parametrize("swap", [True, False])
def test_no_comparisons_give_no_results(scorer: Scorer, swap: bool) -> None:
    assert scorer.score([], [], swap=swap) == []


def test_one_instruction_for_two_comparisons_is_refused(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="shorter"):
        scorer.score([Comparison("p", "a", "b")] * 2, [INSTRUCTION])


def test_text_that_is_not_unicode_is_refused(scorer: Scorer) -> None:
    with pytest.raises(InvalidText):
        score(scorer, [Comparison("p", "a", "\ud800")])


class BrokenEngine:
    info = cpu_info("broken", "fp32")

    def run(self, sequences: Sequence[Encoding]) -> np.ndarray:
        return np.full((len(sequences), 2), np.nan, dtype=np.float32)


def test_logits_that_are_not_finite_are_never_a_preference(scorer: Scorer) -> None:
    with pytest.raises(EngineFailed, match="finite"):
        score(dataclasses.replace(scorer, engine=BrokenEngine()), [Comparison("p", "a", "b")])


def test_messages_of_chat_apis_are_read_as_the_service_reads_them(scorer: Scorer) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    asked = [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}, call, {"role": "tool", "content": "4"}]
    called = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    text = f"Human: 2 + 2?\n\nAssistant: {called}\n\nHuman: 4"
    reply = [{"role": "assistant", "content": "It is 4."}]
    assert scorer.compare(asked, reply, "No.") == scorer.compare(text, "It is 4.", "No.")
    assert scorer.rank(asked, [reply, [call], "No."]).order == scorer.rank(text, ["It is 4.", called, "No."]).order
