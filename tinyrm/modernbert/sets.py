"""A prompt and any number of responses in one sequence, each with a score, as `transformers` computes it.

    [CLS] prompt [SEP] response [MASK] [SEP] response [MASK] [SEP] ...

Nothing tells the first response from the second, so that exchanging responses exchanges their scores exactly:

* the positions of every response restart where the prompt ends;
* the prompt sees itself only, and a response the prompt and itself;
* in some global layers the responses also see each other (`SetReading`), where a learnt bias weighs other responses
  against one's own text, minus the logarithm of their number;
* a local layer counts positions, not places in the sequence, so that a response sees the end of the prompt;
* each response is read at its own mask, or at the mean of its tokens.

Related: Set-Encoder (arXiv 2404.06912), in which documents see each other at one token each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    BertForSequenceClassification,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput
from tinyrm.manifest import SetReading

# Large enough that exp() of it is 0 after any softmax in fp32, small enough for bf16 and fp16.
NEVER = -1e4
ATTENTION = "tinyrm-sets"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of padded sequences belong, int64 [batch, tokens] each.

    part: 0 for the prompt, then the number of the response, from 1; padding has the number of no response.
    position: of the token in its prompt and response together.
    is_mask: whether it is the mask of a response, bool.
    """

    part: Tensor
    position: Tensor
    is_mask: Tensor

    @classmethod
    def find(cls, input_ids: Tensor, attention_mask: Tensor, *, mask_id: int, sep_id: int) -> "Places":
        """Find them in the ids: user text never produces a special token, so a [SEP] is a boundary."""
        is_text = attention_mask.bool()
        is_sep = ((input_ids == sep_id) & is_text).long()
        part = is_sep.cumsum(dim=1) - is_sep
        place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        begins = torch.cat((torch.ones_like(is_sep[:, :1]), is_sep[:, :-1]), dim=1)
        start = (place * begins).cummax(dim=1).values
        prompt = (part == 0).sum(dim=1, keepdim=True)
        position = torch.where(part == 0, place, place - start + prompt) * attention_mask
        return cls(part, position, (input_ids == mask_id) & is_text)

    @property
    def responses(self) -> Tensor:
        """The number of responses of each sequence, [batch]."""
        return self.is_mask.sum(dim=1)

    def means(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the states of each response and its mask: [batch, most responses, hidden]."""
        numbers = torch.arange(1, int(self.responses.max()) + 1, device=states.device)
        belongs = (self.part[:, None] == numbers[:, None]) & attention_mask.bool()[:, None]
        # In training under bf16, too: a score is read from these numbers, and autocast would round them.
        with torch.autocast(states.device.type, enabled=False):
            sums = belongs.float() @ states.float()
        return sums / belongs.sum(dim=2, keepdim=True).clamp(min=1)


class OtherBias(nn.Module):
    """What is added to the scores of other responses, for each crossing layer and head; 0 at first."""

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads))

    def forward(self, responses: Tensor) -> Tensor:
        """Return the bias [batch, layers, heads] for sequences with these numbers of responses, [batch]."""
        # n - 1 others, each like one's own text, would get n - 1 times its weight.
        return self.weight - (responses - 1).clamp(min=1).to(self.weight.dtype).log()[:, None, None]


def attend(  # noqa: PLR0917 - the order is that of `transformers`
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    crossing: Mapping[int, Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention for `transformers`, with the layer's own bias where responses see each other.

    crossing: number of such a layer -> bias, [batch, heads, queries, keys].
    """
    bias = crossing.get(module.layer_idx, attention_mask)
    attended = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout, scale=scaling
    )
    return attended.transpose(1, 2).contiguous(), None


class SetModel(PreTrainedModel, ABC):
    """What the classes below share: ids and attention_mask [batch, tokens] -> logits [batch, responses].

    Sequences with fewer responses than others have zeros behind their logits. `config.set_reading` holds the fields of
    SetReading and the ids of the two tokens that are boundaries.
    """

    others: OtherBias | None

    def _prepare(self) -> None:
        """Let the layers call `attend`, and add what weighs other responses, before weights are made or loaded."""
        AttentionInterface.register(ATTENTION, attend)
        self.set_attn_implementation(ATTENTION)
        layers = self.crossing_layers()
        self.others = OtherBias(len(layers), self.config.num_attention_heads) if layers else None

    @property
    def reading(self) -> SetReading:
        saved = self.config.set_reading
        return SetReading(**{name: saved[name] for name in SetReading.model_fields})

    def crossing_layers(self) -> list[int]:
        """Return the numbers of the layers in which responses see each other, the lowest first."""
        reading = self.reading
        if reading.scores_alone:
            return []
        layers = global_layers(self.config)
        return layers if reading.layers is None else layers[-reading.layers :]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, OtherBias):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    @abstractmethod
    def read(self, states: Tensor) -> Tensor:
        """Return the logits [responses] of the states that responses are read at, [responses, hidden]."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        ids = self.config.set_reading
        places = Places.find(input_ids, attention_mask, mask_id=ids["mask_id"], sep_id=ids["sep_id"])
        states = run_body(self, input_ids, attention_mask, places)
        row, column = places.is_mask.nonzero(as_tuple=True)
        number = places.is_mask.long().cumsum(dim=1)[row, column] - 1
        at_masks = self.reading.read_at == "mask"
        scores = self.read(states[row, column] if at_masks else places.means(states, attention_mask)[row, number])
        logits = scores.new_zeros(len(input_ids), int(places.responses.max()))
        return SequenceClassifierOutput(logits=logits.index_put((row, number), scores))


class BertForSets(SetModel, BertForSequenceClassification):
    """BERT with its pooler and classifier for each response."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._prepare()
        self.post_init()

    def read(self, states: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.dropout(self.bert.pooler(states[:, None]))).squeeze(-1)
        return scores


class ModernBertForSets(SetModel, ModernBertForSequenceClassification):
    """ModernBERT with the masked LM's head and a classifier for each response."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._prepare()
        self.post_init()

    def read(self, states: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.drop(self.head(states))).squeeze(-1)
        return scores


CLASSES: Mapping[str, type[SetModel]] = {"bert": BertForSets, "modernbert": ModernBertForSets}


def set_class(config: PreTrainedConfig) -> type[SetModel]:
    """Return the class that reads sets for a model of this configuration. Raises InvalidInput."""
    if config.model_type not in CLASSES:
        raise InvalidInput(f"no {config.model_type} reads sets; {', '.join(sorted(CLASSES))} can")
    return CLASSES[config.model_type]


def set_config(reading: SetReading, special: SpecialTokens) -> dict[str, Any]:
    """Return what `config.set_reading` holds."""
    return {**reading.model_dump(), "mask_id": special.mask, "sep_id": special.sep}


def global_layers(config: PreTrainedConfig) -> list[int]:
    """Return the numbers of the layers in which any token may see any other."""
    kinds = getattr(config, "layer_types", None)
    return [i for i in range(config.num_hidden_layers) if not kinds or kinds[i] == "full_attention"]


def run_body(model: SetModel, input_ids: Tensor, attention_mask: Tensor, places: Places) -> Tensor:
    """Return the last hidden states [batch, tokens, hidden]."""
    is_text = attention_mask.bool()[:, None, :]
    part, position = places.part, places.position
    own = ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])) & is_text
    bias = as_bias(own)
    crossing: dict[int, Tensor] = {}
    if model.others is not None:
        in_response = (part > 0) & attention_mask.bool()
        from_to = places.is_mask if model.reading.others == "masks" else in_response
        other = from_to[:, :, None] & from_to[:, None, :] & ~own
        added = model.others(places.responses).to(bias.dtype)
        for i, layer in enumerate(model.crossing_layers()):
            crossing[layer] = torch.where(other[:, None], added[:, i, :, None, None], bias)
    options: dict[str, Any] = {"position_ids": position, "crossing": crossing}
    if model.config.model_type == "modernbert":
        far = (position[:, None, :] - position[:, :, None]).abs() > model.config.sliding_window
        masks: Any = {"full_attention": bias, "sliding_attention": as_bias(own & ~far)}
    else:
        masks = bias
        options["token_type_ids"] = (part > 0).long() if model.config.type_vocab_size > 1 else torch.zeros_like(part)
    states: Tensor = model.base_model(input_ids=input_ids, attention_mask=masks, **options).last_hidden_state
    return states


def as_bias(seen: Tensor) -> Tensor:
    """Return 0 where a query [batch, queries, keys] sees a key and NEVER elsewhere, [batch, 1, queries, keys]."""
    return torch.where(seen, 0.0, NEVER)[:, None]
