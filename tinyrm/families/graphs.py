"""The module that export compiles for a model: one that computes only what is read, where a family has one."""

from torch import nn
from transformers import ModernBertForMaskedLM, ModernBertForSequenceClassification, PreTrainedConfig, PreTrainedModel

from tinyrm.encoding import SpecialTokens
from tinyrm.families import bert
from tinyrm.families.plain import plain_module, refuse_other_head
from tinyrm.manifest import Head
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.set_attention import ModernBertSetGraph, SetGraph
from tinyrm.modernbert.sets import ModernBertForSets, SetModel

MODERNBERT = (ModernBertForMaskedLM, ModernBertForSequenceClassification)
# Modules that compute only what is read. They call attention as one operator.
OPTIMISED = (BlockedModel, bert.BertGraph, SetGraph)


def has_optimised(config: PreTrainedConfig) -> bool:
    """Return whether there is an optimised module for a model of this configuration."""
    classes = (*MODERNBERT, *bert.CLASSIFIERS, *bert.MASKED_LMS)
    return config.model_type in {kind.config_class.model_type for kind in classes}


def graph_module(
    model: PreTrainedModel,
    head: Head,
    special: SpecialTokens,
    label_ids: tuple[int, int] | None,
    *,
    max_tokens: int,
    optimised: bool = True,
) -> nn.Module:
    """Return the module to compile: input_ids, attention_mask [batch, tokens] -> logits [batch, outputs].

    model: a masked LM, a classifier, a model of sets or a PairRM. An optimised module takes over its weights and
        changes them.
    label_ids: of a cloze; None for any other head.
    max_tokens: the longest sequence; of sets, the longest prompt and response together.
    optimised: whether to compute only what is read, where the family allows it.

    Raises InvalidInput if the model does not read what the head needs.
    """
    if not optimised or not has_optimised(model.config):
        return plain_module(model, head, special, label_ids)
    refuse_other_head(model, head)
    if isinstance(model, SetModel):
        is_modernbert = isinstance(model, ModernBertForSets)
        return (ModernBertSetGraph(model, max_tokens) if is_modernbert else bert.BertSetGraph(model)).eval()
    if isinstance(model, MODERNBERT):
        read = PreferenceModel(model, label_ids, read_at=head.read_at, max_tokens=max_tokens)
        return BlockedModel(read, special.mask).eval()
    return bert.BertGraph(model, head, special, label_ids).eval()
