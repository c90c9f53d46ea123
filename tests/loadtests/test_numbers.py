"""Operations, statistics, shapes, tables."""

import math

import pytest

from loadtests.bench import machine, report
from loadtests.bench.geometry import GEOMETRIES, Geometry, products, useful_flops, window_pairs
from loadtests.bench.shapes import MIXED, Special, shapes_of
from loadtests.bench.statistics import difference, percentile, plan, summary

SPECIAL = Special(cls=1, sep=2, pad=3, mask=4, labels=(5, 6), vocab=1000)


@pytest.mark.parametrize("tokens", [1, 2, 64, 65, 66, 129, 200])
def test_window_pairs_are_those_counted_one_by_one(tokens: int) -> None:
    assert window_pairs(tokens) == sum(abs(i - j) <= 64 for i in range(tokens) for j in range(tokens))


@pytest.mark.parametrize(
    ("name", "tokens", "gflop"), [("base", 512, 117.3), ("base", 4096, 1255), ("large", 1024, 730.0)]
)
def test_useful_work_is_that_of_the_published_sizes(name: str, tokens: int, gflop: float) -> None:
    """Worked out from the full count F(S) less what pruning saves, 2(S-1)(2h^2+3hi) + 4h(S^2-S)."""
    assert useful_flops(GEOMETRIES[name], tokens) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_useful_work_by_hand() -> None:
    """Layers 0, 1, 2 whole, layer 3 pruned; 2 tokens, hidden 1, intermediate 1."""
    linear = 3 * 2 * 2 * 7 + (2 * 2 * 2 + 2 * 5)
    attention = 4 * (3 * 4 + 2)
    assert useful_flops(Geometry("toy", 1, 1, 1, 4, 1), 2) == linear + attention + 2 * (1 + 2)


def test_local_last_layer_is_not_pruned() -> None:
    assert useful_flops(Geometry("toy", 1, 1, 1, 2, 1), 2) == 2 * 2 * 2 * 7 + 4 * (4 + 4) + 6


def test_every_geometry_ends_global() -> None:
    assert all((geometry.layers - 1) % 3 == 0 for geometry in GEOMETRIES.values())
    assert products(GEOMETRIES["base"], 64) == [(64, 768, 2304), (64, 1152, 768)]


def test_summary_of_samples() -> None:
    found = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found["median_s"], found["samples"]) == (3, 5)
    assert (found["p10_s"], found["p90_s"]) == (pytest.approx(1.4), pytest.approx(4.6))
    assert percentile([7.0], 0.9) == 7


@pytest.mark.parametrize(
    ("logits", "reference", "found"),
    [([[1, 2]], [[1, 2.5]], 0.5), ([[1, 2]], [[1, 2], [3, 4]], math.inf), ([[math.nan, 2]], [[1, 2]], math.inf)],
)
def test_difference(logits: list, reference: list, found: float) -> None:
    assert difference(logits, reference) == found


@pytest.mark.parametrize(
    ("seconds", "repeats"), [(1.0, [2, 2, 1, 1]), (100.0, [1, 1, 1]), (1e-9, [15, 15, 15, 15]), (1.5, [1, 1, 1, 1])]
)
def test_plan_keeps_to_the_budget(seconds: float, repeats: list[int]) -> None:
    assert plan(seconds, budget_s=6, rounds=4) == repeats


def test_shapes_hold_one_mask_a_row_and_pad_right() -> None:
    *single, mixed = shapes_of((64, 256), mixed=True)
    assert [shape.label for shape in single] == ["64", "256"]
    request = mixed.request(SPECIAL)
    assert [sum(row) for row in request["attention_mask"]] == list(MIXED)
    for ids, mask in zip(request["input_ids"], request["attention_mask"], strict=True):
        assert ids.count(SPECIAL.mask) == 1
        assert len(ids) == max(MIXED)
        assert mask == sorted(mask, reverse=True)
        assert ids[sum(mask) :] == [SPECIAL.pad] * (len(ids) - sum(mask))
    assert mixed.request(SPECIAL) == request


def results() -> dict:
    cell = {"median_s": 0.01, "p10_s": 0.009, "p90_s": 0.011, "difference": 2e-6}
    ours = {"name": "ours-ort-fp32", "title": "ours", "precision": "fp32", "reason": "", "cells": {"64": cell}}
    slow = {
        **ours,
        "name": "slow",
        "title": "slow",
        "cells": {"64": {**cell, "median_s": 0.25}, "256": {"note": "skipped"}},
    }
    gone = {**ours, "name": "gone", "title": "gone", "reason": "does not start", "cells": {}}
    return {
        "shapes": [{"label": "64", "useful_flops": 1e9}, {"label": "256", "useful_flops": 4e9}],
        "limits": [{"precision": "fp32", "flops_per_s": 2e11, "runtime": "torch"}],
        "contenders": [ours, slow, gone],
    }


def test_table_has_times_ratios_and_the_limit() -> None:
    assert report.table(results()).splitlines() == [
        "| contender | 64 | 256 |",
        "|---|---|---|",
        "| ours | 10.0 ± 1.00 (1.00x) | - |",
        "| slow | 250 ± 1.00 (25.00x) | - |",
        "| the limit, fp32 (200 GFLOP/s, torch) | 5.00 | 20.00 |",
    ]


def test_notes_name_who_is_missing() -> None:
    notes = report.notes(results())
    assert "* gone: does not start" in notes
    assert "* slow at 256: skipped" in notes
    assert "* ours: logits at most 2.0e-06 from" in notes


def test_notes_say_where_logits_were_not_compared() -> None:
    measured = results()
    measured["contenders"][0]["cells"]["64"] |= {"logits": [[1, 2]], "difference": None}
    assert "* ours: logits not compared at 64" in report.notes(measured)


def test_mfu_is_a_share_of_the_best_rate() -> None:
    measured = results()
    report.add_mfu(measured)
    assert measured["contenders"][0]["cells"]["64"]["mfu"] == pytest.approx(0.5)


def test_best_rates_keep_one_of_each_precision() -> None:
    rates = [{"precision": p, "flops_per_s": r} for p, r in (("fp32", 1.0), ("int8", 5.0), ("fp32", 2.0))]
    assert [(best["precision"], best["flops_per_s"]) for best in report.best_rates(rates)] == [("fp32", 2), ("int8", 5)]


def test_section_replaces_itself_and_nothing_else() -> None:
    once = report.with_section("# Notes\n\nfirst\n", "old")
    assert once.startswith("# Notes\n\nfirst\n\n## The engines, side by side\n\n<!-- bench: begin -->\nold\n")
    later = report.with_section(once + "\n## After\n", "new")
    assert later == once.replace("old", "new") + "\n## After\n"


def test_machine_is_described_by_what_decides_the_speed() -> None:
    cpuinfo = "model name\t: A CPU\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu avx2 avx512_bf16 syscall\n"
    described = machine.describe(cpuinfo)
    assert (described["cpu"], described["model"], described["flags"]) == ("A CPU", "85", ["avx2", "avx512_bf16"])
    assert machine.has_native_bf16(cpuinfo)
    assert not machine.has_native_bf16(cpuinfo.replace("_bf16", "f"))
