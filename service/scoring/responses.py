"""Score responses alone, with a model that reads one response."""

import asyncio
from collections.abc import Hashable, Sequence

from service.scoring.pipeline import NO_DEADLINE, Pipeline, Question, ScoreResult
from tinyrm.deadline import Deadline
from tinyrm.errors import NotPointwise, first_of_group


async def score_responses(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    *,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
    is_accepted: bool = False,
) -> list[ScoreResult]:
    """Return the score of each response, in order; each is one item of the queue, and depends on no other.

    fairness_key, deadline: as in `Pipeline.compare`.
    is_accepted: for responses that were accepted before, so they are not refused because the engine is busy.

    Several responses are accepted or refused together. The first error cancels the others.
    Raises NotPointwise, InvalidInput, Unavailable and their subclasses, EngineFailed.
    """
    if pipeline.reads != "response":
        raise NotPointwise(
            f"{pipeline.manifest.identity} compares two responses and cannot score one alone; /v1/rewards returns "
            "rewards of several responses, relative to each other"
        )
    with pipeline.active():
        if not is_accepted:
            pipeline.refuse_if_busy(deadline, fairness_key)
        texts = pipeline.resolve(question, responses)
        if not is_accepted:
            pipeline.refuse_if_texts_wait(texts, deadline, fairness_key)
        tasks: list[asyncio.Task[ScoreResult]] = []
        with first_of_group():
            async with asyncio.TaskGroup() as group:
                steps = pipeline.texts.encode_responses(texts, fairness_key=fairness_key, deadline=deadline)
                async for sequences, encode_s in steps:
                    tasks += [
                        group.create_task(
                            pipeline.score_response(
                                sequence,
                                encode_s=encode_s,
                                fairness_key=fairness_key,
                                deadline=deadline,
                                wait_for_room=is_accepted or len(responses) > 1,
                            )
                        )
                        for sequence in sequences
                    ]
    return [task.result() for task in tasks]
