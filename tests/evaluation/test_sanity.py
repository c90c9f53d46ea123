"""The sanity suite: what is made of held-out pairs, what is counted, and the command on a model and on a service."""

import json
from collections import Counter
from pathlib import Path

import pytest

from evaluation.__main__ import main
from evaluation.benchmarks.sanity import run, sample
from tests.conftest import REPOSITORY
from tests.evaluation.known import alone, target
from tests.support.preference_data import chat_pairs, preference_pairs
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput
from tinyrm.negatives import KINDS
from tinyrm.negatives.wordings import REFUSAL_CORES, half
from tinyrm.pairs import PreferencePair


def written(path: Path, pairs: list[PreferencePair]) -> Path:
    path.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.jsonl", preference_pairs())


GOOD = {pair.chosen for pair in preference_pairs()}


def worth(text: str) -> float:
    return float(text in GOOD)


def knows(c: Comparison) -> float:
    """Be right, except that an empty response beats everything, and a blank one is as good as any."""
    special = {"": 5.0} | {text: 1.0 for text in (c.response_a, c.response_b) if text.isspace()}
    return special.get(c.response_a, worth(c.response_a)) - special.get(c.response_b, worth(c.response_b))


def test_every_kind_is_made_of_different_prompts_as_often_as_asked_for() -> None:
    made = sample(preference_pairs(), 4, seed=1)
    assert made == sample(preference_pairs(), 4, seed=1)
    assert made != sample(preference_pairs(), 4, seed=2)
    counts = Counter(pair.kind for pair in made)
    assert counts.pop("planted_bug") == 1, "one pair is code"
    assert counts == dict.fromkeys((kind for kind in KINDS if kind != "planted_bug"), 4)
    assert all(len({pair.prompt for pair in made if pair.kind == kind}) == counts[kind] for kind in counts)
    every = [(pair.prompt, pair.chosen, pair.rejected) for pair in sample(preference_pairs(), 100, seed=1)]
    assert len(set(every)) == len(every)


def test_a_second_pair_of_a_prompt_comes_after_the_first_ones_of_all() -> None:
    one, two, *_ = chat_pairs()
    many = [one.model_copy(update={"chosen": f"{one.chosen} Number {i}."}) for i in range(20)]
    made = sample([*many, two], 2, seed=0)
    assert {pair.prompt for pair in made if pair.kind == "keyboard_mash"} == {one.prompt, two.prompt}


def test_the_wordings_are_those_that_training_lacks() -> None:
    refusals = [pair.rejected for pair in sample(preference_pairs(), 50, seed=0) if pair.kind == "refusal"]
    ours, theirs = (half(REFUSAL_CORES, held_out=held_out) for held_out in (True, False))
    assert all(any(core[1:] in text for core in ours) for text in refusals)
    assert not any(core[1:] in text for core in theirs for text in refusals)


def test_accuracy_and_margin_are_counted_by_kind(pairs: Path) -> None:
    report = run(target(knows), pairs, 5, seed=0)
    kinds = report.figures["kinds"]
    accuracy = {kind: row["accuracy"]["value"] for kind, row in kinds.items()}
    assert accuracy.pop("empty") == 0
    assert accuracy.pop("blank") == 0.5
    assert accuracy.pop("off_topic") == 0.5, "it is the good response to another prompt"
    assert kinds["empty"]["mean_margin"] == -4
    assert kinds["rude"]["mean_margin"] == 1
    assert kinds["one_character"]["bad_longer"] == 0
    assert 0.8 < accuracy["all"] < accuracy["all and hard"] < 1
    assert list(kinds)[-1] == "all"
    assert report.headline.value == kinds["all"]["accuracy"]["value"]
    assert kinds["hard"]["pairs"] == kinds["changed_number"]["pairs"] + kinds["planted_bug"]["pairs"] == 6
    apart = {"all", "all and hard", "hard", "changed_number", "planted_bug"}
    assert kinds["all"]["pairs"] == sum(row["pairs"] for kind, row in kinds.items() if kind not in apart) == 65
    assert kinds["all and hard"]["pairs"] == 65 + 6
    assert accuracy.pop("all and hard") == pytest.approx((65 * accuracy.pop("all") + 6) / 71)
    assert set(accuracy.values()) == {1.0}
    assert "must be held out" in report.markdown


def test_a_model_that_reads_responses_is_tested_too(pairs: Path) -> None:
    report = run(alone(lambda single: worth(single.response)), pairs, 3, seed=0)
    assert report.headline.value > 0.9


def test_a_kind_without_pairs_is_named_and_a_file_without_any_is_refused(tmp_path: Path) -> None:
    report = run(target(knows), written(tmp_path / "chat.jsonl", chat_pairs()), 3, seed=0)
    assert report.figures["without_pairs"] == ["off_topic", "compliance", "changed_number", "planted_bug"]
    assert "No pair of the file allows off_topic, compliance, changed_number, planted_bug." in report.markdown
    with pytest.raises(InvalidInput, match="holds no pair of which a bad response can be made"):
        run(target(knows), written(tmp_path / "none.jsonl", []), 3, seed=0)


def test_the_command_tests_the_starter(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--bundle", str(REPOSITORY / "models" / "starter"), "--pairs", str(pairs), "--pairs-per-kind", "2"]
    assert main(["sanity", *arguments, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    results = json.loads(lines[-1])
    assert any(line.startswith("| off_topic ") for line in lines)
    assert results["benchmark"] == "sanity"
    assert results["kinds"]["all"]["pairs"] == 26
    assert (results["pairs_per_kind"], results["seed"]) == (2, 0)
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8")) == results


def test_two_models_are_compared_on_the_same_made_pairs(
    pairs: Path, bundle_folder: Path, response_bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(bundle_folder), "--against", str(response_bundle_folder), "--pairs-per-kind", "2"]
    assert main(["sanity", "--pairs", str(pairs), *arguments]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["scored_sha256"] == results["against"]["scored_sha256"]
    assert results["differences"].keys() == results["kinds"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sanity"], "--pairs"),
        (["sanity", "--pairs", "PAIRS", "--data", "x"], "--data is for a benchmark"),
        (["--pairs", "PAIRS", "--pairs-per-kind", "3"], "--pairs-per-kind and --seed are for sanity"),
        (["--pairs", "PAIRS", "--seed", "3"], "--pairs-per-kind and --seed are for sanity"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, pairs: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(pairs) if word == "PAIRS" else word for word in arguments]
    assert main([*words, "--bundle", str(bundle_folder)]) == 2
    assert message in capsys.readouterr().err
