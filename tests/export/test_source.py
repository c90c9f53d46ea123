"""Test what is refused of other projects' models after their files were recognised, and before anything is compiled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.config import ExportOptions, TemplateName
from export.loading import load_recognised
from export.pipeline import export_bundle
from export.recognition import Recognised, recognise
from export.source import find_source
from tests.conftest import Trained
from tests.support.checkpoints import PUBLISHED
from tinyrm.errors import InvalidInput
from tinyrm.template import TEMPLATES

Tensors = dict[str, torch.Tensor]


def test_every_template_can_be_named() -> None:
    assert get_args(TemplateName) == tuple(TEMPLATES)


def options(folder: Path, **changes: Any) -> ExportOptions:
    return ExportOptions(model=str(folder), out=folder.parent / "toy", **changes)


@pytest.mark.parametrize(
    ("kind", "asked", "max_tokens"),
    [
        ("bert", None, 512),
        ("roberta", None, 512),  # of 514 positions, two are reserved
        ("deberta", None, 512),
        ("deberta", 1500, 1500),  # its positions are relative
        ("chatml", None, 2048),
        ("chatml", 8000, 8000),
        ("pairrm", None, 2048),
    ],
)
def test_the_budget_is_what_the_model_was_made_for_unless_more_is_asked(
    tmp_path: Path, kind: str, asked: int | None, max_tokens: int
) -> None:
    source = find_source(options(PUBLISHED[kind].write(tmp_path / kind), max_tokens=asked))
    assert source.spec.max_tokens == max_tokens
    assert source.spec.domains == {"general": ""}, "these models read no instruction"


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bert", {"max_tokens": 600}, "max_tokens=600 exceeds the model, which has 512 positions"),
        ("roberta", {"max_tokens": 513}, "max_tokens=513 exceeds the model, which has 512 positions"),
        ("bert", {"max_tokens": 0}, "must be at least 1"),
        ("deberta", {"graph": "optimised"}, "has no optimised graph"),
        ("bert", {"weights": True}, "--weights and bf16 are for the ModernBERT family"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr("export.source.load_recognised", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InvalidInput, match=reason):
        export_bundle(options(PUBLISHED[kind].write(tmp_path / kind), **changes))
    assert not (tmp_path / "toy").exists()


def test_a_masked_lm_needs_a_template_with_a_mask(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="fills a mask, and the template chatml has none"):
        find_source(ExportOptions(model=str(trained.base), out=tmp_path / "toy", template="chatml"))


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


# Checkpoint, file, what happens to its tensors, and what the refusal names.
DAMAGED: dict[str, tuple[str, str, Callable[[Tensors], Tensors], str]] = {
    "no head": ("bert", "", without("classifier.weight"), "1 of its weights are missing: classifier.weight"),
    "a layer less": (
        *("gte", "", without("model.layers.1.mlp.Wi.weight")),
        "1 of its weights are missing: model.layers.1.mlp.Wi.weight",
    ),
    "a weight too many": (
        *("roberta", "", lambda tensors: tensors | {"extra.weight": torch.zeros(2)}),
        "1 belong to nothing: extra.weight",
    ),
    "a PairRM without its head": ("pairrm", "", without("head_layer.4.weight"), "head_layer.4.weight"),
    "a body of modules": (
        *("modular", "", without("layers.1.mlp.Wi.weight")),
        "1 of its weights are missing: model.layers.1.mlp.Wi.weight",
    ),
    "a layer of modules": ("modular", "2_Dense", without("linear.bias"), "do not fit a Dense: bias"),
    "another shape": (
        *("modular", "4_Dense", lambda tensors: tensors | {"linear.weight": torch.zeros(1, 7)}),
        "do not fit a Dense: weight",
    ),
    "a norm": ("modular", "3_LayerNorm", without("norm.weight"), "do not fit a LayerNorm: weight"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    kind, part, damage, reason = DAMAGED[case]
    folder = PUBLISHED[kind].write(tmp_path / kind)
    found: Recognised | None = recognise(kind, folder)
    assert found
    file = folder / part / "model.safetensors"
    save_file(damage(load_file(file)), file, {"format": "pt"})
    with pytest.raises(InvalidInput, match=reason):
        load_recognised(str(folder), found)


def test_a_layer_in_the_older_format_is_read(tmp_path: Path) -> None:
    folder = PUBLISHED["modular"].write(tmp_path / "modular")
    found = recognise("modular", folder)
    assert found
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        before = load_recognised(str(folder), found)(ids).logits
        file = folder / "2_Dense" / "model.safetensors"
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
        torch.testing.assert_close(load_recognised(str(folder), found)(ids).logits, before, atol=0, rtol=0)
