"""The client for plain code. Threads may share one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx
from tenacity import Retrying

from tinyrm.api import CompareReply, ErrorBody, ModelCard, ModelList, RankReply, RewardsReply
from tinyrm.client import calls
from tinyrm.client.calls import Batch, Call, CompareItem, CompareOptions, Prompt, RankOptions, RewardsOptions, parse
from tinyrm.client.many import BATCH_ITEMS, CONCURRENCY, as_item_error, halves, in_order, length_of, progress_bar
from tinyrm.client.retry import policy
from tinyrm.client.wire import (
    Deadline,
    base_url_of,
    build,
    check,
    failures_named,
    headers_for_all,
    limits_of,
    timed_out,
)
from tinyrm.errors import CallFailed, CallRefused

T = TypeVar("T")


class Client:
    """Calls to one service.

    timeout_s: for a whole call, its repetitions and the pauses between them included; the service learns of it and
        drops work that comes too late. max_retries: tries after the first one. max_connections: open at once.
    Every method raises CallFailed of some kind (tinyrm/errors.py), and InvalidInput for what cannot be sent at all.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        max_retries: int = 5,
        max_connections: int = 64,
    ) -> None:
        self._timeout_s, self._max_retries = timeout_s, max_retries
        base, headers, limits = base_url_of(base_url), headers_for_all(api_key), limits_of(max_connections)
        self._http = httpx.Client(base_url=base, headers=headers, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all connections; calls under way fail."""
        self._http.close()

    def compare(
        self, prompt: Prompt, response_a: str, response_b: str, **options: Unpack[CompareOptions]
    ) -> CompareReply:
        """Which of two responses is better, and how surely."""
        return parse(CompareReply, self._ask(calls.compare(prompt, response_a, response_b, options)))

    def compare_batch(self, items: Sequence[CompareItem]) -> list[CompareReply | ErrorBody]:
        """One call for many comparisons. Results in order; an item that cannot be scored has an error in its place."""
        batch = Batch(items)

        def attempt(deadline: Deadline) -> None:
            batch.take(self._try(batch.call(), deadline))

        try:
            if items:
                self._repeat(attempt)
        except CallFailed:
            if not batch.answered():
                raise
        return batch.answered()

    def compare_many(
        self,
        items: Iterable[CompareItem],
        *,
        batch_items: int = BATCH_ITEMS,
        concurrency: int = CONCURRENCY,
        progress: bool = False,
    ) -> Iterator[CompareReply | ErrorBody]:
        """A list of any length, `concurrency` batches under way at once. Results stream in order as they come.

        progress: a bar on standard error (extra `progress`). A batch that is too large for the service is halved.
        """
        with progress_bar(length_of(items), shown=progress) as bar:
            for result in in_order(self._whole, items, batch_items=batch_items, concurrency=concurrency):
                yield result
                bar.update()

    def rank(self, prompt: Prompt, responses: Sequence[str], **options: Unpack[RankOptions]) -> RankReply:
        """The order of 2 to 128 responses, and how far apart they are."""
        return parse(RankReply, self._ask(calls.rank(prompt, responses, options)))

    def rewards(self, prompt: Prompt, responses: Sequence[str], **options: Unpack[RewardsOptions]) -> RewardsReply:
        """A number for each of 1 to 128 responses, from comparing them with each other or with a reference."""
        return parse(RewardsReply, self._ask(calls.rewards(prompt, responses, options)))

    def models(self) -> list[ModelCard]:
        """What is served."""
        return parse(ModelList, self._ask(calls.models())).models

    def is_ready(self) -> bool:
        """Whether the service takes work now. Asked once, not repeated."""
        try:
            self._try(calls.ready(), Deadline(self._timeout_s))
        except CallFailed:
            return False
        return True

    def _whole(self, items: list[CompareItem]) -> list[CompareReply | ErrorBody]:
        try:
            return self.compare_batch(items)
        except CallRefused as error:
            parts = halves(items, error)
            return [r for part in parts for r in self._whole(part)] if parts else [as_item_error(error)]

    def _ask(self, call: Call) -> bytes:
        return self._repeat(partial(self._try, call))

    def _repeat(self, attempt: Callable[[Deadline], T]) -> T:
        deadline = Deadline(self._timeout_s)
        return Retrying(**policy(self._max_retries, deadline))(attempt, deadline)

    def _try(self, call: Call, deadline: Deadline) -> bytes:
        request, body = build(self._http, call, deadline), bytearray()
        with failures_named(call, deadline), closing(self._http.send(request, stream=True)) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if deadline.left_s() == 0:
                    raise timed_out(call, deadline)
        return check(response, bytes(body), call)
