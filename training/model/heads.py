"""Baselines beside the cloze: the same body, data, orders and optimizer, with another way to read the preference.

Every head ends in the cloze's own shape, two logits for each row (first choice, second choice), so the loss over two
choices, the consistency term and the held-out metrics are shared.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.spec import HeadKind, trained_head
from training.data.collate import Encodes, RowCollator
from training.model.losses import choice_loss, group_loss
from training.model.marked_encoder import MarkedEncoder
from training.model.places import MODEL_INPUTS, row_means
from training.recipe import ClozeRecipe

MARKER_WORDS = 100  # as the paper's author inserted [CLS] for token-level labels
# Inputs of a batch -> (loss, label logits [rows, 2]).
Readout = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def encoder_for(head: HeadKind, encoder: Encoder, tokenizer: Tokenizer) -> Encodes:
    """Return the encoder that turns a pair into the two texts that the head reads; for sets, see `set_encoder`."""
    if head in ("cloze", "pair-cls", "pair-mean"):
        return encoder
    alone = Encoder(tokenizer, encoder.template.of_one_response(), encoder.special, encoder.max_tokens)
    return MarkedEncoder(alone, MARKER_WORDS) if head == "tokens" else alone


def set_encoder(encoder: Encoder, tokenizer: Tokenizer) -> Encoder:
    """Return the encoder of sets with the wording of an encoder of pairs."""
    return Encoder(tokenizer, encoder.template.of_a_set(), encoder.special, encoder.max_tokens)


def refuse_other_head(recipe: ClozeRecipe) -> None:
    """Raise InvalidInput if the recipe starts from a model of another head, whose weights do not fit.

    A cloze model is a masked LM and fits every head.
    """
    earlier = trained_head(Path(recipe.model))
    if earlier not in ("cloze", recipe.head):
        raise InvalidInput(
            f"{recipe.model} was trained with head: {earlier}, and head: {recipe.head} cannot start from it; "
            f"set head: {earlier}, or start from a masked LM"
        )


def collator_for(head: HeadKind, encoder: Encoder, *, flat: bool = False) -> RowCollator:
    """Return what makes batches of pairs for a head: it is read at the mask, the first token, all tokens or markers."""
    special = encoder.special
    read: dict[HeadKind, Any] = {"cloze": special.mask, "pair-mean": "all", "tokens": special.cls}
    return RowCollator(special.pad, read.get(head, "first"), flat)


def readout(head: HeadKind) -> Readout:
    """Return how a head other than the cloze reads a batch, which is of GroupCollator for `set`."""
    return {"pointwise": read_pointwise, "set": read_sets, "tokens": read_tokens}.get(head, read_pair)


def read_pair(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read both responses in one text, two logits: cross-entropy."""
    logits = run_model(model, inputs)
    return choice_loss(logits, inputs), logits


def read_pointwise(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read one response per text, one score: Bradley-Terry, -log sigmoid(s_chosen - s_rejected).

    That is the cross-entropy over the two scores of a pair, once for each order.
    """
    logits = side_by_side(run_model(model, inputs).squeeze(-1))
    return choice_loss(logits, inputs), logits


def read_sets(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read all responses of a group in one text, one score each: the loss of Plackett and Luce (`group_loss`).

    Returns the loss and the scores of the first two responses, once for each order: [2 * groups, 2].
    """
    scores = run_model(model, inputs).float()
    return group_loss(scores, inputs), side_by_side(scores[:, :2].flatten())


def read_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read one response per text, a logit at each marker: is this response the chosen one? Their mean is its score.

    Loss: binary cross-entropy, averaged over the markers of a text and then over texts, so that a long response
    weighs no more than a short one. Of a pair with a probability, a response is the chosen one with that probability.
    """
    markers = inputs["places"]
    logits = run_model(model, inputs).squeeze(-1)
    is_chosen = inputs.get("targets", (~inputs["is_second"]).float()).repeat_interleave(
        markers, output_size=len(logits)
    )
    wrong = nn.functional.binary_cross_entropy_with_logits(logits.float(), is_chosen, reduction="none")
    of_texts = row_means(wrong, markers)
    if "weights" in inputs:
        of_texts = inputs["weights"] * of_texts
    return of_texts.mean(), side_by_side(row_means(logits, markers))


def run_model(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the logits of a batch at the places that are read: [places, outputs], or [rows, outputs] of a mean."""
    logits: Tensor = model(**{name: inputs[name] for name in MODEL_INPUTS if name in inputs}).logits
    return logits


def swap_disagreement(label_logits: Tensor) -> Tensor:
    """Return the mean over pairs of (z(A,B) + z(B,A))^2, z = logit(first) - logit(second): 0 if swapping swaps z."""
    z = label_logits[:, 0] - label_logits[:, 1]
    return z.view(-1, 2).sum(dim=1).square().mean()


def side_by_side(scores: Tensor) -> Tensor:
    """Put each of the scores [rows], which come two by two, beside its rival's: [rows, 2]."""
    return torch.stack([scores, scores.view(-1, 2).flip(1).reshape(-1)], dim=1)
