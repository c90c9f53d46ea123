"""Write random weights of one geometry: a masked LM, or a cross-encoder with one label. Runs in .venv/dev.

Transformers 4 and 5 read the same model from the configuration, since some contenders bring transformers 4.
"""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tinyrm.command_line import parse
from tinyrm.flops import Geometry

STD = 0.04  # spread enough that the logits of different texts differ by far more than the tolerance
FIRST_WORD = 999  # in BERT's vocabulary, after special tokens, unused ones and letters
# BERT's learnt positions end at 512. Twice as many change no operation, and let every contender run every length.
BERT_POSITIONS = 1024


@dataclass(frozen=True)
class Options:
    """Write random weights of one geometry: a masked LM, or a cross-encoder with one label."""

    kind: Literal["masked-lm", "modernbert-cross-encoder", "bert-cross-encoder"]
    """What to write."""
    geometry: str
    """JSON of a tinyrm.flops.Geometry."""
    bundle: Path
    """Bundle to take ModernBERT's tokenizer and special tokens from."""
    out: Path
    """Folder to write into."""


def main() -> int:
    options = parse(Options, prog="python -m loadtests.bench.make_models")
    geometry = Geometry.model_validate_json(options.geometry)
    torch.manual_seed(17)
    if options.kind == "bert-cross-encoder":
        model, tokenizer = bert(geometry)
    else:
        model, tokenizer = modernbert(geometry, options.bundle, cross_encoder=options.kind != "masked-lm")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=STD)
    model.eval().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    complete(options.out, cross_encoder=options.kind != "masked-lm")
    return 0


def modernbert(
    geometry: Geometry, bundle: Path, *, cross_encoder: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    special: dict[str, int] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["special_tokens"]
    config = ModernBertConfig(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        bos_token_id=special["cls"],
        eos_token_id=special["sep"],
        **{f"{role}_token_id": special[role] for role in ("cls", "sep", "pad")},
    )
    fast = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    names = {role: fast.id_to_token(number) for role, number in special.items()}
    cls, sep = names["cls"], names["sep"]
    fast.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(names[role], special[role]) for role in ("cls", "sep")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=8192,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": name for role, name in names.items()},
    )
    if not cross_encoder:
        return ModernBertForMaskedLM(config), tokenizer
    config.num_labels = 1
    return ModernBertForSequenceClassification(config), tokenizer


def bert(geometry: Geometry) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = BertConfig(
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        max_position_embeddings=BERT_POSITIONS,
        num_labels=1,
    )
    tokenizer = BertTokenizer(vocab=wordpieces(geometry.vocab), model_max_length=BERT_POSITIONS)
    return BertForSequenceClassification(config), tokenizer


def wordpieces(size: int) -> dict[str, int]:
    """Return a vocabulary with BERT's special tokens at their places: unused ones, letters, words of syllables."""
    tokens = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    tokens += [f"[unused{n}]" for n in range(99, 99 + FIRST_WORD - len(tokens))]
    syllables = ["".join(letters) for letters in itertools.product("bdfgklmnprstvz", "aeiou")]
    words = ("".join(word) for count in (2, 3) for word in itertools.product(syllables, repeat=count))
    tokens += itertools.islice(words, size - len(tokens))
    return {token: number for number, token in enumerate(tokens)}


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
