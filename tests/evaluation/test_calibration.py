"""Find a known temperature, and apply it as the product does."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from evaluation.benchmarks import pairs as pairs_benchmark
from evaluation.run import fit_on_held_out
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.statistics import by_length, calibration_at, reliability
from evaluation.target import Target
from tests.evaluation.known import Known
from tinyrm.calibration import fit_temperature, raw_margins
from tinyrm.comparison import Preference
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import sigmoid
from tinyrm.spec import Spec


def judged(z: float, temperature: float = 1.0, chosen: str = "yes", rejected: str = "no!") -> ScoredPair:
    margin = z / temperature
    preference = Preference(sigmoid(margin), sigmoid(-margin), margin, (z, z))
    return ScoredPair(PreferencePair(prompt="p", chosen=chosen, rejected=rejected), preference)


def overconfident(temperature: float) -> list[ScoredPair]:
    """Return log-odds that are `temperature` times too large for their accuracy."""
    rng = np.random.default_rng(1)
    true = rng.normal(scale=2, size=20_000)
    right = rng.random(len(true)) < 1 / (1 + np.exp(-true))
    return [judged(temperature * abs(z) * (1 if (z > 0) == r else -1)) for z, r in zip(true, right, strict=True)]


def test_a_known_temperature_is_found() -> None:
    pairs = overconfident(3.0)
    fitted = fit_temperature(raw_margins([j.preference for j in pairs]))
    assert fitted == pytest.approx(3.0, rel=0.05)
    before, after = calibration_at(pairs, 1.0), calibration_at(pairs, fitted)
    assert before.expected_calibration_error > 0.05
    assert after.expected_calibration_error < 0.015
    assert after.negative_log_likelihood < before.negative_log_likelihood
    assert after.brier < before.brier


def test_the_bundles_own_temperature_changes_nothing() -> None:
    pairs = [judged(z, temperature=2.0) for z in (-1.5, 0.2, 4.0)]
    p_right = np.array([j.preference.p_a for j in pairs])
    own = calibration_at(pairs, 2.0)
    assert own.negative_log_likelihood == pytest.approx(-np.log(p_right).mean())
    assert own.brier == pytest.approx(((1 - p_right) ** 2).mean())


def test_probabilities_are_what_calibration_is_measured_against() -> None:
    pairs = [judged(z) for z in (-1.5, 0.2, 4.0)]
    pairs = [replace(j, pair=j.pair.model_copy(update={"probability": sigmoid(j.preference.margin)})) for j in pairs]
    p = np.array([j.preference.p_a for j in pairs])
    entropy = float(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())
    found = by_length(pairs)["all"]
    assert found.negative_log_likelihood == pytest.approx(entropy)
    assert found.brier == pytest.approx(0, abs=1e-12)
    assert found.expected_calibration_error == pytest.approx(0, abs=1e-12)
    assert found.accuracy.value == pytest.approx(2 / 3)
    at_one = calibration_at(pairs, 1.0)
    assert at_one.negative_log_likelihood == pytest.approx(entropy)
    assert at_one.brier == pytest.approx(0, abs=1e-12)
    assert at_one.expected_calibration_error == pytest.approx(0, abs=1e-12)


def test_bins_contain_every_result_once() -> None:
    bins = reliability(np.array([0.9] * 7 + [0.1] * 3 + [0.5, 1.0]))
    assert sum(b.pairs for b in bins) == 12
    assert [(b.confidence, b.accuracy, b.pairs) for b in bins] == [
        (0.5, 0.5, 1),
        (pytest.approx(0.9), pytest.approx(0.7), 10),
        (1.0, 1.0, 1),
    ]


def test_pairs_are_split_by_which_response_is_longer() -> None:
    pairs = [judged(1, chosen="longer"), judged(-1, chosen="n"), judged(1, chosen="yes")]
    pairs += [judged(-1, chosen="a" * n, rejected="b" * 100) for n in (89, 90)]
    summaries = by_length(pairs)
    assert {name: (s.pairs, s.accuracy.value) for name, s in summaries.items()} == {
        "all": (5, 0.4),
        "chosen longer": (1, 1),
        "chosen shorter": (3, 0),
        "equally long": (1, 1),
        "length-matched": (2, 0.5),
    }


def test_domains_with_other_temperatures_have_their_own(tmp_path: Path) -> None:
    """Use a model whose scores are written in the responses; it is three times too sure in one domain."""
    margins = {"code": overconfident(3.0)[:1500], "chat": overconfident(1.0)[:1500]}
    pairs = [
        PreferencePair(prompt=f"{domain} {i}", chosen=str(j.preference.margin), rejected="0", domain=domain)
        for domain, part in margins.items()
        for i, j in enumerate(part)
    ]
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    spec = Spec(domains={"chat": "Which is better?", "code": "Which works?"}, default_domain="chat")
    scorer = Known(lambda c: float(c.response_a) - float(c.response_b))
    fitted, fit, calibration = fit_on_held_out(Target("known@1", "none", spec, scorer), path)
    found = {name: one.temperature for name, one in fit.domains.items()}
    assert found == {"chat": pytest.approx(1.0, rel=0.15), "code": pytest.approx(3.0, rel=0.15)}
    assert found["chat"] < fit.general.temperature < found["code"]
    scored = score_pairs(fitted, pairs)
    assert [one.preference.margin for one in scored] == pytest.approx(
        [float(pair.chosen) / found[pair.domain or ""] for pair in pairs]
    )
    at_one = calibration_at(scored, fit.general.temperature)
    after = calibration["held out, after"]
    assert after.negative_log_likelihood < at_one.negative_log_likelihood
    assert after.expected_calibration_error < 0.05 < calibration["held out, before"].expected_calibration_error


def test_ties_of_a_file_are_no_verdicts_and_are_reported(tmp_path: Path) -> None:
    """Read a table of two rivals; the temperature is fitted on ties too."""
    rows = [
        {"prompt": f"q{i}", "response_a": f"{i % 7 - 3}", "response_b": "0", "winner": ("a", "b", "tie")[i % 3]}
        for i in range(90)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    (tmp_path / "ties.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[2::3]))
    target = Target("known@1", "none", Spec(), Known(lambda c: float(c.response_a) - float(c.response_b)))
    report = pairs_benchmark.run(target, tmp_path / "pairs.parquet")
    assert report.figures["ties_left_out"] == 30
    assert report.figures["domains"]["all"]["pairs"] == len(report.scored) == 60
    assert "30 ties of the file are left out" in report.markdown
    with pytest.raises(InvalidInput, match=r"ties\.jsonl holds no pairs, only ties"):
        pairs_benchmark.run(target, tmp_path / "ties.jsonl")
    sure = [row | {"winner": "a" if float(row["response_a"]) > 0 else "b"} for row in rows if row["winner"] != "tie"]
    names = []
    for name, more in (("without", []), ("with", [row for row in rows if row["winner"] == "tie"] * 3)):
        wrong = [row | {"winner": "a" if row["winner"] == "b" else "b"} for row in sure[:12]]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in sure + wrong + more))
        names.append(fit_on_held_out(target, path)[1].general.temperature)
    assert names[1] > 1.2 * names[0], "ties say that large margins are too sure"
