"""Test what `tinyrm score` reads and writes: files of others, pipes, options, encodings, damaged archives."""

import bz2
import gzip
import io
import json
import lzma
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.support.scripted_server import COMPARED, Received, batch, item_error, models, scripted
from tests.support.waiting import PATIENCE_S
from tinyrm.bulk import progress, sources
from tinyrm.bulk.service import open_lines
from tinyrm.cli import main
from tinyrm.errors import InvalidInput
from tinyrm.tables import read_jsonl

NOWHERE = "http://127.0.0.1:1"
OPTIONS = {
    "--domain": ("math", "safety"),
    "--instruction": ("Which is better?", "Which is worse?"),
    "--swap": ("off", "on"),
    "--model": ("toy", "toy@1"),
}


def pair(number: int) -> dict[str, Any]:
    return {"id": f"x{number}", "prompt": f"p{number}", "chosen": "good", "rejected": "bad"}


def text_of(*numbers: int) -> str:
    return "".join(json.dumps(pair(number)) + "\n" for number in numbers)


def score(url: str, pairs: object, out: object, *options: str) -> int:
    return main(["score", str(pairs), "--out", str(out), "--url", url, *options])


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


FOREIGN = [
    b'{"important": 1}',
    b"a note",
    b'{"tinyrm": {"index": 0',
    b'{"id": "x0", "prompt": "p0", "chosen": "good", "rejected": "bad"}',
    b'{"id": "x0", "prompt": "p0", "chosen": "good", "rejected": "bad", "tinyrm": {"index": 1',
    b'{"id": "x1", "prompt": ',
    b"\0" * 100,
    b"\x89PNG\r\n",
    b"\n",
    b"x" * 100_000,
]


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: repr(content[:20]))
def test_a_file_of_others_is_left_alone(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(text_of(0, 1))
    (out := tmp_path / "out").write_bytes(content)
    assert score(NOWHERE, tmp_path / "pairs.jsonl", out) == 2
    assert out.read_bytes() == content
    assert "name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "own", [{"reply": 0}, {"reply": {}}, {"reply": {"model": "m"}, "options": 5}, {"options": []}, {"reply": None}]
)
def test_lines_that_only_look_like_ours_are_left_alone(tmp_path: Path, own: dict[str, Any]) -> None:
    (pairs := tmp_path / "pairs.jsonl").write_text("not JSON\n")
    (out := tmp_path / "out").write_text(content := json.dumps({"tinyrm": {"index": 0} | own}) + "\n")
    assert score(NOWHERE, pairs, out) == 2
    assert out.read_text() == content


@pytest.mark.parametrize("options", [(), ("--domain", "math")], ids=["none", "domain"])
def test_what_a_kill_leaves_of_a_line_is_scored_again(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Cut the output everywhere in its first line, and in its second."""
    (pairs := tmp_path / "pairs.jsonl").write_text(json.dumps(pair(0) | {"prompt": "Grüße \ud800"}) + "\n" + text_of(1))
    out = tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        assert score(server.url, pairs, out, *options) == 0
        whole = out.read_bytes()
        for size in [*range(0, len(whole), 29), len(whole) - 1]:
            out.write_bytes(whole[:size])
            assert score(server.url, pairs, out, *options) == 0, whole[:size]
            assert out.read_bytes() == whole


@pytest.mark.parametrize("name", ["same", "symbolic link", "hard link", "redirected input", "redirected output"])
def test_the_input_is_not_the_output(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = text_of(0).rstrip("\n")
    (pairs := tmp_path / "pairs.jsonl").write_text(content)
    words: tuple[object, object] = (pairs, pairs)
    if "link" in name:
        other = tmp_path / "other.jsonl"
        other.symlink_to(pairs) if "symbolic" in name else other.hardlink_to(pairs)
        words = (pairs, other)
    with pairs.open("a+") as redirected:
        if name == "redirected input":
            monkeypatch.setattr("sys.stdin", redirected)
            words = ("-", pairs)
        elif name == "redirected output":
            monkeypatch.setattr("sys.stdout", redirected)
            words = (pairs, "-")
        assert score(NOWHERE, *words) == 2
    assert pairs.read_text() == content


@pytest.mark.parametrize("option", OPTIONS)
def test_other_options_are_not_continued(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    (two := tmp_path / "two.jsonl").write_text(text_of(0, 1))
    (three := tmp_path / "three.jsonl").write_text(text_of(0, 1, 2))
    value, other = OPTIONS[option]
    changes = [((), (option, value)), ((option, value), ()), ((option, value), (option, other))]
    with scripted(batch()) as server:
        for number, (before, after) in enumerate(changes):
            out = tmp_path / f"{number}.jsonl"
            assert score(server.url, two, out, *before) == 0
            kept = out.read_bytes()
            for pairs in (two, three):
                assert score(server.url, pairs, out, *after) == 2
                assert "other options" in capsys.readouterr().err
                assert out.read_bytes() == kept
            assert score(server.url, three, out, *before) == 0
            assert ids(out) == ["x0", "x1", "x2"]


def test_another_model_does_not_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (two := tmp_path / "two.jsonl").write_text(text_of(0, 1))
    (three := tmp_path / "three.jsonl").write_text(text_of(0, 1, 2))
    out = tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        assert score(server.url, two, out) == 0
    kept = out.read_bytes()
    with scripted(batch(lambda _: COMPARED | {"model": "toy@2"}, revision="2")) as server:
        for pairs in (two, three):
            assert score(server.url, pairs, out) == 2
            assert "scores of toy@1, and the service has toy@2 now" in capsys.readouterr().err
            assert out.read_bytes() == kept


def test_a_model_that_changes_during_the_work_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pairs := tmp_path / "pairs.jsonl").write_text(text_of(*range(20)))
    out = tmp_path / "out.jsonl"
    new = COMPARED | {"model": "toy@2"}
    with scripted(batch(lambda item: new if item["prompt"] == "p9" else COMPARED)) as server:
        assert score(server.url, pairs, out) == 2
    assert "scores of toy@1, and the service has toy@2 now" in capsys.readouterr().err
    assert ids(out) == [f"x{number}" for number in range(9)]


def test_a_specialist_scores_its_domain(tmp_path: Path) -> None:
    """Each domain has its own model: two models in one file are no change."""
    rows = [pair(number) | ({"domain": "math"} if number % 2 else {}) for number in range(6)]
    (pairs := tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"

    def reply(handler: Any, received: Received) -> None:
        step = batch(lambda item: COMPARED | {"model": "toy@2" if "domain" in item else "toy@1"})
        (step if received.body else models("1", "2"))(handler, received)

    with scripted(reply) as server:
        for _ in range(2):
            assert score(server.url, pairs, out) == 0
    assert len(ids(out)) == 6


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_changed_line_of_the_input_is_noticed(
    tmp_path: Path, changed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs := tmp_path / "pairs.jsonl").write_text(text_of(0, 1, 2))
    out = tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        assert score(server.url, pairs, out) == 0
        pairs.write_text(text_of(*[9 if number == changed else number for number in range(3)]))
        assert score(server.url, pairs, out) == 2
    assert f"another input, from line {changed + 1}" in capsys.readouterr().err


def in_terminal(words: list[str]) -> int:
    """Run the command with a terminal as its standard error, and return its exit code."""
    terminal, side = pty.openpty()
    try:
        with subprocess.Popen(words, cwd=REPOSITORY, stderr=side, stdin=subprocess.DEVNULL) as process:
            threading.Thread(target=lambda: drain(terminal), daemon=True).start()
            return process.wait(PATIENCE_S)
    finally:
        os.close(side)


def drain(terminal: int) -> None:
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        os.close(terminal)


def test_a_pipe_is_read_once_also_on_a_terminal(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        (tmp_path / "pairs.jsonl").write_text(text_of(0, 1, 2))
        words = f"exec {sys.executable} -m tinyrm score <(cat {tmp_path}/pairs.jsonl) --out {out} --url {server.url}"
        assert in_terminal(["bash", "-c", words]) == 0
    assert ids(out) == ["x0", "x1", "x2"]


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_and_output(tmp_path: Path, name: str) -> None:
    words = [sys.executable, "-m", "tinyrm", "score", name, "--out", "-" if name == "-" else "/dev/stdout", "--url"]
    with scripted(batch()) as server:
        done = subprocess.run(
            [*words, server.url], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            input=text_of(0, 1, 2), capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["x0", "x1", "x2"]
    assert list(tmp_path.iterdir()) == []


def test_named_pipes_at_both_ends(tmp_path: Path) -> None:
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    read: list[str] = []
    threads = [
        threading.Thread(target=lambda: (tmp_path / "in").write_text(text_of(0, 1, 2))),
        threading.Thread(target=lambda: read.append((tmp_path / "out").read_text())),
    ]
    for thread in threads:
        thread.start()
    with scripted(batch()) as server:
        assert score(server.url, tmp_path / "in", tmp_path / "out") == 0
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [json.loads(line)["id"] for line in read[0].splitlines()] == ["x0", "x1", "x2"]


def test_a_pipe_continues_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        for numbers in ((0, 1), (0, 1, 2)):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text_of(*numbers).encode())))
            assert score(server.url, "-", out) == 0
    assert ids(out) == ["x0", "x1", "x2"]


@pytest.mark.parametrize("words", [["-", "--out", "out"], ["pairs.jsonl", "--out", "-"]])
def test_a_bundle_needs_files(words: list[str], bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *words, "--bundle", str(bundle_folder)]) == 2
    assert "instead of -" in capsys.readouterr().err


MARKS = [b"\xef\xbb\xbf", b""]


@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n\r\n", b"  \n\t\n", b"\xef\xbb\xbf\n"], ids=repr)
@pytest.mark.parametrize("mark", MARKS, ids=["BOM", "none"])
def test_byte_order_marks_and_blank_lines_at_the_end(tmp_path: Path, last: bytes, mark: bytes) -> None:
    """Every reader takes the same rows: the command with a service, training, evaluation."""
    lines = mark + text_of(0).encode() + mark + text_of(1).encode()
    (pairs := tmp_path / "pairs.jsonl").write_bytes(lines + last)
    assert [row["id"] for row in read_jsonl(pairs)] == ["x0", "x1"]
    with scripted(batch()) as server:
        assert score(server.url, pairs, tmp_path / "out.jsonl") == 0
    assert ids(tmp_path / "out.jsonl") == ["x0", "x1"]


OTHERS: dict[str, Callable[[bytes], bytes]] = {
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": lambda _: b"\x28\xb5\x2f\xfd\x04\x00\n",
    "Parquet": lambda _: b"PAR1\x15\x04\n",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_in_another_format_is_named(
    tmp_path: Path, kind: str, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs := tmp_path / "pairs.jsonl").write_bytes(OTHERS[kind](text_of(0, 1).encode()))
    with pytest.raises(InvalidInput, match=kind):
        list(read_jsonl(pairs))
    assert score(NOWHERE, pairs, tmp_path / "out.jsonl") == 2
    assert main(["score", str(pairs), "--out", str(tmp_path / "out"), "--bundle", str(bundle_folder)]) == 2
    assert capsys.readouterr().err.count(f" {kind}") >= 2


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_one_damaged_byte_is_never_a_traceback(tmp_path: Path, suffix: str) -> None:
    packed = {".gz": gzip.compress, ".xz": lzma.compress}[suffix](text_of(*range(40)).encode())
    pairs = tmp_path / f"pairs.jsonl{suffix}"
    refused = []
    for place in range(len(packed)):
        pairs.write_bytes(packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :])
        try:
            list(read_jsonl(pairs))
        except InvalidInput as error:
            refused.append(str(error))
    assert len(refused) > len(packed) / 2
    assert all(pairs.name in message for message in refused)


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a":' * 100_000, '{"prompt": ' + "[" * 900 + "]" * 900 + "}", "1" * 5000, '{"a": \ud800}', "nan"],
    ids=["lists", "objects", "just readable", "digits", "surrogate", "word"],
)
def test_a_line_that_cannot_be_parsed_is_named(tmp_path: Path, line: str) -> None:
    """The command gives it an error of its own, and training and evaluation name it."""
    (pairs := tmp_path / "pairs.jsonl").write_bytes(
        text_of(0).encode() + line.encode(errors="surrogatepass") + b"\n" + text_of(2).encode()
    )
    if line.count("[") != 900:
        with pytest.raises(InvalidInput, match="line 2"):
            list(read_jsonl(pairs))
    with scripted(batch()) as server:
        for _ in range(2):
            assert score(server.url, pairs, tmp_path / "out.jsonl") == 1
    kinds = [next(iter(json.loads(line)["tinyrm"])) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    errors = [json.loads(line)["tinyrm"].get("error") for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kinds == ["index"] * 3
    assert [error and error["type"] for error in errors] == [None, "invalid_request", None]


def test_the_first_calls_are_small(tmp_path: Path) -> None:
    """A bar that moves from the beginning; the calls grow while they are short, up to the limit."""
    (pairs := tmp_path / "pairs.jsonl").write_text(text_of(*range(300)))
    with scripted(batch(lambda _: item_error("invalid_text"))) as server:
        assert score(server.url, pairs, tmp_path / "out.jsonl", "--concurrency", "1", "--batch-items", "32") == 1
    sizes = [len(received.body["items"]) for received in server.received]
    assert sizes[:5] == [4, 8, 16, 32, 32]
    assert max(sizes) == 32


def test_without_a_terminal_a_line_now_and_then_shows_that_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the service does not respond: here its response waits for the line."""
    said: list[str] = []
    shown = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        shown.set()

    def late(handler: Any, received: Received) -> None:
        shown.wait(PATIENCE_S)
        batch()(handler, received)

    monkeypatch.setattr(progress, "say", say)
    monkeypatch.setattr(progress, "BETWEEN_LINES_S", 0.02)
    monkeypatch.setattr(progress, "BEAT_S", 0.01)
    (pairs := tmp_path / "pairs.jsonl").write_text(text_of(0, 1, 2))
    with scripted(late) as server:
        assert score(server.url, pairs, tmp_path / "out.jsonl") == 0
    assert said[0].startswith("0 of 3 rows")


def test_a_bundle_skips_blank_lines_at_the_end_as_training_does(tmp_path: Path) -> None:
    for number, last in enumerate([b"", b"\n \n", b"\xef\xbb\xbf\n"]):
        (pairs := tmp_path / f"{number}.jsonl").write_bytes(text_of(0, 1, 2).encode() + last)
        assert [shard.rows for shard in sources.plan(str(pairs), 2).shards] == [2, 1]
        assert [shard.rows for shard in sources.plan(str(pairs), 3).shards] == [3]


def test_ctrl_c_ends_a_read_that_waits_for_a_pipe() -> None:
    """The handler of asyncio only cancels a task, which the read would hold up."""
    reader, writer = os.pipe()
    done = threading.Event()

    def interrupt() -> None:
        while not done.wait(0.02):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda *_: None)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(open_lines(f"/dev/fd/{reader}"))
    finally:
        done.set()
        thread.join()
        kept = signal.signal(signal.SIGINT, before)
        os.close(writer)
        os.close(reader)
    assert kept is not signal.default_int_handler
