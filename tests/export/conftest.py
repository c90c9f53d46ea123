"""Make folders as training does, and export without compiling the same graph again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.graph import weights_of
from tests.conftest import Trained
from tinyrm.pairs import PreferencePair

RUN = {
    "recipe": {"task": "cloze", "loss": "labels"},
    "data_sha256": {"pairs.jsonl": "0" * 64},
    "held_out": {"eval_accuracy": 0.75},
    "base_commit": "0123",
    "data": {"pairs": {"revision": "v1"}},
}


def held_out_pairs() -> list[PreferencePair]:
    """Return pairs of which the toy judges a quarter wrongly, so that they determine a temperature."""
    return [
        PreferencePair(prompt=f"Question {i}", chosen="yes " * (1 + i % 9), rejected="no " * (1 + i % 7))
        for i in range(60)
    ]


@pytest.fixture
def recorded(trained: Trained, tmp_path: Path) -> Trained:
    """Return the adapter with the record of its run and the held-out pairs."""
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.adapter, adapter)
    (adapter / "training.json").write_text(json.dumps(RUN))
    (adapter / "held_out.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in held_out_pairs()))
    return Trained(trained.base, adapter)


@pytest.fixture
def compiled_before(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the toy adapter's graph from the toy bundle: the same weights give the same graph."""
    graph = bundle_folder / "model.onnx"

    def copy(_: Any, path: Path, max_tokens: int) -> None:
        shutil.copyfile(graph, path)
        shutil.copyfile(weights_of(graph), weights_of(path))

    monkeypatch.setattr("export.pipeline.write_onnx", copy)
