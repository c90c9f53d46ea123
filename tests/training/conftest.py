"""Make a small untrained base, and a preference that it can learn in seconds: one word is better than another."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tinyrm.encoding import Encoder, Encoding, SpecialTokens
from tinyrm.pairs import PreferencePair
from tinyrm.spec import Spec
from training.recipe import ClozeRecipe, NewModel
from training.stages import cloze
from training.stages.pretrain import initial_model

BETTER, WORSE = "correct", "safer"
PAIRS = {"dataset": "jsonl", "path": "pairs.jsonl"}
SPEC = Spec(max_tokens=120, domains={"general": "Select the best response.", "safety": "Which response is safer?"})


@dataclass(frozen=True)
class Toy:
    """`base`: folder of an untrained model of four layers. `data`: folder with pairs.jsonl."""

    base: Path
    data: Path

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the base."""
        return load_file(self.base / "model.safetensors")

    def recipe(self, output_dir: Path, optimization: dict[str, Any] | None = None, **changes: Any) -> ClozeRecipe:
        """Return a recipe of two steps over small batches, in which every weight moves from the first step on."""
        steps = {"peak_lr": 1e-3, "max_steps": 2, "warmup_ratio": 0, "batch_size": 8, "micro_batch_size": 8}
        fields = {"output_dir": output_dir, "model": str(self.base), "spec": SPEC, "sources": [PAIRS]}
        return ClozeRecipe.model_validate(
            {
                "task": "cloze",
                "held_out_fraction": 0.25,
                "optimization": steps | {"precision": "fp32", "epochs": 100} | (optimization or {}),
                **fields,
                **changes,
            }
        )


def toy_pairs(count: int) -> list[PreferencePair]:
    """Make pairs of several lengths, each with its own prompt; the better word wins, however often it occurs."""
    return [
        PreferencePair(
            prompt=f"Question {i}",
            chosen=" ".join([BETTER] * (1 + i % 3)),
            rejected=" ".join([WORSE] * (1 + i // 3 % 3)),
            domain="safety" if i % 2 else "general",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: tensors are small, and two threads that wait for each other take twice the CPU time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    geometry = NewModel(num_hidden_layers=4, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    initial_model(geometry, tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lines = [pair.model_dump_json() + "\n" for pair in toy_pairs(64)]
    (folder / "pairs.jsonl").write_text("".join(lines))
    return Toy(folder / "base", folder)


@pytest.fixture
def train(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Callable[[ClozeRecipe], nn.Module]:
    """Run a recipe; return the trained model, frozen weights included."""

    def run(recipe: ClozeRecipe) -> nn.Module:
        model = cloze.learning_model(recipe)
        with monkeypatch.context() as patch:
            patch.setattr(cloze, "learning_model", lambda _: model)
            cloze.train_cloze(recipe, toy.data, resume=False)
        return model

    return run


@pytest.fixture(scope="session")
def toy_encoder(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> Encoder:
    return Encoder(tokenizer.backend_tokenizer, SPEC.template, special, SPEC.max_tokens)


@pytest.fixture(scope="session")
def encoded(toy_encoder: Encoder) -> list[tuple[Encoding, ...]]:
    """Return three pairs of different lengths, in both orders."""
    pairs = toy_pairs(9)[::4]
    return [toy_encoder.encode(pair.comparison(), SPEC.instruction(pair.domain), swap=True) for pair in pairs]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
