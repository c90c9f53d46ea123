"""Test that the verdict follows the margin, and that disagreement of the two orders is detected."""

import pytest

from tinyrm.comparison import Comparison, Preference, Verdict


def preference(margin: float, *order_margins: float) -> Preference:
    return Preference(p_a=0.5, p_b=0.5, margin=margin, order_margins=order_margins)


@pytest.mark.parametrize(("margin", "verdict"), [(1e-9, "a"), (-1e-9, "b"), (0.0, "tie"), (-0.0, "tie")])
def test_preferred_is_the_sign_of_the_margin(margin: float, verdict: Verdict) -> None:
    assert preference(margin).preferred == verdict


@pytest.mark.parametrize(
    ("order_margins", "disagree"),
    [((1.0, -2.0), True), ((-1.0, 2.0), True), ((1.0, 2.0), False), ((-1.0, -2.0), False), ((0.0, 1.0), False)],
)
def test_orders_disagree_when_their_signs_differ(order_margins: tuple[float, float], disagree: bool) -> None:
    assert preference(0.0, *order_margins).orders_disagree is disagree


def test_one_order_cannot_disagree_with_itself() -> None:
    assert not preference(-1.0, -1.0).orders_disagree


def test_swapping_exchanges_the_responses_only() -> None:
    assert Comparison("p", "a", "b").swapped() == Comparison("p", "b", "a")
