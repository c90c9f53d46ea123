"""The drawings and charts of docs/images are those that their generators make of what was measured."""

import pytest

from tests.conftest import REPOSITORY
from tools import charts, drawings


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_is_what_its_generator_draws(name: str) -> None:
    drawn = drawings.DRAWINGS[name]().svg()
    assert (REPOSITORY / "docs/images" / f"{name}.svg").read_text() == drawn, "python -m tools.drawings"


def test_charts_show_the_results_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for name, chart in charts.drawn(charts.Options()).items():
        assert (REPOSITORY / "docs/images" / f"{name}.svg").read_text() == chart.svg(), "python -m tools.charts"


def test_the_site_has_the_logo_of_the_page() -> None:
    assert (REPOSITORY / "docs/images/logo.svg").read_text() == (REPOSITORY / "service/page/logo.svg").read_text()
