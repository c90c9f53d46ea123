"""Lists of comparisons that arrive in one request."""

import asyncio
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from service.scoring.models import ModelRegistry
from service.scoring.pipeline import CompareResult, Question
from tinyrm.deadline import Deadline
from tinyrm.errors import TinyRMError

# Items of one list that are encoded or queued at once: enough to keep an engine busy, few enough that a long list
# leaves room in the queue for other requests.
WINDOW_ITEMS = 256


@dataclass(frozen=True, slots=True)
class BatchItem:
    question: Question
    response_a: str
    response_b: str


async def compare_items(
    registry: ModelRegistry, items: Sequence[BatchItem], *, fairness_key: Hashable, deadline: Deadline
) -> list[CompareResult | TinyRMError]:
    """Compare the items of a list, and return a result or an error for each.

    fairness_key, deadline: as in `Pipeline.compare`.

    Raises a subclass of Unavailable if a model that the list needs is busy: the whole list is refused.
    """
    pipelines = {}
    for item in items:
        with suppress(TinyRMError):  # an item with an unknown model fails alone, below
            pipeline = registry.resolve(item.question)
            pipelines[id(pipeline)] = pipeline
    for pipeline in pipelines.values():
        pipeline.refuse_if_busy(deadline)
    window = asyncio.Semaphore(WINDOW_ITEMS)

    async def compare(item: BatchItem) -> CompareResult | TinyRMError:
        async with window:
            try:
                return await registry.resolve(item.question).compare(
                    item.question,
                    item.response_a,
                    item.response_b,
                    fairness_key=fairness_key,
                    deadline=deadline,
                    wait_for_room=True,
                )
            except TinyRMError as error:
                return error

    return await asyncio.gather(*map(compare, items))
