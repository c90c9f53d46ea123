"""Every request is counted once, a loss breaks a promise, and the reports of other tools are read correctly."""

import gzip
import json
import uuid
from pathlib import Path

import pytest

from loadtests.chaos.case import Outcome
from loadtests.chaos.fuzz import count
from loadtests.load import overload, tables
from loadtests.load.front import series_by_metric
from loadtests.load.mlperf import Outcome as Run
from loadtests.payloads import COMPARE, read_payloads
from loadtests.report import Target, write
from loadtests.traffic import Tally
from loadtests.wire import Reply

BUSY = b'{"error": {"type": "overloaded", "message": "x"}}'


def tally_of(*replies: Reply) -> Tally:
    tally = Tally()
    for reply in replies:
        tally.sent += 1
        tally.count(reply, 0.5)
    return tally


def test_every_status_is_counted_once() -> None:
    polite = {"retry-after": "1"}
    tally = tally_of(Reply(200), Reply(429, polite, BUSY), Reply(503, polite), Reply(504), Reply(500), Reply(422))
    assert (tally.sent, tally.answered, tally.refused, tally.failed, tally.lost) == (6, 1, 3, 2, 0)
    assert tally.kinds == {"429 overloaded": 1, "503 ": 1, "504 ": 1, "500 ": 1, "422 ": 1}
    assert tally.seconds == [0.5]
    assert tally.broken() == []


@pytest.mark.parametrize(
    ("tally", "promise"),
    [
        (tally_of(Reply(429, {}, BUSY)), "1 refusals without Retry-After"),
        (tally_of(Reply(429, {"retry-after": "soon"}, BUSY)), "1 refusals without Retry-After"),
        (Tally(sent=2, answered=1, lost=1), "1 requests lost: {}"),
        (Tally(sent=3, answered=1), "the counts do not add up"),
    ],
)
def test_the_tally_breaks_a_promise(tally: Tally, promise: str) -> None:
    assert tally.broken() == [promise]


def test_unexpected_kinds_and_late_events_break_promises() -> None:
    outcome = Outcome(tally_of(Reply(503, {"retry-after": "1"}, BUSY)))
    outcome.expect_kinds(["503 overloaded"])
    outcome.expect_within("exited", 1.0, 2)
    assert outcome.broken == []
    outcome.expect_kinds(["429 overloaded"])
    outcome.expect_within("ready", 3.0, 2)
    outcome.expect_within("gone", None, 2)
    assert [promise.split(",")[0] for promise in outcome.broken] == [
        "no other errors than 429 overloaded",
        "ready within 2 s",
        "gone within 2 s",
    ]


def test_a_target_is_met_at_its_bound_and_never_without_a_value() -> None:
    assert Target("x", 0.8, 0.8, "at least").met
    assert not Target("x", 0.79, 0.8, "at least").met
    assert Target("x", 0.8, 0.8, "at most").met
    assert not Target("x", None, 0.8, "at most").met


def test_overload_is_judged_by_losses_goodput_and_the_wait() -> None:
    bad = Tally(sent=2, answered=1, lost=1, seconds=[35])
    assert [target.met for target in overload.targets(bad, 0.5)] == [False, False, False]
    good = Tally(sent=1, answered=1, seconds=[25])
    assert [target.met for target in overload.targets(good, 0.9)] == [True, True, True]


def test_missed_targets_are_marked_and_unmeasured_ones_have_a_reason() -> None:
    overhead = {"p50_s": 0.002, "p99_s": 0.003, "requests": 5, "aim_s": 0.001}
    overhead["targets"] = [Target("p50 beside the engine", 2.0, 1.5, "at most", " ms").record()]
    on = {"machine": {"cpu": "A CPU", "family": 6, "model": 85, "cores": 2}, "created": "2026-12-01", "payloads": "p"}
    results = {
        "overhead": on | overhead,
        "mlperf": on | {"reason": "not measured: no LoadGen", "targets": []},
    }
    text = tables.section(results)
    missed = "Target: p50 beside the engine 2 ms (at most 1.5 ms: **missed**)."
    assert missed in text
    assert "not measured: no LoadGen" in text
    assert tables.missed(results) == [missed]


SUMMARY = """Scenario : Server
Result is : VALID
  Performance constraints satisfied : Yes
Scheduled samples per second : 94.37
99.00 percentile latency (ns)   : 38489929
"""


def test_loadgen_summary_is_read() -> None:
    run = Run.read(SUMMARY, Tally(sent=5, answered=5))
    assert (run.valid, run.within_bound, run.rate, run.p99_s) == (True, True, 94.37, pytest.approx(0.0385, abs=1e-4))
    slow = Run.read(SUMMARY.replace("Yes", "NO").replace("VALID", "INVALID"), Tally(sent=5, answered=5))
    assert (slow.valid, slow.within_bound) == (False, False)
    assert Run.read("Samples per second: 12.5\n", Tally()).rate == 12.5


@pytest.mark.parametrize("tally", [Tally(sent=5, answered=4, refused=1), Tally(sent=4, answered=4, unconnected=1)])
def test_loadgen_run_with_an_unanswered_sample_is_not_valid(tally: Tally) -> None:
    run = Run.read(SUMMARY, tally)
    assert (run.valid, run.within_bound, run.unanswered) == (False, False, 1)


def test_schemathesis_report_is_counted() -> None:
    def report(failures: list[dict], errors: list, failed: int, errored: int) -> dict:
        cases = {"generated": 10, "with_failures": failed, "errored": errored}
        rest = {"complete": True, "operations": {"tested": 2, "total": 2}}
        return {"test_cases": cases, "failures": failures, "errors": errors} | rest

    sound, bad = Outcome(), Outcome()
    count(report([], [], 0, 0), sound)
    assert (sound.tally.answered, sound.record()["broken"]) == (10, [])
    failure = {"title": "Server error", "count": 2, "operations": ["POST /x"]}
    count(report([failure], [{"title": "Timeout"}], 2, 1), bad)
    assert (bad.tally.answered, bad.tally.failed, bad.tally.lost) == (7, 2, 1)
    assert len(bad.record()["broken"]) == 3


def test_series_are_counted_by_metric() -> None:
    buckets = 'a_b_bucket{le="1"} 0\na_b_bucket{le="+Inf"} 0\na_b_sum 0\na_b_count 0\n'
    text = f'# HELP a_b x\n{buckets}c_total{{d="e f"}} 1\nc_total 2\n'
    assert series_by_metric(text) == {"a_b": 4, "c_total": 2}


def test_pairs_are_read_and_sent_whole(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    pairs = [{"prompt": f"p{n}", "chosen": "good", "rejected": str(uuid.uuid4())} for n in range(20)]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, pairs)).encode()))
    payloads = read_payloads(path)
    assert {c["prompt"] for c in payloads.comparisons} == {f"p{n}" for n in range(20)}
    assert {c["response_a"] == "good" for c in payloads.comparisons} == {True, False}
    head, _, body = payloads.singles()[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST {COMPARE} HTTP/1.1".encode())
    assert json.loads(body) == payloads.comparisons[0]
    batches = payloads.batches(8)
    assert [len(json.loads(batch.partition(b"\r\n\r\n")[2])["items"]) for batch in batches] == [8, 8]


def test_absent_pairs_are_replaced_and_the_origin_states_it(tmp_path: Path) -> None:
    payloads = read_payloads(tmp_path / "nothing")
    assert len(payloads.comparisons) == 512
    assert "synthetic" in payloads.origin


def test_a_section_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("# Page\n\nby hand\n")
    write({"x": 0}, "load", "## Load", "old", document)
    once = document.read_text()
    assert once == "# Page\n\nby hand\n\n## Load\n\n<!-- load: begin -->\nold\n<!-- load: end -->\n"
    document.write_text(once + "\n<!-- chaos: begin -->\nkept\n")
    assert write({"x": 1}, "load", "## Load", "new", document) == tmp_path / "results" / "load.json"
    assert document.read_text() == once.replace("old", "new") + "\n<!-- chaos: begin -->\nkept\n"
    assert json.loads((tmp_path / "results" / "load.json").read_text()) == {"x": 1}
