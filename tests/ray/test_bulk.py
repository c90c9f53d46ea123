"""Test that `tinyrm score --ray` writes the tables of one process, although processes are killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.ray.cluster import STARTS
from tests.support.bulk_run import pair, stamps, table, words_of, write
from tests.support.processes import PATIENCE_S
from tinyrm.bulk import ray_runner
from tinyrm.cli import main

pytestmark = pytest.mark.slow

pytest.importorskip("ray.data")

ROWS, ROWS_PER_PART = 1000, 20
# Ray and its workers start in this time too.
RAY_PATIENCE_S = 3 * PATIENCE_S
TOO_SLOW = "Ray did not start on this machine within its own limit"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write pairs for seconds of work on the toy, with one row in the middle that is not a pair."""
    rows = [{**pair(n), "prompt": f"What is {n}? " * 9} for n in range(ROWS)]
    rows[ROWS // 2]["rejected"] = ""
    return write(tmp_path / "pairs.jsonl", *rows)


def on_ray(bundle: Path, out: Path, pairs: Path, *words: str) -> list[str]:
    common = words_of(bundle, out, pairs, "--rows-per-part", ROWS_PER_PART)
    threads = common.index("--threads")
    del common[threads : threads + 2]
    return [sys.executable, "-m", "tinyrm", *common, "--ray", *words]


def started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def working(command: list[str], out: Path) -> "subprocess.Popen[str]":
    """Return a process that has written some tables. It is begun again if a busy machine started Ray too slowly."""
    for _ in range(STARTS):
        process, deadline = started(command), time.monotonic() + RAY_PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:
            if len(stamps(out)) >= 2:
                return process
            time.sleep(0.01)
        process.kill()
        _, output = process.communicate()
        assert TOO_SLOW in output
    raise AssertionError(output)


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run to the end, again if a busy machine started Ray too slowly."""
    for _ in range(STARTS):
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=RAY_PATIENCE_S, check=False
        )
        assert "Traceback" not in done.stderr
        if TOO_SLOW not in done.stderr:
            break
    return done


def clear_away(family: list[psutil.Process]) -> None:
    for process in family:
        if process.is_running():
            process.kill()
    psutil.wait_procs(family, PATIENCE_S)


def check_against_one_process(bundle: Path, tmp_path: Path, pairs: Path, out: Path) -> None:
    assert main(words_of(bundle, tmp_path / "here", pairs, "--rows-per-part", ROWS_PER_PART)) == 1
    here, there = table(tmp_path / "here"), table(out)
    assert there.equals(here), "bit for bit"
    assert there["id"].tolist() == [f"x{n}" for n in range(ROWS)]
    assert there.index[there["error"].notna()].tolist() == [ROWS // 2]
    assert there["margin"].nunique() > 10
    assert stamps(out).keys() == stamps(tmp_path / "here").keys()


def test_no_row_is_lost_when_a_worker_is_killed(bundle_folder: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = working(on_ray(bundle_folder, out, pairs), out)
    family: list[psutil.Process] = []
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        worker = next(one for one in family if "MapWorker" in " ".join(one.cmdline()))
        worker.kill()
        assert len(stamps(out)) < ROWS / ROWS_PER_PART
        _, output = process.communicate(timeout=RAY_PATIENCE_S)
        assert process.returncode == 1, output
    finally:
        process.kill()
        clear_away(family)
    assert f"{ROWS} rows in {out}, {ROWS} of them new, 1 with an error" in output
    check_against_one_process(bundle_folder, tmp_path, pairs, out)


def test_a_killed_command_continues_where_it_stopped(bundle_folder: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = on_ray(bundle_folder, out, pairs, "--engines", "1")
    process = working(command, out)
    family: list[psutil.Process] = []
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        clear_away(family)
    before = stamps(out)
    assert len(before) < ROWS / ROWS_PER_PART
    done = run(command)
    assert f"{ROWS - ROWS_PER_PART * len(before)} of them new, 1 with an error" in done.stderr
    assert before.items() <= stamps(out).items()
    check_against_one_process(bundle_folder, tmp_path, pairs, out)


def our_lines(stderr: str) -> list[str]:
    """Return the lines that are not of Ray's log, which names its C++ files: it warns without a network route."""
    return [line for line in stderr.splitlines() if not re.search(r"\w+\.cc:\d+", line)]


def test_an_engine_that_cannot_start_is_one_line(bundle_folder: Path, pairs: Path, tmp_path: Path) -> None:
    done = run(on_ray(bundle_folder, tmp_path / "out", pairs, "--engine", "abacus"))
    assert done.returncode == 1
    (line,) = our_lines(done.stderr)
    assert line.startswith("tinyrm: unknown engine 'abacus'; known: auto")


def test_the_command_does_not_wait_for_resources_that_do_not_exist(
    bundle_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    done = run(on_ray(bundle_folder, tmp_path / "out", pairs, "--gpus-per-engine", "64"))
    assert done.returncode == 2
    (line,) = our_lines(done.stderr)
    assert line.startswith("tinyrm: --ray: no room for 1 engines of 1 CPUs and 64 GPUs each")


@pytest.mark.parametrize(
    ("failure", "code", "output"),
    [
        (ray_runner.TOO_SLOW + ". This could happen because ...", 1, TOO_SLOW),
        ("no room on the disk", 2, "--ray local: no room on the disk"),
    ],
)
def test_a_cluster_that_does_not_start_is_one_line(
    bundle_folder: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    failure: str,
    code: int,
    output: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Exception(failure)

    monkeypatch.setattr(ray_runner.ray, "init", fail)
    assert main(on_ray(bundle_folder, tmp_path / "out", pairs)[3:]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tinyrm: {output}")


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["127.0.0.1:1"], "--ray 127.0.0.1:1: nothing answers there"),
        (["ray://127.0.0.1:10001"], "with --ray auto"),
        (["nowhere"], "--ray nowhere: auto, or host:6379"),
        (["local", "--domain", "cooking"], "no domain 'cooking'"),
    ],
)
def test_wrong_options_fail_before_ray_starts(
    bundle_folder: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    words: list[str],
    output: str,
) -> None:
    assert main(on_ray(bundle_folder, tmp_path / "out", pairs, *words)[3:]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinyrm: ")
    assert output in line
    assert not stamps(tmp_path / "out")
