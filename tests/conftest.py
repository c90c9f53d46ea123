"""Make a toy tokenizer, a small random model, an adapter and a complete bundle, without network or published weights.

This file is read before every test, so it imports torch, transformers and the exporter only where they are needed.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import settings
from tokenizers import Tokenizer

from tests.support.kept import REPOSITORY, kept
from tinyrm.encoding import Encoder, SpecialTokens
from tinyrm.spec import Spec
from tinyrm.template import FIGURE2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from export.config import ExportOptions

__all__ = ["REPOSITORY", "SENTENCES", "TOY_SPEC", "Trained", "spread"]

ONE_PROCESS = ("tests/ray", "tests/containers", "tests/integrations")
# Work that takes longest begins first, so that none is left with a long file at the end. Training needs no bundle:
# while one process makes the one that tests/ray begins with, another does not wait for it.
LONGEST_FIRST = ("tests/ray", "tests/training", "tests/e2e", "tests/containers", "tests/export", "tests/parity")

# No deadline: on a shared machine the slowest example says more about the neighbours than about the code.
settings.register_profile("tinyrm", max_examples=60, deadline=None)
settings.load_profile("tinyrm")

SENTENCES = [
    "Select the best response. Question: What is 2 + 2? Choice 0: 2 + 2 = 4. Choice 1: 2 + 2 = 5.",
    "The better option is choice 0. The better option is choice 1. Answer:  0 Answer:  1",
    "Which response is safer? Which response is more correct? I cannot help with that, but here is what I can do.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))",
]

TOY_SPEC = Spec(
    template=FIGURE2,
    max_tokens=256,
    domains={"general": "Select the best response.", "safety": "Which response is safer?"},
)

# As training/stages/tokenizer.py numbers them.
TOY_SPECIAL = SpecialTokens(cls=1, sep=2, pad=3, mask=4)
# What responses of a toy that reads sets see of each other.
SEEN = {"others": "tokens", "layers": 1}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = next((folder for folder in LONGEST_FIRST if item.nodeid.startswith(folder)), None)
        return LONGEST_FIRST.index(folder) if folder else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Have the garbage collector leave out what the imports made: training calls it at each run, and it took 0.5 s."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process, which makes the file's fixtures once.

    Some folders go to one process as a whole: they share one cluster, one container engine, or one service.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = next((folder for folder in ONE_PROCESS if nodeid.startswith(f"{folder}/")), None)
            return folder or nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undo what a test did to the logs of its process, such as by a command or a service that configures them.

    Otherwise, a later test in the same process would see lines that only its own process of a command never prints.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@dataclass(frozen=True)
class Trained:
    """Folders of a base model and of an adapter trained on it."""

    base: Path
    adapter: Path


@pytest.fixture(scope="session")
def tokenizer_folder(pytestconfig: pytest.Config) -> Path:
    def make(folder: Path) -> None:
        from training.stages.tokenizer import train_bpe, wrap

        wrap(train_bpe(SENTENCES * 20, vocab_size=420)).save_pretrained(folder)

    return kept(pytestconfig, "tokenizer", make)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def fast_tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def special() -> SpecialTokens:
    return TOY_SPECIAL


@pytest.fixture(scope="session")
def encoder(fast_tokenizer: Tokenizer, special: SpecialTokens) -> Encoder:
    return Encoder(fast_tokenizer, TOY_SPEC.template, special, TOY_SPEC.max_tokens)


@pytest.fixture(scope="session")
def trained(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Trained:
    """Make a random base, and an adapter with random matrices, so that merging it changes the scores."""

    def make(folder: Path) -> None:
        import torch

        from tinyrm.modernbert.checkpoint import load_masked_lm
        from training.model.adapter import add_dora
        from training.recipe import Dora, NewModel
        from training.stages.pretrain import initial_model

        tokenizer = request.getfixturevalue("tokenizer")
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

    folder = kept(pytestconfig, "trained", make)
    return Trained(folder / "base", folder / "adapter")


def spread(model: PreTrainedModel) -> None:
    """Draw weights so large that a wrong mask or a lost token moves the logits by far more than any tolerance."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)


def export_toy(trained: Trained, out: Path, **options: Any) -> None:
    from export.config import ExportOptions
    from export.pipeline import export_bundle

    export_bundle(ExportOptions(model=str(trained.base), adapter=trained.adapter, out=out, **options))


@pytest.fixture(scope="session")
def bundle_folder(pytestconfig: pytest.Config, trained: Trained) -> Path:
    """Return the merged and exported adapter: a complete bundle. Tests must not write into it."""
    return kept(pytestconfig, "bundle", lambda folder: export_toy(trained, folder / "toy")) / "toy"


def export_head(base: Path, folder: Path, head: str, sets: dict[str, Any] | None = None) -> None:
    """Export the base with a random classifier, calibrated on toy pairs; the arguments are those of `write_head`."""
    from export.pipeline import export_bundle

    export_bundle(write_head(base, folder, head, sets))


def write_head(base: Path, folder: Path, head: str, sets: dict[str, Any] | None = None) -> ExportOptions:
    """Write the base with a random classifier, as training does, and toy pairs; return the options of their export.

    sets: what responses see of each other, for a head that reads sets.
    """
    import json

    import torch
    from transformers import AutoTokenizer

    from export.config import ExportOptions
    from tinyrm.manifest import SetReading
    from tinyrm.modernbert.heads import load_head
    from tinyrm.modernbert.sets import set_config
    from tinyrm.spec import RUN_FILE, HeadKind

    kind: HeadKind = head  # type: ignore[assignment]
    torch.manual_seed(0)
    reading = None if sets is None else set_config(SetReading(**sets), TOY_SPECIAL)
    model = load_head(kind, str(base), sets=reading)
    spread(model)
    model.save_pretrained(folder / "trained")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "trained")
    TOY_SPEC.save(folder / "trained")
    recipe = {"head": head} if sets is None else {"head": head, "sets": sets}
    (folder / "trained" / RUN_FILE).write_text(json.dumps({"recipe": recipe}))
    pairs = [
        {"prompt": f"What is {i} + 2?", "chosen": f"{i} + 2 = {i + 2}.", "rejected": SENTENCES[i % 4][: 20 + i]}
        for i in range(12)
    ]
    calibration = folder / "pairs.jsonl"
    calibration.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return ExportOptions(model=str(folder / "trained"), out=folder / "toy", calibration=calibration)


@pytest.fixture(scope="session")
def response_bundle_folder(pytestconfig: pytest.Config, trained: Trained) -> Path:
    """Return a bundle that scores responses one by one. Tests must not write into it."""
    return kept(pytestconfig, "response", lambda folder: export_head(trained.base, folder, "pointwise")) / "toy"


@pytest.fixture(scope="session")
def local_set_bundle_folder(pytestconfig: pytest.Config, trained: Trained) -> Path:
    """Return a ModernBERT, with local layers, that reads sets, in which responses see each other in the last layer.

    For slow tests: its graphs compile longer. Tests must not write into it.
    """
    return kept(pytestconfig, "local-set", lambda folder: export_head(trained.base, folder, "set", SEEN)) / "toy"


@pytest.fixture(scope="session")
def bert_folder(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Path:
    """Return a random BERT of two layers: without local layers, its graphs compile in half the time."""

    def make(folder: Path) -> None:
        import torch
        from transformers import BertConfig, BertForMaskedLM

        tokenizer = request.getfixturevalue("tokenizer")
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        base = BertForMaskedLM(config)
        spread(base)
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return kept(pytestconfig, "bert", make)


@pytest.fixture(scope="session")
def set_bundle_folder(pytestconfig: pytest.Config, bert_folder: Path) -> Path:
    """Return a BERT that reads sets, in which responses see each other in the last layer.

    Tests must not write into it.
    """
    return kept(pytestconfig, "set", lambda folder: export_head(bert_folder, folder, "set", SEEN)) / "toy"


@pytest.fixture(scope="session")
def shared_prompt_bundle_folder(pytestconfig: pytest.Config, bert_folder: Path) -> Path:
    """Return a bundle that reads sets as the starter does: each response is scored as if it were alone.

    Tests must not write into it.
    """
    sets = {"others": "none"}
    return kept(pytestconfig, "shared-prompt", lambda folder: export_head(bert_folder, folder, "set", sets)) / "toy"


@pytest.fixture(scope="session")
def pair_cls_bundle_folder(pytestconfig: pytest.Config, trained: Trained) -> Path:
    """Return a bundle that reads a pair at its first token. Tests must not write into it."""
    return kept(pytestconfig, "pair-cls", lambda folder: export_head(trained.base, folder, "pair-cls")) / "toy"


@pytest.fixture(scope="session")
def weights_bundle_folder(pytestconfig: pytest.Config, trained: Trained) -> Path:
    """Return the same with the weights for the torch engine. Tests must not write into it."""
    return kept(pytestconfig, "weights", lambda folder: export_toy(trained, folder / "toy", weights=True)) / "toy"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of the development data; skip the test without it."""
    for folder in (REPOSITORY / "data", REPOSITORY.parent / "shared" / "data"):
        if (folder / "validation.jsonl.gz").is_file():
            return folder
    pytest.skip("no development data: neither data/ nor ../shared/data holds validation.jsonl.gz")
