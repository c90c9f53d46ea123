"""The command with real Ray, and a worker of it killed."""

import json
from pathlib import Path

import pytest

pytest.importorskip("ray.data")

from loadtests import bulk


@pytest.mark.slow
def test_every_row_is_there_once_and_the_section_says_so(tmp_path: Path) -> None:
    document = tmp_path / "scaling.md"
    document.write_text("# Scaling\n")
    arguments = ["--rows", "480", "--pairs", "nowhere.jsonl", "--engines", "1", "--document", str(document)]
    assert bulk.main(arguments) == 0
    text = document.read_text()
    assert bulk.HEADING in text
    assert "Rows that were written twice: 0; missing: 0." in text
    before, there, after = json.loads((tmp_path / "bulk.json").read_text())["legs"]
    assert (before["rows"], there["rows"], after["rows"]) == (240, 480, 240)
    assert (before["killed"], there["killed"], after["killed"]) == (0, 1, 0)
    assert all(leg["rate"] > 0 for leg in (before, there, after))


def test_what_is_lost_or_twice_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    legs = [bulk.Leg(name, 2, 1.0, 2.0) for name in ("a", "b", "c")]
    for counts, code in (({("s", 0): 1, ("s", 1): 1}, 0), ({("s", 0): 2, ("s", 1): 1}, 1), ({("s", 0): 1}, 1)):
        monkeypatch.setattr(bulk, "measure", lambda *_, counts=counts: (legs, counts))
        assert bulk.main(["--rows", "2", "--pairs", "nowhere.jsonl", "--no-write"]) == code


def test_a_rate_below_the_target_is_said() -> None:
    slow = [bulk.Leg("here", 9, 10.0, 1.0), bulk.Leg("ray", 9, 8.9, 1.0), bulk.Leg("here", 9, 10.0, 1.0)]
    assert "0.89 (at least 0.9: **missed**)" in bulk.section(slow, "x", 0, 0)
    assert "1.00 (at least 0.9: met)" in bulk.section([*slow[:1], *slow[:1], *slow[2:]], "x", 0, 0)
