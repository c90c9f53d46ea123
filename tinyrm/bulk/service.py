"""Score a file of pairs with a service; a second run continues where the first stopped."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from tinyrm.bulk.jsonl import OWN_FIELD, ScoredFile
from tinyrm.bulk.progress import Progress, Total
from tinyrm.bulk.rows import parse_fields, parse_pair
from tinyrm.client import AsyncClient, CompareItem, CompareReply, ItemError
from tinyrm.client.batches import in_order
from tinyrm.client.calls import CompareOptions
from tinyrm.errors import CallRefused, CallTimedOut, InvalidInput, ServiceBusy
from tinyrm.files import READ_ERRORS, open_compressed


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input.

    fields: None if it is not a JSON object.
    item: None if it cannot be sent; `error` is the reason.
    """

    index: int
    fields: dict[str, Any] | None = None
    item: CompareItem | None = None
    error: ItemError | None = None

    @classmethod
    def parse(cls, index: int, text: bytes, defaults: CompareOptions) -> Self:
        """Return line number `index`, with `defaults` for the options that it does not set."""
        fields = None
        try:
            fields = parse_fields(text)
            pair = parse_pair(fields).model_dump(exclude_none=True)
        except InvalidInput as error:
            return cls(index, fields, error=ItemError(type=error.type, message=f"line {index + 1}: {error}"))
        item: Any = {name: value for name, value in defaults.items() if value is not None} | pair
        return cls(index, fields, item)

    def record(self, result: CompareReply | ItemError) -> dict[str, Any]:
        """Return the fields of the line, with its result."""
        name = "error" if isinstance(result, ItemError) else "reply"
        return (self.fields or {}) | {OWN_FIELD: {"index": self.index, name: result.model_dump()}}

    def is_of(self, record: dict[str, Any]) -> bool:
        """Return whether an earlier run wrote this record for this line."""
        own = {name: value for name, value in record.items() if name != OWN_FIELD}
        return own == {name: value for name, value in (self.fields or {}).items() if name != OWN_FIELD}


@dataclass(frozen=True, slots=True)
class ServiceJob:
    """A file to score with a service.

    defaults: options of lines that do not set them.
    batch_items: pairs in one call.
    concurrency: calls at the same time.
    """

    pairs: Path
    out: Path
    defaults: CompareOptions
    batch_items: int
    concurrency: int

    async def run(self, client: AsyncClient, progress: Progress) -> Total:
        """Score the lines that have no result yet. Raises InvalidInput, CallFailed; written lines remain."""
        with ScoredFile(self.out) as scored:
            before, began = scored.lines, time.monotonic()
            lines = self._missing(scored)
            progress.begin(sum(1 for _ in read_lines(self.pairs)) if progress.has_bar else None, before)

            async def work(batch: list[Line]) -> list[tuple[Line, CompareReply | ItemError]]:
                return await score_lines(client, batch)

            async with client:
                results = in_order(
                    client.transport, work, lines, batch_items=self.batch_items, concurrency=self.concurrency
                )
                async with aclosing(results):
                    async for line, result in results:
                        scored.append(line.record(result))
                        progress.written(1)
            seconds = time.monotonic() - began
            return Total(scored.lines, scored.errors, scored.lines - before, seconds=seconds)

    def _missing(self, scored: ScoredFile) -> Iterator[Line]:
        """Return the lines without a result. Raises InvalidInput if the output belongs to another input."""
        lines = (Line.parse(index, text, self.defaults) for index, text in enumerate(read_lines(self.pairs)))
        done = deque(islice(lines, scored.lines), maxlen=1)
        if scored.last is not None:
            last = done[0] if done else None
            if last is None or last.index + 1 != scored.lines or not last.is_of(scored.last):
                raise InvalidInput(
                    f"--out holds {scored.lines} lines of another input; name another file, or remove this one"
                )
        return lines


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file. Raises InvalidInput if it cannot be read."""
    number = 0
    try:
        with open_compressed(path) as lines:
            for number, text in enumerate(lines, start=1):  # noqa: B007
                yield text
    except READ_ERRORS as error:
        raise InvalidInput(f"{path} cannot be read after line {number}: {error}") from error


async def score_lines(client: AsyncClient, batch: list[Line]) -> list[tuple[Line, CompareReply | ItemError]]:
    """Return a result for each line. Raises CallFailed for an error that another line would have too."""
    items = [line.item for line in batch if line.item is not None]
    replies = client.compare_many(items, batch_items=max(1, len(items)), concurrency=1)
    results = iter([reply async for reply in replies])
    return [(line, line.error or check_result(line, next(results))) for line in batch]


def check_result(line: Line, result: CompareReply | ItemError) -> CompareReply | ItemError:
    """Return the result. Raises CallFailed for an error of the service or of an option.

    If such an error were written, the next run would not score the line again.
    """
    if not isinstance(result, ItemError):
        return result
    where = f"line {line.index + 1}: {result.message}"
    if result.is_transient:
        raise ServiceBusy(where, kind=result.type)
    if result.type == "deadline_exceeded":
        raise CallTimedOut(f"{where}; give calls more --timeout-s or fewer --batch-items", kind=result.type)
    is_option = result.type == "unknown_model" or (
        result.type == "unknown_domain" and not (line.fields or {}).get("domain")
    )
    if is_option:
        raise CallRefused(where, kind=result.type)
    return result
