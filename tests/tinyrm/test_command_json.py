"""Test that every command that prints has --json, that standard output then holds nothing else, and the colours."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripted_server import RANKED, answer, batch, compared, models, scripted
from tinyrm.cli import VERBS, main
from training.__main__ import COMMANDS


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_calls_print_the_reply_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(compared(), answer(200, RANKED), models("1")) as server:
        monkeypatch.setenv("TINYRM_URL", server.url)
        assert main(["compare", "p", "a", "b", "--json"]) == 0
        assert printed(capsys)["preferred"] == "a"
        assert main(["rank", "p", "a", "b", "--json"]) == 0
        assert printed(capsys)["order"] == [1, 0]
        assert main(["models", "--json"]) == 0
        assert printed(capsys)["models"][0]["name"] == "toy"


def test_score_prints_its_counts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{\n')
    out = str(tmp_path / "out.jsonl")
    with scripted(batch()) as server:
        words = ["score", str(tmp_path / "pairs.jsonl"), "--url", server.url, "--json"]
        assert main([*words, "--out", out]) == 1
        counts = printed(capsys)
        assert main([*words, "--out", "-"]) == 2
    assert (counts["out"], counts["rows"], counts["new_rows"], counts["errors"]) == (out, 2, 2, 1)


def test_keys_print_what_changed_and_take_options_on_either_side(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(tmp_path / "keys.json")
    assert main(["keys", "--file", file, "new", "--name", "me", "--scopes", "score,admin", "--json"]) == 0
    made = printed(capsys)
    assert made.pop("key").startswith("tinyrm_")
    assert main(["keys", "list", "--json", "--file", file]) == 0
    assert printed(capsys) == {"keys": [made]}
    assert main(["keys", "--json", "revoke", "--name", "me", "--file", file]) == 0
    assert printed(capsys) == {"revoked": "me"}


def test_bench_prints_a_row_for_each_length(capsys: pytest.CaptureFixture[str], bundle_folder: Path) -> None:
    assert main(["bench", str(bundle_folder), "--tokens", "16", "32", "--repeat", "1", "--json"]) == 0
    figures = printed(capsys)
    assert [row["tokens"] for row in figures["lengths"]] == [16, 32]
    assert figures["model"].startswith("toy@")


def test_a_recipe_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plan", "from_scratch/1-tokenizer", "--json"]) == 0
    assert printed(capsys)["recipe"]["task"] == "tokenizer"


@pytest.mark.slow
def test_the_plan_of_a_recipe_is_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "starter/pairs", "--dry-run", "--json", "--hardware", "h100"]) == 0
    plan = printed(capsys)
    assert plan["recipe"]["task"] == "cloze"
    assert plan["parameters"] >= plan["learning_parameters"] > 0
    assert {fit["name"] for fit in plan["hardware"]} == {"H100 80 GB"}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("serve", "completion")])
def test_every_other_command_has_the_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "\nexamples:\n  " in shown
    assert ("starter/: pairs" in shown) is (verb == "train"), "the recipes"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_training_has_the_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", command, "--help"])
    assert left.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["compare", "--domian", "x", "p", "a", "b"], "--domain"),
        (["score", "x", "--out", "y", "--concurency=3"], "--concurrency"),
        (["train", "x.jsonl", "--epoch", "3"], "--epochs"),
    ],
)
def test_a_misspelt_option_names_the_nearest_one(
    capsys: pytest.CaptureFixture[str], words: list[str], meant: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_help_has_colours_where_they_are_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_coloured: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["models", "--help"])
    assert ("\x1b[" in capsys.readouterr().out) is is_coloured
