"""Test that a fit removes the scorer's own temperature, and that one order is enough above the fitted margin."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from export.calibration import calibrate, evenly, fit_auto_swap, read_calibration, score_alone, score_pairs
from export.config import ExportOptions
from export.precision import write_lower_precisions
from tests.conftest import TOY_SPEC, Trained
from tests.support.scored_by_length import LengthEngine, response_scorer
from tinyrm.calibration import determine_temperature, fit_temperature, raw_margins
from tinyrm.comparison import Preference
from tinyrm.encoding import Encoder
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import sigmoid
from tinyrm.scorer import Scorer


def test_the_fit_removes_the_scorers_own_temperature(bundle_folder: Path) -> None:
    scorer = Scorer.open(bundle_folder)
    warmer = scorer.at(7.0)
    answers = ("the first of the answers", "a longer one of the answers", "nothing")
    pairs = [
        PreferencePair(prompt=f"Question {i}", chosen=answers[i % 3], rejected=answers[(i + 1) % 3], domain=domain)
        for i, domain in enumerate(["safety", "general", "chess", None] * 6)
    ]
    fitted, again = (fit_temperature(raw_margins(score_pairs(s, TOY_SPEC, pairs))) for s in (scorer, warmer))
    assert fitted == pytest.approx(again)
    preferences = scorer.score([p.comparison() for p in pairs], [TOY_SPEC.instruction()] * len(pairs))
    assert np.ptp([p.margin for p in preferences]) > 0.1


def test_a_domain_that_differs_from_the_others_gets_its_own_temperature(
    monkeypatch: pytest.MonkeyPatch, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Be three times too sure about safety; chess, which the model lacks, counts as its default domain."""
    rng = np.random.default_rng(0)
    sizes = {"safety": (3.0, 600), "general": (1.0, 300), "chess": (1.0, 300)}
    domains = [domain for domain, (_, count) in sizes.items() for _ in range(count)]
    honest = rng.normal(scale=2, size=len(domains))
    right = rng.random(len(domains)) < sigmoid(honest)
    margins = np.where(right, honest, -honest) * [sizes[domain][0] for domain in domains]
    monkeypatch.setattr(
        "export.calibration.score_pairs", lambda _, __, some: [orders(m, m) for m in margins[: len(some)]]
    )
    monkeypatch.setattr("export.calibration.OnnxRuntimeCpu", lambda *_: None)
    monkeypatch.setattr("export.calibration.on_cpu", lambda _: None)
    pairs = [PreferencePair(prompt="p", chosen="yes", rejected="no", domain=domain) for domain in domains]
    options = ExportOptions(model="", out=Path("out"))
    found = calibrate(options, TOY_SPEC, pairs, encoder, Path("model.onnx"))
    own = {name: (one.temperature, one.pairs) for name, one in found.temperatures.items()}
    assert own == {"safety": (pytest.approx(3, rel=0.2), 600), "general": (pytest.approx(1, rel=0.2), 600)}
    assert 1 < found.temperature < 3
    few = calibrate(options, TOY_SPEC, pairs[:49], encoder, Path("model.onnx"))
    assert (few.temperature, dict(few.temperatures)) == (1.0, {}), "49 pairs determine nothing"
    assert "the temperature stays 1" in caplog.text


def test_probabilities_and_ties_of_held_out_pairs_determine_the_temperature(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: Encoder
) -> None:
    margins = np.abs(np.random.default_rng(0).normal(scale=3, size=60)) * ([1] * 50 + [0] * 10)
    pairs = [
        PreferencePair(prompt=f"p {i}", chosen="yes", rejected="no", probability=float(sigmoid(margin / 2)))
        for i, margin in enumerate(margins)
    ]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    options = ExportOptions(model="", out=Path("out"), calibration=path)
    read = read_calibration(options)
    assert read == pairs
    assert sum(pair.is_tie for pair in read) == 10
    monkeypatch.setattr("export.calibration.score_pairs", lambda *_: [orders(m, m) for m in margins])
    monkeypatch.setattr("export.calibration.OnnxRuntimeCpu", lambda *_: None)
    monkeypatch.setattr("export.calibration.on_cpu", lambda _: None)
    found = calibrate(options, TOY_SPEC, read, encoder, Path("model.onnx"))
    assert found.temperature == pytest.approx(2, rel=1e-3)
    assert found.record
    # Nothing preferred counts as wrong in as many cases as either response is the better one.
    assert found.record.wrong == round(float(np.sum(np.where(margins > 0, 1 - sigmoid(margins / 2), 0.5))))


def test_single_scores_give_preferences_and_the_scale_of_distinct_responses(encoder: Encoder) -> None:
    engine = LengthEngine()
    scorer = response_scorer(encoder, TOY_SPEC, engine)
    pairs = [
        PreferencePair(prompt="Question", chosen="yes " * (3 + i), rejected="no", domain="safety") for i in range(4)
    ]
    preferences, scale = score_alone(scorer, scorer.spec, pairs)
    instruction = TOY_SPEC.instruction("safety")
    lengths = [
        len(scorer.encoder.encode_one(instruction, "Question", response))
        for response in ("no", *(pair.chosen for pair in pairs))
    ]
    assert sorted(engine.lengths) == sorted(lengths), "`no` stands in four pairs and is scored once"
    expected = (np.array(lengths[1:]) - lengths[0]) / 10
    assert [p.margin for p in preferences] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [len(p.order_margins) for p in preferences] == [1] * 4
    assert scale
    assert (scale.mean, scale.std) == pytest.approx((np.mean(lengths) / 10, np.std(lengths) / 10))
    assert scale.responses == 5


def test_equal_scores_have_no_scale(encoder: Encoder) -> None:
    scorer = response_scorer(encoder, TOY_SPEC, LengthEngine())
    pairs = [PreferencePair(prompt="Question", chosen="a", rejected="b")]
    assert score_alone(scorer, scorer.spec, pairs)[1] is None


def test_a_model_of_single_responses_has_one_temperature(encoder: Encoder) -> None:
    margins = np.random.default_rng(0).normal(1, 2, 200).tolist()
    single = [Preference(sigmoid(m), sigmoid(-m), m, (m,)) for m in margins]
    both = [orders(m, m) for m in margins]
    fit, expected = determine_temperature(single), determine_temperature(both)
    assert fit == expected._replace(one_order=None)
    assert expected.one_order == pytest.approx(expected.temperature, rel=1e-3)


def test_a_sample_has_the_domains_and_lengths_of_all_pairs() -> None:
    """Use a file in the order of its sources, as training writes it."""
    pairs = [
        PreferencePair(prompt=f"{domain} {i}", chosen="a" * (i + 1), rejected="b", domain=domain)
        for domain, count in (("chat", 500), ("safety", 250), (None, 250))
        for i in range(count)
    ]
    sample = evenly(pairs, 100)
    assert Counter(pair.domain for pair in sample) == {"chat": 50, "safety": 25, None: 25}
    assert np.mean([len(pair.chosen) for pair in sample]) == pytest.approx(188, abs=3)
    assert [pairs.index(pair) for pair in sample] == sorted(pairs.index(pair) for pair in sample)
    assert sample == evenly(pairs, 100) != evenly(pairs, 100, seed=1)
    assert evenly(pairs, 1000) == evenly(pairs, 2000) == pairs


def test_int8_is_searched_on_pairs_of_all_domains(
    encoder: Encoder, tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [("x", "general")] * 200 + [("x " * 20, "safety")] * 200
    pairs = [PreferencePair(prompt=prompt, chosen="yes", rejected="no", domain=domain) for prompt, domain in prompts]
    general, safety = (
        len(encoder.encode(pair.comparison(), TOY_SPEC.instruction(pair.domain))[0]) for pair in (pairs[0], pairs[-1])
    )
    seen: list[int] = []
    monkeypatch.setattr("export.precision.search_int8", lambda _, sequences, *__: seen.extend(map(len, sequences)))
    monkeypatch.setattr("export.precision.report_speed", lambda *_: None)
    monkeypatch.setattr("export.precision.OnnxRuntimeCpu", lambda *_: SimpleNamespace(run=None))
    monkeypatch.setattr("export.precision.run_alone", lambda _, sequences: seen.append(-len(sequences)))
    model = BlockedModel.__new__(BlockedModel)
    torch.nn.Module.__init__(model)
    options = ExportOptions(model="", adapter=trained.adapter, out=tmp_path, precisions=("int8",))
    write_lower_precisions(
        options, pairs, encoder, model, tmp_path / "model.onnx", spec=options.spec(), temperature=1.0
    )
    assert Counter(seen) == {safety: 48, general: 48, -(800 - 96): 1}


def orders(first: float, second: float) -> Preference:
    """Score both orders at temperature 1."""
    margin = (first + second) / 2
    return Preference(sigmoid(margin), sigmoid(-margin), margin, (first, second))


def test_one_order_is_enough_above_the_fitted_margin() -> None:
    """Use a judge with a bias of 1 for the first position: one order is wrong if the true margin is smaller."""
    rng = np.random.default_rng(0)
    preferences = [orders(m + 1, m - 1) for m in rng.normal(scale=3, size=4000)]
    for max_flips in (0.0, 0.005, 0.02):
        auto = fit_auto_swap(preferences, 1.0, max_flips)
        both = np.array([p.margin for p in preferences]).repeat(2)
        one = np.array([p.order_margins for p in preferences]).ravel()
        alone = np.abs(one) >= auto.margin
        assert auto.saved == pytest.approx(alone.mean())
        assert auto.saved > 0.3
        assert auto.flips == pytest.approx((alone & (one * both < 0)).mean())
        assert auto.flips <= max_flips
    assert fit_auto_swap(preferences, 1.0, 0.0).margin == pytest.approx(1, abs=0.05), (
        "beyond its bias it is never wrong"
    )
    assert fit_auto_swap(preferences, 2.0, 0.0).margin == pytest.approx(0.5, abs=0.05), "in log-odds"


def test_orders_with_equal_margins_count_together() -> None:
    """Allow one error in two hundred: the first order is always wrong here, and both orders have equal margins."""
    auto = fit_auto_swap([orders(5.0, -5.1)] * 100, 1.0)
    assert (auto.margin, auto.saved, auto.flips) == (5.1, 0.5, 0.0)


def test_a_judge_of_positions_alone_always_needs_both_orders() -> None:
    auto = fit_auto_swap([orders(5.0, -4.0), orders(4.0, -5.0)] * 100, 1.0)
    assert (auto.saved, auto.flips) == (0.5, 0.0)
    always_wrong = fit_auto_swap([orders(5.0, -5.0)] * 100, 1.0)
    assert (always_wrong.saved, always_wrong.flips) == (0.0, 0.0)
    assert always_wrong.margin > 5
