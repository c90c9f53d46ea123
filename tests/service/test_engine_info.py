"""Test that limits come from what the engine states: a GPU gets its batch and two runs in flight."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.engine.backend import LocalBackend, start_backend
from service.engine.engine_process import EngineProcess
from service.engine.worker import EngineProcessOptions
from service.metrics import Metrics
from service.settings import Settings
from tests.service.gpu_engine import TOGETHER, GpuEngine
from tests.support.bulk_run import pair, write
from tinyrm.bulk import bundle as bundle_scoring
from tinyrm.bulk.bundle import BundleJob, ShardScorer
from tinyrm.bulk.sources import plan
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoding, Truncation

GPU_BATCH_TOKENS = 16_384


def test_the_service_gives_a_gpu_its_batch_and_two_runs(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    (probe,) = bundle.encoder().encode(Comparison("a", "b", "c"), bundle.manifest.spec.instruction(None))
    sequence = Encoding(np.array([1, TOGETHER, 4, 2]), Truncation())

    async def start(settings: Settings, bundle: Bundle) -> EngineProcess:
        engine = EngineProcess(bundle, EngineProcessOptions(), lambda: probe, 60, module="tests.service.gpu_engine")
        await engine.start()
        return engine

    async def scenario() -> LocalBackend:
        settings = Settings(model=bundle_folder)
        backend = await start_backend(settings, bundle, Metrics(), start)
        try:
            calls = [backend.submit((sequence,), fairness_key=key, timeout_s=60, wait_for_room=False) for key in "ab"]
            first = asyncio.create_task(calls[0])
            await asyncio.sleep(0.05)  # it runs, alone: the second needs a run of its own
            answers = await asyncio.gather(first, calls[1])
        finally:
            await backend.drain(0)
        assert [answer.logits.tolist() for answer in answers] == [[[0.0, 0.0]]] * 2
        return backend

    backend = asyncio.run(scenario())
    assert backend.profile.info.name == "fake-gpu"
    assert backend.batcher.max_batch_tokens == GPU_BATCH_TOKENS


def test_bulk_scoring_gives_a_gpu_its_batch_and_two_runs(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = GpuEngine()
    monkeypatch.setattr(bundle_scoring, "open_engine", lambda *_, **__: engine)
    # Two sequences of 256 tokens each, and two full runs of all.
    rows = [pair(n) | {"prompt": "Why? " * 300} for n in range(64)]
    scorer = ShardScorer(BundleJob(bundle_folder, tmp_path / "out"))
    (shard,) = plan(str(write(tmp_path / "pairs.jsonl", *rows)), 64).shards
    table, stats = scorer.score(shard, scorer.read(shard))
    assert (table.num_rows, stats.errors, stats.tokens) == (64, 0, 2 * GPU_BATCH_TOKENS)
    assert engine.max_tokens == GPU_BATCH_TOKENS
