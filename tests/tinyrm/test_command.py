"""Test the command line against a scripted server: its output, its files and its exit codes."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.support.processes import free_port
from tests.support.scripted_server import (
    COMPARED,
    RANKED,
    Received,
    answer,
    batch,
    compared,
    error,
    hang_up,
    item_error,
    scripted,
)
from tinyrm.bulk.jsonl import open_output
from tinyrm.bundle import Bundle
from tinyrm.cli import VERBS, main


def pair(number: int) -> dict[str, Any]:
    return {"id": f"x{number}", "prompt": f"p{number}", "chosen": "good", "rejected": "bad", "source": ["kept", number]}


def write(path: Path, *lines: Any) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def score(url: str, pairs: Path, out: Path, *options: str) -> int:
    return main(["score", str(pairs), "--out", str(out), "--url", url, *options])


def test_compare_prints_the_better_response(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(compared()) as server:
        assert main(["compare", "q", "x", "y", "--url", server.url, "--domain", "math", "--reasoning", "drop"]) == 0
    assert capsys.readouterr().out == "A is better (leaning): P(A) 0.750, P(B) 0.250, toy@1\n"
    texts = {"prompt": "q", "response_a": "x", "response_b": "y"}
    assert server.received[0].body == texts | {"domain": "math", "reasoning": "drop"}


def test_compare_prints_json_and_truncated_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    reply = COMPARED | {"truncated": {"prompt": 7, "response_a": 0, "response_b": 0}}
    with scripted(answer(200, reply)) as server:
        assert main(["compare", "q", "x", "y", "--url", server.url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == reply
        main(["compare", "q", "x", "y", "--url", server.url])
    assert "prompt 7" in capsys.readouterr().err


def test_texts_come_from_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("from a file\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("from standard input"))
    with scripted(compared()) as server:
        assert main(["compare", "@@home", f"@{tmp_path / 'a.txt'}", "-", "--url", server.url]) == 0
    assert list(server.received[0].body.values()) == ["@home", "from a file\n", "from standard input"]


def test_the_key_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("tinyrm_secret\n")
    with scripted(compared()) as server:
        main(["compare", "q", "x", "y", "--url", server.url, "--api-key-file", str(tmp_path / "key")])
    assert server.received[0].headers["Authorization"] == "Bearer tinyrm_secret"


def test_rank_prints_the_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(answer(200, RANKED)) as server:
        assert main(["rank", "q", "first", "second " * 30, "--url", server.url, "--strategy", "swiss"]) == 0
    best, worst = capsys.readouterr().out.splitlines()
    assert best.startswith("+0.500 ± 0.100  [1] second second")
    assert best.endswith("...")
    assert worst == "-0.500 ± 0.100  [0] first"
    assert server.received[0].body["strategy"] == "swiss"


def test_rank_passes_on_what_a_cascade_compares() -> None:
    with scripted(answer(200, RANKED)) as server:
        words = ["rank", "q", "first", "second", "--url", server.url, "--strategy", "cascade", "--top", "2"]
        assert main(words) == 0
    assert (server.received[0].body["strategy"], server.received[0].body["top"]) == ("cascade", 2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["compare", "q", "-", "-"], "standard input"),
        (["compare", "q", "@missing.txt", "b"], "missing.txt cannot be read"),
        (["compare", "q", "a", "b", "--url", "localhost:8000"], "http://host:port"),
        (["compare", "q", "a", "b", "--api-key-file", "missing.key"], "missing.key cannot be read"),
        (["score", "missing.jsonl", "--out", "out.jsonl"], "missing.jsonl cannot be read"),
        (["score", "missing.jsonl", "--out", "no/such/folder"], "--out no/such/folder"),
    ],
)
def test_an_impossible_command_is_one_line_and_exit_code_2(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinyrm: ")
    assert reason in line


@pytest.mark.parametrize("words", [[], ["compare", "q"], ["dance"], ["score", "x"], ["models", "--timeout-s", "0"]])
def test_a_wrong_command_line_is_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2


def test_a_refusal_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(error(422, "unknown_domain")) as server:
        assert main(["compare", "q", "x", "y", "--url", server.url]) == 1
    request_id = server.received[0].headers["X-Request-Id"]
    assert capsys.readouterr().err == f"tinyrm: this is unknown_domain (422 unknown_domain) [request {request_id}]\n"


def test_a_closed_port_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with the address and what to do: no other try would find a service there."""
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("a refused connection is not repeated"))
    for words in (["models"], ["compare", "p", "a", "b"], ["rank", "p", "a", "b"]):
        assert main([*words, "--url", address]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"nothing listens at {address}; start the service with `tinyrm serve`" in line


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_score_writes_each_line_as_it_was_with_its_reply(tmp_path: Path, name: str) -> None:
    pairs, out = write(tmp_path / name, *map(pair, range(10))), tmp_path / "out.jsonl"
    with scripted(batch(lambda item: COMPARED | {"margin": int(item["prompt"][1:])})) as server:
        assert score(server.url, pairs, out, "--batch-items", "3", "--domain", "math") == 0
    for number, record in enumerate(records(out)):
        options = {"domain": "math"}
        assert record.pop("tinyrm") == {"index": number, "options": options, "reply": COMPARED | {"margin": number}}
        assert record == pair(number)
    assert {len(received.body["items"]) for received in server.received} == {1, 3}
    expected = {"prompt": "p0", "response_a": "good", "response_b": "bad", "domain": "math"}
    assert expected in [item for received in server.received for item in received.body["items"]]


def test_bad_lines_get_an_error_and_their_neighbours_a_reply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"prompt": "p", "response_a": "a", "response_b": "b", "domain": "own", "swap": "off"}
    lines = [
        pair(0),
        "{",
        "",
        [1],
        {"id": "x4", "prompt": "p"},
        own,
        {"prompt": "\ud800", "chosen": "c", "rejected": "r"},
    ]
    pairs, out = write(tmp_path / "pairs.jsonl", *lines), tmp_path / "out.jsonl"

    def result_of(item: Any) -> Any:
        return item_error("invalid_text") if item["prompt"] == "\ud800" else COMPARED

    with scripted(batch(result_of)) as server:
        assert score(server.url, pairs, out, "--domain", "math") == 1
    found = records(out)
    kinds = ["reply" if "reply" in r["tinyrm"] else r["tinyrm"]["error"]["type"] for r in found]
    assert kinds == ["reply", *["invalid_request"] * 4, "reply", "invalid_text"]
    assert [r["tinyrm"]["index"] for r in found] == list(range(7))
    assert found[4]["id"] == "x4"
    assert "line 5: no two responses" in found[4]["tinyrm"]["error"]["message"]
    assert own in [item for received in server.received for item in received.body["items"]]
    assert "7 lines" in (output := capsys.readouterr().err)
    assert "5 with an error" in output


@pytest.mark.parametrize("torn", [b"", b'{"id": "x4", "tinyrm": {"ind'], ids=["whole", "torn"])
def test_score_continues_after_the_last_complete_line(tmp_path: Path, torn: bytes) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", *map(pair, range(10))), tmp_path / "out.jsonl"
    first = write(tmp_path / "first.jsonl", *map(pair, range(4)))
    with scripted(batch()) as server:
        assert score(server.url, first, out) == 0
        kept = out.read_bytes()
        out.write_bytes(kept + torn)
        assert score(server.url, pairs, out) == 0
        sent = [item["prompt"] for received in server.received[1:] for item in (received.body or {}).get("items", [])]
        assert sorted(sent) == [f"p{n}" for n in range(4, 10)]
        assert out.read_bytes().startswith(kept)
        assert [r["id"] for r in records(out)] == [f"x{n}" for n in range(10)]
        before = len(server.received)
        assert score(server.url, pairs, out) == 0
        assert [received.path for received in server.received[before:]] == ["/v1/models"], "nothing is left to score"


def test_a_second_run_counts_the_errors_of_the_first(tmp_path: Path) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", pair(0), "{"), tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        assert [score(server.url, pairs, out) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    "content",
    [b"a text of another program\n", b'{"tinyrm": {"index": 5, "reply": 0}}\n', b'{"tinyrm": 1}\n', b"[]\n"],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", pair(0)), tmp_path / "out.jsonl"
    out.write_bytes(content)
    assert score("http://127.0.0.1:1", pairs, out) == 2
    assert out.read_bytes() == content


def test_scores_of_another_input_are_not_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    with scripted(batch()) as server:
        score(server.url, write(tmp_path / "one.jsonl", pair(0), pair(1)), out)
        before = out.read_bytes()
        for others in ([pair(0), pair(7), pair(8)], [pair(0)]):
            assert score(server.url, write(tmp_path / "other.jsonl", *others), out) == 2
            assert "another input" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_only_one_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", pair(0)), tmp_path / "out.jsonl"
    with open_output(str(out), str(pairs)):
        assert score("http://127.0.0.1:1", pairs, out) == 2
    assert "another process" in capsys.readouterr().err


def test_an_error_that_is_not_the_lines_own_stops_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Write no result for it: a temporary error or a wrong option would become the line's final result."""

    def second_batch(handler: Any, received: Received) -> None:
        is_first = not received.body or received.body["items"][0]["prompt"] == "p0"
        step = batch() if is_first else trouble
        step(handler, received)

    pairs = write(tmp_path / "pairs.jsonl", *map(pair, range(6)))
    for kind in ("overloaded", "deadline_exceeded", "unknown_model", "unknown_domain"):
        trouble, out = batch(lambda item, kind=kind: item_error(kind)), tmp_path / f"{kind}.jsonl"
        with scripted(second_batch) as server:
            options = ("--batch-items", "2", "--concurrency", "1", "--timeout-s", "1")
            assert score(server.url, pairs, out, *options) == 1
            assert [r["id"] for r in records(out)] == ["x0", "x1"]
            assert "stopped after 2 lines" in capsys.readouterr().err
            trouble = batch()
            assert score(server.url, pairs, out, *options) == 0
            assert [r["id"] for r in records(out)] == [f"x{n}" for n in range(6)]


def test_score_survives_a_restart_of_the_service(tmp_path: Path) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", *map(pair, range(6))), tmp_path / "out.jsonl"
    with scripted(batch(), hang_up, error(503, "not_ready"), hang_up, batch()) as server:
        assert score(server.url, pairs, out, "--batch-items", "2") == 0
    assert [r["id"] for r in records(out)] == [f"x{n}" for n in range(6)]


def test_an_input_that_ends_early_keeps_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl.gz", *map(pair, range(400))), tmp_path / "out.jsonl"
    pairs.write_bytes(pairs.read_bytes()[:-20])
    with scripted(batch()) as server:
        assert score(server.url, pairs, out, "--batch-items", "1", "--concurrency", "1") == 2
    assert "cannot be read after line" in capsys.readouterr().err
    assert len(records(out)) > 0


def test_bench_takes_the_lengths_that_the_model_has(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    max_tokens = Bundle.open(bundle_folder).manifest.spec.max_tokens
    for known, measured in (((64, max_tokens, max_tokens + 1), [64, max_tokens]), ((max_tokens + 1,), [max_tokens])):
        monkeypatch.setattr("tinyrm.cli.bench.LENGTHS", known)
        assert main(["bench", str(bundle_folder), "--repeat", "1"]) == 0
        assert [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()[2:]] == measured


def test_bench_prints_a_line_for_each_length(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle_folder), "--tokens", "16", "64", "--repeat", "2"]) == 0
    model, header, *lines = capsys.readouterr().out.splitlines()
    assert model.startswith("toy@")
    assert header.split() == ["tokens", "ms", "sequences/s", "GFLOP/s"]
    assert [line.split()[0] for line in lines] == ["16", "64"]
    assert main(["bench", str(bundle_folder), "--tokens", "100000"]) == 2


def test_help_lists_every_verb_and_imports_no_application() -> None:
    code = (
        "import sys; from tinyrm.cli import main; main(['--help'])\n"
        "print([m for m in ('service', 'training', 'tyro', 'httpx', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    sections = dict(part.split(":\n", 1) for part in done.stdout.split("\n\n") if ":\n" in part)
    verbs, codes = ([line.split()[0] for line in sections[name].splitlines()] for name in ("commands", "exit codes"))
    assert verbs == list(VERBS)
    assert codes == ["0", "1", "2", "3", "130"]
    assert {example.split()[0] for example in sections["examples"].splitlines()} == {"tinyrm", "cat", "source"}


def test_an_application_is_a_verb_of_the_command(tmp_path: Path) -> None:
    file = ["keys", "--file", str(tmp_path / "keys.json")]
    words = [*file, "new", "--name", "me", "--scopes", "score"]
    command = [sys.executable, "-m", "tinyrm", *words]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert made.stdout.startswith("tinyrm_"), made.stderr
    assert main([*file, "list"]) == 0
