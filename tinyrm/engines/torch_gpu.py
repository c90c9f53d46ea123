"""Packed tokens through torch on a GPU: bf16, fixed shapes, one captured graph for each, two steps in flight.

A step's tokens are filled to the next bucket, so that a graph captured once serves it. While one step runs, the next is
packed and its copies are queued; all of a step stands in one stream, so steps never see each other's tokens.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyrm.engines.base import cpu_info, gpu_info
from tinyrm.engines.packing import Bucket, Packed, fill, pack_rows
from tinyrm.errors import EngineFailed, EngineUnavailable
from tinyrm.manifest import Manifest
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.packed import PackedAttention, reference_kernel, varlen_kernel
from tinyrm.modernbert.weights import load_weights

BUCKETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
# The attention kernel of each kind of device takes these; the reference takes anything, slowly.
PRECISIONS = {
    "cuda": {"bf16": torch.bfloat16, "fp16": torch.float16},
    "cpu": {"fp32": torch.float32, "bf16": torch.bfloat16},
}
SLOTS = 2
# Runs before a capture: libraries make their plans and workspaces in the first ones.
RUNS_BEFORE_CAPTURE = 3

Forward = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor], None]


@dataclass(eq=False, slots=True)
class Ticket:
    """A step that was handed over; `logits` once it is known."""

    slot: "Slot"
    texts: int
    logits: NDArray[np.float32] | None = None


@dataclass(eq=False, slots=True)
class Slot:
    """Host buffers of one step: `Packed.flat` in, logits [texts, 2] out. ticket: whose they are until it is settled."""

    flat: Tensor
    logits: Tensor
    done: torch.cuda.Event | None
    ticket: Ticket | None = field(default=None)

    def wait(self) -> None:
        if self.done is not None:
            self.done.synchronize()


class TorchCudaEngine:
    """Takes over `model`, a fused one. Texts of up to `model.max_tokens`; several threads may call.

    device: "cuda", "cuda:1"; "cpu" computes the same slowly, for tests. buckets: tokens of each fixed shape. compiled:
    layers through torch.compile. Raises EngineUnavailable.
    """

    def __init__(
        self, model: PreferenceModel, *, mask_id: int, precision: str, device: str = "cuda",
        buckets: Sequence[int] = BUCKETS, compiled: bool = False,
    ) -> None:  # fmt: skip
        self._device = torch.device(device)
        name, on_gpu = f"torch-{device}", self._device.type == "cuda"
        self.info = gpu_info(name, precision, pads=False) if on_gpu else cpu_info(name, precision)
        self._model = _placed(model, self._device, precision)
        self._mask_id = mask_id
        self._buckets = [Bucket.of(tokens, model.max_tokens) for tokens in sorted(buckets)]
        if compiled:
            for layer in model.layers:
                layer.compile(dynamic=True)  # any bucket: one compilation for each kind of layer
        self._cuda = CudaQueue(self._device) if self._device.type == "cuda" else None
        self._steps: dict[Bucket, Step] = {}
        self._slots = [self._slot(self._buckets[-1]) for _ in range(SLOTS)]
        self._lock = threading.Lock()

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """A batch beyond the largest bucket runs in several steps."""
        return np.concatenate([self.result(ticket) for ticket in self._submit_all(input_ids, attention_mask)])

    def submit(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Ticket:
        """Queue one step and return at once, unless both slots are taken: then the older step is waited for.

        Raises EngineFailed, also for a batch beyond the largest bucket.
        """
        with _failures(self.info.name):
            packed = pack_rows(input_ids, attention_mask, self._mask_id)
            bucket = self._bucket(packed)
            flat = torch.from_numpy(fill(packed, bucket).flat())
            with self._lock:
                return self._queue(flat, bucket, len(packed.mask_rows))

    def result(self, ticket: Ticket) -> NDArray[np.float32]:
        """Logits [texts, 2] of a step, when it is done. Raises EngineFailed."""
        with _failures(self.info.name):
            if ticket.logits is None:
                ticket.slot.wait()
            with self._lock:
                return self._settled(ticket)

    def _submit_all(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[Ticket]:
        with _failures(self.info.name):
            rows = len(attention_mask)
            whole = rows < 2 or self._buckets[-1].takes(int(attention_mask.sum()), rows)
        if whole:
            return [self.submit(input_ids, attention_mask)]
        halves = (slice(rows // 2), slice(rows // 2, None))
        return [ticket for half in halves for ticket in self._submit_all(input_ids[half], attention_mask[half])]

    def _bucket(self, packed: Packed) -> Bucket:
        """The smallest that takes it. An id the table lacks is refused here: a GPU would not recover from it."""
        tokens, texts = len(packed.ids), len(packed.mask_rows)
        vocabulary = len(self._model.table)
        if tokens and not 0 <= packed.ids.min() <= packed.ids.max() < vocabulary:
            raise ValueError(f"ids have to be within the vocabulary of {vocabulary}")
        for bucket in self._buckets:
            if bucket.takes(tokens, texts) and packed.max_tokens <= bucket.longest:
                return bucket
        raise ValueError(
            f"{texts} texts of {tokens} tokens, the longest of {packed.max_tokens}, fit no step: a text has at most "
            f"{self._model.max_tokens} tokens, a step at most {self._buckets[-1].tokens}; send smaller batches"
        )

    def _queue(self, flat: Tensor, bucket: Bucket, texts: int) -> Ticket:
        slot = self._slots[0]
        if slot.ticket is not None:
            self._settled(slot.ticket)
        with torch.inference_mode(), self._cuda.queue() if self._cuda else nullcontext():
            if bucket not in self._steps:
                self._steps[bucket] = self._step(bucket)
            host = slot.flat[: len(flat)]
            host.copy_(flat)
            self._steps[bucket](host, slot.logits[: bucket.texts])
            if slot.done is not None:
                slot.done.record()
        slot.ticket = Ticket(slot, texts)
        self._slots.reverse()
        return slot.ticket

    def _settled(self, ticket: Ticket) -> NDArray[np.float32]:
        """The step's logits out of its slot, which is free from then on."""
        if ticket.logits is None:
            ticket.slot.wait()
            ticket.logits = ticket.slot.logits[: ticket.texts].numpy().copy()
            ticket.slot.ticket = None
        return ticket.logits

    def _slot(self, largest: Bucket) -> Slot:
        on_cuda = self._cuda is not None
        flat = torch.zeros(largest.flat_size, dtype=torch.int64, pin_memory=on_cuda)
        logits = torch.zeros(largest.texts, 2, dtype=torch.float32, pin_memory=on_cuda)
        return Slot(flat, logits, torch.cuda.Event() if on_cuda else None)  # type: ignore[no-untyped-call]

    def _step(self, bucket: Bucket) -> Step:
        def forward(flat: Tensor) -> Tensor:
            return _logits(self._model, flat, bucket)

        return self._cuda.captured(forward, bucket.flat_size) if self._cuda else _eager(forward)


class CudaQueue:
    """One stream, and one pool of memory for all graphs: they run one after the other, so they may share it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def queue(self) -> AbstractContextManager[Any]:
        """Whatever is called within goes to the stream, in order."""
        return torch.cuda.stream(self._stream)

    def captured(self, forward: Forward, flat_size: int) -> Step:
        """Capture `forward` with buffers of its own; replaying costs one launch."""
        static = torch.zeros(flat_size, dtype=torch.int64, device=self._device)
        for _ in range(RUNS_BEFORE_CAPTURE):
            forward(static)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads do with the device meanwhile does not break the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits = forward(static)

        def step(flat: Tensor, out: Tensor) -> None:
            static.copy_(flat, non_blocking=True)
            graph.replay()
            out.copy_(logits, non_blocking=True)

        return step


def open_torch_cuda(weights_file: Path, manifest: Manifest, precision: str, device: str = "cuda") -> TorchCudaEngine:
    """Load and place a bundle's weights. Raises EngineUnavailable, InvalidBundle."""
    _require(torch.device(device), precision)
    model = load_weights(weights_file, max_tokens=manifest.spec.max_tokens)
    return TorchCudaEngine(model, mask_id=manifest.special_tokens.mask, precision=precision, device=device)


def _eager(forward: Forward) -> Step:
    def step(flat: Tensor, out: Tensor) -> None:
        out.copy_(forward(flat))

    return step


def _logits(model: PreferenceModel, flat: Tensor, bucket: Bucket) -> Tensor:
    """Logits [texts, 2] of a filled bucket as `Packed.flat` lays it out."""
    sizes = [bucket.tokens, bucket.tokens, bucket.texts, bucket.texts + 1]
    ids, positions, mask_rows, cu_seqlens = torch.split(flat, sizes)
    attention = PackedAttention(
        model,
        cu_seqlens=cu_seqlens.int(),
        positions=positions,
        mask_rows=mask_rows,
        max_tokens=bucket.longest,
        kernel=varlen_kernel if flat.is_cuda else reference_kernel,
    )
    logits: Tensor = model(ids[None], attention)
    return logits


def _require(device: torch.device, precision: str) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable(
            "torch-cuda finds no CUDA device: install a CUDA build of torch and check the driver with nvidia-smi, "
            "or choose another engine"
        )
    known = PRECISIONS.get(device.type, {})
    if precision not in known:
        raise EngineUnavailable(
            f"torch-{device.type} computes in {' or '.join(known) or 'nothing'}, not in {precision}; "
            "for other precisions choose an onnxruntime engine"
        )


def _placed(model: PreferenceModel, device: torch.device, precision: str) -> PreferenceModel:
    """The weights in `precision`; the rotary tables stay in fp32, since rotation is computed in it."""
    _require(device, precision)
    try:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(PRECISIONS[device.type][precision])
        return model.to(device).eval()
    except Exception as error:  # out of memory, no such device, an unusable driver: torch has no common class for them
        raise EngineUnavailable(f"torch-{device} could not take the model: {error}") from error


@contextmanager
def _failures(name: str) -> Iterator[None]:
    try:
        yield
    except EngineFailed:
        raise
    except Exception as error:  # torch's own exceptions share no base class below Exception
        raise EngineFailed(f"{name}: {error}") from error
