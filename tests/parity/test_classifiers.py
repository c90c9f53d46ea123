"""Compare classifiers of other families with `transformers`: as they are, optimised, and as graphs.

What tokenizers of these families add to ids (kinds of tokens, positions behind the padding's id) is found in the ids.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from export.cpu_graph import branch_on_padding, on_cpu
from export.graph import write_onnx
from export.parity import TOLERANCE, Run, pad_rows, run_alone, torch_run
from tests.conftest import spread
from tests.parity.test_geometries import assert_equal_alone_and_together
from tinyrm.encoding import Encoding, SpecialTokens, Truncation
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.families.bert import BertGraph
from tinyrm.families.graphs import graph_module
from tinyrm.families.pairrm import PairRM
from tinyrm.families.plain import plain_module
from tinyrm.manifest import CLOZE_HEAD, Head

CLS, SEP, MASK, PAD, SOURCE, FIRST, SECOND, ORDINARY = 2, 3, 4, 1, 5, 6, 7, 9
TOKENS = SpecialTokens(cls=CLS, sep=SEP, mask=MASK, pad=PAD)
LENGTHS = (8, 31, 32, 33, 64, 65, 129, 300)
SIZES = {
    "vocab_size": 500,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 320,
    "pad_token_id": PAD,
}
# As DeBERTa-v3 is configured, with few buckets, so that distances share them.
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
}
MARKERS = {"source_prefix_id": SOURCE, "cand1_prefix_id": FIRST, "cand2_prefix_id": SECOND, "n_tasks": 2}
SCORE, PAIR = Head(kind="score", read_at="first", outputs=1), Head(kind="pair", read_at="first", outputs=2)


@dataclass(frozen=True)
class Case:
    model: PreTrainedModel
    head: Head

    @property
    def label_ids(self) -> tuple[int, int] | None:
        return (8, 9) if self.head == CLOZE_HEAD else None

    def plain(self) -> Run:
        return torch_run(plain_module(copy.deepcopy(self.model), self.head, TOKENS, self.label_ids), PAD)

    def optimised(self) -> BertGraph:
        graph = graph_module(copy.deepcopy(self.model), self.head, TOKENS, self.label_ids, max_tokens=300)
        assert isinstance(graph, BertGraph)
        return graph


def make(name: str) -> Case:
    torch.manual_seed(0)
    score, pair = SIZES | {"num_labels": 1}, SIZES | {"num_labels": 2}
    case = {
        "bert": lambda: Case(BertForSequenceClassification(BertConfig(**score)), SCORE),
        "bert pair": lambda: Case(BertForSequenceClassification(BertConfig(**pair)), PAIR),
        "bert cloze": lambda: Case(BertForMaskedLM(BertConfig(**SIZES)), CLOZE_HEAD),
        "roberta": lambda: Case(RobertaForSequenceClassification(RobertaConfig(**score, type_vocab_size=1)), SCORE),
        "roberta cloze": lambda: Case(RobertaForMaskedLM(RobertaConfig(**SIZES)), CLOZE_HEAD),
        "xlm-roberta": lambda: Case(
            XLMRobertaForSequenceClassification(XLMRobertaConfig(**score, type_vocab_size=1)), SCORE
        ),
        "electra": lambda: Case(ElectraForSequenceClassification(ElectraConfig(**score, embedding_size=24)), SCORE),
        "electra cloze": lambda: Case(ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=24)), CLOZE_HEAD),
        "deberta": lambda: Case(
            DebertaV2ForSequenceClassification(DebertaV2Config(**score, **DEBERTA, pooler_hidden_size=32)), SCORE
        ),
        "pairrm": lambda: Case(
            PairRM(DebertaV2Config(**SIZES, **DEBERTA, **MARKERS)), Head(kind="pair", read_at="segments", outputs=2)
        ),
    }[name]()
    spread(case.model.eval())
    with torch.no_grad():
        for key, parameter in case.model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.2)
    return case


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[Encoding]:
    """Return random pairs of texts, [CLS] ... [SEP] ... [MASK] [SEP], each with PairRM's three tokens."""
    rng = np.random.default_rng(2)
    encodings = []
    for length in lengths:
        ids = rng.integers(ORDINARY, 500, length)
        ids[0], ids[length // 2], ids[-2], ids[-1] = CLS, SEP, MASK, SEP
        ids[1], ids[length // 3], ids[length // 2 + 1] = SOURCE, FIRST, SECOND
        encodings.append(Encoding(ids, Truncation()))
    return encodings


def own_logits(model: PreTrainedModel, ids: NDArray[np.int64], **inputs: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(input_ids=torch.from_numpy(ids)[None], **inputs).logits.numpy()
    return logits


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_the_second_text_of_a_pair_is_a_segment_of_its_own(name: str) -> None:
    case = make(name)
    for text in texts():
        kinds = torch.tensor([[0] * (len(text) // 2 + 1) + [1] * (len(text) - len(text) // 2 - 1)])
        expected = own_logits(case.model, text.input_ids, token_type_ids=kinds)
        assert np.abs(expected - own_logits(case.model, text.input_ids)).max() > 100 * TOLERANCE
        np.testing.assert_allclose(case.plain()([text]), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["bert pair", "roberta", "deberta"])
def test_other_models_know_no_segments(name: str) -> None:
    case = make(name)
    for text in texts():
        np.testing.assert_allclose(case.plain()([text]), own_logits(case.model, text.input_ids), atol=TOLERANCE, rtol=0)


OPTIMISED = ("bert", "bert pair", "bert cloze", "roberta", "roberta cloze", "xlm-roberta", "electra", "electra cloze")


@pytest.mark.parametrize("name", OPTIMISED)
def test_the_optimised_pass_gives_the_same_logits(name: str) -> None:
    case = make(name)
    assert_equal_alone_and_together(torch_run(case.optimised(), PAD), case.plain(), texts())


@pytest.mark.parametrize("name", OPTIMISED)
def test_the_last_layer_computes_one_row_of_a_text(name: str) -> None:
    graph = make(name).optimised()
    rows: list[int] = []
    layers: Any = graph.encoder.layers
    for layer in layers:
        layer.up.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    torch_run(graph, PAD)(texts((64,)))
    assert rows == [64, 64, 1]


def test_roberta_gives_a_padding_id_within_a_text_no_number() -> None:
    """Number the tokens as the family does, whatever the mask says of them."""
    case = make("roberta")
    (text,) = texts((40,))
    ids = text.input_ids.copy()
    ids[10:13] = PAD
    run = torch_run(case.optimised(), PAD)
    np.testing.assert_allclose(run([Encoding(ids, Truncation())]), own_logits(case.model, ids), atol=TOLERANCE, rtol=0)
    assert np.abs(run([text]) - run([Encoding(ids, Truncation())])).max() > 100 * TOLERANCE


# Each graph takes several seconds to compile; every day tests/export/test_models_of_others.py compiles one.
@pytest.mark.slow
@pytest.mark.parametrize("name", [*OPTIMISED, "deberta", "pairrm"])
def test_the_graph_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    case = make(name)
    path = tmp_path / "model.onnx"
    graph = graph_module(copy.deepcopy(case.model), case.head, TOKENS, case.label_ids, max_tokens=300)
    write_onnx(graph, path, 300)
    if isinstance(graph, BertGraph):
        assert branch_on_padding(path) == 2, "all layers but the last, which is pruned"
    run = pad_rows(open_session(on_cpu(path)), PAD)
    assert_equal_alone_and_together(run, case.plain(), texts())


def test_pairrm_reads_three_tokens() -> None:
    """Compute the scores step by step, for the mean of two tasks."""
    case = make("pairrm")
    assert isinstance(case.model, PairRM)
    for text in texts():
        ids = text.input_ids
        with torch.inference_mode():
            states = case.model.pretrained_model(torch.from_numpy(ids)[None]).last_hidden_state[0]
            source, *responses = (states[ids.tolist().index(i)] for i in (SOURCE, FIRST, SECOND))
            _, dense, tanh, _, out = case.model.head_layer
            scores = [float(out(tanh(dense(torch.cat([source, one])))).mean()) for one in responses]
        np.testing.assert_allclose(case.plain()([text]), [scores], atol=TOLERANCE, rtol=0)
    expected = run_alone(case.plain(), texts())
    np.testing.assert_allclose(case.plain()(texts()), expected, atol=TOLERANCE, rtol=0)
    assert np.ptp(expected[:, 0] - expected[:, 1]) > 0.1


def test_a_saved_pairrm_has_the_published_names_and_opens_again(tmp_path: Path) -> None:
    case = make("pairrm")
    case.model.save_pretrained(tmp_path)
    opened, report = PairRM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    heads = {key for key in opened.state_dict() if not key.startswith("pretrained_model.")}
    assert heads == {f"head_layer.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias")}
    run = torch_run(opened.eval(), PAD)
    # On some processors torch's last bit depends on where the weights lie in memory.
    np.testing.assert_allclose(run_alone(run, texts()), run_alone(case.plain(), texts()), atol=1e-6)
