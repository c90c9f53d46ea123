"""Starts contenders, lets them take turns at each shape, and keeps what happened. Nobody is dropped in silence."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.bench.contenders import Contender
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import Shape, Special
from loadtests.bench.statistics import difference, plan, summary

REFERENCE = "transformers-fp32"
TOLERANCE = 1e-4
READY_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """budget_s: per contender and shape. cap_s: who needs longer for one call is not asked for longer shapes."""

    budget_s: float = 6
    cap_s: float = 20
    rounds: int = 5
    rest_s: float = 0.05
    answer_timeout_s: float = 600


@dataclass(slots=True)
class Entry:
    """One contender's course: its cells by shape label, and `reason`, why it was not measured or not to the end."""

    contender: Contender
    worker: Worker | None = None
    detail: str = ""
    reason: str = ""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fail(self, reason: str) -> None:
        self.reason = reason
        if self.worker is not None:
            self.worker.close(timeout_s=1)
        self.worker = None


@dataclass(slots=True)
class _Turn:
    """One contender at one shape. logits: those of the first call."""

    entry: Entry
    logits: list[list[float]] | None
    warmup: int
    repeats: list[int]
    seconds: list[float] = field(default_factory=list)


def measure(
    contenders: Sequence[Contender],
    shapes: Sequence[Shape],
    special: Special,
    limits: Limits,
    say: Callable[[str], None],
) -> list[Entry]:
    """All contenders at all shapes. One after the other is started, so that their peaks of memory do not meet."""
    entries = [Entry(contender, reason=contender.reason) for contender in contenders]
    try:
        for entry in entries:
            _start(entry, say)
        for shape in shapes:
            _measure_shape(entries, shape, special, limits, say)
    finally:
        for entry in entries:
            if entry.worker is not None:
                entry.worker.close()
    return entries


def parity_failures(entries: Sequence[Entry]) -> list[str]:
    """Who in fp32 is further than TOLERANCE from the reference, and where."""
    return [
        f"{entry.contender.name} at {label}: {cell['difference']:.1e}"
        for entry in entries
        for label, cell in entry.cells.items()
        if entry.contender.precision == "fp32" and cell.get("difference") is not None and cell["difference"] > TOLERANCE
    ]


def _start(entry: Entry, say: Callable[[str], None]) -> None:
    contender = entry.contender
    if not entry.reason:
        try:
            entry.worker = Worker(contender.command, contender.environment, contender.log)
            entry.detail = entry.worker.wait_ready(READY_TIMEOUT_S)
        except WorkerFailed as failure:
            entry.fail(str(failure))
    say(f"  {contender.name}: {entry.reason or 'ready, ' + entry.detail}")


def _measure_shape(
    entries: Sequence[Entry], shape: Shape, special: Special, limits: Limits, say: Callable[[str], None]
) -> None:
    request = shape.request(special)
    first = [_first_call(entry, shape, request, limits) for entry in entries]
    turns = [turn for turn in first if turn is not None]
    for round_number in range(limits.rounds):
        for turn in turns:
            if round_number < len(turn.repeats):
                _take_turn(turn, shape, request, round_number, limits)
    reference = next((t.logits for t in turns if t.entry.contender.name == REFERENCE), None)
    for turn in turns:
        if turn.seconds:
            cell = summary(turn.seconds) | {"seconds": turn.seconds, "logits": turn.logits}
            comparable = turn.logits is not None and reference is not None
            cell["difference"] = difference(turn.logits, reference) if comparable else None  # type: ignore[arg-type]
            turn.entry.cells[shape.label] = cell
    medians = (
        f"{t.entry.contender.name} {t.entry.cells[shape.label]['median_s'] * 1e3:.1f}" for t in turns if t.seconds
    )
    say(f"  {shape.label} tokens, ms: {', '.join(medians)}")


def _first_call(entry: Entry, shape: Shape, request: dict[str, Any], limits: Limits) -> _Turn | None:
    """Warms up, says how long a call takes and gives the logits to compare."""
    if entry.worker is None:
        return None
    slow = next((label for label, cell in entry.cells.items() if cell.get("median_s", 0) > limits.cap_s), None)
    if slow is not None:
        entry.cells[shape.label] = {"note": f"skipped: above {limits.cap_s:g} s at {slow}"}
        return None
    try:
        reply = entry.worker.ask(request | {"warmup": 1, "repeat": 1}, limits.answer_timeout_s)
        (seconds,) = reply["seconds"]
    except (WorkerFailed, KeyError, ValueError) as failure:
        _failed(entry, shape, failure)
        return None
    # A warm-up before each turn undoes what the others did to the caches; a long call does not notice.
    warmup = 1 if seconds < limits.budget_s / 50 else 0
    return _Turn(entry, reply["logits"], warmup, plan(seconds, limits.budget_s, limits.rounds))


def _take_turn(turn: _Turn, shape: Shape, request: dict[str, Any], round_number: int, limits: Limits) -> None:
    if turn.entry.worker is None:
        return
    time.sleep(limits.rest_s)
    try:
        asked = request | {"warmup": turn.warmup, "repeat": turn.repeats[round_number]}
        turn.seconds += turn.entry.worker.ask(asked, limits.answer_timeout_s)["seconds"]
    except (WorkerFailed, KeyError) as failure:
        turn.seconds.clear()
        _failed(turn.entry, shape, failure)


def _failed(entry: Entry, shape: Shape, failure: Exception) -> None:
    """An error at one shape is noted there; a process that died is out."""
    entry.cells[shape.label] = {"note": f"failed: {failure}"}
    if entry.worker is not None and not entry.worker.alive:
        entry.fail(f"{failure} (at {shape.label} tokens)")
