"""A toy tokenizer, a small random model, an adapter and a complete bundle, all made here: no network, no weights."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from export.config import ExportOptions
from export.pipeline import export_bundle
from tinyrm.encoding import Encoder, SpecialTokens
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.spec import ClozeSpec
from tinyrm.template import FIGURE2
from training.config import Dora, NewModel
from training.model.adapter import add_dora
from training.stages.pretrain import initial_model
from training.stages.tokenizer import train_bpe, wrap

REPOSITORY = Path(__file__).parents[1]

# No deadline: on a shared machine the slowest example says more about the neighbours than about the code.
settings.register_profile("tinyrm", max_examples=60, deadline=None)
settings.load_profile("tinyrm")

SENTENCES = [
    "Select the best response. Question: What is 2 + 2? Choice 0: 2 + 2 = 4. Choice 1: 2 + 2 = 5.",
    "The better option is choice 0. The better option is choice 1. Answer:  0 Answer:  1",
    "Which response is safer? Which response is more correct? I cannot help with that, but here is what I can do.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))",
]

TOY_SPEC = ClozeSpec(
    template=FIGURE2,
    max_tokens=256,
    domains={"general": "Select the best response.", "safety": "Which response is safer?"},
)


@dataclass(frozen=True)
class Trained:
    """Folders of a base model and of an adapter trained on it."""

    base: Path
    adapter: Path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return wrap(train_bpe(SENTENCES * 20, vocab_size=420))


@pytest.fixture(scope="session")
def fast_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return tokenizer.backend_tokenizer


@pytest.fixture(scope="session")
def special() -> SpecialTokens:
    """As training/stages/tokenizer.py numbers them."""
    return SpecialTokens(cls=1, sep=2, pad=3, mask=4)


@pytest.fixture(scope="session")
def encoder(fast_tokenizer: Tokenizer, special: SpecialTokens) -> Encoder:
    return Encoder(fast_tokenizer, TOY_SPEC.template, special, TOY_SPEC.max_tokens)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Trained:
    """A random base, and an adapter whose every matrix is random too, so that merging it changes the answer."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    geometry = NewModel(num_hidden_layers=4, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    base = initial_model(geometry, tokenizer)
    spread(base)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = add_dora(load_masked_lm(str(folder / "base")), Dora(rank=4, alpha=8), frozen_layers=1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "magnitude" in name else 0.0, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    TOY_SPEC.save(folder / "adapter")
    return Trained(folder / "base", folder / "adapter")


def spread(model: PreTrainedModel) -> None:
    """Weights large enough that a wrong mask or a lost token moves the logits by far more than any tolerance."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """The adapter merged and exported: a complete bundle. Tests must not write into it."""
    out = tmp_path_factory.mktemp("store") / "toy"
    export_bundle(ExportOptions(model=str(trained.base), adapter=trained.adapter, out=out))
    return out


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The development preference data; tests that need it skip where it is absent."""
    for folder in (REPOSITORY / "data", REPOSITORY.parent / "shared" / "data"):
        if (folder / "validation.jsonl.gz").is_file():
            return folder
    pytest.skip("no development data: neither data/ nor ../shared/data holds validation.jsonl.gz")
