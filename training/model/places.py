"""A model whose head runs only at the places of a batch that are read, whether its rows are padded or flattened.

A cloze reads one place of a row; a vocabulary for each of its tokens would cost more than the body.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tinyrm.errors import InvalidInput
from training.data.collate import IGNORED

FLASH = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# What a model takes of a batch.
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "seq_idx", *FLASH, "read_at", "places")
# Families that take positions and masks of several rows in one.
FLAT_FAMILIES = ("modernbert", "bert")


class HeadAtPlaces:
    """Makes a model give its own head the states of the places that are read, each as a text of one token.

    The batch names them (`RowCollator`), or `labels` does, [rows, tokens]: where they are not IGNORED. A batch without
    either is computed as the model does by itself.

    mean: whether the head gets the mean of the places of a row, in place of each of them.
    """

    def __init__(self, model: PreTrainedModel, *, mean: bool = False) -> None:
        self.model = model
        self.mean = mean
        self.pooler = getattr(model.base_model, "pooler", None)
        self.own_forward, self.own_body = model.forward, model.base_model.forward
        self.inputs: dict[str, Any] | None = None  # of the batch that is being computed
        self.read_at = self.places = torch.empty(0)
        # Not as methods: accelerate would bind them to the model.
        model.forward, model.base_model.forward = partial(self.forward), partial(self.forward_body)

    def forward(self, *args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        """Return the model's output with logits [places, outputs], or [rows, outputs] of a mean."""
        if "read_at" not in inputs and labels is None:
            return self.own_forward(*args, **inputs)
        items = inputs.pop("num_items_in_batch", None)
        if labels is None:
            self.read_at, self.places = inputs.pop("read_at"), inputs.pop("places")
        else:
            self.read_at = (labels.flatten() != IGNORED).nonzero().squeeze(1)
        self.inputs = flat_inputs(inputs, self.model.config) if "seq_idx" in inputs else inputs
        try:
            output = self.own_forward(inputs["input_ids"])
        finally:
            self.inputs = None
        if output.logits.ndim == 3:
            output.logits = output.logits.squeeze(1)
        if labels is not None:
            # Not the model's own: BERT's takes the mean of a pass, where the Trainer expects a share of the whole step.
            output.loss = self.model.loss_function(
                logits=output.logits,
                labels=labels.flatten()[self.read_at],
                vocab_size=self.model.config.vocab_size,
                num_items_in_batch=items,
            )
        return output

    def forward_body(self, *args: Any, **kwargs: Any) -> Any:
        if self.inputs is None:
            return self.own_body(*args, **kwargs)
        output = self.own_body(**self.inputs)
        states = output.last_hidden_state.flatten(0, 1)[self.read_at]
        if self.mean:
            states = row_means(states, self.places)
        output.last_hidden_state = states[:, None]
        if self.pooler is not None:
            output.pooler_output = self.pooler(output.last_hidden_state)
        return output


def row_means(values: Tensor, places: Tensor) -> Tensor:
    """Return the means over each row's values, [rows, ...]; values [places, ...] in order, places [rows] how many."""
    means: Tensor = torch.segment_reduce(values.float(), "mean", lengths=places, axis=0)
    return means


def flat_inputs(inputs: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a body takes of flattened rows, so that no token sees another row.

    Flash attention takes the lengths of the rows. For other implementations the mask is written out, [tokens, tokens]:
    `transformers` finds rows by their positions only where a token sees no later ones. A local layer counts positions,
    which differ by as much as places do within a row.
    """
    implementation = implementation_of(config)
    position = inputs["position_ids"]
    of_body = {"input_ids": inputs["input_ids"], "position_ids": position}
    if implementation.startswith("flash_attention"):
        return {**of_body, **{name: inputs[name] for name in FLASH}}
    row = inputs["seq_idx"]
    seen = row[:, None, :, None] == row[:, None, None, :]
    masks: Any = as_mask(seen, implementation)
    if getattr(config, "layer_types", None):
        near = (position[:, None, :, None] - position[:, None, None, :]).abs() <= config.sliding_window
        masks = {"full_attention": masks, "sliding_attention": as_mask(seen & near, implementation)}
    return {**of_body, "attention_mask": masks}


def as_mask(seen: Tensor, implementation: str) -> Tensor:
    """Return a mask [1, 1, tokens, tokens] as `transformers` gives it to an implementation."""
    return seen if implementation == "sdpa" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def implementation_of(config: PreTrainedConfig) -> str:
    """Return what computes a model's attention, as `transformers` names it."""
    return str(config._attn_implementation)  # noqa: SLF001 - it has no public name


def refuse_flat(config: PreTrainedConfig) -> None:
    """Raise InvalidInput if a model cannot read flattened rows."""
    if config.model_type not in FLAT_FAMILIES:
        known = " and ".join(FLAT_FAMILIES)
        raise InvalidInput(f"padding_free: true needs a model of {known}, not {config.model_type}; remove it")
    if implementation_of(config) == "flex_attention":
        raise InvalidInput("padding_free: true works with flash_attention_2, sdpa and eager, not with flex_attention")
