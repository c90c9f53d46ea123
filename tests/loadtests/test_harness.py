"""Turns, failures and parity, with stand-ins for the engines."""

import json
import sys
from pathlib import Path

import pytest

from loadtests.bench import __main__ as bench
from loadtests.bench.contenders import Contender
from loadtests.bench.harness import Entry, Limits, measure, parity_failures
from loadtests.bench.prepare import Prepared
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import Special, shapes_of

STAND_IN = Path(__file__).with_name("stand_in.py")
SPECIAL = Special(cls=1, sep=2, pad=3, mask=4, labels=(5, 6), vocab=1000)
LIMITS = Limits(budget_s=0.1, cap_s=1, rounds=2, rest_s=0)


def stand_in(folder: Path, behaviour: str, name: str = "", reason: str = "", precision: str = "fp32") -> Contender:
    command = [sys.executable, str(STAND_IN), behaviour]
    return Contender(name or behaviour, behaviour, precision, command, folder / f"{name or behaviour}.log", reason)


def course(folder: Path, *behaviours: str, limits: Limits = LIMITS) -> dict[str, Entry]:
    reference = stand_in(folder, "works", "transformers-fp32")
    others = [stand_in(folder, behaviour) for behaviour in behaviours]
    entries = measure([reference, *others], shapes_of((64, 128), mixed=False), SPECIAL, limits, lambda _: None)
    return {entry.contender.name: entry for entry in entries}


def test_everyone_is_measured_at_every_shape(tmp_path: Path) -> None:
    entries = course(tmp_path, "works")
    for entry in entries.values():
        assert [cell["median_s"] for cell in entry.cells.values()] == [0.01, 0.01]
        assert entry.cells["64"]["samples"] >= 3
    assert entries["works"].cells["128"]["difference"] == 0


def test_contenders_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = [], Worker.ask

    def noted(worker: Worker, request: dict, timeout_s: float) -> dict:
        asked.append(id(worker))
        return ask(worker, request, timeout_s)

    monkeypatch.setattr(Worker, "ask", noted)
    course(tmp_path, "works")
    first, second = asked[:2]
    assert first != second
    assert asked == [first, second] * (len(asked) // 2)


def test_who_cannot_start_is_listed_with_the_reason(tmp_path: Path) -> None:
    assert course(tmp_path, "refuses")["refuses"].reason == "no such engine here"


def test_command_that_does_not_exist_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="cannot be started"):
        Worker([str(tmp_path / "nothing")], {}, tmp_path / "log")


def test_who_was_not_prepared_is_not_started(tmp_path: Path) -> None:
    (entry,) = measure([stand_in(tmp_path, "works", reason="no bf16")], [], SPECIAL, LIMITS, lambda _: None)
    assert (entry.reason, entry.worker) == ("no bf16", None)


def test_who_dies_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    entries = course(tmp_path, "dies", "works")
    assert "ended with 3" in entries["dies"].reason
    assert list(entries["works"].cells) == ["64", "128"]
    assert not any("median_s" in cell for cell in entries["dies"].cells.values())


def test_error_at_one_shape_is_noted_there(tmp_path: Path) -> None:
    entry = course(tmp_path, "stumbles")["stumbles"]
    assert entry.cells["64"]["median_s"] == 0.01
    assert entry.cells["128"] == {"note": "failed: too long for me"}
    assert not entry.reason


def test_no_answer_in_time_is_a_failure(tmp_path: Path) -> None:
    entry = course(tmp_path, "hangs", limits=Limits(rounds=1, rest_s=0, answer_timeout_s=0.5))["hangs"]
    assert "no answer within" in entry.reason


def test_slow_ones_are_not_asked_for_longer_shapes(tmp_path: Path) -> None:
    cells = course(tmp_path, "slow")["slow"].cells
    assert cells["64"]["samples"] == 3
    assert cells["128"] == {"note": "skipped: above 1 s at 64"}


def test_parity_is_asked_of_fp32_only(tmp_path: Path) -> None:
    shapes = shapes_of((64,), mixed=True)
    chosen = [
        stand_in(tmp_path, "works", "transformers-fp32"),
        stand_in(tmp_path, "differs", "exact"),
        stand_in(tmp_path, "differs", "rough", precision="int8"),
    ]
    entries = measure(chosen, shapes, SPECIAL, LIMITS, lambda _: None)
    assert entries[2].cells["64"]["difference"] == 0.25
    assert parity_failures(entries) == ["exact at 64: 2.5e-01", "exact at 8 mixed: 2.5e-01"]


@pytest.mark.parametrize(("behaviour", "code"), [("works", 0), ("differs", 1)])
def test_parity_failure_is_exit_1_after_writing(
    behaviour: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "performance.md"
    document.write_text("# Notes\n")
    chosen = [stand_in(tmp_path, "works", "transformers-fp32"), stand_in(tmp_path, behaviour, "ours-ort-fp32")]
    for name, value in {"DOCUMENT": document, "RECORD": tmp_path / "b.json", "PEERS": tmp_path / "absent"}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "read_special", lambda: SPECIAL)
    monkeypatch.setattr(bench, "prepare", lambda *_: Prepared())
    monkeypatch.setattr(bench, "product_rates", lambda *_, **__: ([], []))
    monkeypatch.setattr(bench, "contenders", lambda *_, **__: chosen)
    assert bench.main(["--quick", "--budget-s", "0.05"]) == code
    assert "| works | 10.0 ± 0.00" in document.read_text()
    assert len(json.loads((tmp_path / "b.json").read_text())["parity_failures"]) == 2 * code
    assert ("parity failed, starter: ours-ort-fp32 at 64" in capsys.readouterr().err) == bool(code)
