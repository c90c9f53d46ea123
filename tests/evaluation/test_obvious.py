"""The ten pairs that come with TinyRM: whose words they are, and what is said of a model that gets some wrong."""

import json
import re
import shlex
from pathlib import Path

import pytest

from evaluation.__main__ import main
from evaluation.benchmarks.obvious import SOURCE, ObviousPair, run
from tests.conftest import REPOSITORY
from tests.evaluation.known import alone, target
from tinyrm.errors import InvalidInput
from tinyrm.negatives.wordings import COMPLIANCE_STEPS, REFUSAL_CORES, REFUSAL_REASONS, RUDE
from tinyrm.pairs import read_records

PAIRS = read_records(SOURCE, ObviousPair)
GOOD = {pair.chosen for pair in PAIRS}


def test_the_readmes_example_is_among_them() -> None:
    (example,) = re.findall(r"curl -s \S+/v1/compare (-d '[^']+')", (REPOSITORY / "README.md").read_text("utf-8"))
    body = json.loads(shlex.split(example)[1])
    texts = [body["prompt"], {body["response_a"], body["response_b"]}]
    assert texts in [[pair.prompt, {pair.chosen, pair.rejected}] for pair in PAIRS]


def test_they_are_ten_and_training_makes_none_of_them() -> None:
    assert len(PAIRS) == len({pair.name for pair in PAIRS}) == 10
    made = [*REFUSAL_CORES, *REFUSAL_REASONS, *COMPLIANCE_STEPS, *RUDE]
    assert not [text for text in made for pair in PAIRS if text.lower() in f"{pair.chosen} {pair.rejected}".lower()]


def test_length_alone_does_not_decide_them() -> None:
    assert 3 <= sum(len(pair.chosen) > len(pair.rejected) for pair in PAIRS) <= 7


def test_wrong_ones_are_named_with_the_probability_of_the_better_response() -> None:
    report = run(alone(lambda single: 2.0 * (single.response in GOOD) * (single.response != "2 + 2 = 4.")))
    assert (report.figures["right"], report.figures["of"], report.figures["wrong"]) == (9, 10, ["2 + 2"])
    assert report.headline.value == pytest.approx(0.9)
    assert "9 of 10 are right. Wrong: 2 + 2." in report.markdown
    assert "| 2 + 2 | What is 2 + 2? | wrong | 50.0% |" in report.markdown
    assert "| a capital | What is the capital of France? | right | 88.1% |" in report.markdown


def test_a_model_that_gets_all_right_has_none_named() -> None:
    report = run(target(lambda c: float(c.response_a in GOOD) - float(c.response_b in GOOD)))
    assert report.markdown.endswith("10 of 10 are right.")


def test_the_command_takes_a_file_of_ones_own(
    tmp_path: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"name": "greeting", "prompt": "Say hello.", "chosen": "Hello!", "rejected": ""}) + "\n")
    assert main(["obvious", "--bundle", str(bundle_folder), "--data", str(own)]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(results["probabilities"]) == ["greeting"]
    own.write_text("")
    with pytest.raises(InvalidInput, match="holds no pairs"):
        run(target(lambda c: 0.0), own)
