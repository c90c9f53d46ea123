"""Compare the graph of sets with masks for all pairs of tokens, for each family and all that responses may see."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, ModernBertConfig

from export.graph import write_onnx
from export.parity import TOLERANCE, Run, pad_rows, run_alone, torch_run
from tests.conftest import spread
from tests.parity.test_classifiers import CLS, ORDINARY, SEP, TOKENS
from tests.parity.test_geometries import MASK, PAD
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.families.graphs import graph_module
from tinyrm.families.plain import plain_module
from tinyrm.manifest import Head, SetReading
from tinyrm.modernbert.set_attention import SetGraph
from tinyrm.modernbert.sets import SetModel, set_class, set_config

SIZES = {
    "vocab_size": 500,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": 1,
    "pad_token_id": PAD,
}
SPECIAL = {"cls_token_id": CLS, "bos_token_id": CLS, "sep_token_id": SEP, "eos_token_id": SEP}
READINGS = {
    "none": SetReading(others="none"),
    "masks": SetReading(others="masks"),
    "masks in the last": SetReading(others="masks", layers=1),
    "tokens": SetReading(others="tokens"),
    "tokens in the last": SetReading(others="tokens", layers=1),
    "none, read at the mean": SetReading(others="none", read_at="mean"),
    "tokens in the last, read at the mean": SetReading(others="tokens", layers=1, read_at="mean"),
}
# A family and its number of layers. Of ModernBERT's, the first and the fourth are global.
MODELS = {"bert": 2, "modernbert": 4, "modernbert, last layer local": 3}


def model(name: str, reading: SetReading) -> SetModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES | {"num_hidden_layers": MODELS[name]}
    config = BertConfig(**sizes) if name == "bert" else ModernBertConfig(**sizes, **SPECIAL)
    config.set_reading = set_config(reading, TOKENS)
    made = set_class(config)(config).eval()
    spread(made)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if key.endswith("bias") or key.startswith("others"):
                parameter.normal_(std=0.5)
    return made


def both(name: str, reading: SetReading) -> tuple[Run, SetGraph]:
    made = model(name, reading)
    head = Head(kind="score", read_at=reading.read_at, outputs=1, sets=reading)
    graph = graph_module(copy.deepcopy(made), head, TOKENS, None, max_tokens=512)
    assert isinstance(graph, SetGraph)
    return torch_run(plain_module(made, head, TOKENS, None), PAD), graph


def as_set(prompt: int, responses: list[int]) -> Encoding:
    """Return a set whose prompt and responses have so many tokens, special ones included."""
    dice = np.random.default_rng(prompt)
    ids = [CLS, *dice.integers(ORDINARY, 500, prompt - 2), SEP]
    for tokens in responses:
        ids += [*dice.integers(ORDINARY, 500, tokens - 2), MASK, SEP]
    return Encoding(np.array(ids), Truncation())


# Prompts and responses within a window, around its edges and beyond it; an empty prompt and empty responses.
SETS = [
    as_set(2, [2]),
    as_set(5, [70, 2]),
    as_set(64, [63, 64, 65]),
    as_set(130, [30, 3, 7, 64, 20, 129, 5, 66]),
    as_set(65, [4 + i % 5 for i in range(16)]),
    as_set(200, [3 + i % 7 for i in range(32)]),
    as_set(300, [200, 10]),
]


def assert_equal(run: Run, reference: Run) -> None:
    expected = run_alone(reference, SETS)
    largest = next(row for row, one in zip(expected, SETS, strict=True) if np.sum(one.input_ids == MASK) == len(row))
    assert np.ptp(largest) > 100 * TOLERANCE, "logits that hardly vary would pass any comparison"
    np.testing.assert_allclose(run_alone(run, SETS), expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(run(SETS), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "modernbert" else pytest.mark.slow) for name in MODELS]
)
def test_the_graph_gives_the_same_logits(name: str, reading: SetReading) -> None:
    reference, graph = both(name, reading)
    assert_equal(torch_run(graph, PAD), reference)


# Each graph takes several seconds to compile; what the toy bundles have is compiled every day. A last layer that is
# local differs in how it sees the others and in what it computes, which these two readings have.
COMPILED = [
    pytest.param(name, reading, id=f"{name}-{what}")
    for name in MODELS
    for what, reading in READINGS.items()
    if name != "modernbert, last layer local" or what in ("masks", "tokens in the last, read at the mean")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reading"), COMPILED)
def test_the_compiled_graph_gives_the_same_logits(name: str, reading: SetReading, tmp_path: Path) -> None:
    reference, graph = both(name, reading)
    write_onnx(graph, tmp_path / "model.onnx", 4096)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ranges")]
    assert_equal(pad_rows(open_session(tmp_path / "model.onnx"), PAD), reference)


def test_the_last_layer_computes_the_masks_only() -> None:
    _, graph = both("modernbert", READINGS["tokens in the last"])
    rows: list[int] = []
    layers: Any = graph.get_submodule("model").layers
    for layer in layers:
        layer.mlp_norm.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    torch_run(graph, PAD)(SETS[3:4])
    tokens = len(SETS[3])
    assert rows == [tokens, tokens, tokens, 8]
