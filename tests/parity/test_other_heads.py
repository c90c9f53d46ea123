"""Compare the optimised ModernBERT with `transformers` for every head: where it reads, and how many outputs it has."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from export.parity import TOLERANCE, run_alone, torch_run
from tests.conftest import spread
from tests.parity.test_geometries import MASK, PAD, SPECIAL, assert_equal_alone_and_together, texts
from tinyrm.encoding import Encoding, SpecialTokens
from tinyrm.engines.packing import pack_sequences
from tinyrm.engines.torch_gpu import TorchCudaEngine
from tinyrm.errors import InvalidInput
from tinyrm.families.graphs import graph_module
from tinyrm.families.plain import plain_module
from tinyrm.manifest import Head
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.packed import PackedAttention, reference_kernel
from tinyrm.modernbert.weights import load_weights, save_weights

TOKENS = SpecialTokens(cls=2, sep=3, mask=MASK, pad=PAD)
LENGTHS = (3, 63, 64, 65, 127, 128, 129, 191, 192, 193, 300)
HEADS = {
    "pair-cls": Head(kind="pair", read_at="first", outputs=2),
    "pair-mean": Head(kind="pair", read_at="mean", outputs=2),
    "pointwise": Head(kind="score", read_at="first", outputs=1),
    "pointwise mean": Head(kind="score", read_at="mean", outputs=1),
}


def classifier(head: Head, layers: int = 4, **changes: object) -> ModernBertForSequenceClassification:
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=head.outputs,
        classifier_pooling="mean" if head.read_at == "mean" else "cls",
        **SPECIAL,
        **changes,
    )
    model = ModernBertForSequenceClassification(config).eval()
    spread(model)
    with torch.no_grad():
        model.classifier.bias.normal_()
    return model


def optimised(model: ModernBertForSequenceClassification, head: Head) -> BlockedModel:
    graph = graph_module(copy.deepcopy(model), head, TOKENS, None, max_tokens=512)
    assert isinstance(graph, BlockedModel)
    return graph


def packed(model: PreferenceModel, inputs: list[Encoding]) -> NDArray[np.float32]:
    rows = pack_sequences(inputs, MASK, model.read_at)
    attention = PackedAttention(
        model,
        cu_seqlens=torch.from_numpy(rows.cu_seqlens),
        positions=torch.from_numpy(rows.positions),
        read_rows=torch.from_numpy(rows.read_rows),
        max_tokens=rows.max_tokens,
        kernel=reference_kernel,
    )
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.from_numpy(rows.ids)[None], attention).numpy()
    return logits


@pytest.mark.parametrize("layers", [3, 4], ids=["last layer local", "last layer global"])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_of_a_classifier(name: str, layers: int) -> None:
    head = HEADS[name]
    model = classifier(head, layers)
    reference = torch_run(plain_module(copy.deepcopy(model), head, TOKENS, None), PAD)
    graph, inputs = optimised(model, head), texts(LENGTHS)
    assert_equal_alone_and_together(torch_run(graph, PAD), reference, inputs)
    np.testing.assert_allclose(packed(graph.model, inputs), run_alone(reference, inputs), atol=TOLERANCE, rtol=0)


def test_every_bias_of_a_classifier() -> None:
    head = HEADS["pointwise"]
    model = classifier(head, **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    reference = torch_run(plain_module(copy.deepcopy(model), head, TOKENS, None), PAD)
    assert_equal_alone_and_together(torch_run(optimised(model, head), PAD), reference, texts((64, 65, 200)))


@pytest.mark.parametrize("name", HEADS)
def test_saved_weights_run_in_the_torch_engine(name: str, tmp_path: Path) -> None:
    head = HEADS[name]
    model = classifier(head)
    expected = run_alone(torch_run(plain_module(copy.deepcopy(model), head, TOKENS, None), PAD), texts(LENGTHS))
    save_weights(optimised(model, head).model, model.config, tmp_path / "weights.safetensors")
    loaded = load_weights(tmp_path / "weights.safetensors", max_tokens=320)
    assert not [key for key, tensor in (*loaded.named_parameters(), *loaded.named_buffers()) if tensor.is_meta]
    engine = TorchCudaEngine(loaded, mask_id=MASK, precision="fp32", device="cpu", buckets=(512, 1024))
    np.testing.assert_allclose(engine.run(texts(LENGTHS)), expected, atol=TOLERANCE, rtol=0)


class AtTheEnd(nn.Module):
    """The classifier of `transformers` at the last token of each text."""

    def __init__(self, model: ModernBertForSequenceClassification) -> None:
        super().__init__()
        self.source = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.source.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        logits: Tensor = self.source.classifier(self.source.head(states[torch.arange(len(last)), last]))
        return logits


def test_the_last_token_is_read_behind_no_padding() -> None:
    model = classifier(HEADS["pointwise"])
    reference = torch_run(AtTheEnd(copy.deepcopy(model)), PAD)
    read = PreferenceModel(copy.deepcopy(model), None, read_at="last", max_tokens=512)
    inputs = texts(LENGTHS)
    assert_equal_alone_and_together(torch_run(BlockedModel(read, MASK).eval(), PAD), reference, inputs)
    np.testing.assert_allclose(packed(read, inputs), run_alone(reference, inputs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [Head(kind="score", read_at="mean", outputs=1), Head(kind="pair", read_at="first", outputs=2)],
    ids=["another place", "another number of outputs"],
)
def test_a_head_that_the_model_does_not_have_is_refused(wrong: Head) -> None:
    model = classifier(HEADS["pointwise"])
    for optimise in (True, False):
        with pytest.raises(InvalidInput, match=r"has 1 outputs, read at: first; its head should have"):
            graph_module(model, wrong, TOKENS, None, max_tokens=512, optimised=optimise)
