"""Test `tinyrm score --bundle` when it is killed, repeated, misused, or lacks a package."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.bulk_run import Score, complaint, pair, run, stamps, table, words_of, write
from tests.support.processes import PATIENCE_S
from tinyrm.bulk.parquet import locked_folder
from tinyrm.cli import main


@pytest.fixture
def score(bundle_folder: Path, tmp_path: Path) -> Score:
    """Run the command with the folder `out`."""
    return lambda *words: main(words_of(bundle_folder, tmp_path / "out", *words))


def test_a_second_run_computes_nothing_and_a_different_one_is_refused(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", *map(pair, range(10)))
    assert score(pairs, "--rows-per-part", 4) == 0
    before = stamps(tmp_path / "out")
    assert score(pairs, "--rows-per-part", 4) == 0
    assert "10 of them new" in (output := capsys.readouterr().err)
    assert " 0 of them new" in output
    other = write(tmp_path / "other.jsonl", pair(0))
    for words, output in [
        ((pairs, "--rows-per-part", 5), "rows_per_part was 4 and is 5"),
        ((pairs, "--rows-per-part", 4, "--domain", "safety"), "domain was None and is 'safety'"),
        ((pairs, other, "--rows-per-part", 4), "other.jsonl was not among its sources"),
        ((other, "--rows-per-part", 4), "was not among its sources"),
    ]:
        assert score(*words) == 2
        assert output in complaint(capsys)
    write(pairs, *map(pair, range(9)), {**pair(9), "prompt": "Changed"})
    assert score(pairs, "--rows-per-part", 4) == 2
    assert "pairs.jsonl has changed since" in complaint(capsys)
    assert stamps(tmp_path / "out") == before


def test_a_folder_of_something_else_is_left_alone(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", pair(0))
    mine = write(tmp_path / "out" / "mine.parquet", pair(1)).read_bytes()
    assert score(pairs) == 2
    assert "something else" in complaint(capsys)
    assert (tmp_path / "out" / "mine.parquet").read_bytes() == mine


def test_a_file_that_is_not_a_shard_is_named(score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(tmp_path / "pairs.jsonl", pair(0))
    assert score(pairs) == 0
    (part,) = (tmp_path / "out").glob("*.parquet")
    part.write_bytes(b"PAR1 and no more")
    capsys.readouterr()
    assert score(pairs) == 2
    assert "remove it" in complaint(capsys)


def test_only_one_process_writes_a_folder(score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(tmp_path / "pairs.jsonl", pair(0))
    with locked_folder(tmp_path / "out"):
        assert score(pairs) == 2
    assert "another process" in complaint(capsys)
    assert score(pairs) == 0


@pytest.mark.parametrize(
    ("words", "code", "output"),
    [
        (["missing.jsonl"], 2, "missing.jsonl: no such file"),
        (["no-*.jsonl"], 2, "no-*.jsonl: no such file"),
        (["nowhere://x/y.jsonl"], 2, "nowhere://x/y.jsonl"),
        (["empty.jsonl"], 2, "empty.jsonl has no rows"),
        (["torn.jsonl.gz"], 2, "torn.jsonl.gz cannot be read"),
        (["torn.parquet"], 2, "torn.parquet cannot be read"),
        (["columns.parquet"], 2, "columns.parquet: no two responses"),
        (["pairs.jsonl", "--domain", "cooking"], 2, "no domain 'cooking'"),
        (["pairs.jsonl", "--instruction", "Which? " * 300], 2, "instruction takes"),
        (["pairs.jsonl", "--precision", "int3"], 1, "int3"),
        (["pairs.jsonl", "--engine", "abacus"], 1, "unknown engine 'abacus'"),
        (["pairs.jsonl", "--bundle", "."], 1, "manifest.json"),
        (["pairs.jsonl", "--out", "pairs.jsonl"], 2, "--out"),
        (["pairs.jsonl", "--out", "s3://bucket/out"], 2, "--out s3://bucket/out"),
        (["pairs.jsonl", "--url", "http://127.0.0.1:1"], 2, "--url is for a service"),
        (["pairs.jsonl", "--swap", "off"], 2, "--swap is for a service"),
        (["pairs.jsonl", "--engines", "2"], 2, "--engines needs --ray"),
        (["pairs.jsonl", "--ray"], 2, "--threads is --cpus-per-engine"),
    ],
)
def test_an_impossible_command_is_one_line(
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    words: list[str],
    code: int,
    output: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", pair(0))
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "columns.parquet", {"text": "x"})
    packed = write(tmp_path / "torn.jsonl.gz", *map(pair, range(99)))
    for torn in (packed, write(tmp_path / "torn.parquet", pair(0))):
        torn.write_bytes(torn.read_bytes()[:-20])
    given = words_of(bundle_folder, tmp_path / "out")
    assert main([given[0], words[0], *given[1:], *words[1:]]) == code
    assert output in complaint(capsys)
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["a.jsonl", "--threads", "2"], "--threads needs --bundle"),
        (["a.jsonl", "--ray"], "--ray needs --bundle"),
        (["a.jsonl", "b.jsonl"], "several need --bundle"),
    ],
)
def test_options_for_a_bundle_need_a_bundle(words: list[str], output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--out", "out.jsonl", *words]) == 2
    assert output in complaint(capsys)


@pytest.mark.parametrize(
    ("module", "extra"), [("pyarrow", "local,bulk"), ("numpy", "local,bulk"), ("ray", "local,ray")]
)
def test_a_missing_package_is_named(bundle_folder: Path, tmp_path: Path, module: str, extra: str) -> None:
    words = words_of(bundle_folder, tmp_path / "out", write(tmp_path / "pairs.jsonl", pair(0)))[:-2]
    hidden = f"import sys; sys.modules[{module!r}] = None; from tinyrm.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run([sys.executable, "-c", hidden, *words, *(["--ray"] if module == "ray" else [])])
    assert done.returncode == 2
    assert done.stderr == f"tinyrm: {'--ray' if module == 'ray' else '--bundle'} needs {module}: " + (
        f"pip install 'tinyrm[{extra}]'\n"
    )


def test_the_command_line_does_not_import_the_optional_packages() -> None:
    heavy = ("numpy", "pyarrow", "fsspec", "ray", "tokenizers", "pandas")
    code = f"import sys, tinyrm.cli.score; print([name for name in {heavy} if name in sys.modules])"
    assert run([sys.executable, "-c", code]).stdout == "[]\n"


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_killed_run_continues_where_it_stopped(
    bundle_folder: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    rows, out = 500, tmp_path / "out"
    pairs = write(tmp_path / "pairs.jsonl", *({**pair(n), "prompt": f"What is {n}? " * 9} for n in range(rows)))
    words = words_of(bundle_folder, out, pairs, "--rows-per-part", 4)
    command = [sys.executable, "-m", "tinyrm", *words]
    # Restore SIGINT: jobs that a shell starts in the background ignore it, and so do their children.
    ignoring, stop = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic() + PATIENCE_S
    try:
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ignoring)
    while len(list(out.glob("*.parquet"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < stop
        time.sleep(0.002)
    os.kill(process.pid, sent)
    _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert ("run it again" in output) == (sent == signal.SIGINT)
    before = stamps(out)
    assert 0 < len(before) < rows / 4
    done = run(command)
    assert f"{rows} rows in {out}, {rows - 4 * len(before)} of them new, 0 with an error" in done.stderr
    assert done.returncode == 0
    assert before.items() <= stamps(out).items()
    assert {file.name for file in out.iterdir()} - stamps(out).keys() == {"_run.json", "_lock"}
    found = table(out)
    assert found["id"].tolist() == [f"x{n}" for n in range(rows)]
    assert found["margin"].notna().all()
