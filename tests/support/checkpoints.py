"""Checkpoints of other projects' models: classes and fields of the published configurations, small random weights."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import processors
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizer,
)

from tests.conftest import spread

TEXTS = [
    "What is 17 + 25, and why? It is 42. Add the tens, then the units: naïve, but it works!",
    "Name a prime above 100. 101 is one. You are terse. Which response is better, and safer?",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))",
]
# Of a vocabulary: characters of its longest piece, and how many pieces have more than one.
MAX_PIECE = 6
LONGER_PIECES = 40
ACTIVATION = "torch.nn.modules.activation."
MARKERS = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
# The chat template of ChatML, as published models carry it.
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def roberta_tokenizer() -> RobertaTokenizer:
    special = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    return RobertaTokenizer(vocab=special, merges=[]).train_new_from_iterator(TEXTS * 9, 400)


def counted_pieces(words: Sequence[str], inside: str = "") -> dict[str, int]:
    """Return piece -> how often it is in the words, for every character and the most frequent of the longer pieces.

    Vocabularies are not trained, where no two trainings give the same pieces: a checkpoint must have the same logits in
    every run.

    inside: begins a piece that does not begin a word.
    """
    places = [(word, i, i + n) for word in words for i in range(len(word)) for n in range(1, MAX_PIECE + 1)]
    counts = Counter((inside if i else "") + word[i:end] for word, i, end in places if end <= len(word))
    characters = sorted({mark + character for word in words for character in word for mark in ("", inside)})
    longer = sorted(counts.keys() - set(characters), key=lambda piece: (-counts[piece] * len(piece), piece))
    return {piece: counts[piece] for piece in [*characters, *longer[:LONGER_PIECES]]}


def bert_tokenizer() -> BertTokenizer:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend = BertTokenizer(vocab={token: i for i, token in enumerate(special)}).backend_tokenizer
    texts = [backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)) for text in TEXTS]
    pieces = counted_pieces([word for text in texts for word, _ in text], "##")
    return BertTokenizer(vocab={token: i for i, token in enumerate([*special, *pieces])})


def unigram_vocabulary(*special: str) -> list[tuple[str, float]]:
    """Return (piece, log probability) of special tokens and of the pieces of TEXTS."""
    counts = counted_pieces([f"▁{word}" for text in TEXTS for word in text.split()])
    total = sum(counts.values())
    return [(token, 0.0) for token in special] + [(piece, log(count / total)) for piece, count in counts.items()]


def deberta_tokenizer() -> DebertaV2Tokenizer:
    return DebertaV2Tokenizer(vocab=unigram_vocabulary("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), unk_id=3)


def xlm_roberta_tokenizer() -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer(vocab=unigram_vocabulary("<s>", "<pad>", "</s>", "<unk>", "<mask>"))


def pairrm_tokenizer() -> DebertaV2Tokenizer:
    tokenizer = deberta_tokenizer()
    tokenizer.add_tokens(MARKERS, special_tokens=True)
    return tokenizer


def modernbert_tokenizer() -> PreTrainedTokenizerFast:
    """Return one that joins two texts as the family's published tokenizer does."""
    from training.stages.tokenizer import train_bpe, wrap

    tokenizer = train_bpe(TEXTS * 9, 400)
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", special)
    return wrap(tokenizer)


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = modernbert_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    return tokenizer


DEBERTA_V3: dict[str, Any] = {
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}


def sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what every small configuration has in common."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
    }


def bert(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**sizes(tokenizer), max_position_embeddings=512))


def roberta(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = RobertaConfig(**sizes(tokenizer), max_position_embeddings=514, type_vocab_size=1)
    return RobertaForSequenceClassification(config)


def xlm_roberta(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = XLMRobertaConfig(**sizes(tokenizer), max_position_embeddings=514, type_vocab_size=1)
    return XLMRobertaForSequenceClassification(config)


def electra(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = ElectraConfig(**sizes(tokenizer), embedding_size=16, max_position_embeddings=512)
    return ElectraForSequenceClassification(config)


def deberta(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return DebertaV2ForSequenceClassification(DebertaV2Config(**sizes(tokenizer), **DEBERTA_V3))


def modernbert(tokenizer: PreTrainedTokenizerBase, pooling: str = "cls") -> PreTrainedModel:
    ids = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = ModernBertConfig(**sizes(tokenizer), **ids, global_attn_every_n_layers=2, classifier_pooling=pooling)
    return ModernBertForSequenceClassification(config)


def pairrm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from tinyrm.families.pairrm import PairRM

    names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(MARKERS), strict=True))
    return PairRM(DebertaV2Config(**sizes(tokenizer), **DEBERTA_V3, **ids, n_tasks=1, drop_out=0.05))


@dataclass(frozen=True)
class Published:
    """One kind of published model.

    config: fields of its config.json beside those of the model's class.
    """

    model: Callable[[PreTrainedTokenizerBase], PreTrainedModel]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Write model and tokenizer to `folder`."""
        torch.manual_seed(seed)
        tokenizer = self.tokenizer()
        model = self.model(tokenizer)
        spread(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        change_json(folder / "config.json", **self.config)
        return folder


@dataclass(frozen=True)
class Modular(Published):
    """A cross-encoder made of modules, in the files of sentence-transformers: an encoder, a pooling, and layers."""

    pooling: str = "cls"

    def write(self, folder: Path, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        tokenizer = self.tokenizer()
        body = self.model(tokenizer).base_model
        spread(body)
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        width = body.config.hidden_size
        dense = {"bias": True, "module_input_name": "sentence_embedding"}
        modules: list[tuple[str, str, dict[str, Any], nn.Module | None]] = [
            ("base.modules.transformer.Transformer", "", {}, None),
            (
                *("sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
                {"embedding_dimension": width, "pooling_mode": self.pooling, "include_prompt": True},
                None,
            ),
            (
                *("base.modules.dense.Dense", "2_Dense"),
                dense | {"in_features": width, "out_features": width, "activation_function": f"{ACTIVATION}GELU"},
                nn.Linear(width, width),
            ),
            (
                *("sentence_transformer.modules.layer_norm.LayerNorm", "3_LayerNorm"),
                {"dimension": width},
                nn.LayerNorm(width),
            ),
            (
                *("base.modules.dense.Dense", "4_Dense"),
                dense
                | {"in_features": width, "out_features": 1, "activation_function": "torch.nn.modules.linear.Identity"}
                | {"module_output_name": "scores"},
                nn.Linear(width, 1),
            ),
        ]
        for _, path, settings, module in modules[1:]:
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps(settings))
            if module is not None:
                spread(module)
                prefix = "norm" if isinstance(module, nn.LayerNorm) else "linear"
                tensors = {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
                save_file(tensors, folder / path / "model.safetensors")
        entries = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (kind, path, *_) in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
        text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
        transformer = {"transformer_task": "feature-extraction", "modality_config": text}
        (folder / "sentence_bert_config.json").write_text(
            json.dumps(transformer | {"module_output_name": "token_embeddings"})
        )
        library = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity", "prompts": {}}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(library | {"default_prompt_name": None}))
        return folder


PUBLISHED = {
    # cross-encoder/ms-marco-MiniLM-L6-v2, stsb-roberta-base, ms-marco-electra-base; BAAI/bge-reranker-base
    "bert": Published(
        bert, bert_tokenizer, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    ),
    "roberta": Published(roberta, roberta_tokenizer, {"sbert_ce_default_activation_function": None}),
    "xlm-roberta": Published(xlm_roberta, xlm_roberta_tokenizer),
    "electra": Published(
        electra, bert_tokenizer, {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    ),
    # OpenAssistant/reward-model-deberta-v3-large-v2
    "deberta": Published(deberta, deberta_tokenizer, {"problem_type": "regression"}),
    # Alibaba-NLP/gte-reranker-modernbert-base, ibm-granite/granite-embedding-reranker-english-r2
    "gte": Published(
        lambda tokenizer: modernbert(tokenizer, "mean"),
        modernbert_tokenizer,
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"}},
    ),
    "chatml": Published(modernbert, chatml_tokenizer),
    # cross-encoder/ettin-reranker-150m-v1 and its sizes
    "modular": Modular(modernbert, modernbert_tokenizer),
    # llm-blender/PairRM-hf, mightbe/Better-PairRM
    "pairrm": Published(pairrm, pairrm_tokenizer, {"architectures": ["DebertaV2PairRM"]}),
}


def change_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON object in a file; a field of None is removed."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
