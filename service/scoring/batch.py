"""Lists of comparisons that arrive in one request."""

import asyncio
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from service.scoring.models import ModelRegistry
from service.scoring.pipeline import CompareResult, Pipeline, Question
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
    pipelines = resolve_once(registry, [item.question for item in items])
    models = [pipeline for pipeline in pipelines.values() if isinstance(pipeline, Pipeline)]
    for pipeline in models:
        pipeline.refuse_if_busy(deadline, fairness_key)
    window = asyncio.Semaphore(WINDOW_ITEMS)

    async def compare(item: BatchItem) -> CompareResult | TinyRMError:
        pipeline = pipelines[select_model(item.question)]
        if isinstance(pipeline, TinyRMError):
            return pipeline
        async with window:
            try:
                return await pipeline.compare(
                    item.question,
                    item.response_a,
                    item.response_b,
                    fairness_key=fairness_key,
                    deadline=deadline,
                    wait_for_room=True,
                )
            except TinyRMError as error:
                return error

    with ExitStack() as stack:
        for pipeline in models:
            stack.enter_context(pipeline.held())
        return await asyncio.gather(*map(compare, items))


def resolve_once(registry: ModelRegistry, questions: Sequence[Question]) -> dict[Question, Pipeline | TinyRMError]:
    """Return the pipeline, or the error, of each model that the questions select; see `select_model`.

    One look-up for the whole list: a reload meanwhile must not mix revisions in one reply.
    """
    pipelines: dict[Question, Pipeline | TinyRMError] = {}
    for model in dict.fromkeys(map(select_model, questions)):
        try:
            pipelines[model] = registry.resolve(model)
        except TinyRMError as error:  # an item with an unknown model fails alone
            pipelines[model] = error
    return pipelines


def select_model(question: Question) -> Question:
    """Return the part of a question that decides which model compares its responses."""
    return Question("", domain=question.domain, model=question.model)
