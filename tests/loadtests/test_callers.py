"""Servers under callers: a real service and the one that people write themselves, counted reply by reply."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer

from export.config import ExportOptions
from export.pipeline import export_bundle
from loadtests.bench import caller_tables, callers
from loadtests.bench.callers import KINDS, OURS, Asked, Extent, Tree, check, failures, lengths, pair, serving
from loadtests.bench.texts import Texts
from loadtests.bench.workers.serving import Server
from loadtests.wire import request
from tests.support.checkpoints import PUBLISHED
from tests.support.kept import kept
from tinyrm.scorer import Scorer

LENGTHS = [20, 60, 33, 21, 45, 28, 50, 22]


@pytest.fixture(scope="module")
def folder(pytestconfig: pytest.Config) -> Path:
    """Return a folder with a cross-encoder, `model`, and its bundle."""

    def make(folder: Path) -> None:
        PUBLISHED["bert"].write(folder / "model")
        export_bundle(ExportOptions(model=str(folder / "model"), out=folder / "bundle"))

    return kept(pytestconfig, "callers", make)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[tuple[str, str]]:
    texts = Texts(Tokenizer.from_file(str(folder / "model" / "tokenizer.json")))
    return [pair(texts, number, tokens) for number, tokens in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def expected(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    scorer = Scorer.open(folder / "bundle")
    return [float(scorer.score_responses(query, [document])[0]) for query, document in pairs]


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(KINDS[0], folder / "bundle", 1, tmp_path_factory.mktemp("log") / "service.log") as server:
        yield server


def asked(pairs: list[tuple[str, str]], expected: list[float] | None) -> Asked:
    kind = KINDS[0]
    contents = [request(kind.path, json.dumps(kind.body(*texts)).encode()) for texts in pairs]
    return Asked(contents, expected, kind.read, callers.TOLERANCE)


@pytest.mark.slow
def test_every_reply_of_the_service_is_right(
    service: Server, pairs: list[tuple[str, str]], expected: list[float]
) -> None:
    found = callers.measure(service, asked(pairs, expected), 4)
    assert (found["requests"], found["lost"], found["wrong"]) == (len(LENGTHS), 0, 0)
    assert found["difference"] < callers.TOLERANCE
    assert 0 < found["p50_s"] <= found["p99_s"]
    assert found["pss_peak_bytes"] >= found["pss_end_bytes"] > 2**20
    assert found["cpu_s_per_1000"] > 0


def test_a_wrong_score_is_a_loss_and_a_failure(
    service: Server, pairs: list[tuple[str, str]], expected: list[float]
) -> None:
    shifted = [expected[0] + 1, *expected[1:]]
    found = callers.measure(service, asked(pairs, shifted), 1)
    assert (found["lost"], found["wrong"]) == (1, 1)
    (line,) = failures([callers.row("minilm", KINDS[0], 1, [found])])
    assert "1 of 8 replies are wrong" in line


def test_an_error_is_a_loss_and_not_a_wrong_score(service: Server) -> None:
    refused = request("/v1/score", b'{"prompt": "no response"}')
    found = callers.measure(service, Asked([refused] * 3, [0.0] * 3, KINDS[0].read, 1.0), 1)
    assert (found["lost"], found["wrong"], found["pairs_per_s"]) == (3, 0, 0)
    assert sum(found["outcomes"].values()) == 3


@pytest.mark.parametrize("body", [b"{}", b"no json", b'{"results": [{"raw": null}]}', b'{"results": [{"raw": NaN}]}'])
def test_a_reply_without_a_score_is_wrong(body: bytes) -> None:
    wrong, _ = check([(b"content", body)], Asked([b"content"], [0.5], KINDS[0].read, 1.0))
    assert wrong == 1


@pytest.mark.slow
def test_the_service_that_people_write_computes_the_same(
    folder: Path, pairs: list[tuple[str, str]], expected: list[float]
) -> None:
    from loadtests.bench.workers.fastapi_http import application  # sentence-transformers takes two seconds

    kind = next(kind for kind in KINDS if kind.name == "fastapi")
    client = TestClient(application(folder / "model"))
    assert client.get("/health").status_code == 200
    scores = [kind.read(client.post(kind.path, json=kind.body(*texts)).json()) for texts in pairs]
    assert scores == pytest.approx(expected, abs=callers.TOLERANCE)


@pytest.mark.slow
def test_servers_take_turns_and_a_dead_one_is_a_reason(
    folder: Path, pairs: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "ROOT", tmp_path)
    reasons: list[str] = []
    extent = Extent(requests=len(LENGTHS), rounds=1, callers=(1, 2))
    servers = {KINDS[0]: (folder / "bundle", asked(pairs, None)), KINDS[2]: (tmp_path, asked(pairs, None))}
    rows = callers.take_turns("minilm", servers, 1, extent, reasons)
    assert [(row["server"], row["callers"], row["lost"]) for row in rows] == [(OURS, 1, 0), (OURS, 2, 0)]
    (reason,) = reasons
    assert "the server exited with" in reason


def test_lengths_are_spread_between_the_bounds() -> None:
    found = lengths(1000)
    assert (min(found), max(found) <= callers.LONGEST) == (callers.SHORTEST, True)
    assert 120 < sorted(found)[500] < 190
    assert found == lengths(1000)


def test_a_tree_of_processes_that_ended_uses_nothing() -> None:
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tree = Tree(process.pid)
    assert tree.pss_bytes() > 0
    process.communicate(b"\n")
    assert (tree.pss_bytes(), tree.cpu_s()) == (0, 0)
    assert tree.peak_bytes > 0


def sample(rate: float) -> dict[str, Any]:
    figures = {"p50_s": 0.01, "p99_s": 0.02, "pss_end_bytes": 2**28, "pss_peak_bytes": 2**28, "cpu_s_per_1000": 40.0}
    counts = {"requests": 10, "lost": 0, "wrong": 0, "outcomes": {"503 overloaded": 2}}
    return {"pairs_per_s": rate, "difference": 1e-6, **counts, **figures}


def test_tables_state_the_ratio_to_ours_and_the_spread_over_rounds() -> None:
    rows = [
        callers.row("minilm", kind, 8, [sample(rate) for rate in rates])
        for kind, rates in ((KINDS[0], (20, 24, 22)), (KINDS[2], (11, 10, 12)))
    ]
    results = {"rows": rows, "notes": callers.NOT_RUN, "threads": 2}
    results["targets"] = [target.record() for target in callers.targets_of(rows)]
    results["machine"] = {"cpu": "a CPU", "family": 6, "model": 1, "cores": 2}
    text = caller_tables.section(results)
    assert "22 (20-24)" in text
    assert "2.00x" in text
    assert "8 callers: 6 x 503 overloaded" in text
    assert "8 callers, pairs a second over FastAPI and sentence-transformers (torch) 2x (at least 1x: met)" in text
    assert "* vLLM" in text
