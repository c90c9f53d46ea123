"""Compare the compiled graph with `transformers`, at every length where a window could be off by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.parity import TOLERANCE, Run, pad_rows, run_alone
from tests.conftest import Trained
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.modernbert.adapter import load_with_adapter
from tinyrm.readout import read_out
from tinyrm.scorer import Scorer

# The window reaches 64 tokens to each side; 129 is its full width, 193 the first length with tokens outside of both
# ends' sight. The lengths beyond show that positions go on being right where the bundle's own texts end.
LENGTHS = (3, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 257, 513, 1024)


@pytest.fixture(scope="module")
def inputs(encoder: Encoder) -> list[Encoding]:
    rng = np.random.default_rng(1)
    special = encoder.special
    encodings = []
    for length in LENGTHS:
        ids = rng.integers(5, 380, length)
        ids[0], ids[-2], ids[-1] = special.cls, special.mask, special.sep
        encodings.append(Encoding(ids, Truncation()))
    return encodings


@pytest.fixture(scope="module")
def whole_model(trained: Trained, encoder: Encoder) -> Run:
    """Compute all logits of every position with the unmerged adapter, then select the two at the mask."""
    model = load_with_adapter(str(trained.base), trained.adapter)

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        ids = torch.from_numpy(input_ids)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.from_numpy(attention_mask)).logits
        return logits[ids == encoder.special.mask][:, list(encoder.label_ids)].numpy()

    return pad_rows(run, encoder.special.pad)


@pytest.fixture(scope="module")
def graph(bundle_folder: Path) -> Run:
    return open_engine(Bundle.open(bundle_folder), EngineOptions("onnxruntime-cpu")).run


def test_every_length_alone(inputs: list[Encoding], whole_model: Run, graph: Run, encoder: Encoder) -> None:
    expected = run_alone(whole_model, inputs)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(run_alone(graph, inputs), expected, atol=TOLERANCE, rtol=0)


def test_all_lengths_in_one_padded_batch(
    inputs: list[Encoding], whole_model: Run, graph: Run, encoder: Encoder
) -> None:
    expected = run_alone(whole_model, inputs)
    together = graph(inputs)
    np.testing.assert_allclose(together, expected, atol=TOLERANCE, rtol=0)


def test_the_content_of_the_padding_changes_nothing(
    inputs: list[Encoding], bundle_folder: Path, encoder: Encoder
) -> None:
    run = open_session(Bundle.open(bundle_folder).model_file("fp32", "onnxruntime-cpu"))
    ids = np.full((2, 200), encoder.special.pad, dtype=np.int64)
    short = inputs[4].input_ids
    ids[:, : len(short)] = short
    ids[1, len(short) :] = 77
    mask = np.zeros_like(ids)
    mask[:, : len(short)] = 1
    padded, scribbled = run(ids, mask)
    np.testing.assert_allclose(scribbled, padded, atol=TOLERANCE, rtol=0)


def test_the_scorer_gives_the_margins_of_the_unmerged_model(
    bundle_folder: Path, whole_model: Run, encoder: Encoder
) -> None:
    texts = ["4", "I cannot help with that. " * 4, "def add(a, b):\n    return a + b " * 9]
    comparisons = [Comparison("What is 2 + 2?", a, b) for a in texts for b in texts]
    answers = Scorer.open(bundle_folder, "onnxruntime-cpu").score(comparisons, ["Which response is safer?"] * 9)
    for comparison, answer in zip(comparisons, answers, strict=True):
        orders = encoder.encode(comparison, "Which response is safer?", swap=True)
        expected = read_out(run_alone(whole_model, orders), temperature=1.0)
        assert answer.margin == pytest.approx(expected.margin, abs=2 * TOLERANCE)
