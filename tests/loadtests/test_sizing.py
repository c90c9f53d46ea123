"""A row of the table of sizes is measured with a real service."""

import os
import re
from pathlib import Path

import pytest

from loadtests.load.sizing import HEADS, main, of_words, on_cores


@pytest.mark.slow
def test_a_row_has_memory_rates_and_latencies(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle_folder), "--seconds", "1", "--words", "20"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    cells = dict(zip(HEADS, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
    assert re.fullmatch(r"\d+ MiB", cells["memory, started"])
    numbers = {name: float(cells[name].replace(",", "").rstrip("%")) for name in HEADS[4:]}
    assert all(number > 0 for number in numbers.values())
    assert numbers["tokens a pair"] > 60, "both orders of three texts of 20 words"
    assert numbers["p50, ms"] <= numbers["p99, ms"]


def test_the_cores_are_those_of_what_is_started_meanwhile() -> None:
    usable = os.sched_getaffinity(0)
    with on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == usable


def test_each_text_has_the_words_that_were_asked_for() -> None:
    assert {len(text.split()) for one in of_words(7).comparisons for text in one.values()} == {7}
