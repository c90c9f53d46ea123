"""Test that the gate weighs a changed preference by its margin, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.__main__ import describe_gate
from export.gate import Limits, compare_preferences, passes, refuse_failed
from export.parity import Run, run_alone
from tests.conftest import REPOSITORY, TOY_SPEC
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import PrecisionRefused
from tinyrm.manifest import Gate
from tinyrm.pairs import PreferencePair

# Margins of 20 pairs. One is a near tie.
MARGINS = np.array([0.01, *([1.0] * 19)])


@pytest.fixture
def sequences(encoder: Encoder) -> list[Encoding]:
    pairs = [PreferencePair(prompt="x", chosen="yes " * (1 + i), rejected="no") for i in range(len(MARGINS))]
    instruction = TOY_SPEC.instruction()
    return [sequence for pair in pairs for sequence in encoder.encode(pair.comparison(), instruction, swap=True)]


def answering(sequences: list[Encoding], margins: NDArray[np.float64]) -> Run:
    """Return an engine that gives each pair its margin, in both orders."""
    of_ids = {
        sequence.input_ids.tobytes(): [margins[i // 2] * (1, -1)[i % 2], 0.0] for i, sequence in enumerate(sequences)
    }
    return lambda some: np.array([of_ids[one.input_ids.tobytes()] for one in some], dtype=np.float32)


def report_of(sequences: list[Encoding], margins: NDArray[np.float64], limits: Limits) -> Gate:
    exact = run_alone(answering(sequences, MARGINS), sequences)
    run = answering(sequences, margins)
    return compare_preferences("int8", run, exact, sequences, temperature=1.0, limits=limits)


def test_a_flipped_tie_weighs_next_to_nothing_and_a_flipped_verdict_its_margin(sequences: list[Encoding]) -> None:
    tie, verdict = MARGINS.copy(), MARGINS.copy()
    tie[0], verdict[1] = -0.01, -0.01
    flipped_tie, flipped_verdict = (report_of(sequences, some, Limits(0.001)) for some in (tie, verdict))
    assert flipped_tie.flips == flipped_verdict.flips == 1 / 20
    assert flipped_tie.weighted_flips == pytest.approx(0.01 / 19.01)
    assert flipped_verdict.weighted_flips == pytest.approx(1 / 19.01)
    assert passes(flipped_tie)
    assert not passes(flipped_verdict)
    with pytest.raises(PrecisionRefused, match=r"flips 5.00% of 20 preferences; weighted by their margins 5.260%"):
        refuse_failed("int8", flipped_verdict)


def test_the_plain_share_is_limited_too_if_that_is_asked_for(sequences: list[Encoding]) -> None:
    tie = MARGINS.copy()
    tie[0] = -0.01
    report = report_of(sequences, tie, Limits(0.001, 0.005))
    with pytest.raises(PrecisionRefused, match=r"5.00% of 20 preferences, 0.50% are allowed.* and --max-flips"):
        refuse_failed("int8", report)
    assert "5.00% of 20 preferences flipped (allowed 0.50%), weighted by margins 0.053%" in describe_gate("i", report)


def test_margins_of_nothing_weigh_alike(sequences: list[Encoding]) -> None:
    exact = run_alone(answering(sequences, MARGINS * 0), sequences)
    run = answering(sequences, MARGINS)
    report = compare_preferences("int8", run, exact, sequences, temperature=1.0, limits=Limits(0.001))
    assert (report.flips, report.weighted_flips) == (1.0, 1.0)


def test_nothing_changed_and_values_that_are_not_finite(sequences: list[Encoding]) -> None:
    same = report_of(sequences, MARGINS, Limits(0.0, 0.0))
    assert passes(same)
    assert (same.flips, same.weighted_flips, same.pairs, same.max_probability_shift) == (0.0, 0.0, 20, 0.0)
    with pytest.raises(PrecisionRefused, match="not finite"):
        report_of(sequences, MARGINS * np.nan, Limits(1.0))


def test_a_gate_that_was_written_before_weights_reads_and_writes_the_same() -> None:
    """Open the starter, whose gate has the plain share only: its hash must not change."""
    folder = REPOSITORY / "models" / "starter"
    manifest = Bundle.open(folder).manifest
    assert manifest.stored is not None
    written = json.loads(Path(folder / "manifest.json").read_text())["stored"]["gate"]
    assert json.loads(manifest.stored.gate.model_dump_json()) == written
    assert ("weighted_flips" in written) == (manifest.stored.gate.weighted_flips is not None)
    without = {name: written[name] for name in written if "weighted" not in name} | {"max_flips": 0.005}
    old = Gate.model_validate(without)
    assert json.loads(old.model_dump_json()) == without
    assert "flipped (allowed 0.50%)" in describe_gate("stored", old)
