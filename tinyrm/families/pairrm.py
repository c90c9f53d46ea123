"""PairRM (arXiv 2306.02561): a prompt and two responses in one text, and one score of each response.

A text holds the prompt behind `<|source|>`, the responses behind `<|candidate1|>` and `<|candidate2|>`. The encoder's
states at these three tokens are read; a response's score is that of the prompt's state beside its own.
"""

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel


class PairRM(DebertaV2PreTrainedModel):
    """The published model, by the names of its weights and of its configuration: DeBERTa-v2 or v3 with a head.

    The configuration has the ids of the three tokens, `n_tasks` scores of a response, of which the mean counts, and
    `drop_out`, which matters in training only.
    """

    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        hidden, dropout = config.hidden_size, getattr(config, "drop_out", 0.0)
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * hidden, hidden),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(hidden, getattr(config, "n_tasks", 1)),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the scores [batch, 2] of the first and the second response of each text."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return score_both(self.head_layer, *marked_rows(self.config, input_ids, states))


def marker_ids(config: DebertaV2Config) -> tuple[int, int, int]:
    """Return the ids of the tokens before the prompt, the first and the second response."""
    return config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id


def marked_rows(config: DebertaV2Config, input_ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states [batch, hidden] at the three tokens of each text."""
    rows = torch.arange(states.shape[0], device=states.device)  # not len(): an exporter would take it for a constant
    source, first, second = (states[rows, (input_ids == i).int().argmax(dim=1)] for i in marker_ids(config))
    return source, first, second


def score_both(head: nn.Module, source: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the scores [batch, 2] of both responses: the mean over tasks of the head's outputs."""
    scores = [head(torch.cat((source, one), dim=-1)).mean(dim=-1) for one in (first, second)]
    return torch.stack(scores, dim=-1)
