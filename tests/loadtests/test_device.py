"""The script for the first GPU, run on this CPU: the same code, a tiny model."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loadtests.bench import __main__ as bench
from loadtests.bench import device, device_card, device_tables
from loadtests.bench.device import Plan, Results, Row, random_sequence, relative, stage
from loadtests.bench.device_card import data_sheet
from loadtests.bench.shapes import GEOMETRIES, Special
from tinyrm.flops import exact_flops


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the command; return its folder."""
    out = tmp_path_factory.mktemp("device")
    assert device.main(["--device", "cpu", "--quick", "--out", str(out)]) == 0
    return out


@pytest.mark.slow  # an export, and engines in processes of their own
def test_every_row_is_measured_or_has_a_reason(measured: Path) -> None:
    results = json.loads((measured / "device.json").read_text())
    assert results["failures"] == []
    rows = results["rows"]
    reasons = {(row["what"], row.get("engine")) for row in rows if "reason" in row}
    assert reasons == {("runtime", "onnxruntime-cuda"), ("runtime", "onnxruntime-tensorrt"), ("compiled", None)}
    for what in ("throughput", "latency"):
        found = {(row["engine"], row["tokens"]) for row in rows if row["what"] == what}
        packed = "torch packed, fp32" + (", graph" if what == "latency" else "")
        assert {(packed, 64), (packed, 256), ("onnxruntime-cpu, fp32", 64)} <= found
    assert all(row["right"] for row in rows if row["what"].startswith("parity"))
    assert len([row for row in rows if "right" in row]) == 4
    text = (measured / "device.md").read_text()
    assert "| tiny" in text
    assert "* tiny, onnxruntime-tensorrt: this build of ONNX Runtime lacks it" in text


@pytest.mark.slow  # makes a model
def test_a_wrong_logit_is_a_failure(tmp_path: Path) -> None:
    plan = Plan.of(device.Options(device="cpu", quick=True))
    one = device.prepare("tiny", device.TINY, plan, tmp_path, 120)
    subject = device.Subject(one, plan, device_card.Rates(1e9, 1e9))
    results = Results(tmp_path / "device.json", {}, time.monotonic() + 60)
    run = subject.engine().run
    for row in subject.parity("sums in another order", lambda sequences: run(sequences) * 1.01):
        results.add({"model": "tiny", **row})
    assert len(results.failures) == 2  # alone and together agree
    assert "from fp32" in results.failures[0]


def test_without_a_gpu_one_line_states_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["--device"], ["--device", "--quick"], ["--device", "cuda"]):
        assert bench.main(arguments) == 2
        assert capsys.readouterr().err.strip() == device.NO_GPU


def rows_of(values: list[Row]) -> Iterator[Row]:
    for value in values:
        yield value
        if value.get("fails"):
            raise RuntimeError("out of memory")


def test_each_row_is_kept_and_a_failure_is_a_reason(tmp_path: Path) -> None:
    results = Results(tmp_path / "device.json", {}, time.monotonic() + 60)
    stage("packed", "base", lambda: rows_of([{"what": "one"}, {"what": "two", "fails": 1}, {"what": "three"}]), results)
    kept: dict[str, Any] = json.loads((tmp_path / "device.json").read_text())
    assert [row["what"] for row in kept["rows"]] == ["one", "two", "packed"]
    assert kept["rows"][-1]["reason"] == "RuntimeError: out of memory"


def test_what_has_no_time_left_is_listed(tmp_path: Path) -> None:
    results = Results(tmp_path / "device.json", {}, time.monotonic())
    stage("packed", "large", lambda: rows_of([{"what": "one"}]), results)
    assert [row["reason"] for row in results.rows] == [device.NO_TIME]


def test_limits_are_those_of_the_rates() -> None:
    base = GEOMETRIES["base"]
    found = device_tables.limits("base", base, 512, 790e12, 4.3e12)
    assert found["ceiling_pairs_per_s"] == pytest.approx(790e12 / exact_flops(base, 512))
    assert found["floor_s"] == pytest.approx(148e-6, rel=0.01)  # of computing
    assert device_tables.limits("base", base, 32, 790e12, 4.3e12)["floor_s"] == pytest.approx(
        51e-6, rel=0.02
    )  # weights
    assert found["expected_on_h200"] == 3450


def test_a_card_is_found_by_its_name() -> None:
    assert data_sheet("NVIDIA H200") == (989e12, 4.8e12)
    assert data_sheet("NVIDIA H100 80GB HBM3") == (989e12, 3.35e12)
    assert data_sheet("NVIDIA H100 PCIe") == (756e12, 2.0e12)
    assert data_sheet("a card of the future") is None


def test_no_number_is_no_parity() -> None:
    expected = np.ones((2, 2), np.float32)
    assert relative(expected * 1.01, expected) == pytest.approx(0.01)
    assert relative(expected * np.nan, expected) == float("inf")
    assert relative(expected[:1], expected) == float("inf")


def test_sequences_differ_and_hold_one_mask() -> None:
    special = Special.of(2048)
    one, two = (random_sequence(64, special, seed).input_ids for seed in (0, 1))
    assert (one != two).any()
    assert (one == special.mask).sum() == (two == special.mask).sum() == 1
