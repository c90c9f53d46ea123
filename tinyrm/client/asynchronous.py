"""The client for asyncio: Client with awaits."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx
from tenacity import AsyncRetrying

from tinyrm.api import CompareReply, ErrorBody, ModelCard, ModelList, RankReply, RewardsReply
from tinyrm.client import calls
from tinyrm.client.calls import Batch, Call, CompareItem, CompareOptions, Prompt, RankOptions, RewardsOptions, parse
from tinyrm.client.many import BATCH_ITEMS, CONCURRENCY, as_item_error, halves, in_order_async, length_of, progress_bar
from tinyrm.client.retry import policy
from tinyrm.client.wire import (
    Deadline,
    base_url_of,
    build,
    check,
    failures_named,
    headers_for_all,
    limits_of,
)
from tinyrm.errors import CallFailed, CallRefused

T = TypeVar("T")


class AsyncClient:
    """Calls to one service. Arguments, answers and errors are those of Client."""

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
        self._http = httpx.AsyncClient(base_url=base, headers=headers, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all connections; calls under way fail."""
        await self._http.aclose()

    async def compare(
        self, prompt: Prompt, response_a: str, response_b: str, **options: Unpack[CompareOptions]
    ) -> CompareReply:
        """Which of two responses is better, and how surely."""
        return parse(CompareReply, await self._ask(calls.compare(prompt, response_a, response_b, options)))

    async def compare_batch(self, items: Sequence[CompareItem]) -> list[CompareReply | ErrorBody]:
        """One call for many comparisons. Results in order; an item that cannot be scored has an error in its place."""
        batch = Batch(items)

        async def attempt(deadline: Deadline) -> None:
            batch.take(await self._try(batch.call(), deadline))

        try:
            if items:
                await self._repeat(attempt)
        except CallFailed:
            if not batch.answered():
                raise
        return batch.answered()

    async def compare_many(
        self,
        items: Iterable[CompareItem],
        *,
        batch_items: int = BATCH_ITEMS,
        concurrency: int = CONCURRENCY,
        progress: bool = False,
    ) -> AsyncGenerator[CompareReply | ErrorBody, None]:
        """A list of any length, `concurrency` batches under way at once. Results stream in order as they come.

        progress: a bar on standard error (extra `progress`). A batch that is too large for the service is halved.
        """
        with progress_bar(length_of(items), shown=progress) as bar:
            results = in_order_async(self._whole, items, batch_items=batch_items, concurrency=concurrency)
            async with aclosing(results):
                async for result in results:
                    yield result
                    bar.update()

    async def rank(self, prompt: Prompt, responses: Sequence[str], **options: Unpack[RankOptions]) -> RankReply:
        """The order of 2 to 128 responses, and how far apart they are."""
        return parse(RankReply, await self._ask(calls.rank(prompt, responses, options)))

    async def rewards(
        self, prompt: Prompt, responses: Sequence[str], **options: Unpack[RewardsOptions]
    ) -> RewardsReply:
        """A number for each of 1 to 128 responses, from comparing them with each other or with a reference."""
        return parse(RewardsReply, await self._ask(calls.rewards(prompt, responses, options)))

    async def models(self) -> list[ModelCard]:
        """What is served."""
        return parse(ModelList, await self._ask(calls.models())).models

    async def is_ready(self) -> bool:
        """Whether the service takes work now. Asked once, not repeated."""
        try:
            await self._try(calls.ready(), Deadline(self._timeout_s))
        except CallFailed:
            return False
        return True

    async def _whole(self, items: list[CompareItem]) -> list[CompareReply | ErrorBody]:
        try:
            return await self.compare_batch(items)
        except CallRefused as error:
            parts = halves(items, error)
            return [r for part in parts for r in await self._whole(part)] if parts else [as_item_error(error)]

    async def _ask(self, call: Call) -> bytes:
        return await self._repeat(partial(self._try, call))

    async def _repeat(self, attempt: Callable[[Deadline], Awaitable[T]]) -> T:
        deadline = Deadline(self._timeout_s)
        return await AsyncRetrying(**policy(self._max_retries, deadline))(attempt, deadline)

    async def _try(self, call: Call, deadline: Deadline) -> bytes:
        with failures_named(call, deadline):
            async with asyncio.timeout(deadline.left_s()):
                response = await self._http.send(build(self._http, call, deadline))
        return check(response, response.content, call)
