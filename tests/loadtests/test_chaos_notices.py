"""Each chaos case notices a service that breaks its promise."""

from collections.abc import Callable

import pytest
import uvloop

from loadtests.chaos import __main__ as chaos
from loadtests.chaos import clients, hostile, overload, processes, tables
from loadtests.chaos.case import Context, Outcome
from loadtests.load import front
from loadtests.service_process import NotServing, started
from loadtests.traffic import Tally

# One case shows in the fast tier that the harness works: tests/e2e/test_load_and_chaos.py.
pytestmark = pytest.mark.slow

Behave = Callable[[str], None]


@pytest.mark.parametrize("case", [clients.vanishing, clients.half_sent, overload.soak, processes.terminated])
@pytest.mark.parametrize(
    ("behaviour", "promise"),
    [("loses", "requests lost"), ("is-rude", "without Retry-After"), ("fails", "500 internal_error")],
)
def test_a_case_notices_a_broken_promise(
    case: Callable, behaviour: str, promise: str, behave: Behave, context: Context
) -> None:
    behave(behaviour)
    assert promise in str(uvloop.run(case(context)).record()["broken"])


@pytest.mark.parametrize("case", [clients.vanishing, clients.half_sent, overload.soak])
def test_polite_refusals_break_nothing(case: Callable, behave: Behave, context: Context) -> None:
    behave("is-polite")
    record = uvloop.run(case(context)).record()
    assert [promise for promise in record["broken"] if "afterwards" not in promise] == []
    assert record["refused"] > 0


def test_a_service_that_dies_of_the_signal_is_noticed(behave: Behave, context: Context) -> None:
    behave("answers")
    assert "exit code 0, was -15" in uvloop.run(processes.terminated(context)).broken


def test_a_service_that_does_not_exit_is_noticed(
    behave: Behave, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.5)
    monkeypatch.setattr(processes, "DRAIN_TIMEOUT_S", 1)
    behave("ignores-sigterm")
    assert "exit code 0, was None" in uvloop.run(processes.terminated(context)).broken


def test_a_sound_service_restarts_without_a_broken_promise(behave: Behave, context: Context) -> None:
    behave("answers")
    outcome = uvloop.run(processes.killed_and_restarted(context))
    assert outcome.record()["broken"] == []
    assert outcome.tally.answered > 0


def test_a_queue_that_never_refuses_is_noticed(behave: Behave, context: Context) -> None:
    behave("answers")
    assert "something was refused" in uvloop.run(overload.full_429(context)).broken


def test_hostile_bytes_that_are_accepted_or_not_answered_are_noticed(
    behave: Behave, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "CLIENT_TIMEOUT_S", 0.5)
    behave("answers")
    broken = "\n".join(uvloop.run(hostile.hostile(context)).broken)
    assert "NaN: expected one of (422,), was 200" in broken
    assert "TLS: expected one of (400, 0), was -1" in broken


@pytest.mark.parametrize("case", [processes.engine_killed, processes.engine_stopped])
def test_an_engine_that_is_replaced_breaks_no_promise(case: Callable, behave: Behave, context: Context) -> None:
    behave("keeps-engine")
    outcome = uvloop.run(case(context))
    assert outcome.record()["broken"] == []
    assert outcome.tally.answered > 0
    assert outcome.notes["/readyz 503"] != "never"


@pytest.mark.slow
def test_an_engine_that_is_not_replaced_is_noticed(behave: Behave, context: Context) -> None:
    behave("forgets-engine")
    broken = uvloop.run(processes.engine_stopped(context)).broken
    assert broken == ["/readyz 503 within 2 s, was never", "the old engine process is gone"]


def test_a_service_without_an_engine_process_is_noticed(behave: Behave, context: Context) -> None:
    behave("answers")
    assert uvloop.run(processes.engine_killed(context)).broken == ["a child process that runs service.engine.worker"]


def test_a_case_that_raises_has_broken_its_promise(context: Context) -> None:
    async def wrong(_: Context) -> Outcome:
        raise KeyError("x")

    assert chaos.run_case(chaos.Case("x", wrong), context)["broken"] == ["the case failed: KeyError: 'x'"]


def test_a_skipped_case_has_a_reason(context: Context) -> None:
    assert chaos.run_case(chaos.CASES["infinity-overload"], context)["reason"] == "other servers are left out"


def test_a_service_that_exits_is_an_error_with_its_last_line(behave: Behave) -> None:
    async def start() -> None:
        async with started():
            pass

    behave("leaves")
    with pytest.raises(NotServing, match="exited with 1: cannot start: unknown engine"):
        uvloop.run(start())


def test_overhead_is_the_latency_less_the_stated_run(behave: Behave) -> None:
    behave("answers")
    found = uvloop.run(front.overhead({}, requests=5))
    assert found["p50_s"] > -2.5e-3


@pytest.mark.parametrize(("ours", "code"), [(True, 1), (False, 0)])
def test_only_our_own_broken_promises_fail_the_run(ours: bool, code: int) -> None:
    assert chaos.report_broken({"cases": [{"title": "x", "ours": ours, "broken": ["y"]}]}) == code


def test_the_table_shows_kept_broken_and_skipped_cases() -> None:
    kept = {"title": "SIGTERM", "ours": True} | Outcome(Tally(sent=1, answered=1, seconds=[0.5])).record()
    skipped = {"title": "a peer", "ours": False, "reason": "not installed"}
    results = {
        "machine": {"cpu": "A CPU", "family": 6, "model": 85, "cores": 2},
        "capacity_per_s": 9.5,
        "payloads": "p",
        "cases": [kept, kept | {"title": "soak", "broken": ["memory grows"]}, skipped],
    }
    text = tables.section(results)
    rows = [[cell.strip() for cell in line.split("|")][1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [(row[0], row[-1]) for row in rows[2:]] == [("SIGTERM", "yes"), ("soak", "**no**")]
    assert "* broken: soak: memory grows" in text
    assert "* not run: a peer: not installed" in text
    assert tables.line(kept).startswith("SIGTERM: sent 1, answered 1, refused 0, failed 0, lost 0; p50 500")
