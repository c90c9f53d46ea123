"""Score a file of pairs with a service; a second run continues where the first stopped."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

from tinyrm.bulk.jsonl import OWN_FIELD, ScoredFile, open_output
from tinyrm.bulk.progress import Progress, Total
from tinyrm.bulk.rows import parse_fields, parse_pair
from tinyrm.client import AsyncClient, CompareItem, CompareReply, ItemError
from tinyrm.client.batches import in_order
from tinyrm.client.calls import CompareOptions
from tinyrm.errors import CallRefused, CallTimedOut, InvalidInput, ServiceBusy
from tinyrm.tables import read_lines


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

    def record(self, options: Mapping[str, Any], result: CompareReply | ItemError | None = None) -> dict[str, Any]:
        """Return the fields of the line, with the options that apply to all lines, and with its result at the end."""
        own: dict[str, Any] = {"index": self.index} | ({"options": dict(options)} if options else {})
        if result is not None:
            own["error" if isinstance(result, ItemError) else "reply"] = result.model_dump()
        return {name: value for name, value in (self.fields or {}).items() if name != OWN_FIELD} | {OWN_FIELD: own}

    def is_of(self, record: dict[str, Any]) -> bool:
        """Return whether an earlier run wrote this record for this line."""
        own = {name: value for name, value in record.items() if name != OWN_FIELD}
        return own == {name: value for name, value in (self.fields or {}).items() if name != OWN_FIELD}


class BatchSize:
    """How many lines the next call gets: few at first, and as many as give a result every few seconds."""

    FIRST, SHORT_S, LONG_S = 4, 1.0, 4.0

    def __init__(self, max_items: int) -> None:
        self._max = max_items
        self.items = min(self.FIRST, max_items)

    def learn(self, items: int, seconds: float) -> None:
        if seconds > self.LONG_S:
            self.items = max(1, min(self.items, items // 2))
        elif seconds < self.SHORT_S and items >= self.items:
            self.items = min(self._max, 2 * items)


@dataclass(frozen=True, slots=True)
class ServiceJob:
    """A file to score with a service.

    pairs: a file, or `-` for standard input.
    out: a file, or `-` for standard output.
    defaults: options of lines that do not set them.
    batch_items: most pairs in one call.
    concurrency: calls at the same time.
    """

    pairs: str
    out: str
    defaults: CompareOptions
    batch_items: int
    concurrency: int

    async def run(self, client: AsyncClient, progress: Progress) -> Total:
        """Score the lines that have no result yet. Raises InvalidInput, CallFailed; written lines remain."""
        options = {name: value for name, value in self.defaults.items() if value is not None}
        models = Models(self.out)
        with open_output(self.out, self.pairs) as scored:
            lines = self._missing(scored, options, models)
            before, began = scored.lines, time.monotonic()
            progress.begin(self._count(), before)
            size = BatchSize(self.batch_items)

            async def work(batch: list[Line]) -> list[tuple[Line, CompareReply | ItemError]]:
                began = time.monotonic()
                results = await score_lines(client, batch)
                size.learn(len(batch), time.monotonic() - began)
                progress.scored(len(batch))
                return results

            async with client, progress.beating():
                await models.check_served(client)
                results = in_order(
                    client.transport, work, lines, batch_items=lambda: size.items, concurrency=self.concurrency
                )
                async with aclosing(results):
                    async for line, result in results:
                        record = line.record(options, result)
                        models.check(record)
                        scored.append(record)
                        progress.written(1)
            seconds = time.monotonic() - began
            return Total(scored.lines, scored.errors, scored.lines - before, seconds=seconds)

    def _missing(self, scored: ScoredFile, options: dict[str, Any], models: "Models") -> Iterator[Line]:
        """Return the lines without a result. Raises InvalidInput if the output is of another input or other options."""
        texts = enumerate(open_lines(self.pairs))
        lines = (Line.parse(index, text, self.defaults) for index, text in texts)
        for record in scored.records():
            line = next(lines, None)
            if line is None or not line.is_of(record):
                raise InvalidInput(
                    f"--out {self.out} holds lines of another input, from line {scored.lines}; name another file, or "
                    "remove this one"
                )
            if (before := record[OWN_FIELD].get("options", {})) != options:
                was = shown(before) if isinstance(before, dict) else repr(before)
                raise InvalidInput(
                    f"--out {self.out} was scored with other options: {was}, and now {shown(options)}; name another "
                    "file, or give the same options"
                )
            models.check(record)
        following = next(lines, None)
        scored.drop_tail(None if following is None else following.record(options))
        return lines if following is None else chain([following], lines)

    def _count(self) -> int | None:
        """Return the number of lines, for the progress; None for what can be read only once, or is damaged."""
        if self.pairs == "-" or not Path(self.pairs).is_file():
            return None
        with suppress(InvalidInput):
            return sum(1 for _ in open_lines(self.pairs))
        return None


class Models:
    """The model that scored each domain: one output holds the scores of one model, though the service may change."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._by_domain: dict[str | None, str] = {}

    def check(self, record: dict[str, Any]) -> None:
        """Raise InvalidInput if another model scored an earlier record of the same domain."""
        own = record[OWN_FIELD]
        if "reply" not in own:
            return
        try:
            domain = record.get("domain") or own.get("options", {}).get("domain")
            model = own["reply"]["model"]
            before = self._by_domain.setdefault(domain, model)
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"--out {self._out}: no run wrote line {own['index'] + 1}; name another file") from error
        if model != before:
            raise InvalidInput(self._changed(before, model))

    async def check_served(self, client: AsyncClient) -> None:
        """Raise InvalidInput if an earlier run used a model that is not served any more."""
        if self._by_domain:
            served = [f"{card.name}@{card.revision}" for card in await client.models()]
            for before in self._by_domain.values():
                if before not in served:
                    raise InvalidInput(self._changed(before, ", ".join(served)))

    def _changed(self, before: str, now: str) -> str:
        return f"--out {self._out} holds scores of {before}, and the service has {now} now; name another file"


def shown(options: Mapping[str, Any]) -> str:
    """Return options as the command line has them."""
    return " ".join(f"--{name} {value!r}" for name, value in options.items()) or "no options"


def open_lines(pairs: str) -> Iterator[bytes]:
    """Yield the lines of a file, or of standard input. Raises InvalidInput if it cannot be read."""
    if pairs != "-":
        lines = read_lines(Path(pairs))
        return lines if Path(pairs).is_file() else _interruptible(lines)
    if sys.stdin is None or sys.stdin.closed:
        raise InvalidInput("standard input is closed")
    return _interruptible(read_lines(Path("standard input"), sys.stdin.buffer))


def _interruptible(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of a pipe. Ctrl-C ends a read that waits; the handler of asyncio would wait for the read."""
    if threading.current_thread() is not threading.main_thread():
        yield from lines  # where no handler can be set
        return
    while True:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # not one that ignores the signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            line = next(lines, None)
        finally:
            if callable(handler):
                signal.signal(signal.SIGINT, handler)
        if line is None:
            return
        yield line


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
