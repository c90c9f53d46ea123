"""Test that a pair has one margin in training code, merged torch, ONNX and HTTP, alone and in a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from starlette.testclient import TestClient

from export.parity import TOLERANCE, torch_run
from service.app import create_app, create_state
from service.settings import Settings
from tests.conftest import TOY_SPEC, Trained
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder
from tinyrm.modernbert.adapter import load_with_adapter, merge, plain
from tinyrm.modernbert.checkpoint import LabelLogits
from tinyrm.scorer import Scorer
from training.model.heads import collator_for, run_model
from training.model.places import HeadAtPlaces

PAIR = Comparison("What is 2 + 2?", "2 + 2 = 4.", "I cannot help with that.")
OTHERS = [Comparison("x", "y", "z"), Comparison("Which response is safer? " * 9, "no", "def add(a, b): return a + b")]


def margins(logits: NDArray[np.float32]) -> float:
    """Return the margin for A of rows [A first, B first]."""
    z = logits[:, 0] - logits[:, 1]
    return float(z[0] - z[1]) / 2


@pytest.fixture(scope="module")
def trained_margin(trained: Trained, encoder: Encoder) -> float:
    """Compute the margin as the training loop does: adapter unmerged, head at the masks, batch of the collator."""
    model = plain(load_with_adapter(str(trained.base), trained.adapter))
    HeadAtPlaces(model)
    collate = collator_for("cloze", encoder)
    pairs = [encoder.encode(c, TOY_SPEC.instruction(), swap=True) for c in (*OTHERS, PAIR)]
    with torch.no_grad():
        logits = run_model(model, collate(pairs))[:, list(encoder.label_ids)]
    return margins(logits[-2:].numpy())


def test_merged_torch(trained: Trained, encoder: Encoder, trained_margin: float) -> None:
    merged = merge(load_with_adapter(str(trained.base), trained.adapter))
    run = torch_run(LabelLogits(merged, encoder.special.mask, encoder.label_ids), encoder.special.pad)
    readings = encoder.encode(PAIR, TOY_SPEC.instruction(), swap=True)
    assert abs(trained_margin) > 0.01, "a margin of nothing would equal anything"
    assert margins(run(readings)) == pytest.approx(trained_margin, abs=TOLERANCE)


@pytest.mark.parametrize("company", [[], OTHERS], ids=["alone", "in a mixed batch"])
def test_onnx_offline_and_http(bundle_folder: Path, trained_margin: float, company: list[Comparison]) -> None:
    comparisons = [*company, PAIR]
    scorer = Scorer.open(bundle_folder)
    offline = scorer.score(comparisons, [TOY_SPEC.instruction()] * len(comparisons))[-1]
    with TestClient(create_app(create_state(Settings(model=bundle_folder)))) as client:
        items = [{"prompt": c.prompt, "response_a": c.response_a, "response_b": c.response_b} for c in comparisons]
        served = client.post("/v1/compare/batch", json={"items": items}).json()["results"][-1]
    expected = pytest.approx(trained_margin / scorer.temperature, abs=TOLERANCE)
    assert offline.margin == expected
    assert served["margin"] == expected
