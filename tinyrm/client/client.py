"""The client for programs without asyncio: AsyncClient over a transport that blocks."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack

from tinyrm.api import CompareReply, ErrorBody, ModelCard, RankReply, RewardsReply
from tinyrm.client.async_client import AsyncClient
from tinyrm.client.batches import BATCH_ITEMS, CONCURRENCY
from tinyrm.client.calls import CompareItem, CompareOptions, Prompt, RankOptions, RewardsOptions
from tinyrm.client.transport import BlockingTransport, run


class Client:
    """Calls to one service. Threads may share one client.

    base_url: address of the service, such as http://localhost:8000.
    api_key: sent as a bearer token, if the service needs one.
    timeout_s: for a whole call, its repetitions and the pauses between them included. The service knows it too, and
        drops work that would be late.
    max_retries: tries after the first one.
    max_connections: open at once.

    Every method raises a kind of CallFailed (tinyrm/errors.py), and InvalidInput for what cannot be sent at all.
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
        self._client = AsyncClient(
            base_url,
            api_key,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_connections=max_connections,
            transport=BlockingTransport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls that are running fail."""
        run(self._client.aclose())

    def compare(
        self, prompt: Prompt, response_a: str, response_b: str, **options: Unpack[CompareOptions]
    ) -> CompareReply:
        """Return which of two responses is better, and how surely."""
        return run(self._client.compare(prompt, response_a, response_b, **options))

    def compare_batch(self, items: Sequence[CompareItem]) -> list[CompareReply | ErrorBody]:
        """Compare many in one call. Results are in order; an item that cannot be scored has an error in its place."""
        return run(self._client.compare_batch(items))

    def compare_many(
        self,
        items: Iterable[CompareItem],
        *,
        batch_items: int = BATCH_ITEMS,
        concurrency: int = CONCURRENCY,
        progress: bool = False,
    ) -> Iterator[CompareReply | ErrorBody]:
        """Compare a list of any length, `concurrency` batches at once. Yields results in order, as they come.

        progress: show a bar on standard error (extra `progress`).

        A batch that is too large for the service is halved.
        """
        results = self._client.compare_many(items, batch_items=batch_items, concurrency=concurrency, progress=progress)
        try:
            while True:
                yield run(anext(results))
        except StopAsyncIteration:
            return
        finally:
            run(results.aclose())

    def rank(self, prompt: Prompt, responses: Sequence[str], **options: Unpack[RankOptions]) -> RankReply:
        """Return the order of 2 to 128 responses, and how far apart they are."""
        return run(self._client.rank(prompt, responses, **options))

    def rewards(self, prompt: Prompt, responses: Sequence[str], **options: Unpack[RewardsOptions]) -> RewardsReply:
        """Return a number for each of 1 to 128 responses, compared with each other or with a reference."""
        return run(self._client.rewards(prompt, responses, **options))

    def models(self) -> list[ModelCard]:
        """Return the models that are served."""
        return run(self._client.models())

    def is_ready(self) -> bool:
        """Return whether the service takes work now. One try, without repetitions."""
        return run(self._client.is_ready())
