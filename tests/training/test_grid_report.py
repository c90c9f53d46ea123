"""Means over seeds, how surely, and what one recipe is worth beside another."""

import pytest

from training.experiments.grid_report import Mean, difference, table


def seeds(*accuracies: float) -> dict[str, dict[str, float]]:
    names = ("accuracy", "accuracy_one_order", "swap_consistency")
    return {str(number): dict.fromkeys(names, value) for number, value in enumerate(accuracies)}


def test_the_interval_is_students() -> None:
    # By hand: mean 2, sample deviation 1, t(0.975, two degrees of freedom) = 4.303; 4.303 / sqrt(3) = 2.484.
    assert Mean.of([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484), abs=1e-3)
    assert Mean.of([0.6]) == (0.6, None)


def test_a_difference_is_taken_seed_by_seed() -> None:
    """Seeds hold out pairs of their own, easier or harder ones: that is no part of what two recipes differ in."""
    gap = difference(seeds(0.61, 0.71, 0.81), seeds(0.60, 0.70, 0.80), "accuracy")
    assert gap == pytest.approx((0.01, 0.0), abs=1e-9)
    assert difference({"7": {"accuracy": 1.0}}, seeds(0.5), "accuracy") is None


def test_table_compares_with_the_first() -> None:
    lines = table({"cloze": {"seeds": seeds(0.6, 0.7)}, "head": {"seeds": seeds(0.58, 0.67)}}).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| cloze | 2 | 65.0 ± 63.5 |  | 65.0")
    assert lines[3].startswith("| head | 2 | 62.5 ± 57.2 | -2.5 ± 6.4 |")


def test_table_of_one_seed_claims_no_spread() -> None:
    assert table({"cloze": {"seeds": seeds(0.6)}}).splitlines()[2] == "| cloze | 1 | 60.0 |  | 60.0 | 60.0 |"
