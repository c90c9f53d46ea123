"""Test the clients and the command line against the real service; either is killed during the work."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.test_process import keys
from tests.support.processes import PATIENCE_S, STARTER, Process, free_port, started
from tests.support.waiting import wait_until
from tinyrm import AsyncClient, Client
from tinyrm.client import CompareItem, ItemError, TokensReply
from tinyrm.errors import CallRefused, CallTimedOut
from tinyrm.tables import read_jsonl

TEXTS = ("What is 2 + 2?", "2 + 2 = 4.", "2 + 2 = 5.")
PAIRS = 1500


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER) as running:
        yield running


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write pairs for seconds of work even on the toy, with one line in the middle that is not a pair."""
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"id": f"x{n}", "prompt": f"What is {n} + {n}? " * 8, "chosen": f"{2 * n}", "rejected": "No."}
        for n in range(PAIRS)
    ]
    lines[PAIRS // 2] = {"id": f"x{PAIRS // 2}", "prompt": ""}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def url_of(service: Process) -> str:
    return f"http://127.0.0.1:{service.port}"


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "tinyrm", *map(str, words)]


def run(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=REPOSITORY, capture_output=True, text=True, input=stdin, timeout=PATIENCE_S, check=False
    )


def whole_lines(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def wait_for_lines(out: Path, process: "subprocess.Popen[str]", least: int = 1) -> None:
    wait_until(lambda: whole_lines(out) >= least, f"{least} lines were scored", process=process)


def check_each_line_once(out: Path) -> None:
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["id"] for record in records] == [f"x{n}" for n in range(PAIRS)]
    assert [record["tinyrm"]["index"] for record in records] == list(range(PAIRS))
    wrong = [record["id"] for record in records if "error" in record["tinyrm"]]
    assert wrong == [f"x{PAIRS // 2}"]
    assert all(0 < r["tinyrm"]["reply"]["probability_a"] < 1 for r in records if r["id"] not in wrong)


def test_both_clients_return_the_replies_of_the_service(service: Process) -> None:
    body = dict(zip(("prompt", "response_a", "response_b"), TEXTS, strict=True))
    output = service.post("/v1/compare", body).json()
    item: CompareItem = {"prompt": [{"role": "user", "content": TEXTS[0]}], "response_a": "4", "response_b": "5"}
    bad: CompareItem = {"prompt": "p", "response_a": "", "response_b": "b"}

    async def ask() -> list[Any]:
        async with AsyncClient(url_of(service)) as client:
            many = [result async for result in client.compare_many([item] * 20 + [bad], batch_items=6)]
            alone = await client.compare(*TEXTS)
            return [
                alone,
                await client.compare_batch([item, bad]),
                many,
                await client.models(),
                await client.is_ready(),
            ]

    with Client(url_of(service)) as client:
        many = list(client.compare_many([item] * 20 + [bad], batch_items=6))
        plain = [client.compare(*TEXTS), client.compare_batch([item, bad]), many, client.models(), client.is_ready()]
    for alone, (good, failed), results, (card,), is_ready in (plain, asyncio.run(ask())):
        assert alone.margin == pytest.approx(output["margin"], abs=1e-4)
        assert alone.usage.model_dump() == output["usage"]
        assert alone.model == output["model"] == f"{card.name}@{card.revision}"
        assert good.usage.tokens > 0
        assert isinstance(failed, ItemError)
        assert failed.type == "invalid_request"
        assert [isinstance(result, ItemError) for result in results] == [False] * 20 + [True]
        assert [result.margin for result in results[:20]] == pytest.approx([good.margin] * 20, abs=1e-4)
        assert is_ready


def test_refusals_name_the_field_and_the_request(service: Process) -> None:
    with Client(url_of(service)) as client, pytest.raises(CallRefused, match="prompt") as caught:
        client.compare("", "a", "b")
    assert (caught.value.type, caught.value.status) == ("invalid_request", 422)
    with Client(url_of(service)) as client, pytest.raises(CallRefused) as caught:
        client.compare("\ud800", "a", "b")
    assert caught.value.type == "invalid_text"
    assert len(caught.value.request_id or "") == 32


def test_the_service_learns_how_long_the_client_waits(service: Process) -> None:
    items: list[CompareItem] = [
        {"prompt": f"{'long ' * 2000}{n}", "response_a": "a", "response_b": "b"} for n in range(200)
    ]
    with Client(url_of(service), timeout_s=1, max_retries=0) as client:
        try:
            late = client.compare_batch(items)
        except CallTimedOut:
            return
    assert "deadline_exceeded" in {getattr(result, "type", "answered") for result in late}


def test_ranking(service: Process) -> None:
    responses = ["2 + 2 = 5.", "2 + 2 = 4.", "No idea."]

    async def ask() -> list[Any]:
        async with AsyncClient(url_of(service)) as client:
            return [await client.rank("What is 2 + 2?", responses), await client.rewards("What is 2 + 2?", responses)]

    with Client(url_of(service)) as client:
        ranked = client.rank("What is 2 + 2?", responses, win_matrix=True, swap="on")
        unit = client.rewards("What is 2 + 2?", responses, scale="unit", strategy="reference", reference="It is 4.")
        alone = client.compare("What is 2 + 2?", responses[0], responses[1], swap="on")
        with pytest.raises(CallRefused, match="reference"):
            client.rank("What is 2 + 2?", responses, strategy="reference")
    again, zero_mean = asyncio.run(ask())
    assert ranked.order == again.order == sorted(range(3), key=lambda i: -ranked.strengths[i])
    assert zero_mean.rewards == pytest.approx(ranked.strengths, abs=1e-3)
    assert ranked.win_matrix is not None
    assert ranked.win_matrix[0][1] == pytest.approx(alone.probability_a, abs=1e-4)
    assert again.win_matrix is None
    assert all(0 <= reward <= 1 for reward in unit.rewards)
    shown = run("rank", "What is 2 + 2?", *responses, "--url", url_of(service), "--swap", "on")
    assert [int(line.split()[3].strip("[]")) for line in shown.stdout.splitlines()] == ranked.order, shown.stderr


def test_counting_tokens(service: Process) -> None:
    async def ask() -> TokensReply:
        async with AsyncClient(url_of(service)) as client:
            return await client.count_tokens("p", ["", "word " * 1000], domain="chat")

    with Client(url_of(service)) as client:
        counts = client.count_tokens("p", ["", "word " * 1000], domain="chat")
    assert counts == asyncio.run(ask())
    assert counts.responses[0] == 0
    assert counts.responses[1] >= 1000 > counts.max_tokens
    assert counts.truncated.responses[1] > 1000 - counts.max_tokens


@pytest.mark.slow
def test_keys(bundle_folder: Path, tmp_path: Path) -> None:
    path, key_file = tmp_path / "keys.json", tmp_path / "key"
    key_file.write_text(keys(path, "new", "--name", "me", "--scopes", "score") + "\n")
    with started(bundle_folder, api_keys_file=path) as process:
        with Client(url_of(process)) as client, pytest.raises(CallRefused) as caught:
            client.models()
        assert caught.value.type == "unauthorized"
        done = run("models", "--url", url_of(process), "--api-key-file", key_file)
        assert done.stdout.startswith("toy@"), done.stderr


def test_commands_print_the_replies(service: Process) -> None:
    compared = run("compare", TEXTS[0], "-", TEXTS[2], "--url", url_of(service), "--json", stdin=TEXTS[1])
    assert compared.returncode == 0, compared.stderr
    with Client(url_of(service)) as client:
        assert json.loads(compared.stdout)["margin"] == pytest.approx(client.compare(*TEXTS).margin, abs=1e-4)
    assert run("models", "--url", url_of(service)).stdout.startswith("starter@")
    refused = run("compare", "q", "a", "b", "--domain", "cooking", "--url", url_of(service))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "unknown_domain" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
def test_real_pairs_are_scored_into_a_file(service: Process, data_dir: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    real = list(read_jsonl(data_dir / "validation.jsonl.gz"))[::100]
    source.write_text("".join(json.dumps(line) + "\n" for line in real))
    done = run("score", source, "--out", out, "--url", url_of(service))
    assert done.returncode == 0, done.stderr
    records = list(read_jsonl(out))
    assert [{k: v for k, v in record.items() if k != "tinyrm"} for record in records] == real
    with Client(url_of(service)) as client:
        first = client.compare(real[0]["prompt"], real[0]["chosen"], real[0]["rejected"], domain=real[0]["domain"])
    assert records[0]["tinyrm"]["reply"]["margin"] == pytest.approx(first.margin, abs=1e-4)


@pytest.mark.slow
def test_no_line_is_lost_when_the_service_is_killed(bundle_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Send SIGKILL during the work; the command stops after its waiting time, and its next run finishes."""
    out, port = tmp_path / "out.jsonl", free_port()
    words = command("score", pairs, "--out", out, "--url", f"http://127.0.0.1:{port}", "--batch-items", 10)
    with started(bundle_folder, port=port) as service:
        first = subprocess.Popen([*words, "--timeout-s", "4"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        wait_for_lines(out, first)
        service.popen.kill()
        _, output = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 1
    done = whole_lines(out)
    assert 0 < done < PAIRS
    assert f"stopped after {done} lines" in output
    with started(bundle_folder, port=port):
        second = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert second.returncode == 1, "one line is wrong"
    assert f"{PAIRS} lines in {out}, {PAIRS - done} of them new, 1 with an error" in second.stderr
    check_each_line_once(out)


@pytest.mark.slow
def test_the_command_waits_for_a_service_that_restarts(bundle_folder: Path, pairs: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "out.jsonl", free_port()
    words = command("score", pairs, "--out", out, "--url", f"http://127.0.0.1:{port}", "--batch-items", 10)
    with started(bundle_folder, port=port) as service:
        process = subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        wait_for_lines(out, process)
        service.popen.kill()
        service.popen.wait()
        assert whole_lines(out) < PAIRS
        with started(bundle_folder, port=port):
            _, output = process.communicate(timeout=PATIENCE_S)
    assert f"{PAIRS} lines in {out}, {PAIRS} of them new" in output
    check_each_line_once(out)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore SIGINT: jobs that a shell starts in the background ignore it, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_command_continues_where_it_stopped(
    bundle_folder: Path, pairs: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    out = tmp_path / "out.jsonl"
    with started(bundle_folder) as service:
        words = command("score", pairs, "--out", out, "--url", url_of(service), "--batch-items", 10)
        stops = []
        for least in (1, PAIRS // 3):
            process = subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
            wait_for_lines(out, process, least)
            os.kill(process.pid, sent)
            _, output = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == code, output
            assert "Traceback" not in output
            stops.append(whole_lines(out))
        assert 0 < stops[0] < stops[1] < PAIRS
        last = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert f"{PAIRS - stops[1]} of them new" in last.stderr
    check_each_line_once(out)
