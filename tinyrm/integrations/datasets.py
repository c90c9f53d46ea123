"""Hugging Face datasets: score and filter preference data with `Dataset.map`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyrm.chat import split_turns
from tinyrm.client import Client, ItemError
from tinyrm.integrations import compare_item

Batch = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class PreferenceFilter:
    """Keep the pairs that a model agrees with: `dataset.map(PreferenceFilter(url, min_probability=0.6), batched=True)`.

    Every kept row gets a new column with P(chosen is better than rejected), in [0, 1]; NaN for a pair that could not be
    compared, which is kept only with min_probability 0, the default.

    base_url: address of the service.
    min_probability: rows below it are dropped; 0 keeps all rows.
    column: name of the new column.
    prompt: column of texts or chat messages. Without this column, chosen and rejected are conversations that differ in
        their last message.
    chosen: column of texts or chat messages.
    rejected: column of texts or chat messages.
    domain: column with the domain of each row, if there is one.
    options: of `Client.compare`: domain, instruction, swap, model; a mapping, so that they are part of map's cache key.
    """

    base_url: str = "http://127.0.0.1:8000"
    min_probability: float = 0.0
    column: str = "probability_chosen"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    domain: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Return all columns of the kept rows, and the new one. Each call opens a client: `map` copies this object."""
        items = []
        for row in range(len(batch[self.chosen])):
            chosen, rejected = batch[self.chosen][row], batch[self.rejected][row]
            if self.prompt in batch:
                prompt = batch[self.prompt][row]
            else:
                (prompt, chosen), (_, rejected) = split_turns(chosen), split_turns(rejected)
            options = {**self.options, "domain": batch[self.domain][row]} if self.domain else self.options
            items.append(compare_item(prompt, chosen, rejected, options))
        with Client(self.base_url, self.api_key, timeout_s=self.timeout_s) as client:
            probabilities = [
                math.nan if isinstance(result, ItemError) else result.probability_a
                for result in client.compare_many(items)
            ]
        kept = [row for row, p in enumerate(probabilities) if p >= self.min_probability or self.min_probability == 0]
        columns = {**batch, self.column: probabilities}
        return {name: [values[row] for row in kept] for name, values in columns.items()}
