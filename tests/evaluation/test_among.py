"""Test that a pair is judged alone and among others, and that a model which sees nothing of them keeps its verdicts."""

import json
from pathlib import Path

import pytest

from evaluation.among import Case, cases_of, main, measure
from tests.conftest import TOY_SPEC
from tests.support.scored_by_length import LengthEngine, response_scorer
from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair


def pairs(count: int) -> list[PreferencePair]:
    topics = ("rivers", "primes", "cheese", "comets", "violins", "beetles", "tides", "glaciers")
    return [
        PreferencePair(
            prompt=f"Tell me about {topics[i % 8]} number {i}.",
            chosen=f"There are many {topics[i % 8]}, and number {i} is the one that people like best of all.",
            rejected=f"No idea about {topics[i % 8]}.",
            domain="general",
        )
        for i in range(count)
    ]


def test_a_longer_response_beside_the_pair_takes_the_first_place_and_no_verdict(encoder: Encoder) -> None:
    pair = PreferencePair(prompt="What?", chosen="red red red", rejected="red", domain="general")
    longest = "red " * 9
    cases = [Case(pair, ("", longest)), Case(pair.model_copy(update={"prompt": "Which?"}), ("", ""))]
    alone, one, two = measure(response_scorer(encoder, TOY_SPEC, LengthEngine()), cases, [1, 2])
    assert [row["others"] for row in (alone, one, two)] == [0, 1, 2]
    assert [row["right"]["value"] for row in (alone, one, two)] == [1, 1, 1]
    assert [row["kept"]["value"] for row in (alone, one, two)] == [1, 1, 1]
    assert [row["found"]["value"] for row in (alone, one, two)] == [1, 1, 0.5]
    assert two["at_random"] == 1 / 4


def test_cases_have_the_others_of_the_largest_set_and_follow_from_the_seed() -> None:
    cases = cases_of(pairs(20), 6, 5, seed=1)
    assert len(cases) == 5
    assert all(len({case.pair.chosen, case.pair.rejected, *case.others}) == 8 for case in cases)
    assert cases == cases_of(pairs(20), 6, 5, seed=1) != cases_of(pairs(20), 6, 5, seed=2)
    with pytest.raises(InvalidInput, match="no pair has 4 worse responses"):
        cases_of([], 4, 5, seed=1)


def test_the_command_judges_bundles(
    response_bundle_folder: Path, shared_prompt_bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "pairs.jsonl", tmp_path / "results" / "among.json"
    file.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs(12)))
    models = [str(response_bundle_folder), str(shared_prompt_bundle_folder)]
    assert main([*models, "--pairs", str(file), "--others", "2", "6", "--max-pairs", "8", "--out", str(out)]) == 0
    alone, seen = json.loads(out.read_text())["models"]
    assert [row["others"] for row in alone["rows"]] == [0, 2, 6]
    assert {row["kept"]["value"] for row in alone["rows"]} == {1.0}
    assert seen["rows"][0]["kept"]["value"] == 1.0
    assert "verdict kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--others", "0"], "at least 1"), (["--max-pairs", "-1"], "0 or more")],
)
def test_numbers_that_make_no_sense_are_refused(
    tmp_path: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--pairs", str(tmp_path / "none"), *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_a_model_that_reads_pairs_is_refused(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs(12)))
    assert main([str(bundle_folder), "--pairs", str(file), "--others", "2"]) == 1
    assert "reads a pair" in capsys.readouterr().err
