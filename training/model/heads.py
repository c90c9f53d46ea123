"""Baselines beside the cloze: the same body, data, orders and optimizer, with another way to read the preference.

Every head ends in the cloze's own shape, two logits for each row (first choice, second choice), so the loss over two
choices, the consistency term and the held-out metrics are shared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from tinyrm.batching import collate
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import InvalidInput
from tinyrm.spec import HeadKind, trained_head
from training.data.collate import Encodes
from training.model.marked_encoder import MarkedEncoder
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


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Turns items of two texts each into rows, two by two, without those that are None.

    `is_second`, bool [rows], is true for the second text of an item: there the second choice is right, or it is the
    rejected response. `marker_id` adds `markers`, bool [rows, tokens]: the positions of that token.
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
    """Return how a head other than the cloze reads a batch of RowCollator."""
    return {"pointwise": read_pointwise, "set": read_sets, "tokens": read_tokens}.get(head, read_pair)


def read_pair(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read both responses in one text, two logits: cross-entropy."""
    logits = run_model(model, inputs)
    return two_way_loss(logits, inputs["is_second"]), logits


def read_pointwise(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read one response per text, one score: Bradley-Terry, -log sigmoid(s_chosen - s_rejected).

    That is the cross-entropy over the two scores of a pair, once for each order.
    """
    logits = side_by_side(run_model(model, inputs).squeeze(-1))
    return two_way_loss(logits, inputs["is_second"]), logits


def read_sets(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read all responses of a group in one text, one score each: the loss of Plackett and Luce.

    Returns the loss and the scores of the first two responses, once for each order: [2 * groups, 2].
    """
    scores = run_model(model, inputs).float()
    return plackett_luce(scores, inputs["is_worse"]), side_by_side(scores[:, :2].flatten())


def plackett_luce(scores: Tensor, is_worse: Tensor) -> Tensor:
    """Return the mean over groups of the negative log-likelihood of what is known of their order.

    Each response that is better than some others is chosen before them: -log(e^s_i / (e^s_i + sum of their e^s_j)).
    For a complete ranking that is the Plackett-Luce likelihood (Plackett 1975), for a pair that of Bradley and Terry.
    A group counts once, however many responses it has: its terms are averaged.

    scores: [groups, responses].
    is_worse: bool [groups, responses, responses], whether response j is known to be worse than response i.
    """
    among = is_worse | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    rivals = scores[:, None, :].expand(among.shape).masked_fill(~among, -torch.inf)
    terms = rivals.logsumexp(dim=2) - scores
    counts = is_worse.any(dim=2)
    return ((terms * counts).sum(dim=1) / counts.sum(dim=1)).mean()


def read_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Read one response per text, a logit at each marker: is this response the chosen one? Their mean is its score.

    Loss: binary cross-entropy, averaged over the markers of a text and then over texts, so that a long response
    weighs no more than a short one.
    """
    markers = inputs["markers"]
    logits = run_model(model, inputs).squeeze(-1)
    is_chosen = (~inputs["is_second"]).float().unsqueeze(1).expand_as(logits)
    wrong = nn.functional.binary_cross_entropy_with_logits(logits.float(), is_chosen, reduction="none")
    return masked_mean(wrong, markers).mean(), side_by_side(masked_mean(logits, markers))


def run_model(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return logits


def two_way_loss(label_logits: Tensor, second_is_right: Tensor) -> Tensor:
    """Return cross-entropy over the two labels only; label_logits [rows, 2], second_is_right [rows]."""
    return nn.functional.cross_entropy(label_logits, second_is_right.long())


def swap_disagreement(label_logits: Tensor) -> Tensor:
    """Return the mean over pairs of (z(A,B) + z(B,A))^2, z = logit(first) - logit(second): 0 if swapping swaps z."""
    z = label_logits[:, 0] - label_logits[:, 1]
    return z.view(-1, 2).sum(dim=1).square().mean()


def side_by_side(scores: Tensor) -> Tensor:
    """Put each of the scores [rows], which come two by two, beside its rival's: [rows, 2]."""
    return torch.stack([scores, scores.view(-1, 2).flip(1).reshape(-1)], dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return means [rows] of values [rows, tokens] over the tokens under the mask."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1)
