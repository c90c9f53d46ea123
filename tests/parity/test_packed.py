"""Compare packed tokens with `transformers`, at every length where a window could be off by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.parity import TOLERANCE, run_alone, torch_run
from tests.conftest import Trained
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.engines.packing import Bucket, Packed, fill, pack_sequences
from tinyrm.errors import InvalidBundle
from tinyrm.modernbert.checkpoint import LabelLogits, load_masked_lm
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.packed import PackedAttention, reference_kernel
from tinyrm.modernbert.weights import load_weights, save_weights

LENGTHS = (3, 8, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 257, 512, 1000)
# bf16 keeps 8 bits: each of the layers' roundings is up to 0.4 % of values whose logits span some units.
BF16_SHARE_OF_RANGE = 0.05


def masked_lm(trained: Trained) -> PreTrainedModel:
    """Return a copy: the optimised model takes over the weights that it gets."""
    return load_masked_lm(str(trained.base)).eval()


@pytest.fixture(scope="module")
def model(trained: Trained, encoder: Encoder) -> PreferenceModel:
    return PreferenceModel(masked_lm(trained), encoder.label_ids, fused=True).eval()


@pytest.fixture(scope="module")
def inputs(encoder: Encoder) -> list[Encoding]:
    rng = np.random.default_rng(3)
    encodings = []
    for length in LENGTHS:
        ids = rng.integers(5, 380, length)
        ids[int(rng.integers(length))] = encoder.special.mask
        encodings.append(Encoding(ids, Truncation()))
    return encodings


@pytest.fixture(scope="module")
def expected(trained: Trained, inputs: list[Encoding], encoder: Encoder) -> NDArray[np.float32]:
    head = LabelLogits(masked_lm(trained), encoder.special.mask, encoder.label_ids).eval()
    logits = run_alone(torch_run(head, encoder.special.pad), inputs)
    assert np.ptp(logits) > 1, "logits that hardly vary would pass any comparison"
    return logits


def packed_rows(inputs: list[Encoding], encoder: Encoder) -> Packed:
    return pack_sequences(inputs, encoder.special.mask)


def logits_of(model: PreferenceModel, packed: Packed) -> NDArray[np.float32]:
    attention = PackedAttention(
        model,
        cu_seqlens=torch.from_numpy(packed.cu_seqlens),
        positions=torch.from_numpy(packed.positions),
        read_rows=torch.from_numpy(packed.read_rows),
        max_tokens=packed.max_tokens,
        kernel=reference_kernel,
    )
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.from_numpy(packed.ids)[None], attention).numpy()
    return logits


def test_all_lengths_side_by_side(
    model: PreferenceModel, inputs: list[Encoding], expected: NDArray[np.float32], encoder: Encoder
) -> None:
    logits = logits_of(model, packed_rows(inputs, encoder))
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layers", [3, 4], ids=["last layer local", "last layer global"])
def test_either_kind_of_last_layer(trained: Trained, inputs: list[Encoding], encoder: Encoder, layers: int) -> None:
    def cut() -> PreTrainedModel:
        model = masked_lm(trained)
        model.base_model.layers = model.base_model.layers[:layers]
        return model

    reference = torch_run(LabelLogits(cut(), encoder.special.mask, encoder.label_ids).eval(), encoder.special.pad)
    model = PreferenceModel(cut(), encoder.label_ids, fused=True).eval()
    assert [layer.local for layer in model.layers][-1] == (layers == 3)
    expected = run_alone(reference, inputs)
    np.testing.assert_allclose(logits_of(model, packed_rows(inputs, encoder)), expected, atol=TOLERANCE, rtol=0)


def test_batch_mates_change_nothing(model: PreferenceModel, inputs: list[Encoding], encoder: Encoder) -> None:
    together = logits_of(model, packed_rows(inputs, encoder))
    backwards = logits_of(model, packed_rows(inputs[::-1], encoder))[::-1]
    alone = np.concatenate([logits_of(model, packed_rows([one], encoder)) for one in inputs])
    np.testing.assert_allclose(together, alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(backwards, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("missing", [0, 1, 500])
def test_the_filling_of_a_bucket_changes_nothing(
    model: PreferenceModel, inputs: list[Encoding], encoder: Encoder, missing: int
) -> None:
    packed = packed_rows(inputs, encoder)
    bucket = Bucket.of(len(packed.ids) + missing, max_tokens=1024)
    filled = fill(packed, bucket)
    lengths = np.diff(filled.cu_seqlens)
    assert len(filled.flat()) == bucket.flat_size
    assert (lengths[len(inputs) :] == 0).any() == (missing < 2), "texts of no tokens are part of what is tested"
    logits = logits_of(model, filled)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[: len(inputs)], logits_of(model, packed), atol=TOLERANCE, rtol=0)


def test_bf16_stays_close_to_fp32(
    trained: Trained, inputs: list[Encoding], expected: NDArray[np.float32], encoder: Encoder
) -> None:
    model = PreferenceModel(masked_lm(trained), encoder.label_ids, fused=True).eval()
    model.round_to(torch.bfloat16)
    difference = np.abs(logits_of(model, packed_rows(inputs, encoder)) - expected).max()
    assert 0 < difference < BF16_SHARE_OF_RANGE * np.ptp(expected)


def test_bf16_margins_do_not_depend_on_the_size_of_the_logits(
    trained: Trained, inputs: list[Encoding], encoder: Encoder
) -> None:
    """Add 20 to both labels, as a loss over the whole vocabulary does: near 20, neighbours in bf16 are 1/8 apart."""
    margins = []
    for size in (0.0, 20.0):
        source = masked_lm(trained)
        with torch.no_grad():
            source.decoder.bias[list(encoder.label_ids)] = size
        model = PreferenceModel(source, encoder.label_ids, fused=True).eval()
        model.round_to(torch.bfloat16)
        logits = logits_of(model, packed_rows(inputs, encoder))
        margins.append(logits[:, 0] - logits[:, 1])
    np.testing.assert_allclose(margins[0], margins[1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_saved_weights_give_the_same_logits(
    trained: Trained, inputs: list[Encoding], encoder: Encoder, tmp_path: Path, fused: bool
) -> None:
    source = masked_lm(trained)
    saved = PreferenceModel(source, encoder.label_ids, fused=fused).eval()
    save_weights(saved, source.config, tmp_path / "weights.safetensors")
    packed = packed_rows(inputs, encoder)
    loaded = load_weights(tmp_path / "weights.safetensors", max_tokens=1000)
    assert loaded.max_tokens == 1000
    assert not [name for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()) if tensor.is_meta]
    # One product instead of three sums in another order.
    tolerance = 0 if fused else TOLERANCE
    np.testing.assert_allclose(logits_of(loaded, packed), logits_of(saved, packed), atol=tolerance, rtol=0)


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(InvalidBundle, match="export the bundle again"):
        load_weights(tmp_path / "weights.safetensors")
