"""The command with a real service, and what is said of its results."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from loadtests.load.scrape import families_of
from loadtests.scaling import __main__ as command
from loadtests.scaling import limits, parts, plan, scenarios
from loadtests.scaling.check import Seen, compared
from loadtests.scaling.fit import Fit, fitted, non_negative_fit
from loadtests.scaling.queueing import Engine, Fleet, poisson, simulate
from loadtests.scaling.sizing import MOST_UTILISATION

HEADINGS = (
    "What a replica takes", "Measured against foretold", "Replicas for a rate", "What breaks first",
    "A front process near its ceiling", "Routers that know less", "A bound on ongoing requests",
    "Replicas that come late",
)  # fmt: skip
LENGTHS = np.array([100.0, 300, 500, 900])
TRUTH = Engine(fixed_s=0.006, s_per_token=30e-6, s_per_token2=5e-9)


def test_command_measures_a_service_and_writes_its_section(tmp_path: Path) -> None:
    """Beside the starter itself only what is in the repository: texts are synthetic where the data is absent."""
    document = tmp_path / "scaling.md"
    document.write_text(
        "# Scaling\n\nby hand\n\n<!-- scaling: begin -->\nwhat was here\n<!-- scaling: end -->\n\nafter\n"
    )
    arguments = ["--quick", "--document", str(document), "--price-per-core-hour", "0.08", "--pairs-per-front", "500"]
    assert command.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("# Scaling\n\nby hand\n")
    assert text.endswith("\nafter\n")
    assert "what was here" not in text
    assert [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")] == list(HEADINGS)
    found = json.loads((tmp_path / "scaling.json").read_text(), parse_constant=pytest.fail)
    measured, prices = found["measured"], found["prices"]
    assert (measured["lost"], measured["refused"]) == (0, 0)
    assert [row["requests"] > 0 and row["foretold_p99_s"] > 0 for row in measured["rows"]] == [True, True]
    # The engine as fitted takes about as long for these texts as the service did when it never rested.
    assert found["plans"][0]["capacity_per_s"] == pytest.approx(measured["capacity_per_s"], rel=0.5)
    assert prices["per_million"] == pytest.approx(0.08 * prices["core_hours_per_million"])
    assert found["parts"]["pairs_per_front"] == 500
    assert 300 < found["parts"]["series"] < 1500
    assert "| 100 |" in text
    assert "H200, expected" in text


def test_service_that_does_not_start_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--quick", "--no-write", "--model", str(tmp_path / "absent")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "absent" in said


def answers(engine: Engine, front_s: float) -> Seen:
    """Of one caller. Alone the engine is twice as fast as `engine`, which is what it is when everything is busy."""
    seen = Seen()
    seen.tokens = [int(size) for size in np.random.default_rng(5).choice(LENGTHS, 400)]
    gap_s = 0.002
    for run_s in (engine.fixed_s - gap_s + engine.work_s(np.array(seen.tokens, dtype=float))) / 2:
        seen.run_s.append(float(run_s))
        seen.latency_s.append(float(run_s) + front_s + gap_s)
    return seen


def test_fit_finds_the_engine_that_answered() -> None:
    seen = answers(TRUTH, front_s=0.001)
    tokens = np.array(seen.tokens, dtype=float)
    batches = len(tokens) / 1.6
    engine_s = batches * (TRUTH.fixed_s - 0.002) + float(TRUTH.work_s(tokens).sum())
    busy = {
        "wall_s": engine_s + batches * 0.002, "engine_s": engine_s, "batches": batches,
        "tokens": float(tokens.sum()), "items": float(len(tokens)),
    }  # fmt: skip
    fit = fitted(seen, busy, 1024)
    found = (fit.engine.fixed_s, fit.engine.s_per_token, fit.engine.s_per_token2)
    assert found == pytest.approx((TRUTH.fixed_s, TRUTH.s_per_token, TRUTH.s_per_token2), rel=1e-6)
    assert (fit.slowdown, fit.gap_s, fit.front_s) == pytest.approx((2, 0.002, 0.001))
    assert fit.spread == pytest.approx(np.ones(len(tokens)))


def test_no_coefficient_of_a_fit_is_below_zero() -> None:
    """Runs that grow faster than the square have no negative start."""
    found = non_negative_fit(LENGTHS, 1e-9 * LENGTHS**2.5)
    assert min(found) >= 0
    assert max(found) > 0


def test_what_was_foretold_is_compared_with_what_was_measured() -> None:
    """Twice what the simulation says for these arrivals, in whatever order the answers come."""
    requests = poisson(0.5 * TRUTH.capacity(LENGTHS), 2_000, LENGTHS, TRUTH)
    latency_s = simulate(requests, TRUTH, Fleet(1, front_s=0.001)).latency_s
    order = np.random.default_rng(3).permutation(len(latency_s))
    seen = Seen(due=requests.arrived[order].tolist(), tokens=requests.tokens[order].astype(int).tolist())
    seen.latency_s = (2 * latency_s[order]).tolist()
    even = compared(seen, Fit(TRUTH, front_s=0.001, gap_s=0.0, slowdown=1.0, spread=np.ones(1)))
    assert even["p50_s"] == pytest.approx(2 * even["foretold_p50_s"])
    assert even["p99_s"] == pytest.approx(2 * even["foretold_p99_s"])
    # Above a half: where nobody waits, batches are small.
    assert 0.5 < even["foretold_utilisation"] < 0.65


def test_expected_engine_goes_through_both_figures() -> None:
    engine = plan.expected(3450, 0.75e-3)
    assert engine.fixed_s + 512 * engine.s_per_token == pytest.approx(0.75e-3)
    assert 32 / (engine.fixed_s + 16_384 * engine.s_per_token) == pytest.approx(3450)
    assert engine.capacity(np.full(3200, 1024.0)) == pytest.approx(3450 / 2)


def test_plan_grows_by_equal_cells_and_leaves_out_what_cannot_be() -> None:
    sized = plan.sized(plan.Replica("x", TRUTH, 1.0, False), LENGTHS, rates=(10, 100_000))
    assert [cell["replicas"] for cell in sized["rows"][0]["cells"]][1:] == [1, 1]
    large = sized["rows"][1]["cells"][2]
    # So lax a bound leaves the most that a plan allows itself.
    assert MOST_UTILISATION * large["replicas"] * sized["capacity_per_s"] == pytest.approx(101_000, rel=0.01)
    cells = math.ceil(100_000 / sized["cell_rates_per_s"][2])
    assert (cells > 5, large["replicas"] % cells, large["replicas"] // cells <= plan.CELL) == (True, 0, True)
    assert large["price_per_million"] == pytest.approx(large["replicas"] / 360)
    slow = plan.Replica("y", Engine(1.0, 0.0), 1.0, False)
    assert {cell["replicas"] for cell in plan.sized(slow, LENGTHS, rates=(10,))["rows"][0]["cells"]} == {None}


def test_counts_grow_with_the_fleet() -> None:
    found = limits.demands(100, 7_000.0, limits.Parts(1000, 2000, 430, 3e4, 1e-3, 1500))
    assert (found["fronts"], found["tokenizer_cores"], found["connections"]) == (10, 5, 1000)
    assert (found["series"], found["merge_s"]) == (43_000, pytest.approx(0.1))
    assert found["bytes_per_s"] == 2 * 7_000 * 1500


def test_merged_page_has_every_series_of_every_replica() -> None:
    page = '# HELP a x\n# TYPE a gauge\na 1\n# HELP b y\n# TYPE b counter\nb_total{c="d e"} 2\n'
    assert parts.labelled(page, "r") == page.replace("a 1", 'a{replica="r"} 1').replace("{c=", '{replica="r",c=')
    assert families_of(parts.merged(page, 5)) == {"a": 5, "b_total": 5}
    assert parts.merging(page, 5)["page_bytes"] == len(parts.merged(page, 5)) / 5


def test_late_replicas_cost_what_they_are_late() -> None:
    soon, late = scenarios.late_replicas(TRUTH, LENGTHS, (2.0, 40.0))
    assert soon["worst_p99_s"] < late["worst_p99_s"] / 3
    assert soon["lasted_s"] < late["lasted_s"]
    assert late["lasted_s"] >= 40


def test_small_bound_on_ongoing_requests_starves_an_engine_that_lives_by_batches() -> None:
    gpu = plan.expected(3450, 0.75e-3)
    shares = [row["share"] for row in scenarios.ongoing_bounds(gpu, LENGTHS, 8_000)]
    assert shares == sorted(shares)
    assert shares[0] < 0.3
    assert shares[-1] > 0.9


def test_front_beyond_its_ceiling_waits_ever_longer() -> None:
    rows = {row["share"]: row for row in scenarios.front_waits(500.0, 20.0)}
    assert [row["p99_s"] for row in rows.values()] == sorted(row["p99_s"] for row in rows.values())
    assert rows[0.5]["p99_s"] < 0.02
    assert rows[1.05]["p99_s"] > 0.5


def test_ceiling_is_what_was_stated_recorded_or_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.front_rate(5.0) == (5.0, "as stated")
    monkeypatch.chdir(tmp_path)
    assert command.front_rate(None)[1].startswith("assumed")
    Path("docs").mkdir()
    rows = [{"workers": 2, "items": 1, "requests_per_s": 9.0}, {"workers": 1, "items": 1, "requests_per_s": 7.0}]
    Path("docs/load.json").write_text(json.dumps({"machine": {"cpu": "A CPU"}, "ceiling": {"rows": rows}}))
    assert command.front_rate(None)[0] == 7.0
    assert command.front_rate(None)[1].endswith("on A CPU")
