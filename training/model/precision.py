"""Precision of the numbers that a preference is read from."""

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel


def read_in_fp32(model: PreTrainedModel | PeftModel) -> None:
    """Run all modules above the body in fp32, also under autocast; `model` is changed in place.

    In bf16 two neighbouring numbers between 8 and 16 differ by 1/16. Label logits have that size once they exceed the
    rest of the vocabulary, so that in bf16 small margins would round to ties. The body stays as autocast has it; the
    rows above it are few.
    """
    whole: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    above = [module for module in whole.children() if module is not whole.base_model]
    if pooler := getattr(whole.base_model, "pooler", None):  # BERT counts it among its body
        above.append(pooler)
    for module in above:
        module.forward = outside_autocast(module.forward)


def outside_autocast(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float())

    return run
