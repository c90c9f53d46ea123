"""Test that batches without padding have the loss and the gradients of padded ones, and that heads see what is read."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.masking_utils import flash_attention_mask

from tests.conftest import spread
from tests.training.conftest import SPEC, Toy, read_log, toy_pairs
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.spec import HeadKind
from training.arguments import training_arguments
from training.model.heads import collator_for, encoder_for
from training.recipe import ClozeRecipe
from training.stages.cloze import ClozeTrainer, learning_model, readout, train_cloze

FAMILIES = ("modernbert", "bert")
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
VARLEN = "flash_attention_of_this_test"
HEADS: list[tuple[HeadKind, dict[str, Any]]] = [
    ("cloze", {}),
    ("cloze", {"loss": "labels", "consistency_weight": 0.1}),
    ("pair-cls", {}),
    ("pair-mean", {}),
    ("pointwise", {}),
    ("tokens", {}),
]
CASES = [(family, *head) for family in FAMILIES for head in HEADS if (family, head[0]) != ("bert", "pair-mean")]


@pytest.fixture(scope="module")
def bases(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a base of each family with large weights; local layers see 4 tokens to each side, much less than a row."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bases")
    models: dict[str, PreTrainedModel] = {
        "modernbert": ModernBertForMaskedLM(
            ModernBertConfig(vocab_size=600, local_attention=8, pad_token_id=3, **SIZES)
        ),
        "bert": BertForMaskedLM(BertConfig(vocab_size=600, max_position_embeddings=128, pad_token_id=3, **SIZES)),
        "roberta": RobertaForMaskedLM(RobertaConfig(vocab_size=600, max_position_embeddings=128, **SIZES)),
    }
    for name, model in models.items():
        spread(model)
        model.save_pretrained(folder / name)
        for file in toy.base.glob("*token*"):
            (folder / name / file.name).write_bytes(file.read_bytes())
    return {name: folder / name for name in models}


@pytest.fixture
def varlen() -> Iterator[list[int]]:
    """Register attention that computes what flash attention does of flattened rows; yield the windows it was given."""
    windows: list[int] = []

    def attend(
        _: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
    ) -> tuple[Tensor, None]:
        assert mask is None
        ends = kw["cu_seq_lens_q"].tolist()
        assert ends == kw["cu_seq_lens_k"].tolist()
        assert kw["max_length_q"] == kw["max_length_k"] == max(b - a for a, b in pairwise(ends))
        window = kw.get("sliding_window")
        windows.append(window or 0)
        parts = []
        for start, end in pairwise(ends):
            q, k, v = (states[:, :, start:end] for states in (query, key, value))
            far = (torch.arange(end - start)[:, None] - torch.arange(end - start)).abs() > (window or 10**6) - 1
            weights = (q @ k.transpose(2, 3) * kw["scaling"]).masked_fill(far, -torch.inf).softmax(dim=-1)
            parts.append(weights @ v)
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    AttentionInterface.register(VARLEN, attend)
    AttentionMaskInterface.register(VARLEN, flash_attention_mask)
    yield windows
    AttentionInterface._global_mapping.pop(VARLEN)
    AttentionMaskInterface._global_mapping.pop(VARLEN)


def items_of(head: HeadKind, encoder: Encoder) -> list[tuple[Encoding, ...]]:
    """Return pairs of several lengths."""
    texts = encoder_for(head, encoder, encoder._text.tokenizer)
    pairs = [p.model_copy(update={"prompt": p.prompt + " word" * (7 * i % 20)}) for i, p in enumerate(toy_pairs(6))]
    return [texts.encode(p.comparison(), SPEC.instruction(p.domain), swap=True) for p in pairs]


def loss_and_gradients(
    recipe: ClozeRecipe, encoder: Encoder, attention: str | None = None
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Return the loss, the label logits and the gradients of what learns, as one micro batch of a run gives them."""
    torch.manual_seed(1)  # of the classifier
    model = learning_model(recipe)
    if attention:
        model.config._attn_implementation = attention  # the public setter looks for flash attention's package
    model.train()
    for module in model.modules():  # BERT has dropout, which would be drawn for other places
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer = ClozeTrainer(
        label_ids=encoder.label_ids,
        label_loss=recipe.loss == "labels",
        consistency_weight=recipe.consistency_weight,
        read=None if recipe.head == "cloze" else readout(recipe.head),
        recipe=recipe,
        model=model,
        args=training_arguments(recipe, 2),
        eval_dataset=[],
    )
    batch = collator_for(recipe.head, encoder, flat=recipe.is_flat)(items_of(recipe.head, encoder))
    assert ("attention_mask" in batch) != recipe.is_flat
    loss, logits = trainer.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 1e-2
    return float(loss.detach()), logits.detach(), gradients


def assert_same(one: tuple[float, Tensor, dict[str, Tensor]], other: tuple[float, Tensor, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=0)
    assert one[2].keys() == other[2].keys()
    for name, gradient in one[2].items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradient / scale, other[2][name] / scale, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("way", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize(("family", "head", "parts"), CASES, ids=str)
def test_a_batch_without_padding_has_the_loss_and_gradients_of_a_padded_one(  # noqa: PLR0917
    bases: dict[str, Path],
    toy: Toy,
    tmp_path: Path,
    toy_encoder: Encoder,
    varlen: list[int],
    family: str,
    head: HeadKind,
    parts: dict[str, Any],
    way: str,
) -> None:
    fields = {"model": str(bases[family]), "head": head, **parts}
    padded = loss_and_gradients(toy.recipe(tmp_path, **fields), toy_encoder)
    attention = {"attention": way} if way != "varlen" else {}
    flat = toy.recipe(tmp_path, padding_free=True, **attention, **fields)
    assert_same(loss_and_gradients(flat, toy_encoder, VARLEN if way == "varlen" else None), padded)
    if way == "varlen":
        assert set(varlen) == ({0, 5} if family == "modernbert" else {0}), "local layers see 4 tokens to each side"


def test_the_window_of_a_local_layer_matters_here(
    bases: dict[str, Path], toy: Toy, tmp_path: Path, toy_encoder: Encoder
) -> None:
    recipe = toy.recipe(tmp_path, model=str(bases["modernbert"]))
    narrow = loss_and_gradients(recipe, toy_encoder)[1]
    wide = load_masked_lm(recipe.model)
    wide.config.local_attention = wide.config.sliding_window = 200
    wide.save_pretrained(tmp_path / "wide")
    for file in toy.base.glob("*token*"):
        (tmp_path / "wide" / file.name).write_bytes(file.read_bytes())
    other = loss_and_gradients(toy.recipe(tmp_path, model=str(tmp_path / "wide")), toy_encoder)[1]
    assert (narrow - other).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta"])
@pytest.mark.parametrize("head", ["cloze", "pair-cls", "tokens"])
def test_the_head_at_the_places_gives_what_the_whole_model_gives_there(  # noqa: PLR0917
    bases: dict[str, Path], toy: Toy, tmp_path: Path, toy_encoder: Encoder, head: HeadKind, family: str
) -> None:
    model = learning_model(toy.recipe(tmp_path, model=str(bases[family]), head=head)).eval()
    batch = collator_for(head, toy_encoder)(items_of(head, toy_encoder))
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = model(**texts).logits
        read = model(**texts, read_at=batch["read_at"], places=batch["places"]).logits
    at = whole if head == "pair-cls" else whole.flatten(0, 1)[batch["read_at"]]
    torch.testing.assert_close(read, at, atol=1e-5, rtol=0)
    assert len(read) == (12 if head != "tokens" else len(batch["read_at"]))


@pytest.mark.parametrize(
    "parts",
    [{}, {"dora": {"rank": 2, "alpha": 2}}, {"labelled": True}, {"labelled": True, "head": "tokens"}],
    ids=["weights", "adapter", "labelled", "labelled-tokens"],
)
def test_a_run_without_padding_learns_what_a_padded_one_learns(toy: Toy, tmp_path: Path, parts: dict[str, Any]) -> None:
    fields = dict(parts)
    data = toy.data
    if fields.pop("labelled", False):
        data = tmp_path
        pairs = (p.model_copy(update={"probability": 0.5 + i % 5 / 10}) for i, p in enumerate(toy_pairs(64)))
        (data / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    for flat in (False, True):
        recipe = toy.recipe(
            tmp_path / str(flat), {"max_steps": 5}, padding_free=flat, trainer={"logging_steps": 1}, **fields
        )
        train_cloze(recipe, data, resume=False)
    padded, flattened = (read_log(tmp_path / str(flat)) for flat in (False, True))
    assert len(padded) == len(flattened) > 5
    for one, other in zip(padded, flattened, strict=True):
        for key in ("loss", "grad_norm", "eval_loss", "eval_nll", "eval_first_position_margin"):
            assert other.get(key) == (pytest.approx(one[key], abs=1e-5) if key in one else None), key


def test_flash_attention_has_no_padding_unless_the_recipe_wants_it(toy: Toy, tmp_path: Path) -> None:
    flash = {"attention": "flash_attention_2", "optimization": {"precision": "bf16"}}
    assert not toy.recipe(tmp_path).is_flat
    assert toy.recipe(tmp_path, **flash).is_flat
    assert not toy.recipe(tmp_path, padding_free=False, **flash).is_flat


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "flash_attention_2"}, "set optimization.precision: bf16"),
        ({"attention": "flash"}, "should be 'eager', 'sdpa'"),
        ({"head": "set", "sets": {"others": "none"}, "attention": "sdpa"}, "head: set has attention of its own"),
        ({"head": "set", "sets": {"others": "none"}, "padding_free": True}, "head: set has attention of its own"),
    ],
)
def test_attention_that_a_recipe_cannot_have_is_refused_with_it(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        toy.recipe(tmp_path, {"precision": "fp32"}, **changes)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_needs_a_gpu_is_refused_without_one(toy: Toy, tmp_path: Path, attention: str) -> None:
    recipe = toy.recipe(tmp_path / "out", attention=attention, optimization={"precision": "bf16"})
    with pytest.raises(InvalidInput, match=f"attention: {attention} learns on a GPU only"):
        train_cloze(recipe, tmp_path / "nowhere", resume=False)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", ["cloze", "pair-cls"])
def test_the_implementation_of_attention_is_the_recipes(
    toy: Toy, tmp_path: Path, head: HeadKind, attention: str
) -> None:
    model = learning_model(toy.recipe(tmp_path, head=head, attention=attention))
    assert model.config._attn_implementation == attention


def test_attention_that_a_family_does_not_have_is_refused(tmp_path: Path) -> None:
    DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=600, **SIZES)).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be loaded: DebertaV2ForMaskedLM does not support"):
        load_masked_lm(str(tmp_path), attention="sdpa")
    assert load_masked_lm(str(tmp_path), attention="eager").config._attn_implementation == "eager"


def test_families_that_cannot_read_flattened_rows_are_refused(bases: dict[str, Path], toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="padding_free: true needs a model of modernbert and bert, not roberta"):
        learning_model(toy.recipe(tmp_path, model=str(bases["roberta"]), padding_free=True))
