"""Bulk scoring with real Ray and a killed worker, and what its measurement notices."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from loadtests.load import bulk


@pytest.mark.slow
def test_every_row_is_written_once_although_a_worker_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    document = tmp_path / "scaling.md"
    document.write_text("# Scaling\n")
    arguments = ["--rows", "480", "--pairs", "nowhere.jsonl", "--engines", "1", "--document", str(document)]
    assert bulk.main(arguments) == 0
    text = document.read_text()
    assert bulk.HEADING in text
    assert "Rows that were written twice: 0; missing: 0." in text
    before, ray, after = json.loads((tmp_path / "results" / "bulk.json").read_text())["legs"]
    assert (before["rows"], ray["rows"], after["rows"]) == (240, 480, 240)
    assert (before["killed"], ray["killed"], after["killed"]) == (0, 1, 0)
    assert all(run["rate"] > 0 for run in (before, ray, after))


@pytest.mark.timeout(60)
def test_a_command_that_ends_early_is_not_waited_for(tmp_path: Path) -> None:
    """It is a zombie until it is reaped, which looks alive to psutil.pid_exists."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert bulk.kill_worker(process, tmp_path, 1) == 0
    assert process.returncode == 0


def test_a_command_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(RuntimeError, match=r"exited with [12].*nowhere"):
        bulk.score("x", tmp_path / "pairs.jsonl", tmp_path / "out", ["--bundle", "nowhere"], kill_after=1)


@pytest.mark.parametrize(
    ("counts", "code"), [({("s", 0): 1, ("s", 1): 1}, 0), ({("s", 0): 2, ("s", 1): 1}, 1), ({("s", 0): 1}, 1)]
)
def test_a_lost_or_doubled_row_fails_the_command(
    counts: dict[tuple[str, int], int], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [bulk.Run(name, 2, 1.0, 2.0) for name in ("a", "b", "c")]
    monkeypatch.setattr(bulk, "measure", lambda *_: (runs, Counter(counts)))
    assert bulk.main(["--rows", "2", "--pairs", "nowhere.jsonl", "--no-write"]) == code


def test_a_rate_below_the_target_is_marked() -> None:
    fast, slow = bulk.Run("one process", 9, 10.0, 1.0), bulk.Run("Ray", 9, 8.9, 1.0)
    assert "0.89 (at least 0.9: **missed**)" in bulk.section([fast, slow, fast], "x", 0, 0)
    assert "1.00 (at least 0.9: met)" in bulk.section([fast, fast, fast], "x", 0, 0)
