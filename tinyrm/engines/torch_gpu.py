"""Run packed tokens with torch on a GPU: bf16, fixed shapes, one captured graph for each, two steps in flight.

A step's tokens are filled to the next bucket, so that a graph captured once serves it. Two threads may call `run`:
while one step runs, the next is packed and its copies are queued. All steps are in one stream, so no step reads another
step's tokens.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyrm.encoding import Encoding
from tinyrm.engines.base import cpu_info, gpu_info
from tinyrm.engines.packing import Bucket, Packed, fill, pack_sequences
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
    """A queued step.

    logits: None until they were read from the slot.
    """

    slot: "Slot"
    sequences: int
    logits: NDArray[np.float32] | None = None


@dataclass(eq=False, slots=True)
class Slot:
    """Host buffers of one step: `Packed.flat` in, logits [places, outputs] out.

    ticket: the step that uses them, until its logits are read.
    """

    flat: Tensor
    logits: Tensor
    done: torch.cuda.Event | None
    ticket: Ticket | None = field(default=None)

    def wait(self) -> None:
        if self.done is not None:
            self.done.synchronize()


class TorchCudaEngine:
    """Runs packed sequences of up to `model.max_tokens` tokens.

    model: fused; the engine moves and changes it.
    device: "cuda", "cuda:1"; "cpu" computes the same slowly, for tests.
    buckets: tokens of each fixed shape.
    compiled: whether torch.compile compiles the layers.
    captured: whether a step on a GPU is captured as a graph; without it each kernel is launched by itself, which is
        slower and there to be compared.

    Raises EngineUnavailable.
    """

    def __init__(
        self,
        model: PreferenceModel,
        *,
        mask_id: int,
        precision: str,
        device: str = "cuda",
        buckets: Sequence[int] = BUCKETS,
        compiled: bool = False,
        captured: bool = True,
    ) -> None:
        self._device = torch.device(device)
        name, on_gpu = f"torch-{device}", self._device.type == "cuda"
        self.info = gpu_info(name, precision, pads=False) if on_gpu else cpu_info(name, precision)
        _require(self._device, precision)
        try:
            # The rotary tables stay in fp32, since rotation is computed in it.
            model.round_to(PRECISIONS[self._device.type][precision])
            self._model = model.to(self._device).eval()
        except Exception as error:  # out of memory, no such device, an unusable driver: torch has no common class
            raise EngineUnavailable(f"{name} could not take the model: {error}") from error
        self._mask_id = mask_id
        self._buckets = [Bucket.of(tokens, model.max_tokens) for tokens in sorted(buckets)]
        if compiled:
            for layer in model.layers:
                layer.compile(dynamic=True)  # any bucket: one compilation for each kind of layer
        self._cuda = CudaQueue(self._device) if on_gpu else None
        self._captured = captured
        self._steps: dict[Bucket, Step] = {}
        self._slots = []
        for _ in range(SLOTS):
            flat = torch.zeros(self._buckets[-1].flat_size, dtype=torch.int64, pin_memory=on_gpu)
            logits = torch.zeros(self._buckets[-1].places, model.outputs, dtype=torch.float32, pin_memory=on_gpu)
            self._slots.append(Slot(flat, logits, torch.cuda.Event() if on_gpu else None))  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        """Return logits [sequences, outputs]. Several steps run what exceeds the largest bucket."""
        try:
            tickets = [self._submit(part) for part in self._split(sequences)]
            return np.concatenate([self._result(ticket) for ticket in tickets])
        except Exception as error:  # torch's own exceptions share no base class below Exception
            raise EngineFailed(f"{self.info.name}: {error}") from error

    def _split(self, sequences: Sequence[Encoding]) -> list[Sequence[Encoding]]:
        """Halve the sequences until each part fits into the largest bucket, or is one sequence."""
        count = len(sequences)
        if count < 2 or self._buckets[-1].takes(sum(map(len, sequences)), count):
            return [sequences]
        return [*self._split(sequences[: count // 2]), *self._split(sequences[count // 2 :])]

    def _submit(self, sequences: Sequence[Encoding]) -> Ticket:
        """Queue one step. Returns at once, unless both slots are taken; then it waits for the older step."""
        packed = pack_sequences(sequences, self._mask_id, self._model.read_at)
        bucket = self._bucket(packed)
        flat = torch.from_numpy(fill(packed, bucket).flat())
        with self._lock, torch.inference_mode(), self._cuda.queue() if self._cuda else nullcontext():
            slot = self._slots[0]
            if slot.ticket is not None:
                self._settle(slot.ticket)
            if bucket not in self._steps:
                self._steps[bucket] = self._step(bucket)
            host = slot.flat[: len(flat)]
            host.copy_(flat)
            self._steps[bucket](host, slot.logits[: bucket.places])
            if slot.done is not None:
                slot.done.record()
            slot.ticket = Ticket(slot, len(packed.read_rows))
            self._slots.reverse()
            return slot.ticket

    def _result(self, ticket: Ticket) -> NDArray[np.float32]:
        if ticket.logits is None:
            ticket.slot.wait()  # without the lock: another thread can queue the next step
        with self._lock:
            return self._settle(ticket)

    def _settle(self, ticket: Ticket) -> NDArray[np.float32]:
        """Take the step's logits out of its slot, which is free from then on."""
        if ticket.logits is None:
            ticket.slot.wait()
            ticket.logits = ticket.slot.logits[: ticket.sequences].numpy().copy()
            ticket.slot.ticket = None
        return ticket.logits

    def _bucket(self, packed: Packed) -> Bucket:
        """Return the smallest bucket that fits. Refuse an id the table lacks: a GPU would not recover from it."""
        tokens, sequences = len(packed.ids), len(packed.read_rows)
        vocabulary = len(self._model.table)
        if not 0 <= packed.ids.min() <= packed.ids.max() < vocabulary:
            raise ValueError(f"ids must be within the vocabulary of {vocabulary}")
        for bucket in self._buckets:
            if bucket.takes(tokens, sequences) and packed.max_tokens <= bucket.longest:
                return bucket
        raise ValueError(
            f"{sequences} sequences of {tokens} tokens, the longest of {packed.max_tokens}, fit no step: a sequence "
            f"has at most {self._model.max_tokens} tokens, a step at most {self._buckets[-1].tokens}; "
            "send smaller batches"
        )

    def _step(self, bucket: Bucket) -> Step:
        def forward(flat: Tensor) -> Tensor:
            return _logits(self._model, flat, bucket)

        def step(flat: Tensor, out: Tensor) -> None:
            out.copy_(forward(flat.to(self._device, non_blocking=True)), non_blocking=True)

        return self._cuda.capture(forward, bucket.flat_size) if self._cuda and self._captured else step


class CudaQueue:
    """One stream, and one pool of memory for all graphs, which may share it because they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def queue(self) -> AbstractContextManager[Any]:
        """Return a context in which calls go to the stream, in order."""
        return torch.cuda.stream(self._stream)

    def capture(self, forward: Forward, flat_size: int) -> Step:
        """Capture `forward` with buffers of its own; replaying costs one launch."""
        static = torch.zeros(flat_size, dtype=torch.int64, device=self._device)
        for _ in range(RUNS_BEFORE_CAPTURE):
            forward(static)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": calls of other threads to the device do not break the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits = forward(static)

        def step(flat: Tensor, out: Tensor) -> None:
            static.copy_(flat, non_blocking=True)
            graph.replay()
            out.copy_(logits, non_blocking=True)

        return step


def open_torch_cuda(weights_file: Path, manifest: Manifest, precision: str, device: str = "cuda") -> TorchCudaEngine:
    """Load a bundle's weights and move them to the device. Raises EngineUnavailable, InvalidBundle."""
    _require(torch.device(device), precision)
    model = load_weights(weights_file, max_tokens=manifest.spec.max_tokens)
    return TorchCudaEngine(model, mask_id=manifest.special_tokens.mask, precision=precision, device=device)


def _logits(model: PreferenceModel, flat: Tensor, bucket: Bucket) -> Tensor:
    """Return logits [places, outputs] of a filled bucket as `Packed.flat` lays it out."""
    sizes = [bucket.tokens, bucket.tokens, bucket.places, bucket.places + 1]
    ids, positions, read_rows, cu_seqlens = torch.split(flat, sizes)
    attention = PackedAttention(
        model,
        cu_seqlens=cu_seqlens.int(),
        positions=positions,
        read_rows=read_rows,
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
