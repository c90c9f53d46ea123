"""Compare the optimised model with `transformers`, in the published sizes and at every critical length."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from export.cpu_graph import branch_on_padding, on_cpu
from export.graph import write_onnx
from export.parity import TOLERANCE, Run, pad_rows, run_alone, torch_run
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.checkpoint import LabelLogits
from tinyrm.modernbert.model import PreferenceModel

MASK, PAD, LABELS = 4, 1, (7, 8)
SHORT = (8, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193)
# All of the published sizes but the vocabulary, which the optimised pass only looks up.
GEOMETRIES = {
    "base": {"hidden_size": 768, "intermediate_size": 1152, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16},
}
# Three heads of the published width: for what does not depend on the size.
SMALL = {"small": {"hidden_size": 192, "intermediate_size": 288, "num_attention_heads": 3}}


SPECIAL = {"pad_token_id": 1, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}


def random_model(size: str, layers: int, **changes: object) -> ModernBertForMaskedLM:
    """Draw weights with which every token moves the logits; norms and biases differ from their initial values."""
    torch.manual_seed(0)
    sizes = (GEOMETRIES | SMALL)[size]
    config = ModernBertConfig(**sizes, num_hidden_layers=layers, vocab_size=500, **SPECIAL, **changes)
    model = ModernBertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.04)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(mean=1.0, std=0.1)
            else:
                parameter.normal_(std=0.1)
    return model


def texts(lengths: tuple[int, ...]) -> list[Encoding]:
    rng = np.random.default_rng(2)
    encodings = []
    for length in lengths:
        ids = rng.integers(9, 489, length)
        ids[int(rng.integers(length))] = MASK
        encodings.append(Encoding(ids, Truncation()))
    return encodings


def both(model: ModernBertForMaskedLM) -> tuple[Run, BlockedModel]:
    reference = torch_run(LabelLogits(model, MASK, LABELS).eval(), PAD)
    return reference, BlockedModel(PreferenceModel(copy.deepcopy(model), LABELS), MASK).eval()


def assert_equal_alone_and_together(run: Run, reference: Run, inputs: list[Encoding]) -> None:
    expected = run_alone(reference, inputs)
    assert np.ptp(expected) > 0.1, "logits that hardly vary would pass any comparison"
    np.testing.assert_allclose(run_alone(run, inputs), expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(run(inputs), expected, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def compiled_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Run]]:
    """Return all 22 layers of the base size, for transformers and as a graph for ONNX Runtime."""
    reference, optimised = both(random_model("base", layers=22))
    path = tmp_path_factory.mktemp("base") / "model.onnx"
    write_onnx(optimised, path, 8192)
    assert branch_on_padding(path) == 7, "all global layers but the last, which is pruned"
    yield reference, pad_rows(open_session(on_cpu(path)), PAD)
    for file in path.parent.iterdir():
        file.unlink()


@pytest.mark.slow
def test_base_on_onnxruntime(compiled_base: tuple[Run, Run]) -> None:
    reference, run = compiled_base
    assert_equal_alone_and_together(run, reference, texts((*SHORT, 512)))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(1000,), (2048,), (513, 700)])
def test_long_texts_of_base_on_onnxruntime(compiled_base: tuple[Run, Run], lengths: tuple[int, ...]) -> None:
    """Run long texts without padding, which use the graph's other branch in global layers, and texts with padding."""
    reference, run = compiled_base
    assert_equal_alone_and_together(run, reference, texts(lengths))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "layers"),
    [pytest.param("base", 5, id="last layer local"), pytest.param("large", 4, id="last layer global")],
)
def test_every_length(size: str, layers: int) -> None:
    reference, optimised = both(random_model(size, layers))
    assert_equal_alone_and_together(torch_run(optimised, PAD), reference, texts((*SHORT, 512)))


@pytest.mark.slow
@pytest.mark.parametrize("size", GEOMETRIES)
def test_4096_tokens(size: str) -> None:
    reference, optimised = both(random_model(size, layers=4))
    assert_equal_alone_and_together(torch_run(optimised, PAD), reference, texts((4096,)))


def test_every_bias_the_family_may_have() -> None:
    biases = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)
    reference, optimised = both(random_model("small", layers=4, **biases))
    assert_equal_alone_and_together(torch_run(optimised, PAD), reference, texts((64, 65, 200)))


@pytest.mark.parametrize("window", [32, 96])
def test_other_windows(window: int) -> None:
    reference, optimised = both(random_model("small", layers=4, local_attention=window))
    around = tuple(n + d for n in (window // 2, window, 3 * window // 2) for d in (-1, 0, 1))
    assert_equal_alone_and_together(torch_run(optimised, PAD), reference, texts(around))


def test_the_files_of_one_geometry_do_not_fit_another(tmp_path: Path) -> None:
    """Fail at a length beyond the rotary tables, in place of a wrong result."""
    _, optimised = both(random_model("small", layers=4, max_position_embeddings=256))
    with pytest.raises((RuntimeError, ValueError)):
        run_alone(torch_run(optimised, PAD), texts((300,)))
