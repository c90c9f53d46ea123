"""Test the groups that strategies for the best of n are measured on, and that replaying a strategy is running it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.best_of_n import ROUND_ROBIN, Judged, Model, cascade, judge, main, measure, play
from evaluation.groups import Group, groups_of, pair_accuracy, simulate
from tinyrm.cascade import Cascade
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import rank_scores


def pair(chosen: str, rejected: str, prompt: str = "p") -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, domain="chat")


def test_a_group_has_a_response_and_others_that_are_worse_directly_or_by_a_third_one() -> None:
    pairs = [pair("a", "b"), pair("b", "c"), pair("a", "d"), pair("e", "f"), pair("x", "y", prompt="q")]
    (group,) = groups_of(pairs, 4)
    assert (group.prompt, group.domain) == ("p", "chat")
    assert sorted(group.responses) == ["a", "b", "c", "d"]
    assert group.responses[group.best] == "a"
    labels = {(group.responses[i], group.responses[j]) for i, j in group.labelled}
    assert labels == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c")}
    assert {one.responses[one.best] for one in groups_of(pairs, 2)} == {"a", "b", "e", "x"}
    with pytest.raises(InvalidInput, match="better than 4 others"):
        groups_of(pairs, 5)


def test_the_place_of_the_best_says_nothing() -> None:
    pairs = [pair("a", letter, prompt=f"{n}") for n in range(200) for letter in "bcd"]
    places = np.bincount([group.best for group in groups_of(pairs, 4)], minlength=4)
    assert (places > 25).all()


def test_pairs_that_contradict_each_other_make_no_best_and_no_label() -> None:
    (group,) = groups_of([pair("a", "b"), pair("b", "c"), pair("c", "b"), pair("c", "d")], 3)
    assert group.responses[group.best] == "a"
    labels = {(group.responses[i], group.responses[j]) for i, j in group.labelled}
    assert labels <= {("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}


def test_the_best_is_found_alone_or_shared_and_tau_counts_labelled_pairs() -> None:
    group = Group("p", None, ("w", "x", "y", "z"), best=1, labelled=((1, 0), (1, 2), (1, 3), (2, 3)))
    assert group.found(np.array([0.0, 2.0, 1.0, -3.0])) == 1
    assert group.found(np.array([2.0, 2.0, 2.0, -3.0])) == pytest.approx(1 / 3)
    assert group.found(np.array([2.0, 1.0, 0.0, -3.0])) == 0
    assert group.tau(np.array([2.0, 1.0, 1.0, 0.0])) == pytest.approx((-1 + 0 + 1 + 1) / 4)


@pytest.mark.parametrize("noise", [0.5**0.5, 1.4])
def test_simulated_models_judge_pairs_as_well_as_their_noise_allows(noise: float) -> None:
    """A difference of normal strengths, variance 2, with noise v has the right sign with 1/2 + atan(sqrt(2/v)) / pi."""
    of_scores, of_margins = pair_accuracy(simulate(8, 600, noise))
    assert of_scores == pytest.approx(0.5 + np.arctan(1 / noise) / np.pi, abs=0.01)
    assert of_margins == pytest.approx(0.5 + np.arctan(2**0.5) / np.pi, abs=0.01)


@pytest.mark.slow
def test_strategies_pay_for_the_sequences_that_they_use() -> None:
    (row, *others), by_name = measured(16)
    assert (row["strategy"], row["sequences"], row["difference"]["value"]) == (ROUND_ROBIN, 240, 0)
    counts = {name: one["sequences"] for name, one in by_name.items()}
    assert counts["pairwise, knockout"] == 30
    assert counts["pointwise alone"] == 16
    assert [counts[f"cascade, top {top}"] for top in (2, 4, 8)] == [16 + 2, 16 + 12, 16 + 56]
    assert all(one["gflops"] > 0 for one in others)
    assert by_name["cascade, top 4"]["gflops"] == pytest.approx(16 * 1 + 6 * 3)


def test_a_cascade_finds_the_best_more_often_than_the_scores_it_starts_from() -> None:
    _, by_name = measured(16)
    found = [by_name[name]["best_found"]["value"] for name in ("pointwise alone", "cascade, top 2", "cascade, top 8")]
    assert found[0] + 0.05 < found[1] < found[2]


def measured(size: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return rows of simulated groups, in order and by name, where a response costs 1 and a pair costs 3."""
    alone, of_pair = np.ones(size), np.full((size, size), 3.0)
    simulated = simulate(size, 150, pointwise_noise=1.0)
    judged = [Judged(one.group, rank_scores(one.scores, 1.0), one.margins, alone, of_pair) for one in simulated]
    rows = measure(judged, tops=(2, 4, 8, 16))
    return rows, {row["strategy"]: row for row in rows}


def test_a_replay_is_what_the_library_ranks(bundle_folder: Path, response_bundle_folder: Path) -> None:
    pairwise = Model.open(bundle_folder, "onnxruntime-cpu", "pair")
    pointwise = Model.open(response_bundle_folder, "onnxruntime-cpu", "response")
    group = Group(
        "What is 2 + 2?", "safety", ("4", "five", "2 + 2 = 4.", "no", "I cannot help with that."), 2, ((2, 1),)
    )
    other = Group("What is 2 + 2?", "safety", ("no", "4", "maybe"), 1, ((1, 0),))
    one, two = judge(pointwise, pairwise, [group, other])
    library = Cascade(pointwise.scorer, pairwise.scorer, top=3)
    ranked = library.rank(group.prompt, group.responses, domain="safety")
    assert cascade(one, 3).strengths == pytest.approx(ranked.strengths.values, abs=1e-4)
    for strategy in ("round_robin", "swiss", "knockout"):
        ranked = pairwise.scorer.rank(group.prompt, group.responses, domain="safety", strategy=strategy)  # type: ignore[arg-type]
        assert play(one, strategy).strengths == pytest.approx(ranked.strengths.values, abs=1e-4)  # type: ignore[arg-type]
    ranked = pointwise.scorer.rank(other.prompt, other.responses, domain="safety")
    assert two.pointwise.strengths.values == pytest.approx(ranked.strengths.values, abs=1e-4)
    assert one.gflops_alone[0] < one.gflops_of_pair[0, 1] / 2 < one.gflops_of_pair[0, 1]


def test_the_command_writes_a_table_and_its_figures(
    tmp_path: Path, bundle_folder: Path, response_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.best_of_n.SIMULATED_GROUPS", 5)
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    pairs.write_text("".join(pair("a", text).model_dump_json() + "\n" for text in "bcd"), encoding="utf-8")
    common = ["--pairs", str(pairs), "--pairwise", str(bundle_folder), "--sizes", "3", "4", "--out", str(out)]
    assert main([*common, "--pointwise", str(response_bundle_folder)]) == 0
    content = json.loads((out / "cascade.json").read_text(encoding="utf-8"))
    assert [(part["responses"], part["groups"]) for part in content["real"]] == [(3, 1), (4, 1)]
    assert "cascade, top 2" in (out / "cascade.md").read_text(encoding="utf-8")
    assert main([*common, "--pointwise", str(bundle_folder)]) == 1, "this bundle reads pairs"
