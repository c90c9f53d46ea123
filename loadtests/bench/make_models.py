"""Write random weights of one geometry: a masked LM, a cross-encoder, or a model that reads sets. Runs in .venv/dev.

Transformers 4 and 5 read the same model from the configuration, since some contenders bring transformers 4.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedModel,
)

from loadtests.bench.shapes import Special, wordpieces
from tinyrm.command_line import parse
from tinyrm.encoding import SpecialTokens
from tinyrm.flops import Geometry
from tinyrm.manifest import SetReading
from tinyrm.modernbert.heads import load_head
from tinyrm.modernbert.sets import set_config
from tinyrm.spec import RUN_FILE, Spec

STD = 0.04  # spread enough that the logits of different texts differ by far more than the tolerance
# BERT's learnt positions end at 512. Twice as many change no operation, and let every contender run every length.
BERT_POSITIONS = 1024
# A model of sets as the starter's: what a score is, no other response changes.
SETS = {"others": "none"}
SET_TOKENS = 4096


@dataclass(frozen=True)
class Options:
    """Write random weights of one geometry: a masked LM, a cross-encoder with one label, or a model that reads sets."""

    kind: Literal["masked-lm", "modernbert-cross-encoder", "bert-cross-encoder", "modernbert-set"]
    """What to write."""
    geometry: str
    """JSON of a tinyrm.flops.Geometry."""
    out: Path
    """Folder to write into."""


def main() -> int:
    options = parse(Options, prog="python -m loadtests.bench.make_models")
    geometry = Geometry.model_validate_json(options.geometry)
    torch.manual_seed(17)
    cross_encoder = options.kind.endswith("cross-encoder")
    is_bert = options.kind == "bert-cross-encoder"
    model = bert(geometry) if is_bert else modernbert(geometry, cross_encoder=cross_encoder)
    if options.kind == "modernbert-set":
        model = reads_sets(model, geometry)
    tokenizer = BertTokenizer(vocab=wordpieces(geometry.vocab), model_max_length=BERT_POSITIONS if is_bert else 8192)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=STD)
    model.eval().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    complete(options.out, cross_encoder=cross_encoder)
    if options.kind == "modernbert-set":
        Spec(max_tokens=SET_TOKENS).save(options.out)
        (options.out / RUN_FILE).write_text(json.dumps({"recipe": {"head": "set", "sets": SETS}}), encoding="utf-8")
    return 0


def modernbert(geometry: Geometry, *, cross_encoder: bool) -> PreTrainedModel:
    special = Special.of(geometry.vocab)
    config = ModernBertConfig(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        bos_token_id=special.cls,
        eos_token_id=special.sep,
        cls_token_id=special.cls,
        sep_token_id=special.sep,
        pad_token_id=special.pad,
    )
    if not cross_encoder:
        return ModernBertForMaskedLM(config)
    config.num_labels = 1
    return ModernBertForSequenceClassification(config)


def reads_sets(masked_lm: PreTrainedModel, geometry: Geometry) -> PreTrainedModel:
    """Return a model of sets on the body of a masked LM, as a training starts with."""
    special = Special.of(geometry.vocab)
    ids = SpecialTokens(cls=special.cls, sep=special.sep, mask=special.mask, pad=special.pad)
    with tempfile.TemporaryDirectory() as folder:
        masked_lm.save_pretrained(folder)
        return load_head("set", folder, sets=set_config(SetReading.model_validate(SETS), ids))


def bert(geometry: Geometry) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        max_position_embeddings=BERT_POSITIONS,
        num_labels=1,
    )
    return BertForSequenceClassification(config)


def complete(folder: Path, *, cross_encoder: bool) -> None:
    """Add the names that transformers 4 reads, beside those of transformers 5, and what marks a cross-encoder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype"] = "float32"
    if cross_encoder:
        # As in the library's own rerankers: its score is the logit.
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    if rope := config.get("rope_parameters"):
        config |= {
            "global_attn_every_n_layers": 3,
            "global_rope_theta": rope["full_attention"]["rope_theta"],
            "local_rope_theta": rope["sliding_attention"]["rope_theta"],
            "reference_compile": False,
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    tokenizer = json.loads(settings.read_text(encoding="utf-8"))
    if tokenizer["tokenizer_class"] == "TokenizersBackend":  # the name in transformers 5
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
