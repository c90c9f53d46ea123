"""The client for programs without asyncio: AsyncClient over a blocking transport."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack

from tinyrm.api import CompareReply, ErrorBody, ModelCard, RankReply, RewardsReply, ScoreReply, TokensReply
from tinyrm.client.async_client import AsyncClient
from tinyrm.client.batches import BATCH_ITEMS, CONCURRENCY
from tinyrm.client.calls import AnyItem, CompareOptions, Prompt, RankOptions, Response, RewardsOptions, ScoreOptions
from tinyrm.client.transport import BlockingTransport, run


class Client:
    """Calls to one service. Threads and forked processes may share one client; it can also be pickled.

        client = Client("http://localhost:8000")
        reply = client.compare("What is 2 + 2?", "4", "5")
        reply.preferred, reply.probability_a

    base_url: address of the service.
    api_key: sent as a bearer token, if the service requires one.
    timeout_s: limit of a whole call, with its repetitions and the pauses between them. It is sent to the service, which
        drops work that would be late.
    max_retries: tries after the first one.
    max_connections: connections that are open at the same time, in each process.

    Every method raises a kind of CallFailed (tinyrm/errors.py), and InvalidInput for arguments that cannot be sent.
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
        """Close all connections; running calls fail."""
        run(self._client.aclose())

    def compare(
        self, prompt: Prompt, response_a: Response, response_b: Response, **options: Unpack[CompareOptions]
    ) -> CompareReply:
        """Return which of two responses is better, and with what probability."""
        return run(self._client.compare(prompt, response_a, response_b, **options))

    def compare_batch(self, items: Sequence[AnyItem]) -> list[CompareReply | ErrorBody]:
        """Compare many pairs in one call. Results are in order; an item that failed has an error in its place."""
        return run(self._client.compare_batch(items))

    def compare_many(
        self,
        items: Iterable[AnyItem],
        *,
        batch_items: int = BATCH_ITEMS,
        concurrency: int = CONCURRENCY,
        progress: bool = False,
    ) -> Iterator[CompareReply | ErrorBody]:
        """Compare a list of any length. Yields results in the order of the items, as soon as they are known.

        batch_items: items in one call; a batch that is too large for the service is halved.
        concurrency: calls at the same time.
        progress: whether to show a bar on standard error (extra `progress`).
        """
        results = self._client.compare_many(items, batch_items=batch_items, concurrency=concurrency, progress=progress)
        try:
            while True:
                yield run(anext(results))
        except StopAsyncIteration:
            return
        finally:
            run(results.aclose())

    def rank(self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[RankOptions]) -> RankReply:
        """Return the order and the strengths of 2 to 1000 responses."""
        return run(self._client.rank(prompt, responses, **options))

    def rewards(self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[RewardsOptions]) -> RewardsReply:
        """Return a number for each of 1 to 1000 responses, compared with each other or with a reference."""
        return run(self._client.rewards(prompt, responses, **options))

    def score(self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[ScoreOptions]) -> ScoreReply:
        """Return the score of each of 1 to 1000 responses, which depends on no other: see `scores_alone` of a model."""
        return run(self._client.score(prompt, responses, **options))

    def count_tokens(
        self, prompt: Prompt, responses: Sequence[Response], **options: Unpack[ScoreOptions]
    ) -> TokensReply:
        """Return how many tokens the prompt and 1 to 1000 responses have, and how many would be dropped to fit."""
        return run(self._client.count_tokens(prompt, responses, **options))

    def models(self) -> list[ModelCard]:
        """Return the models that are served."""
        return run(self._client.models())

    def is_ready(self) -> bool:
        """Return whether the service accepts work now. Tries once."""
        return run(self._client.is_ready())
