"""Contenders take turns, failures are results, and parity is checked, with stand-ins for the engines."""

import itertools
import math
import sys
from pathlib import Path
from typing import get_args

import pytest

from loadtests import machine
from loadtests.bench import __main__ as bench
from loadtests.bench import cross_encoders, tables
from loadtests.bench.contenders import Contender
from loadtests.bench.harness import Entry, Limits, difference, discard_wrong, measure, parity_failures, plan
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import GEOMETRIES, MIXED, Special, shapes, wordpieces
from loadtests.bench.workers import products_alone
from tinyrm.flops import exact_flops

STAND_IN = Path(__file__).with_name("stand_in.py")
SPECIAL = Special(cls=1, sep=2, pad=3, mask=4, labels=(5, 6), vocab=1000)
LIMITS = Limits(budget_s=0.1, cap_s=1, rounds=2, rest_s=0)


def stand_in(folder: Path, behaviour: str, name: str = "", reason: str = "", precision: str = "fp32") -> Entry:
    contender = Contender(name or behaviour, behaviour, precision, Path(sys.executable), "model", "stand_in")
    command = [sys.executable, str(STAND_IN), behaviour]
    return Entry(contender, command, folder / f"{contender.name}.log", reason)


def requests(tokens: tuple[int, ...], *, mixed: bool = False) -> dict[str, dict]:
    return {shape.label: shape.request(SPECIAL) for shape in shapes(tokens, mixed=mixed)}


def run(folder: Path, *behaviours: str, limits: Limits = LIMITS) -> dict[str, Entry]:
    entries = [stand_in(folder, "works", "transformers-fp32"), *(stand_in(folder, one) for one in behaviours)]
    measure(entries, requests((64, 128)), limits, lambda _: None)
    return {entry.contender.name: entry for entry in entries}


def test_every_contender_is_measured_at_every_shape(tmp_path: Path) -> None:
    entries = run(tmp_path, "works")
    for entry in entries.values():
        assert [cell["median_s"] for cell in entry.cells.values()] == [0.01, 0.01]
        assert entry.cells["64"]["samples"] >= 3
    assert entries["works"].cells["128"]["difference"] == 0


def test_contenders_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, send = [], Worker.send

    def noted(worker: Worker, request: dict, timeout_s: float) -> dict:
        order.append(id(worker))
        return send(worker, request, timeout_s)

    monkeypatch.setattr(Worker, "send", noted)
    run(tmp_path, "works")
    first, second = order[:2]
    assert first != second
    assert order == [first, second] * (len(order) // 2)


def test_a_contender_that_cannot_start_has_a_reason(tmp_path: Path) -> None:
    assert run(tmp_path, "refuses")["refuses"].reason == "no such engine here"


def test_a_command_that_does_not_exist_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="cannot be started"):
        Worker([str(tmp_path / "nothing")], {}, tmp_path / "log")


def test_a_contender_that_was_not_prepared_is_not_started(tmp_path: Path) -> None:
    entry = stand_in(tmp_path, "works", reason="no bf16")
    measure([entry], {}, LIMITS, lambda _: None)
    assert (entry.reason, entry.worker) == ("no bf16", None)


def test_a_contender_that_dies_takes_no_more_turns_and_the_others_do(tmp_path: Path) -> None:
    entries = run(tmp_path, "dies", "works")
    assert "ended with 3" in entries["dies"].reason
    assert list(entries["works"].cells) == ["64", "128"]
    assert not any("median_s" in cell for cell in entries["dies"].cells.values())


def test_an_error_at_one_shape_is_noted_there(tmp_path: Path) -> None:
    entry = run(tmp_path, "stumbles")["stumbles"]
    assert entry.cells["64"]["median_s"] == 0.01
    assert entry.cells["128"] == {"note": "failed: too long for me"}
    assert not entry.reason


def test_a_worker_that_does_not_reply_in_time_is_a_failure(tmp_path: Path) -> None:
    entry = run(tmp_path, "hangs", limits=Limits(rounds=1, rest_s=0, response_timeout_s=0.5))["hangs"]
    assert "no answer within" in entry.reason


def test_a_slow_contender_is_not_given_longer_shapes(tmp_path: Path) -> None:
    cells = run(tmp_path, "slow")["slow"].cells
    assert cells["64"]["samples"] == 3
    assert cells["128"] == {"note": "skipped: above 1 s at 64"}


def test_parity_is_required_of_fp32_only(tmp_path: Path) -> None:
    chosen = [
        stand_in(tmp_path, "works", "transformers-fp32"),
        stand_in(tmp_path, "differs", "exact"),
        stand_in(tmp_path, "differs", "rough", precision="int8"),
    ]
    measure(chosen, requests((64,), mixed=True), LIMITS, lambda _: None)
    assert chosen[2].cells["64"]["difference"] == 0.25
    assert parity_failures(chosen) == ["exact at 64: 2.5e-01", "exact at 8 mixed: 2.5e-01"]


def test_the_time_of_a_wrong_answer_is_not_kept(tmp_path: Path) -> None:
    entries = run(tmp_path, "differs", "works")
    discard_wrong(list(entries.values()), 1e-3)
    assert entries["differs"].cells["64"] == {"note": "wrong: 2.5e-01 from the reference", "difference": 0.25}
    assert entries["works"].cells["64"]["median_s"] == 0.01


def test_the_command_line_names_every_size() -> None:
    assert get_args(bench.GeometryName) == tuple(GEOMETRIES)
    assert get_args(bench.ModelName) == tuple(cross_encoders.MODELS)


@pytest.mark.parametrize(
    ("logits", "reference", "found"),
    [([[1, 2]], [[1, 2.5]], 0.5), ([[1, 2]], [[1, 2], [3, 4]], math.inf), ([[math.nan, 2]], [[1, 2]], math.inf)],
)
def test_logits_differ_by_their_largest_distance(logits: list, reference: list, found: float) -> None:
    assert difference(logits, reference) == found


@pytest.mark.parametrize(
    ("seconds", "repeats"), [(1.0, [2, 2, 1, 1]), (100.0, [1, 1, 1]), (1e-9, [15, 15, 15, 15]), (1.5, [1, 1, 1, 1])]
)
def test_a_plan_keeps_to_the_budget(seconds: float, repeats: list[int]) -> None:
    assert plan(seconds, Limits(budget_s=6, rounds=4)) == repeats


def test_the_made_up_vocabulary_is_laid_out_as_berts() -> None:
    ids = wordpieces(2000)
    assert list(ids.values()) == list(range(2000))
    assert Special.of(2000) == Special(cls=101, sep=102, pad=0, mask=103, labels=(ids["0"], ids["1"]), vocab=2000)


def test_shapes_have_one_mask_per_row_and_padding_on_the_right() -> None:
    *single, mixed = shapes((64, 256), mixed=True)
    assert [shape.label for shape in single] == ["64", "256"]
    request = mixed.request(SPECIAL)
    assert [sum(row) for row in request["attention_mask"]] == list(MIXED)
    for ids, mask in zip(request["input_ids"], request["attention_mask"], strict=True):
        assert ids.count(SPECIAL.mask) == 1
        assert mask == sorted(mask, reverse=True)
        assert ids[sum(mask) :] == [SPECIAL.pad] * (len(ids) - sum(mask))
    assert mixed.request(SPECIAL) == request


@pytest.mark.parametrize(
    ("name", "tokens", "gflop"), [("base", 512, 117.3), ("base", 4096, 1255), ("large", 1024, 730.0)]
)
def test_useful_work_is_that_of_the_published_sizes(name: str, tokens: int, gflop: float) -> None:
    """Worked out by hand from the full count less what pruning saves, 2(S-1)(2h^2+3hi) + 4h(S^2-S)."""
    assert exact_flops(GEOMETRIES[name], tokens) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_mfu_is_a_share_of_the_best_rate_of_its_precision() -> None:
    rates = [{"precision": p, "flops_per_s": r} for p, r in (("fp32", 1e11), ("int8", 5e11), ("fp32", 2e11))]
    limits = tables.best_rates(rates)
    assert [(limit["precision"], limit["flops_per_s"]) for limit in limits] == [("fp32", 2e11), ("int8", 5e11)]
    cell, alone = {"median_s": 0.01}, {"median_s": 0.005}
    measured = {
        "shapes": [{"label": "64", "useful_flops": 1e9, "products_flops": 9e8}],
        "limits": limits,
        "contenders": [
            {"name": "ours-ort-fp32", "precision": "fp32", "cells": {"64": cell}},
            {"name": "products-fp32", "precision": "fp32", "cells": {"64": alone}},
        ],
    }
    tables.add_mfu(measured)
    assert cell["mfu"] == pytest.approx(0.5)
    assert alone["mfu"] == pytest.approx(0.9)


def test_the_products_alone_are_the_most_of_the_work() -> None:
    """Beside them: scores and values of attention, the row that the last layer's logits need, and the head."""
    base = GEOMETRIES["base"]
    sizes = products_alone.sizes(base.hidden, base.intermediate, base.layers)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(sizes))
    assert 0.97 < products_alone.flops(base, 64) / exact_flops(base, 64) < 1
    assert 0.65 < products_alone.flops(base, 4096) / exact_flops(base, 4096) < 0.75


def test_bf16_needs_an_instruction_of_its_own() -> None:
    cpuinfo = "model name\t: A CPU\nmodel\t\t: 85\nflags\t\t: fpu avx2 avx512_bf16 syscall\n"
    described = machine.describe(cpuinfo)
    assert (described["cpu"], described["model"], described["flags"]) == ("A CPU", "85", ["avx2", "avx512_bf16"])
    assert machine.has_native_bf16(cpuinfo)
    assert not machine.has_native_bf16(cpuinfo.replace("_bf16", "f"))
