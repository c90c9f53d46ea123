"""Test that identical sequences run once, and that no reply depends on it: not in a failure, nor after a restart."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from service.engine.backend import LocalBackend
from service.engine.batcher import Batcher
from service.engine.reuse import ReusingEngine, Window, key_of
from service.engine.types import BatchOutput, EngineResult
from service.metrics import REUSED_WITHIN, Metrics
from service.settings import Settings
from tests.service.conftest import PAIR, EngineHere, serve
from tests.support.waiting import PATIENCE_S
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.engines.base import EngineInfo
from tinyrm.errors import EngineFailed, ShuttingDown

INFO = EngineInfo("test", "cpu", "fp32", max_batch_tokens=10, runs_in_flight=1, pads=False)


def sequence(name: int, tokens: int = 10) -> Encoding:
    return Encoding(np.full(tokens, name, dtype=np.int64), Truncation())


def names(sequences: Sequence[Encoding]) -> list[int]:
    return [int(one.input_ids[0]) for one in sequences]


@dataclass
class Counting:
    """An engine whose logits are (name, number of the run), so that a row tells which run computed it.

    gate: what each run waits for.
    fails: names that no batch survives.
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fails: set[int] = field(default_factory=set)
    ran: list[list[int]] = field(default_factory=list)
    restarts: int = 0
    broken_logit: float | None = None

    async def run(self, sequences: Sequence[Encoding]) -> BatchOutput:
        self.ran.append(names(sequences))
        number = len(self.ran)
        await self.gate.wait()
        if self.fails & set(names(sequences)):
            raise EngineFailed("as the test wants it")
        rows = [[name if self.broken_logit is None else self.broken_logit, number] for name in names(sequences)]
        return BatchOutput(np.array(rows, dtype=np.float32), 0.5)


def reusing(engine: Counting, window: Window | None = None, reused: Counter[str] | None = None) -> ReusingEngine:
    def count(within: str, sequences: int, _: int) -> None:
        if reused is not None:
            reused[within] += sequences

    return ReusingEngine(engine.run, lambda _: 2, window, restarts=lambda: engine.restarts, on_reuse=count)


def in_loop(test: Callable[[Counting], Awaitable[None]], *, is_open: bool = True) -> None:
    async def run() -> None:
        engine = Counting()
        if is_open:
            engine.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await test(engine)

    asyncio.run(run())


def test_the_key_covers_everything_that_an_engine_reads() -> None:
    """A new field of a sequence must become a part of the key if engines read it."""
    assert {one.name for one in dataclasses.fields(Encoding)} == {"input_ids", "truncation", "columns"}
    assert key_of(sequence(1)) == key_of(dataclasses.replace(sequence(1), truncation=Truncation(3), columns=(0, 1)))
    assert len({key_of(one) for one in (sequence(1), sequence(2), sequence(1, 11), sequence(256, 10))}) == 4


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino-cpu"])
def test_a_copied_row_has_the_bits_of_a_computed_one(name: str, bundle_folder: Path) -> None:
    engine = open_engine(Bundle.open(bundle_folder), EngineOptions(name))
    ids = np.random.default_rng(0)
    batch = [Encoding(ids.integers(10, 90, tokens), Truncation()) for tokens in (20, 20, 20, 33, 33, 64)]
    repeats = [batch[i] for i in (0, 3, 1, 0, 5, 3, 2, 4, 0)]
    alone = np.concatenate([engine.run([one]) for one in repeats])

    async def run(sequences: Sequence[Encoding]) -> BatchOutput:
        return BatchOutput(engine.run(sequences), 0.1)

    output = asyncio.run(ReusingEngine(run, lambda _: alone.shape[1]).run(repeats))
    assert output.ran is not None
    assert len(output.ran) == 6
    assert np.array_equal(output.logits, alone)
    assert np.array_equal(engine.run(repeats), alone), "batch-mates change no bit"


def test_each_sequence_of_a_batch_runs_once_and_every_row_has_its_logits() -> None:
    async def test(engine: Counting) -> None:
        reused = Counter[str]()
        output = await reusing(engine, reused=reused).run([sequence(name) for name in (1, 2, 1, 3, 2, 1)])
        assert engine.ran == [[1, 2, 3]]
        assert output.logits[:, 0].tolist() == [1, 2, 1, 3, 2, 1]
        assert reused == {"batch": 3}
        await reusing(engine).run([sequence(1)])
        assert engine.ran[1:] == [[1]], "nothing is kept without a window"

    in_loop(test)


def test_rows_of_sets_keep_their_own_width() -> None:
    """The sequence `n` is a set of n responses."""

    async def run(sequences: Sequence[Encoding]) -> BatchOutput:
        most = max(names(sequences))
        return BatchOutput(np.array([[1.0] * n + [0.0] * (most - n) for n in names(sequences)], dtype=np.float32), 0)

    async def test(_: Counting) -> None:
        engine = ReusingEngine(run, lambda batch: max(names(batch)), Window(60, 1 << 20))
        await engine.run([sequence(2), sequence(4)])
        small = await engine.run([sequence(2), sequence(2)])
        assert small.logits.tolist() == [[1, 1], [1, 1]]
        mixed = await engine.run([sequence(2), sequence(3)])
        assert mixed.logits.tolist() == [[1, 1, 0], [1, 1, 1]]

    in_loop(test)


def test_a_window_keeps_logits_until_they_expire_or_the_engine_is_replaced() -> None:
    async def test(engine: Counting) -> None:
        now, reused = [0.0], Counter[str]()
        kept = reusing(engine, Window(5, 1 << 20, lambda: now[0]), reused)
        await kept.run([sequence(1)])
        second = await kept.run([sequence(1), sequence(2)])
        assert engine.ran == [[1], [2]]
        assert second.logits.tolist() == [[1, 1], [2, 2]]
        assert second.ran is not None
        assert names(second.ran) == [2]
        assert kept.known([sequence(2), sequence(1)]) is not None
        assert kept.known([sequence(2), sequence(3)]) is None
        assert reused == {"window": 3}
        now[0] = 5.0
        assert kept.known([sequence(1)]) is None
        await kept.run([sequence(1)])
        engine.restarts += 1
        assert kept.known([sequence(1)]) is None
        assert engine.ran == [[1], [2], [1]]

    in_loop(test)


def test_logits_of_an_engine_that_was_replaced_during_the_run_are_not_kept() -> None:
    async def test(engine: Counting) -> None:
        kept = reusing(engine, Window(5, 1 << 20))
        run = asyncio.ensure_future(kept.run([sequence(1)]))
        await asyncio.sleep(0)
        engine.restarts += 1
        engine.gate.set()
        await run
        assert kept.known([sequence(1)]) is None

    in_loop(test, is_open=False)


def test_logits_that_are_not_finite_are_not_kept() -> None:
    async def test(engine: Counting) -> None:
        kept = reusing(engine, Window(5, 1 << 20))
        engine.broken_logit = float("nan")
        await kept.run([sequence(1)])
        engine.broken_logit = None
        assert (await kept.run([sequence(1)])).logits.tolist() == [[1, 2]]

    in_loop(test)


def test_the_window_drops_the_least_recently_used_beyond_its_bytes() -> None:
    row = np.zeros(2, dtype=np.float32)
    window = Window(5, 2000, lambda: 0.0)
    keys = [key_of(sequence(name, 100)) for name in range(4)]
    for key in keys[:2]:
        window.add(key, row)
    window.add(keys[0], row)
    one = window.bytes // 2
    assert len(window) == 2
    assert 400 < one < 1000
    window.get(keys[0])
    window.add(keys[2], row)
    assert [window.get(key) is not None for key in keys] == [True, False, True, False]
    assert window.bytes == 2 * one <= 2000
    window.add(key_of(sequence(9, 1000)), row)  # larger than the window
    assert (len(window), window.bytes) == (0, 0)


def test_a_batch_waits_for_what_another_one_is_running() -> None:
    async def test(engine: Counting) -> None:
        kept = reusing(engine, Window(5, 1 << 20))
        runs = [asyncio.ensure_future(kept.run([sequence(n) for n in batch])) for batch in ((1, 2), (2, 3), (3, 1))]
        await asyncio.sleep(0)
        assert engine.ran == [[1, 2], [3]]
        engine.gate.set()
        outputs = await asyncio.gather(*runs)
        assert [output.logits.tolist() for output in outputs] == [[[1, 1], [2, 1]], [[2, 1], [3, 2]], [[3, 2], [1, 1]]]

    in_loop(test, is_open=False)


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_a_first_batch_that_ends_early_does_not_fail_those_that_wait_for_it(end: str) -> None:
    async def test(engine: Counting) -> None:
        kept = reusing(engine, Window(5, 1 << 20))
        first = asyncio.ensure_future(kept.run([sequence(1), sequence(7)]))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(kept.run([sequence(1)])) for _ in range(2)]
        await asyncio.sleep(0)
        assert engine.ran == [[1, 7]]
        if end == "fails":
            engine.fails.add(7)
        else:
            first.cancel()
        engine.gate.set()
        with pytest.raises((EngineFailed, asyncio.CancelledError)):
            await first
        assert [output.logits.tolist() for output in await asyncio.gather(*others)] == [[[1, 2]]] * 2
        assert engine.ran == [[1, 7], [1]], "one of them runs it for both"

    in_loop(test, is_open=False)


def submit(batcher: Batcher, *held: int, **options: object) -> "asyncio.Task[EngineResult]":
    work = batcher.submit(tuple(sequence(name) for name in held), **options)  # type: ignore[arg-type]
    return asyncio.ensure_future(work)


def test_what_did_not_run_counts_neither_as_tokens_nor_in_the_rate() -> None:
    async def test(engine: Counting) -> None:
        reports, now = [], [0.0]

        async def run(sequences: Sequence[Encoding]) -> BatchOutput:
            now[0] += 0.01 * len(sequences)
            return await engine.run(sequences)

        kept = ReusingEngine(run, lambda _: 2, Window(60, 1 << 20))
        info = dataclasses.replace(INFO, max_batch_tokens=40)
        batcher = Batcher(kept.run, info, 1000, on_batch=reports.append, clock=lambda: now[0])
        await asyncio.gather(submit(batcher, 1, 1), submit(batcher, 1, 2))
        await submit(batcher, 1, 2)
        await asyncio.sleep(0)
        assert [(names(report.sequences), report.padded_tokens) for report in reports] == [([1, 2], 20)]
        assert batcher.tokens_per_s == pytest.approx(1000)

    in_loop(test)


def test_the_service_replies_the_same_with_a_window(bundle_folder: Path) -> None:
    items = [PAIR | {"response_a": text} for text in ("one", "two", "one")]
    settings = Settings(model=str(bundle_folder))
    with serve(settings) as without, serve(settings.model_copy(update={"reuse_s": 60.0})) as kept:
        expected = without.client.post("/v1/compare/batch", json={"items": items}).json()
        assert [kept.client.post("/v1/compare/batch", json={"items": items}).json() for _ in range(2)] == [expected] * 2
        assert kept.compare() == kept.compare() == without.compare()
        model = kept.pipeline.manifest.name
        reused = [kept.metric("tinyrm_sequences_reused_total", model=model, within=where) for where in REUSED_WITHIN]
        assert sum(reused) == 2 + 6 + 2, "both orders of the third item, and of the second call of each"
        assert without.metric("tinyrm_sequences_reused_total", model=model, within="window") == 0


def test_a_closed_queue_refuses_also_what_the_window_has(bundle_folder: Path) -> None:
    bundle, held = Bundle.open(bundle_folder), (sequence(7),)
    settings = Settings(model=str(bundle_folder), reuse_s=60)

    async def test(_: Counting) -> None:
        backend = LocalBackend(settings, bundle.manifest, EngineHere(bundle), Metrics())
        for _ in range(2):
            await backend.submit(held, fairness_key=None, timeout_s=None, wait_for_room=False)
        await backend.drain(PATIENCE_S)
        with pytest.raises(ShuttingDown):
            await backend.submit(held, fairness_key=None, timeout_s=None, wait_for_room=False)

    in_loop(test)
