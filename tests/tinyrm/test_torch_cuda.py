"""Test the engine for packed tokens on a CPU: the same steps, slots and buckets, without graphs and streams."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.parity import TOLERANCE, torch_run
from tests.conftest import Trained
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.engines import torch_gpu as torch_cuda
from tinyrm.engines import warm_up
from tinyrm.engines.packing import Bucket, fill, pack_sequences
from tinyrm.engines.torch_gpu import TorchCudaEngine, open_torch_cuda
from tinyrm.errors import EngineFailed, EngineUnavailable
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.weights import save_weights

MAX_TOKENS = 300


def preference_model(trained: Trained, encoder: Encoder, *, fused: bool) -> PreferenceModel:
    masked_lm = load_masked_lm(str(trained.base)).eval()
    return PreferenceModel(masked_lm, encoder.label_ids, max_tokens=MAX_TOKENS, fused=fused).eval()


def cpu_engine(trained: Trained, encoder: Encoder, precision: str = "fp32") -> TorchCudaEngine:
    model = preference_model(trained, encoder, fused=True)
    mask = encoder.special.mask
    return TorchCudaEngine(model, mask_id=mask, precision=precision, device="cpu", buckets=(512, 128, 1024))


@pytest.fixture(scope="module")
def engine(trained: Trained, encoder: Encoder) -> TorchCudaEngine:
    return cpu_engine(trained, encoder)


def sequences(encoder: Encoder, *lengths: int, seed: int = 0) -> list[Encoding]:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(5, 380, length) for length in lengths]
    for ids in rows:
        ids[min(lengths) // 2] = encoder.special.mask
    return [Encoding(ids, Truncation()) for ids in rows]


@pytest.mark.parametrize(
    "lengths",
    [(5,), (300,), (127, 128, 129), (40, 3, 300, 65), (300,) * 5, (9,) * 20],
    ids=["one short", "longest", "around a window", "mixed", "more tokens than a step", "more texts than a step"],
)
def test_logits_are_those_of_the_padded_strategy(
    engine: TorchCudaEngine, trained: Trained, encoder: Encoder, lengths: tuple[int, ...]
) -> None:
    blocked = BlockedModel(preference_model(trained, encoder, fused=False), encoder.special.mask)
    inputs = sequences(encoder, *lengths)
    logits = engine.run(inputs)
    assert (logits.shape, logits.dtype) == ((len(lengths), 2), np.float32)
    np.testing.assert_allclose(logits, torch_run(blocked, encoder.special.pad)(inputs), atol=TOLERANCE, rtol=0)


def test_steps_in_flight_do_not_mix(engine: TorchCudaEngine, encoder: Encoder) -> None:
    """Run more steps than there are slots, and collect them in another order."""
    batches = [sequences(encoder, 50 + i, 120, seed=i) for i in range(5)]
    expected = [engine.run(batch) for batch in batches]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    tickets = [engine._submit(batch) for batch in batches]
    for i in (4, 0, 2, 1, 3, 0):
        np.testing.assert_array_equal(engine._result(tickets[i]), expected[i])


class Meeting:
    """Replace a slot's CUDA event: a step ends only when a caller waits for the step in the other slot, too."""

    both = threading.Barrier(2, timeout=60)

    def record(self) -> None:
        self.is_met = False

    def synchronize(self) -> None:
        if not self.is_met:
            self.both.wait()
            self.is_met = True


def test_two_callers_use_both_slots(trained: Trained, encoder: Encoder) -> None:
    engine = cpu_engine(trained, encoder)
    for slot in engine._slots:
        slot.done = Meeting()  # type: ignore[assignment]
    batches = [sequences(encoder, 30, seed=seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as callers:
        answers = list(callers.map(engine.run, batches))
    np.testing.assert_array_equal(answers, [cpu_engine(trained, encoder).run(batch) for batch in batches])


def test_threads_get_their_own_logits(engine: TorchCudaEngine, encoder: Encoder) -> None:
    batches = [sequences(encoder, 30 + i, seed=i) for i in range(8)]
    expected = [engine.run(batch) for batch in batches]
    answers: dict[int, NDArray[np.float32]] = {}

    def ask(i: int) -> None:
        answers[i] = engine.run(batches[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([answers[i] for i in range(len(batches))], expected)


def test_logits_are_not_overwritten_by_later_steps(engine: TorchCudaEngine, encoder: Encoder) -> None:
    first = engine.run(sequences(encoder, 50))
    kept = first.copy()
    for seed in range(1, 4):
        engine.run(sequences(encoder, 50, seed=seed))
    np.testing.assert_array_equal(first, kept)


def test_warm_up_runs(engine: TorchCudaEngine, encoder: Encoder) -> None:
    warm_up(engine, MAX_TOKENS, encoder.special.pad)


def test_bf16_returns_fp32_logits(trained: Trained, encoder: Encoder) -> None:
    engine = cpu_engine(trained, encoder, "bf16")
    logits = engine.run(sequences(encoder, 20, 70))
    assert (engine.info.precision, logits.dtype) == ("bf16", np.float32)
    cos, _ = engine._model.rotary(local=True)
    assert (engine._model.table.dtype, cos.dtype) == (torch.bfloat16, torch.float32)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_cuda_the_error_contains_advice(no_gpu: None, trained: Trained, encoder: Encoder) -> None:
    model = preference_model(trained, encoder, fused=True)
    with pytest.raises(EngineUnavailable, match=r"no CUDA device: install .* or choose another engine"):
        TorchCudaEngine(model, mask_id=encoder.special.mask, precision="bf16")


def test_cuda_is_checked_before_the_weights_are_read(no_gpu: None, bundle_folder: Path) -> None:
    manifest = Bundle.open(bundle_folder).manifest
    with pytest.raises(EngineUnavailable, match="no CUDA device"):
        open_torch_cuda(bundle_folder / "missing.safetensors", manifest, "bf16")


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cuda", "fp32", "computes in bf16 or fp16, not in fp32"),
        ("cpu", "int8", "computes in fp32 or bf16, not in int8"),
    ],
)
def test_an_unsupported_precision_is_refused(
    monkeypatch: pytest.MonkeyPatch, bundle_folder: Path, device: str, precision: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    manifest = Bundle.open(bundle_folder).manifest
    with pytest.raises(EngineUnavailable, match=message):
        open_torch_cuda(bundle_folder / "missing.safetensors", manifest, precision, device)


def test_saved_weights_are_opened(trained: Trained, encoder: Encoder, bundle_folder: Path, tmp_path: Path) -> None:
    masked_lm = load_masked_lm(str(trained.base))
    file = tmp_path / "weights.safetensors"
    save_weights(PreferenceModel(masked_lm, encoder.label_ids), masked_lm.config, file)
    manifest = Bundle.open(bundle_folder).manifest
    opened = open_torch_cuda(file, manifest, "fp32", device="cpu")
    batch = sequences(encoder, 200, 64)
    expected = cpu_engine(trained, encoder).run(batch)
    np.testing.assert_allclose(opened.run(batch), expected, atol=TOLERANCE, rtol=0)
    with pytest.raises(EngineFailed, match=f"at most {manifest.spec.max_tokens} tokens"):
        opened.run(sequences(encoder, manifest.spec.max_tokens + 1))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.ones(4, dtype=np.float32), "integers in one row"),
        (np.ones((4, 4), dtype=np.int64), "integers in one row"),
        (np.ones(0, dtype=np.int64), "at least one"),
        (np.full(4, 10**6), "vocabulary"),
        (np.full(4, -1), "vocabulary"),
        (np.ones(MAX_TOKENS + 1, dtype=np.int64), "at most 300"),
        ("text", "torch-cpu"),
    ],
)
def test_an_unsupported_input_is_the_engines_failure(
    engine: TorchCudaEngine, ids: NDArray[np.int64], message: str
) -> None:
    with pytest.raises(EngineFailed, match=message):
        engine.run([Encoding(ids, Truncation())])


def test_an_exception_inside_is_the_engines_failure_and_the_next_step_is_right(
    monkeypatch: pytest.MonkeyPatch, trained: Trained, encoder: Encoder
) -> None:
    engine = cpu_engine(trained, encoder)
    batch = sequences(encoder, 70)
    expected = engine.run(batch)

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(torch_cuda, "_logits", out_of_memory)
        with pytest.raises(EngineFailed, match="torch-cpu: CUDA out of memory"):
            engine.run(batch)
    np.testing.assert_array_equal(engine.run(batch), expected)


def test_packed_sequences_keep_order_positions_and_masks(encoder: Encoder) -> None:
    inputs = sequences(encoder, 4, 2, 3)
    packed = pack_sequences(inputs, encoder.special.mask)
    np.testing.assert_array_equal(packed.ids, np.concatenate([one.input_ids for one in inputs]))
    assert packed.cu_seqlens.tolist() == [0, 4, 6, 9]
    assert packed.cu_seqlens.dtype == np.int32
    assert packed.positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert packed.read_rows.tolist() == [1, 5, 7]
    assert packed.max_tokens == 4


@pytest.mark.parametrize("tokens", [64, 256, 4096, 16384])
@pytest.mark.parametrize("max_tokens", [48, 1000, 8192])
def test_the_filling_of_a_bucket_is_never_longer_than_its_texts(encoder: Encoder, tokens: int, max_tokens: int) -> None:
    bucket = Bucket.of(tokens, max_tokens)
    for count in (1, bucket.max_sequences):
        packed = pack_sequences(sequences(encoder, *[1] * count), encoder.special.mask)
        filled = fill(packed, bucket)
        lengths = np.diff(filled.cu_seqlens)
        assert (len(filled.ids), len(lengths), lengths.sum()) == (tokens, bucket.places, tokens)
        assert 0 <= lengths.min() <= lengths.max() <= bucket.longest
