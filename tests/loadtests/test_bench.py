"""The command runs the parts that were asked for, keeps each, and fails if a score is wrong; the pages are theirs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench import __main__ as bench
from loadtests.bench import accuracy, engines, goals, page, ranking
from loadtests.bench.contenders import CONTENDERS, Contender
from loadtests.bench.effort import Effort, Save
from loadtests.bench.harness import Entry
from loadtests.bench.output import Record
from loadtests.bench.prepare import Prepared
from tests.conftest import REPOSITORY

STAND_IN = Path(__file__).with_name("stand_in.py")


def stand_in(folder: Path, name: str, behaviour: str) -> Entry:
    contender = Contender(name, name, "fp32", Path(sys.executable), "model", "stand_in")
    return Entry(contender, [sys.executable, str(STAND_IN), behaviour], folder / f"{name}.log")


@pytest.mark.parametrize(("behaviour", "code"), [("works", 0), ("differs", 1)])
def test_a_parity_failure_is_exit_1_after_writing(
    behaviour: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviours = {"transformers-fp32": "works", "ours-ort-fp32": behaviour}

    def entry(contender: Contender, *_: object, **__: object) -> Entry:
        return stand_in(tmp_path, contender.name, behaviours[contender.name])

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(engines, "ROOT", tmp_path / "runs")
    monkeypatch.setattr(engines, "prepare", lambda *_, **__: Prepared())
    monkeypatch.setattr(engines, "product_rates", lambda *_: ([], []))
    monkeypatch.setattr(engines, "entry", entry)
    monkeypatch.setattr(bench, "draw", lambda _: None)
    words = ["--only", "engines", "--quick", "--budget-s", "0.05", "--docs", str(tmp_path), "--contenders", *behaviours]
    assert bench.main(words) == code
    assert "10.0 ± 0.00 (1.00x)" in (tmp_path / "performance-tables.md").read_text()
    part = json.loads((tmp_path / "results" / "bench.json").read_text())["parts"]["engines"]
    assert len(part["parity"]) == 2 * code
    assert part["machine"]["cores"] >= 1
    assert ("parity failed, engines: small: ours-ort-fp32 at 64" in capsys.readouterr().err) == bool(code)


def test_parts_that_are_not_measured_again_stay_and_an_interrupted_one_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Effort, save: Save) -> dict[str, Any]:
        save({"points": [], "done": 1})
        raise RuntimeError("out of memory")

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(bench, "draw", lambda _: None)
    monkeypatch.setattr(page, "write", lambda *_: None)
    monkeypatch.setitem(bench.PARTS, "accuracy", interrupted)  # type: ignore[arg-type]
    monkeypatch.setitem(bench.PARTS, "ranking", lambda *_: {"contenders": []})  # type: ignore[arg-type]
    Record.open(tmp_path / "results" / "bench.json").put("engines", {"created": "before"}, {"geometries": {}})
    assert bench.main(["--only", "accuracy", "ranking", "--docs", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "results" / "bench.json").read_text())["parts"]
    assert parts["engines"] == {"created": "before", "geometries": {}}
    assert parts["accuracy"]["done"] == 1
    assert parts["ranking"]["contenders"] == []
    assert "accuracy failed: RuntimeError: out of memory" in capsys.readouterr().err


def test_options_replace_what_an_effort_measures() -> None:
    effort = bench.effort_of(bench.Options(brief=True, geometry=("base",), responses=(2,), cap_s=9))
    assert (effort.geometries, effort.models, effort.responses) == (("base",), ("minilm",), (2,))
    assert (effort.limits.cap_s, effort.limits.budget_s) == (9, bench.BRIEF.budget_s)
    assert bench.effort_of(bench.Options()).contenders == tuple(CONTENDERS)


def test_the_pages_are_made_of_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    page.write(Record.open(Path("docs/results/bench.json")).parts, tmp_path)
    for name in ("performance.md", "performance-tables.md"):
        message = "python -m loadtests.bench --only accuracy"
        assert (REPOSITORY / "docs" / name).read_text() == (tmp_path / name).read_text(), message
    assert len((tmp_path / "performance.md").read_text().splitlines()) <= 160


def test_a_goal_takes_the_faster_engine_and_misses_without_a_measurement() -> None:
    def contender(name: str, **cells: dict[str, float]) -> dict[str, Any]:
        return {"name": name, "cells": {label.strip("_"): cell for label, cell in cells.items()}}

    base = [
        contender("ours-ort-fp32", _256={"mfu": 0.8}, _512={"median_s": 1}, _4096={"median_s": 12}),
        contender("ours-ov-fp32", _256={"mfu": 0.9}),
        contender("ours-ort-int8", _512={"mfu": 0.99}),
    ]
    small = [contender("ours-ort-fp32", _64={"median_s": 1}), contender("plain-ort-fp32", _64={"median_s": 2.5})]
    parts = {"engines": {"geometries": {"base": {"contenders": base}, "small": {"contenders": small}}}}
    load = {"overhead": {"p50_s": 8e-4}, "ceiling": {"rows": [{"items": 1, "requests_per_s": 1900}]}}
    load["start"] = {"rows": [{"fronts": 1, "median_s": 0.9}, {"fronts": 2, "median_s": 0.5}]}
    found = [(goal["value"], goal["met"]) for goal in goals.goals(parts, load)]
    assert found[0] == (pytest.approx(90), True)
    assert found[1:4] == [(None, False)] * 3
    assert found[4] == (pytest.approx(1.5), False)
    assert found[5:] == [(2.5, True), (pytest.approx(0.8), True), (1900, False), (0.9, True)]
    assert not any(goal["met"] for goal in goals.goals({}, {}))


def test_accuracy_has_the_starter_and_each_variant_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    points = accuracy.collect(accuracy.EXPERIMENTS.read_text(), accuracy.STARTER.read_text())
    assert points[0].name == "starter"
    assert len({(point.name, point.base, point.pairs) for point in points}) == len(points)
    assert {point.pairs for point in points} == {"validation", "half", "held out"}
    assert all(point.low <= point.accuracy <= point.high and point.gflops > 0 for point in points)


def test_a_set_has_the_tokens_that_the_table_names() -> None:
    table = "| recipe | all | tokens |\n| --- | --- | --- |\n| pointwise | 60.0 (50.0 to 70.0) | 334 |\n"
    table += "| set-none | 61.0 (51.0 to 71.0) | 254 |\n"
    alone, together = accuracy.halves(table, accuracy.GEOMETRIES["small"])
    assert (alone.reads, together.reads) == ("response", "set")
    assert 0.7 < together.gflops / alone.gflops < 0.85  # 254 / 334 tokens


@pytest.mark.parametrize(
    ("way", "counts"), [("round-robin", [2, 56]), ("cascade", [4, 20]), ("response", [2, 8]), ("set", [1, 1])]
)
def test_a_ranking_reads_as_many_sequences_as_the_service(way: str, counts: list[int]) -> None:
    assert [ranking.sequences(way, n) for n in (2, 8)] == counts
