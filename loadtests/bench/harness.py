"""Start contenders, run each request in turns, and record the results. A failure is a result too."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.bench.contenders import REFERENCE, Contender
from loadtests.bench.process import Worker, WorkerFailed

TOLERANCE = 1e-4
READY_TIMEOUT_S = 300
MAX_SAMPLES = 60

Logits = Sequence[Sequence[float]]
Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """budget_s: for each contender and request.
    cap_s: a contender that needs longer for one call is not given longer requests.
    min_samples: of each contender and request, beyond the budget if need be.
    """

    budget_s: float = 6
    cap_s: float = 20
    min_samples: int = 3
    rounds: int = 5
    rest_s: float = 0.05
    response_timeout_s: float = 600


@dataclass(slots=True)
class Entry:
    """One contender and its results.

    reason: why it was not measured, or not to the end.
    cells: by the label of the request.
    """

    contender: Contender
    command: list[str]
    log: Path
    reason: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    worker: Worker | None = None
    detail: str = ""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self) -> None:
        try:
            self.worker = Worker(self.command, self.environment, self.log)
            self.detail = self.worker.wait_ready(READY_TIMEOUT_S)
        except WorkerFailed as failure:
            self.drop(str(failure))

    def record(self) -> dict[str, Any]:
        contender = {name: getattr(self.contender, name) for name in ("name", "title", "precision")}
        return {**contender, "detail": self.detail, "reason": self.reason, "cells": self.cells}

    def drop(self, reason: str) -> None:
        self.reason = reason
        if self.worker is not None:
            self.worker.close(timeout_s=1)
        self.worker = None

    def fail(self, label: str, failure: Exception) -> None:
        """Record an error at one request; a process that died gets no further turns."""
        self.cells[label] = {"note": f"failed: {failure}"}
        if self.worker is not None and not self.worker.alive:
            self.drop(f"{failure} (at {label})")


@dataclass(slots=True)
class _Turn:
    """One contender and one request. logits: those of the first call."""

    entry: Entry
    logits: Logits | None
    warmup: int
    repeats: list[int]
    seconds: list[float] = field(default_factory=list)


def measure(
    entries: Sequence[Entry],
    requests: Mapping[str, Request],
    limits: Limits,
    log: Callable[[str], None],
    reference: str = REFERENCE,
) -> None:
    """Measure all contenders at all requests. They start one after the other, so that their memory peaks do not meet.

    requests: by label, short ones first.
    reference: the contender that the logits of all are compared with.
    """
    try:
        for entry in entries:
            if not entry.reason:
                entry.start()
            log(f"  {entry.contender.name}: {entry.reason or 'ready, ' + entry.detail}")
        for label, request in requests.items():
            _measure_request(entries, label, request, limits, reference)
            medians = (
                f"{e.contender.name} {e.cells[label]['median_s'] * 1e3:.1f}"
                for e in entries
                if "median_s" in e.cells.get(label, {})
            )
            log(f"  {label}, ms: {', '.join(medians)}")
    finally:
        for entry in entries:
            if entry.worker is not None:
                entry.worker.close()


def parity_failures(entries: Sequence[Entry]) -> list[str]:
    """Return which contenders in fp32 are further than TOLERANCE from the reference, and where."""
    return [
        f"{entry.contender.name} at {label}: {cell['difference']:.1e}"
        for entry in entries
        for label, cell in entry.cells.items()
        if entry.contender.precision == "fp32" and cell.get("difference") is not None and cell["difference"] > TOLERANCE
    ]


def discard_wrong(entries: Sequence[Entry], tolerance: float) -> None:
    """Replace the time of every cell whose logits are further than `tolerance` from the reference by a note."""
    for entry in entries:
        for label, cell in entry.cells.items():
            found = cell.get("difference")
            if found is not None and not found <= tolerance:
                entry.cells[label] = {"note": f"wrong: {found:.1e} from the reference", "difference": found}


def _measure_request(entries: Sequence[Entry], label: str, request: Request, limits: Limits, reference: str) -> None:
    turns = [turn for entry in entries if (turn := _first_call(entry, label, request, limits)) is not None]
    for round_number in range(limits.rounds):
        for turn in turns:
            if round_number < len(turn.repeats) and turn.entry.worker is not None:
                time.sleep(limits.rest_s)
                try:
                    call = {**request, "warmup": turn.warmup, "repeat": turn.repeats[round_number]}
                    turn.seconds += turn.entry.worker.send(call, limits.response_timeout_s)["seconds"]
                except (WorkerFailed, KeyError) as failure:
                    turn.seconds.clear()
                    turn.entry.fail(label, failure)
    expected = next((turn.logits for turn in turns if turn.entry.contender.name == reference), None)
    for turn in turns:
        if turn.seconds:
            p10_s, median_s, p90_s = map(float, np.percentile(turn.seconds, [10, 50, 90]))
            turn.entry.cells[label] = {
                "median_s": median_s,
                "p10_s": p10_s,
                "p90_s": p90_s,
                "samples": len(turn.seconds),
                "seconds": turn.seconds,
                "logits": turn.logits,
                "difference": None if turn.logits is None or expected is None else difference(turn.logits, expected),
            }


def _first_call(entry: Entry, label: str, request: Request, limits: Limits) -> _Turn | None:
    """Warm up, plan the turns by the time of one call, and keep the logits to compare."""
    if entry.worker is None:
        return None
    slow = next((shorter for shorter, cell in entry.cells.items() if cell.get("median_s", 0) > limits.cap_s), None)
    if slow is not None:
        entry.cells[label] = {"note": f"skipped: above {limits.cap_s:g} s at {slow}"}
        return None
    try:
        reply = entry.worker.send({**request, "warmup": 1, "repeat": 1}, limits.response_timeout_s)
        (seconds,) = reply["seconds"]
    except (WorkerFailed, KeyError, ValueError) as failure:
        entry.fail(label, failure)
        return None
    # A warm-up before each turn undoes what the others did to the caches; a long call does not need it.
    warmup = 1 if seconds < limits.budget_s / 50 else 0
    return _Turn(entry, reply["logits"], warmup, plan(seconds, limits))


def plan(seconds: float, limits: Limits) -> list[int]:
    """Return the samples of each round: as many as the budget allows at `seconds` each, within the limits."""
    samples = max(limits.min_samples, min(MAX_SAMPLES, int(limits.budget_s / max(seconds, 1e-6))))
    rounds = limits.rounds
    rounds = min(rounds, samples)
    return [samples // rounds + (turn < samples % rounds) for turn in range(rounds)]


def difference(logits: Logits, reference: Logits) -> float:
    """Return the largest absolute difference; infinity if the shapes differ or a value is not a number."""
    a, b = np.asarray(logits), np.asarray(reference)
    if a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        return float("inf")
    return float(np.abs(a - b).max())
