"""Masked LMs whose head runs at the labelled positions only, where `transformers` has no such option."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from training.data.collate import IGNORED


def predict_at_labels(masked_lm: PreTrainedModel) -> PreTrainedModel:
    """Run the head of a masked LM at the labelled positions only: logits [labels, vocabulary]. Changes `masked_lm`.

    A cloze has one label in a row; a head for each of its tokens would cost more than the body.
    """
    body = masked_lm.base_model
    head = [module for module in masked_lm.children() if module is not body]

    def forward(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> MaskedLMOutput:
        states = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        is_labelled = labels != IGNORED
        logits = states[is_labelled]
        for module in head:
            logits = module(logits)
        loss = nn.functional.cross_entropy(logits, labels[is_labelled])
        return MaskedLMOutput(loss=torch.as_tensor(loss), logits=logits)

    masked_lm.forward = forward
    return masked_lm
