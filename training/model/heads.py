"""Baselines beside the cloze: the same body, data, orders and optimizer, and another way to read the preference.

Every head ends in the cloze's own shape, two logits for each row (first choice, second choice). Loss over two choices,
consistency term and held-out metrics are shared.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from tinyrm.batching import collate
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import InvalidInput
from tinyrm.spec import read_run, trained_head
from training.data.collate import Encodes
from training.model.response_encoder import ResponseEncoder
from training.recipe import ClozeRecipe, HeadKind

MARKER_WORDS = 100  # as the paper's author inserted [CLS] for token-level labels
# Inputs of a batch -> (loss, label logits [rows, 2]).
Readout = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def encoder_for(head: HeadKind, encoder: Encoder, tokenizer: Tokenizer) -> Encodes:
    """What turns a pair into the two texts that the head reads."""
    if head in ("cloze", "pair-cls", "pair-mean"):
        return encoder
    return ResponseEncoder(encoder, tokenizer, MARKER_WORDS if head == "tokens" else 0)


def load_head(head: HeadKind, model: str) -> PreTrainedModel:
    """The body of a masked LM with a classifier on it, in fp32; head.dense and head.norm are the masked LM's own.

    Raises InvalidInput where the family cannot pool as asked.
    """
    config = head_config(head, AutoConfig.from_pretrained(model))
    loaded: PreTrainedModel = _architecture(head).from_pretrained(model, config=config, dtype=torch.float32)
    return loaded


def empty_head(head: HeadKind, config: PreTrainedConfig) -> PreTrainedModel:
    """The same with shapes and no weights."""
    with torch.device("meta"):
        model: PreTrainedModel = _architecture(head).from_config(head_config(head, config))
    return model


def head_config(head: HeadKind, config: PreTrainedConfig) -> PreTrainedConfig:
    """`pair-*` has two logits, `pointwise` one, both from a pooled vector; `tokens` has one at every token."""
    config = copy.deepcopy(config)
    config.num_labels = 2 if head in ("pair-cls", "pair-mean") else 1
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean" if head == "pair-mean" else "cls"
    elif head == "pair-mean":
        raise InvalidInput(f"{config.model_type} models pool the first token only: head: pair-mean needs a ModernBERT")
    return config


def _architecture(head: HeadKind) -> Any:
    return AutoModelForTokenClassification if head == "tokens" else AutoModelForSequenceClassification


def load_trained_head(folder: Path) -> nn.Module:
    """What a run with a head left in its output folder, weights or adapter, ready to read pairs with."""
    recipe = ClozeRecipe.model_validate(read_run(folder)["recipe"])
    if recipe.dora is None:
        return load_head(recipe.head, str(folder)).eval()
    adapted: nn.Module = PeftModel.from_pretrained(load_head(recipe.head, recipe.model), str(folder))
    return adapted.eval()


def refuse_other_head(recipe: ClozeRecipe) -> None:
    """Raise InvalidInput if the recipe would go on from a model of another head, whose weights do not fit.

    A cloze model is a masked LM and may become anything.
    """
    earlier = trained_head(Path(recipe.model))
    if earlier not in ("cloze", recipe.head):
        raise InvalidInput(
            f"{recipe.model} was trained with head: {earlier}, and head: {recipe.head} cannot go on from it; "
            f"say head: {earlier}, or start from a masked LM"
        )


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Items of two texts each -> rows, two by two, without those that are None.

    `is_second`, bool [rows]: the second text of its item, in which the second choice is right, or which is the rejected
    response. `marker_id` adds `markers`, bool [rows, tokens]: where that token stands.
    """

    pad_id: int
    marker_id: int | None = None

    def __call__(self, items: Sequence[Sequence[Encoding | None]]) -> dict[str, Tensor]:
        rows = [(text, place) for item in items for place, text in enumerate(item) if text]
        batch = collate([text for text, _ in rows], self.pad_id)
        input_ids = torch.from_numpy(batch.input_ids)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.from_numpy(batch.attention_mask),
            "is_second": torch.tensor([place == 1 for _, place in rows]),
        }
        return inputs if self.marker_id is None else inputs | {"markers": input_ids == self.marker_id}


def readout(head: HeadKind) -> Readout:
    """How a head other than the cloze reads a batch of RowCollator."""
    return {"pointwise": read_pointwise, "tokens": read_tokens}.get(head, read_pair)


def read_pair(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Both responses in one text, two logits: cross-entropy."""
    logits = _logits(model, inputs)
    return two_way_loss(logits, inputs["is_second"]), logits


def read_pointwise(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One response per text, one score: Bradley-Terry, -log sigmoid(s_chosen - s_rejected).

    That is the cross-entropy over the two scores of a pair, once for each order.
    """
    logits = side_by_side(_logits(model, inputs).squeeze(-1))
    return two_way_loss(logits, inputs["is_second"]), logits


def read_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One response per text, a logit at each marker: is this response the chosen one? Their mean is its score.

    Loss: binary cross-entropy, averaged over the markers of a text and then over texts, so that a long response
    weighs no more than a short one.
    """
    markers = inputs["markers"]
    logits = _logits(model, inputs).squeeze(-1)
    is_chosen = (~inputs["is_second"]).float().unsqueeze(1).expand_as(logits)
    wrong = nn.functional.binary_cross_entropy_with_logits(logits.float(), is_chosen, reduction="none")
    return masked_mean(wrong, markers).mean(), side_by_side(masked_mean(logits, markers))


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return logits


def two_way_loss(label_logits: Tensor, second_is_right: Tensor) -> Tensor:
    """Cross-entropy over the two labels only; label_logits [rows, 2], second_is_right [rows]."""
    return nn.functional.cross_entropy(label_logits, second_is_right.long())


def swap_disagreement(label_logits: Tensor) -> Tensor:
    """Mean over pairs of (z(A,B) + z(B,A))^2, z = logit(first) - logit(second): 0 where swapping swaps the answer."""
    z = label_logits[:, 0] - label_logits[:, 1]
    return z.view(-1, 2).sum(dim=1).square().mean()


def side_by_side(scores: Tensor) -> Tensor:
    """Scores of the responses [rows], two by two -> [rows, 2]: each beside its rival's."""
    return torch.stack([scores, scores.view(-1, 2).flip(1).reshape(-1)], dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[rows, tokens] -> [rows], over the tokens under the mask."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1)
