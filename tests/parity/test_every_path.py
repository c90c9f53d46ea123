"""Test that two ways give one margin: adapter or merged, torch or ONNX, alone or in a batch."""

from pathlib import Path

import numpy as np

from export.parity import TOLERANCE, probes, run_alone, torch_run
from tests.conftest import Trained
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.modernbert.adapter import load_with_adapter, merge, plain
from tinyrm.modernbert.checkpoint import LabelLogits


def test_the_bundle_gives_the_margins_of_the_unmerged_adapter(
    trained: Trained, bundle_folder: Path, encoder: Encoder
) -> None:
    model = load_with_adapter(str(trained.base), trained.adapter)
    inputs = probes(encoder.special, plain(model).config.vocab_size, encoder.max_tokens)
    head = LabelLogits(plain(model), encoder.special.mask, encoder.label_ids)
    unmerged = run_alone(torch_run(head, encoder.special.pad), inputs)
    run = open_engine(Bundle.open(bundle_folder), EngineOptions("onnxruntime-cpu")).run
    assert np.ptp(unmerged) > 1, "a model whose logits hardly vary would pass any comparison"
    np.testing.assert_allclose(run_alone(run, inputs), unmerged, atol=TOLERANCE)
    np.testing.assert_allclose(run(inputs), unmerged, atol=TOLERANCE)
    merged = torch_run(LabelLogits(merge(model), encoder.special.mask, encoder.label_ids), encoder.special.pad)
    np.testing.assert_allclose(run_alone(merged, inputs), unmerged, atol=TOLERANCE)
