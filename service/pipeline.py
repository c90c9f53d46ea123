"""A comparison's way through the service: encode, wait and run, read out."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.batcher import Batcher
from service.metrics import Metrics
from service.schemas import CompareRequest
from tinyrm.batch import collate
from tinyrm.comparison import Comparison, Preference
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.errors import Unavailable, UnknownModel
from tinyrm.flops import exact_flops, paper_flops
from tinyrm.manifest import Manifest
from tinyrm.readout import read_out
from tinyrm.runtimes import Engine


@dataclass(frozen=True, slots=True)
class Answer:
    """A preference, what it cost, and how long each stage took in seconds."""

    preference: Preference
    truncation: Truncation
    tokens: int
    gflops: float
    stages: dict[str, float]


class Pipeline:
    """Everything between a validated request and its answer, for one bundle on one engine."""

    def __init__(
        self, manifest: Manifest, encoder: Encoder, engine: Engine, metrics: Metrics, *,
        max_batch_tokens: int, max_queue_tokens: int, default_swap: str,
    ) -> None:  # fmt: skip
        self.manifest = manifest
        self.engine = engine
        self.metrics = metrics
        self.batcher = Batcher(self._run, max_batch_tokens, max_queue_tokens, metrics.observe_batch, step=engine.step)
        metrics.watch(self.batcher)
        self._encoder = encoder
        self._swap_by_default = default_swap == "on"
        self._encode_threads = ThreadPoolExecutor(thread_name_prefix="encode")

    async def compare(self, request: CompareRequest) -> Answer:
        """Raises InvalidInput and its kinds, Overloaded, ShuttingDown, EngineFailed."""
        started = time.perf_counter()
        try:
            self.batcher.refuse_if_full()
            readings = await self._encode(request)
            encoded = time.perf_counter()
            answered = await self.batcher.submit(readings)
        except Unavailable as error:
            self.metrics.observe_shed(error.type)
            raise
        preference = read_out(answered.logits, self.manifest.temperature)
        stages = {
            "encode": encoded - started,
            "queue": answered.queue_s,
            "run": answered.run_s,
            "total": time.perf_counter() - started,
        }
        return self._observed(preference, readings, stages)

    def close(self) -> None:
        self._encode_threads.shutdown(wait=False, cancel_futures=True)

    async def _encode(self, request: CompareRequest) -> tuple[Encoding, ...]:
        self._refuse_other_model(request.model)
        spec = self.manifest.spec
        own_instruction = spec.instruction(request.domain)
        instruction = own_instruction if request.instruction is None else request.instruction
        prompt = request.prompt if isinstance(request.prompt, str) else spec.template.render_messages(request.prompt)
        comparison = Comparison(prompt, request.response_a, request.response_b)
        swap = self._swap_by_default if request.swap is None else request.swap == "on"

        def encode() -> tuple[Encoding, ...]:
            texts = (instruction, prompt, comparison.response_a, comparison.response_b)
            self.metrics.observe_special_tokens(sum(map(self._encoder.writes_special_token, texts)))
            return self._encoder.encode(comparison, instruction, swap=swap)

        return await asyncio.get_running_loop().run_in_executor(self._encode_threads, encode)

    def _refuse_other_model(self, name: str | None) -> None:
        manifest = self.manifest
        if name not in (None, manifest.name, manifest.identity):
            raise UnknownModel(f"no model {name!r} is served here; it is {manifest.identity}")

    def _run(self, readings: Sequence[Encoding]) -> NDArray[np.float32]:
        batch = collate(readings, self._encoder.special.pad)
        started = time.perf_counter()
        logits = self.engine.run(batch.input_ids, batch.attention_mask)
        gflops = sum(exact_flops(self.manifest.geometry, len(reading)) for reading in readings) / 1e9
        self.metrics.observe_run(gflops, time.perf_counter() - started)
        return logits

    def _observed(self, preference: Preference, readings: tuple[Encoding, ...], stages: dict[str, float]) -> Answer:
        manifest = self.manifest
        lengths = list(map(len, readings))
        gflops = {
            "exact": sum(exact_flops(manifest.geometry, n) for n in lengths) / 1e9,
            "paper": sum(paper_flops(manifest.parameters, manifest.geometry, n) for n in lengths) / 1e9,
        }
        truncation = readings[0].truncation
        self.metrics.observe_stages(stages)
        self.metrics.observe_cost(gflops)
        self.metrics.observe_preference(preference, truncation)
        return Answer(preference, truncation, sum(lengths), gflops["exact"], stages)
