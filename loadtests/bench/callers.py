"""Servers under 1, 8 and 64 callers: pairs a second, latency, losses, memory and CPU time of each, in turns.

One cross-encoder with random weights behind every server, the same texts in the same order; a caller sends its next
request, one query and one document, after the reply to its last. One server runs at a time. Then the product's own
request, `/v1/compare` of the starter, in the same way.
"""

import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import uvloop
from tokenizers import Tokenizer

from loadtests import machine
from loadtests.bench.caller_tables import OURS, ratio
from loadtests.bench.contenders import INFINITY, Contender, environment
from loadtests.bench.cross_encoders import MODELS, TOLERANCE, ModelName, steps
from loadtests.bench.output import ROOT, print_line
from loadtests.bench.prepare import make_all
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.texts import Texts
from loadtests.bench.workers import infinity_http
from loadtests.bench.workers.serving import Server, free_port
from loadtests.payloads import COMPARE, synthetic
from loadtests.report import Target
from loadtests.service_process import STARTER
from loadtests.traffic import Tally, call
from loadtests.wire import Client, Reply, request
from tinyrm.scorer import Scorer

CALLERS = (1, 8, 64)
SHORTEST, LONGEST, MEDIAN_TOKENS, SIGMA = 20, 1024, 150, 0.9
# Longer than any server here needs for 64 requests: what is not answered by then is lost.
CLIENT_TIMEOUT_S = 120
SAMPLE_EVERY_S = 0.5
REFERENCE_TIMEOUT_S = 300
PROBABILITY_TOLERANCE = 1e-4

HERE = Path(sys.executable)  # the environment of development

# What a user could run instead, and why it has no row.
NOT_RUN = (
    "vLLM: its package for CPUs is not on PyPI, where the package of that name needs CUDA",
    "Text Embeddings Inference: a container or a Rust build; it has no Python package",
)

Read = Callable[[Any], float]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server: how one is started, and how one pair is asked for.

    python: of the environment that has it.
    artifact: what it serves, by its name in prepare.py.
    start: (folder, threads, log) -> a started server.
    path, body, read: of a request, and the score in its reply.
    """

    name: str
    title: str
    python: Path
    artifact: str
    start: Callable[[Path, int, Path], Server]
    path: str
    body: Callable[[str, str], Mapping[str, Any]]
    read: Read


def start_ours(model: Path, threads: int, log: Path) -> Server:
    port = free_port()
    settings = {"model": model, "threads": threads, "port": port, "log_level": "warning"}
    variables = environment(threads) | {f"TINYRM_{name.upper()}": str(value) for name, value in settings.items()}
    return Server([str(HERE), "-m", "service"], variables, port, "/readyz", log)


def start_infinity(model: Path, threads: int, log: Path) -> Server:
    return infinity_http.start(model, INFINITY, log, environment(threads))


def start_fastapi(model: Path, threads: int, log: Path) -> Server:
    port = free_port()
    command = [str(HERE), "-m", "loadtests.bench.workers.fastapi_http", "--model", str(model)]
    command += ["--threads", str(threads), "--port", str(port)]
    return Server(command, environment(threads), port, "/health", log)


KINDS = (
    Kind(
        OURS,
        "TinyRM, `/v1/score`",
        HERE,
        "bundle",
        start_ours,
        "/v1/score",
        lambda query, document: {"prompt": query, "responses": [document]},
        lambda reply: reply["results"][0]["raw"],
    ),
    Kind(
        "infinity",
        "infinity_emb (torch), `/rerank`",
        INFINITY,
        "model",
        start_infinity,
        "/rerank",
        lambda query, document: {"model": "bench", "query": query, "documents": [document], "raw_scores": True},
        lambda reply: reply["results"][0]["relevance_score"],
    ),
    Kind(
        "fastapi",
        "FastAPI and sentence-transformers (torch)",
        HERE,
        "model",
        start_fastapi,
        "/rerank",
        lambda query, document: {"query": query, "documents": [document]},
        lambda reply: reply["scores"][0],
    ),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one server is sent, and what it must return.

    expected: the score of each request; None if there is no reference.
    """

    contents: Sequence[bytes]
    expected: Sequence[float] | None
    read: Read
    tolerance: float


@dataclass(slots=True)
class Checked(Tally):
    """A tally that keeps the replies. They are read after the run: parsing would compete with the server for cores."""

    replies: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def send(self, client: Client, content: bytes, due: float) -> Reply | None:
        reply = await Tally.send(self, client, content, due)
        if reply is not None and reply.status == 200:
            self.replies.append((content, reply.body))
        return reply


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. requests: of each number of callers in each round."""

    requests: int = 256
    compares: int = 1024
    rounds: int = 3
    callers: Sequence[int] = CALLERS
    models: Sequence[ModelName] = tuple(MODELS)


EXTENTS: Mapping[str, Extent] = {
    "full": Extent(),
    "brief": Extent(requests=128, compares=512, models=("minilm",)),
    "quick": Extent(requests=64, compares=256, rounds=1, models=("minilm",)),
}


def run(extent: Extent, threads: int = 0) -> dict[str, Any]:
    """Measure all servers.

    Return "rows", one for each model, server and number of callers; "targets"; "notes", what was not measured and why;
    "failures", which a caller must turn into its exit status.

    threads: of each server; 0 takes the cores of this machine.
    """
    threads = threads or machine.usable_cores()
    rows: list[dict[str, Any]] = []
    notes = list(NOT_RUN)
    for model in extent.models:
        found, reasons = measure_model(model, threads, extent)
        rows += found
        notes += [f"{model}: {reason}" for reason in reasons]
    rows += measure_starter(threads, extent)
    targets = [target.record() for target in targets_of(rows)]
    return {"rows": rows, "targets": targets, "notes": notes, "failures": failures(rows), "threads": threads}


def measure_model(model: ModelName, threads: int, extent: Extent) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of one cross-encoder, and why a server has none."""
    kinds = [kind for kind in KINDS if kind.python.exists()]
    reasons = [f"{kind.title}: {kind.python.parent.parent} is not installed" for kind in KINDS if kind not in kinds]
    prepared = make_all(steps(model), ROOT, {kind.artifact for kind in kinds}, print_line)
    if prepared.reasons:
        return [], [f"{name} {reason}" for name, reason in prepared.reasons.items()]
    texts = Texts(Tokenizer.from_file(str(prepared.paths["model"] / "tokenizer.json")))
    pairs = [pair(texts, number, tokens) for number, tokens in enumerate(lengths(extent.requests))]
    try:
        expected = reference_scores(prepared.paths["model"], pairs, threads)
    except WorkerFailed as failure:
        reasons.append(f"scores not compared, sentence-transformers: {failure}")
        expected = None
    servers = {
        kind: (
            prepared.paths[kind.artifact],
            Asked(
                [request(kind.path, json.dumps(kind.body(*both)).encode()) for both in pairs],
                expected,
                kind.read,
                TOLERANCE,
            ),
        )
        for kind in kinds
    }
    return take_turns(model, servers, threads, extent, reasons), reasons


def measure_starter(threads: int, extent: Extent) -> list[dict[str, Any]]:
    """Return the rows of `/v1/compare`. The reference is the library in this process."""
    bodies = synthetic(extent.compares)
    scorer = Scorer.open(STARTER, "onnxruntime-cpu", threads=threads)
    expected = [scorer.compare(**body).p_a for body in bodies]
    del scorer  # its threads
    kind = replace(KINDS[0], title="TinyRM, `/v1/compare`", read=lambda reply: reply["probability_a"])
    contents = [request(COMPARE, json.dumps(body).encode()) for body in bodies]
    asked = Asked(contents, expected, kind.read, PROBABILITY_TOLERANCE)
    return take_turns("starter", {kind: (STARTER, asked)}, threads, extent, [])


def take_turns(
    model: str,
    servers: Mapping[Kind, tuple[Path, Asked]],
    threads: int,
    extent: Extent,
    reasons: list[str],
) -> list[dict[str, Any]]:
    """Run one server after the other in each round. Return a row for each and each number of callers.

    reasons: receives why a server did not start.
    """
    samples: dict[tuple[Kind, int], list[dict[str, Any]]] = {}
    for turn in range(extent.rounds):
        for kind, (folder, asked) in servers.items():
            log = ROOT / "logs" / "callers" / f"{model}-{kind.name}.log"
            try:
                with serving(kind, folder, threads, log) as server:
                    for callers in extent.callers:
                        sample = measure(server, asked, callers)
                        samples.setdefault((kind, callers), []).append(sample)
                        print_line(
                            f"  round {turn + 1}, {model}, {kind.name}, {callers} callers: "
                            f"{sample['pairs_per_s']:.1f} pairs/s, lost {sample['lost']}"
                        )
            except (OSError, RuntimeError) as failure:
                reasons.append(f"{kind.title}, round {turn + 1}: {failure}")
    return [row(model, kind, callers, found) for (kind, callers), found in samples.items()]


@contextmanager
def serving(kind: Kind, folder: Path, threads: int, log: Path) -> Iterator[Server]:
    """Run a server that is ready. Raises RuntimeError, OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    server = kind.start(folder, threads, log)
    try:
        server.wait()
        yield server
    finally:
        server.close()


def measure(server: Server, asked: Asked, callers: int) -> dict[str, Any]:
    """Send every request once from so many callers, after a warm-up of a tenth, and return one sample."""

    async def send_all(contents: Sequence[bytes]) -> Checked:
        tally, client = Checked(), Client(server.port, timeout_s=CLIENT_TIMEOUT_S)
        await call(client, contents, callers, tally)
        client.close()
        return tally

    uvloop.run(send_all(asked.contents[: max(callers, len(asked.contents) // 10)]))
    tree = Tree(server.pid)
    with tree.watched():
        cpu_s, started = tree.cpu_s(), time.perf_counter()
        tally = uvloop.run(send_all(asked.contents))
        seconds, cpu_s = time.perf_counter() - started, tree.cpu_s() - cpu_s
    wrong, difference = check(tally.replies, asked)
    right = len(tally.replies) - wrong
    return {
        "pairs_per_s": right / seconds,
        "p50_s": tally.percentile_s(50),
        "p99_s": tally.percentile_s(99),
        "requests": len(asked.contents),
        "lost": len(asked.contents) - right,
        "wrong": wrong,
        "outcomes": {**tally.kinds, **tally.losses},
        "difference": difference,
        "pss_end_bytes": tree.pss_bytes(),
        "pss_peak_bytes": tree.peak_bytes,
        "cpu_s_per_1000": cpu_s / max(right, 1) * 1000,
    }


def check(replies: Sequence[tuple[bytes, bytes]], asked: Asked) -> tuple[int, float | None]:
    """Return how many replies are wrong, and the largest difference of one that has a score."""
    if asked.expected is None:
        return 0, None
    expected = dict(zip(asked.contents, asked.expected, strict=True))
    wrong, largest = 0, 0.0
    for content, body in replies:
        try:
            difference = abs(float(asked.read(json.loads(body))) - expected[content])
        except (ValueError, KeyError, IndexError, TypeError):
            wrong += 1
            continue
        wrong += not difference <= asked.tolerance  # a NaN, too
        largest = max(largest, difference)
    return wrong, largest


class Tree:
    """A process and its descendants: what they use together."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.peak_bytes = 0

    def cpu_s(self) -> float:
        """Return user and system seconds, those of children that ended included."""
        total = 0.0
        for process in self._all():
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
        return total

    def pss_bytes(self) -> int:
        """Return the proportional set size: a page that two processes share counts once in all."""
        total = 0
        for process in self._all():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile, note the peak of the memory twice a second."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(SAMPLE_EVERY_S):
                self.pss_bytes()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _all(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []


def row(model: str, kind: Kind, callers: int, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the medians over rounds, each with the lowest and the highest; losses are those of all rounds."""

    def spread(name: str) -> dict[str, float] | None:
        values = [sample[name] for sample in samples if sample[name] is not None]
        return {"median": statistics.median(values), "low": min(values), "high": max(values)} if values else None

    differences = [sample["difference"] for sample in samples if sample["difference"] is not None]
    figures = ("pairs_per_s", "p50_s", "p99_s", "pss_end_bytes", "pss_peak_bytes", "cpu_s_per_1000")
    return {
        "model": model,
        "server": kind.name,
        "title": kind.title,
        "callers": callers,
        "rounds": len(samples),
        "requests": sum(sample["requests"] for sample in samples),
        "lost": sum(sample["lost"] for sample in samples),
        "wrong": sum(sample["wrong"] for sample in samples),
        "outcomes": dict(sum((Counter(sample["outcomes"]) for sample in samples), Counter())),
        "difference": max(differences, default=None),
        **{name: spread(name) for name in figures},
    }


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Return how many times ours is of each other server, and that no request of ours is lost."""
    ours = {(row["model"], row["callers"]): row for row in rows if row["server"] == OURS}
    found = [
        Target(
            f"{row['model']}, {count_of(row)}, pairs a second over {row['title']}",
            ratio(ours.get((row["model"], row["callers"])), row),
            1.0,
            "at least",
            "x",
        )
        for row in rows
        if row["server"] != OURS
    ]
    lost = sum(row["lost"] for row in ours.values())
    return [*found, Target("requests that TinyRM lost", lost, 0, "at most")]


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each server with a score that is not the reference's."""
    return [
        f"{row['model']}, {row['title']}, {count_of(row)}: {row['wrong']} of {row['requests']} replies are wrong"
        for row in rows
        if row["wrong"]
    ]


def count_of(row: Mapping[str, Any]) -> str:
    return "1 caller" if row["callers"] == 1 else f"{row['callers']} callers"


def lengths(count: int) -> list[int]:
    """Return so many lengths in tokens: lognormal, those outside of SHORTEST to LONGEST drawn again."""
    dice = random.Random(17)
    found: list[int] = []
    while len(found) < count:
        tokens = round(MEDIAN_TOKENS * dice.lognormvariate(0, SIGMA))
        if SHORTEST <= tokens <= LONGEST:
            found.append(tokens)
    return found


def pair(texts: Texts, number: int, tokens: int) -> tuple[str, str]:
    """Return a query and a document that have so many tokens together; every pair has a query of its own."""
    made = texts.request(f"callers {number}", [tokens])
    return made["prompt"], made["responses"][0]


def reference_scores(model: Path, pairs: Sequence[tuple[str, str]], threads: int) -> list[float]:
    """Return what sentence-transformers computes on torch, one pair at a time. Raises WorkerFailed."""
    contender = Contender("reference", "sentence-transformers, torch", "fp32", HERE, "model", "cross_encoder")
    log = ROOT / "logs" / "callers" / "reference.log"
    worker = Worker(contender.command(model, threads), environment(threads), log)
    try:
        worker.wait_ready(REFERENCE_TIMEOUT_S)
        once = {"warmup": 0, "repeat": 1}
        replies = [
            worker.send({"prompt": query, "responses": [document], **once}, REFERENCE_TIMEOUT_S)
            for query, document in pairs
        ]
    finally:
        worker.close()
    return [reply["logits"][0][0] for reply in replies]
