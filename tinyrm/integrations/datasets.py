"""Hugging Face datasets: score and filter preference data with `Dataset.map`."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyrm.client import Client, CompareItem, CompareReply, ItemError
from tinyrm.errors import InvalidInput, InvalidRequest, UnknownForm
from tinyrm.integrations import preference_item
from tinyrm.preferences import read_preference

Batch = Mapping[str, Sequence[Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceFilter:
    """Keep the pairs that a model agrees with: `dataset.map(PreferenceFilter(url, min_probability=0.6), batched=True)`.

    Every kept row gets a new column with P(chosen is better than rejected), in [0, 1]; NaN, and a warning in the log,
    for a row that holds no pair or a pair that could not be compared. Such a row is kept only with min_probability 0,
    the default. `tinyrm.preferences.read_preference` lists the forms of rows that are understood. A set in another form
    is refused with the columns or keys that it has.

    base_url: address of the service.
    min_probability: rows below it are dropped; 0 keeps all rows.
    column: name of the new column.
    prompt: column of texts or chat messages. Without this column, chosen and rejected are whole conversations.
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
        """Return all columns of the kept rows, and the new one. Each call opens a client: `map` copies this object.

        Raises CallFailed, and UnknownForm if the batch has no row in a known form.
        """
        rows = self._rows(batch)
        items = [self._item(row) for row in rows]
        failed = [item for item in items if isinstance(item, InvalidRequest)]
        if failed and all(isinstance(item, UnknownForm) for item in items):
            raise failed[0]
        with Client(self.base_url, self.api_key, timeout_s=self.timeout_s) as client:
            results = iter(client.compare_many([item for item in items if not isinstance(item, InvalidRequest)]))
            replies = [item if isinstance(item, InvalidRequest) else next(results) for item in items]
        probabilities, reasons = [], []
        for reply in replies:
            if isinstance(reply, CompareReply):
                probabilities.append(reply.probability_a)
            else:
                probabilities.append(math.nan)
                reasons.append(reply.message if isinstance(reply, ItemError) else str(reply))
        if reasons:
            logger.warning("%d of %d rows have no probability; the first: %s", len(reasons), len(rows), reasons[0])
        kept = [row for row, p in enumerate(probabilities) if p >= self.min_probability or self.min_probability == 0]
        columns = {**batch, self.column: probabilities}
        return {name: [values[row] for row in kept] for name, values in columns.items()}

    def _rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Return the rows, with the columns of this filter by their usual names. Raises InvalidInput."""
        usual = {self.prompt: "prompt", self.chosen: "chosen", self.rejected: "rejected"}
        missing = [column for column, name in usual.items() if column not in batch and column != name]
        if self.domain:
            missing += [self.domain] if self.domain not in batch else []
        if missing:
            raise InvalidInput(f"no column {missing[0]!r}; the columns are {', '.join(batch)}")
        names = [usual.get(column, column) for column in batch if usual.get(column) or column not in usual.values()]
        values = [batch[column] for column in batch if usual.get(column) or column not in usual.values()]
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]

    def _item(self, row: Mapping[str, Any]) -> CompareItem | InvalidRequest:
        """Return the comparison of a row, or why there is none."""
        options = {**self.options, "domain": row[self.domain]} if self.domain else self.options
        try:
            return preference_item(read_preference(row), options)
        except InvalidRequest as error:
            return error
