"""Write random weights of one geometry: a masked LM and a sequence classifier on the same body. Runs in .venv/dev.

Transformers 4 and 5 read the same model from the configuration, since two contenders bring transformers 4.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tinyrm.command_line import parse

STD = 0.04  # spread enough that the logits of different texts differ by far more than the tolerance


@dataclass(frozen=True)
class Options:
    """Write random weights of one geometry: a masked LM and a sequence classifier on the same body."""

    geometry: str
    """JSON with vocab, hidden, intermediate, layers and heads."""
    bundle: Path
    """Bundle to take the tokenizer and the special tokens from."""
    masked_lm: Path
    """Folder for the masked LM."""
    classifier: Path
    """Folder for the classifier."""


def main() -> int:
    options = parse(Options, prog="python -m loadtests.bench.make_models")
    make(json.loads(options.geometry), options.bundle, options.masked_lm, options.classifier)
    return 0


def make(geometry: dict[str, Any], bundle: Path, masked_lm_out: Path, classifier_out: Path) -> None:
    torch.manual_seed(17)
    special: dict[str, int] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["special_tokens"]
    fast = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    names = {f"{role}_token": fast.id_to_token(number) for role, number in special.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=8192, **names)
    config = ModernBertConfig(
        vocab_size=geometry["vocab"],
        hidden_size=geometry["hidden"],
        intermediate_size=geometry["intermediate"],
        num_hidden_layers=geometry["layers"],
        num_attention_heads=geometry["heads"],
        bos_token_id=special["cls"],
        eos_token_id=special["sep"],
        **{f"{role}_token_id": special[role] for role in ("cls", "sep", "pad")},
    )
    masked_lm = ModernBertForMaskedLM(config).eval()
    config.num_labels = 2
    classifier = ModernBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in (p for model in (masked_lm, classifier) for p in model.parameters() if p.ndim == 2):
            parameter.normal_(std=STD)
    classifier.model.load_state_dict(masked_lm.model.state_dict())
    for model, out in ((classifier, classifier_out), (masked_lm, masked_lm_out)):
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        _readable_by_transformers_4(out)


def _readable_by_transformers_4(folder: Path) -> None:
    """Add the names that transformers 4 reads; those of transformers 5 stay beside them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    config |= {
        "global_attn_every_n_layers": 3,
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "torch_dtype": "float32",
        "reference_compile": False,
        # Transformers leaves the default out, and infinity takes a classifier without it for a re-ranker.
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    tokenizer = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
