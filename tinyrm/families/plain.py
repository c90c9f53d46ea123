"""A model as `transformers` computes it, from ids and attention mask alone: the reference of every other forward pass.

What a tokenizer would add is found in the ids: user text never produces a special token, so a [SEP] is a boundary.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput
from tinyrm.families.pairrm import PairRM
from tinyrm.manifest import Head
from tinyrm.modernbert.checkpoint import LabelLogits
from tinyrm.modernbert.sets import SetModel


class ClassifierLogits(nn.Module):
    """A classifier of `transformers`: ids and attention_mask [batch, tokens] -> logits [batch, outputs].

    sep_id: the token after which the second segment begins; None for a model that learnt without segments.
    """

    def __init__(self, classifier: PreTrainedModel, sep_id: int | None) -> None:
        super().__init__()
        self.classifier, self.sep_id = classifier, sep_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        segments = {} if self.sep_id is None else {"token_type_ids": token_types(input_ids, self.sep_id)}
        logits: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return logits


def token_types(input_ids: Tensor, sep_id: int) -> Tensor:
    """Return 0 up to and with the first [SEP] of a row and 1 behind it, as tokenizers number a pair of texts."""
    is_sep = (input_ids == sep_id).long()
    return (is_sep.cumsum(dim=1) - is_sep).clamp(max=1)


def segment_sep(model: PreTrainedModel, head: Head, special: SpecialTokens) -> int | None:
    """Return the [SEP] that separates segments; None if the model has one kind of segment, or learnt with one.

    A score of a prompt and a response is that of a pair of texts. Cloze and pair heads are trained without segments,
    although their templates hold more than one [SEP].
    """
    if isinstance(model, SetModel):
        return None  # it finds its boundaries itself
    kinds = getattr(model.config, "type_vocab_size", 0)
    return special.sep if head.kind == "score" and kinds > 1 else None


def plain_module(
    model: PreTrainedModel, head: Head, special: SpecialTokens, label_ids: tuple[int, int] | None
) -> nn.Module:
    """Return the model as `transformers` computes it: input_ids, attention_mask -> logits [batch, outputs].

    model: a masked LM, of which the label rows are read at the mask, a classifier, a model of sets, or a PairRM.
    label_ids: of a cloze; None for any other head.

    Raises InvalidInput if the model does not read what the head needs.
    """
    refuse_other_head(model, head)
    if label_ids is not None:
        return LabelLogits(model, special.mask, label_ids).eval()
    if isinstance(model, PairRM):
        return model.eval()
    return ClassifierLogits(model, segment_sep(model, head, special)).eval()


def refuse_other_head(model: PreTrainedModel, head: Head) -> None:
    """Raise InvalidInput if a model reads other tokens than its head needs, or has another number of outputs."""
    if head.kind == "cloze":
        return
    if isinstance(model, PairRM):
        found = ("segments", 2)
    elif isinstance(model, SetModel):
        found = (model.reading.read_at, model.config.num_labels)
    else:
        pooling = getattr(model.config, "classifier_pooling", "cls")
        found = ("first" if pooling == "cls" else pooling, model.config.num_labels)
    if found != (head.read_at, head.outputs):
        raise InvalidInput(
            f"this {type(model).__name__} has {found[1]} outputs, read at: {found[0]}; its head should have "
            f"{head.outputs}, read at: {head.read_at}"
        )
