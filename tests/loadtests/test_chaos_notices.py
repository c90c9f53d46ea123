"""Each case, on a service that does not do what it should."""

from collections.abc import Callable

import pytest
import uvloop

from loadtests.chaos import __main__ as chaos
from loadtests.chaos import clients, engine, hostile, process, queue, soak
from loadtests.chaos.case import Context
from loadtests.load import front
from loadtests.service_process import NotServing, started

Behave = Callable[[str], None]


@pytest.mark.parametrize("case", [clients.vanishing, clients.half_sent, soak.soak, process.terminated])
@pytest.mark.parametrize(
    ("behaviour", "promise"),
    [("loses", "requests lost"), ("is-rude", "without Retry-After"), ("fails", "500 internal_error")],
)
def test_what_a_case_has_to_notice(
    case: Callable, behaviour: str, promise: str, behave: Behave, context: Context
) -> None:
    behave(behaviour)
    assert promise in str(uvloop.run(case(context)).record()["broken"])


@pytest.mark.parametrize("case", [clients.vanishing, clients.half_sent, soak.soak])
def test_polite_refusals_break_nothing(case: Callable, behave: Behave, context: Context) -> None:
    behave("is-polite")
    record = uvloop.run(case(context)).record()
    assert [promise for promise in record["broken"] if "afterwards" not in promise] == []
    assert record["refused"] > 0


def test_exit_code_of_a_service_that_dies_of_the_signal(behave: Behave, context: Context) -> None:
    behave("answers")
    assert "exit code 0, was -15" in uvloop.run(process.terminated(context)).broken


def test_service_that_does_not_leave(behave: Behave, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    behave("ignores-sigterm")
    assert "exit code 0, was None" in uvloop.run(process.terminated(context)).broken


def test_restart_of_a_sound_service(behave: Behave, context: Context) -> None:
    behave("answers")
    outcome = uvloop.run(process.killed_and_restarted(context))
    assert outcome.record()["broken"] == []
    assert outcome.tally.answered > 0


def test_queue_that_never_refuses(behave: Behave, context: Context) -> None:
    behave("answers")
    assert "something was refused" in uvloop.run(queue.full_429(context)).broken


def test_hostile_bytes_that_are_taken_or_not_answered(
    behave: Behave, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "PATIENCE_S", 0.5)
    behave("answers")
    broken = "\n".join(uvloop.run(hostile.hostile(context)).broken)
    assert "NaN: expected one of (422,), was 200" in broken
    assert "TLS: expected one of (400, 0), was -1" in broken


@pytest.mark.parametrize("case", [engine.killed, engine.stopped])
def test_engine_that_is_replaced(case: Callable, behave: Behave, context: Context) -> None:
    behave("keeps-engine")
    outcome = uvloop.run(case(context))
    assert outcome.record()["broken"] == []
    assert outcome.tally.answered > 0
    assert outcome.notes["/readyz 503"] != "never"


def test_engine_that_nobody_looks_after(behave: Behave, context: Context) -> None:
    behave("forgets-engine")
    broken = uvloop.run(engine.stopped(context)).broken
    assert broken == ["/readyz 503 within 2 s, was never", "the old engine process is gone"]


def test_skipped_case_has_a_reason(behave: Behave, context: Context) -> None:
    behave("answers")
    assert "no child runs" in chaos.outcome_of(chaos.Case("x", engine.killed), context)["reason"]
    assert "TINYRM_OVERLOAD_STATUS" in chaos.outcome_of(chaos.Case("x", queue.full_503), context)["reason"]


def test_case_that_goes_wrong_has_broken_its_promise(context: Context) -> None:
    async def wrong(_: Context) -> None:
        raise KeyError("x")

    assert chaos.outcome_of(chaos.Case("x", wrong), context)["broken"] == ["the case failed: KeyError: 'x'"]  # type: ignore[arg-type]


def test_service_that_leaves_is_a_reason(behave: Behave) -> None:
    async def start() -> None:
        async with started():
            pass

    behave("leaves")
    with pytest.raises(NotServing, match="left with 1: cannot start: unknown engine"):
        uvloop.run(start())


def test_overhead_is_the_latency_less_the_stated_run(behave: Behave) -> None:
    behave("answers")
    found = uvloop.run(front.overhead(front.Front(seconds=0.2, idle_requests=5)))
    assert -2.5e-3 < found["p50_s"] < 1


@pytest.mark.parametrize(("ours", "code"), [(True, 1), (False, 0)])
def test_only_our_own_broken_promises_fail_the_run(ours: bool, code: int) -> None:
    assert chaos.report_broken({"cases": [{"title": "x", "ours": ours, "broken": ["y"]}]}) == code
