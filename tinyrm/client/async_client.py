"""The implementation of both clients: AsyncClient for asyncio, and the coroutines that Client runs."""

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence, Sized
from contextlib import aclosing
from functools import partial
from itertools import count
from types import TracebackType
from typing import Self, TypeVar, Unpack

from tinyrm.api import CompareReply, ErrorBody, ModelCard, ModelList, RankReply, RewardsReply, ScoreReply, TokensReply
from tinyrm.client.batches import BATCH_ITEMS, CONCURRENCY, halves, in_order, progress_bar
from tinyrm.client.calls import (
    AnyItem,
    Batch,
    Call,
    CompareOptions,
    Prompt,
    RankOptions,
    Response,
    RewardsOptions,
    ScoreOptions,
    parse,
    post,
    texts,
)
from tinyrm.client.transport import AsyncTransport, CallDeadline, Transport
from tinyrm.errors import CallFailed, CallRefused, InvalidInput, ServiceBusy, ServiceUnreachable

T = TypeVar("T")

FIRST_PAUSE_S = 0.25  # upper bound of a random pause; doubles with each failure
MAX_PAUSE_S = 8.0


class AsyncClient:
    """Calls to one service, for asyncio. Arguments, results and errors are those of Client."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        max_retries: int = 5,
        max_connections: int = 64,
        transport: Callable[[str, str | None, int], Transport] = AsyncTransport,
    ) -> None:
        """Take the arguments of Client.

        transport: how calls are sent and waited for; the default is for asyncio.
        """
        if not 0 < timeout_s < math.inf or max_retries < 0 or max_connections < 1:
            raise InvalidInput("timeout_s must be a number above 0, max_retries at least 0, max_connections at least 1")
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self.transport = transport(base_url, api_key, max_connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; running calls fail."""
        await self.transport.close()

    async def compare(
        self, prompt: Prompt, response_a: Response, response_b: Response, **options: Unpack[CompareOptions]
    ) -> CompareReply:
        """Return which of two responses is better, and with what probability."""
        body = {"prompt": prompt, "response_a": response_a, "response_b": response_b, **options}
        return parse(CompareReply, await self._send(post("/v1/compare", body)))

    async def compare_batch(self, items: Sequence[AnyItem]) -> list[CompareReply | ErrorBody]:
        """Compare many pairs in one call. Results are in order; an item that failed has an error in its place."""
        batch = Batch(items)

        async def attempt(deadline: CallDeadline) -> None:
            batch.take(await self.transport.send(batch.call(), deadline))

        try:
            if items:
                await self._repeat(attempt)
        except CallFailed:
            if not batch.results():
                raise
        return batch.results()

    async def compare_many(
        self,
        items: Iterable[AnyItem],
        *,
        batch_items: int = BATCH_ITEMS,
        concurrency: int = CONCURRENCY,
        progress: bool = False,
    ) -> AsyncGenerator[CompareReply | ErrorBody, None]:
        """Compare a list of any length. Yields results in the order of the items, as soon as they are known.

        batch_items: items in one call; a batch that is too large for the service is halved.
        concurrency: calls at the same time.
        progress: whether to show a bar on standard error (extra `progress`).
        """
        total = len(items) if isinstance(items, Sized) else None
        results = in_order(
            self.transport, self._compare_or_halve, items, batch_items=batch_items, concurrency=concurrency
        )
        with progress_bar(total, shown=progress) as bar:
            async with aclosing(results):
                async for result in results:
                    yield result
                    bar.update()

    async def rank(self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[RankOptions]) -> RankReply:
        """Return the order and the strengths of 2 to 1000 responses."""
        body = {"prompt": prompt, "responses": texts(responses), **options}
        return parse(RankReply, await self._send(post("/v1/rank", body)))

    async def rewards(
        self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[RewardsOptions]
    ) -> RewardsReply:
        """Return a number for each of 1 to 1000 responses, compared with each other or with a reference."""
        body = {"prompt": prompt, "responses": texts(responses), **options}
        return parse(RewardsReply, await self._send(post("/v1/rewards", body)))

    async def score(self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[ScoreOptions]) -> ScoreReply:
        """Return the score of each of 1 to 1000 responses, which depends on no other: see `scores_alone` of a model."""
        body = {"prompt": prompt, "responses": texts(responses), **options}
        return parse(ScoreReply, await self._send(post("/v1/score", body)))

    async def count_tokens(
        self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[ScoreOptions]
    ) -> TokensReply:
        """Return how many tokens the prompt and 1 to 1000 responses have, and how many would be dropped to fit."""
        body = {"prompt": prompt, "responses": texts(responses), **options}
        return parse(TokensReply, await self._send(post("/v1/tokens", body)))

    async def models(self) -> list[ModelCard]:
        """Return the models that are served."""
        return parse(ModelList, await self._send(Call("GET", "/v1/models"))).models

    async def is_ready(self) -> bool:
        """Return whether the service accepts work now. Tries once."""
        try:
            await self.transport.send(Call("GET", "/readyz"), CallDeadline.after(self._timeout_s))
        except CallFailed:
            return False
        return True

    async def _compare_or_halve(self, items: list[AnyItem]) -> list[CompareReply | ErrorBody]:
        try:
            return await self.compare_batch(items)
        except CallRefused as error:
            parts = halves(items, error)
            if parts is None:
                return [ErrorBody(type=error.type, message=str(error))]
            return [result for part in parts for result in await self._compare_or_halve(part)]

    async def _send(self, call: Call) -> bytes:
        return await self._repeat(partial(self.transport.send, call))

    async def _repeat(self, attempt: Callable[[CallDeadline], Awaitable[T]]) -> T:
        """Repeat until it succeeds, fails for good, or the next pause would end after the deadline."""
        deadline = CallDeadline.after(self._timeout_s)
        for failures in count():
            try:
                return await attempt(deadline)
            except (ServiceBusy, ServiceUnreachable) as error:
                # Full jitter: clients that failed together do not come back together.
                pause_s = random.uniform(0, min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**failures))
                if isinstance(error, ServiceBusy) and error.retry_after_s:
                    pause_s += error.retry_after_s
                if failures == self._max_retries or pause_s >= deadline.left_s():
                    raise
            await self.transport.sleep(pause_s)
        raise AssertionError("unreachable: count() has no end")
