"""Read responses with a model that compares none: each in its own sequence, or all in one set."""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.scoring.pipeline import NO_DEADLINE, Cost, Pipeline, Question, ScoreResult, SequenceResult
from tinyrm.confidence import Temperature
from tinyrm.deadline import Deadline
from tinyrm.encoding import Truncation
from tinyrm.errors import NotPointwise, first_of_group
from tinyrm.sets import join


@dataclass(frozen=True, slots=True)
class ReadResponses:
    """What a model says about responses.

    logits: one for each response [n]; of several sets that overlap, joined by `tinyrm.sets.join`.
    scores: of each response, if its score depends on no other; otherwise none.
    costs: of each item of the queue.
    sets: sequences that held the responses; None if each had its own.
    """

    logits: NDArray[np.float64]
    scores: Sequence[ScoreResult]
    costs: Sequence[Cost]
    truncated_tokens: int
    sets: int | None


async def score_responses(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    *,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
    is_accepted: bool = False,
) -> ReadResponses:
    """Return the score of each response, in order, which depends on no other.

    The parameters are those of `read_responses`. Raises NotPointwise, and what `read_responses` raises.
    """
    if not pipeline.scores_alone:
        how = "compares two responses" if pipeline.reads == "pair" else "reads responses beside each other"
        raise NotPointwise(
            f"{pipeline.manifest.identity} {how} and cannot score one alone; /v1/rewards returns rewards of several "
            "responses, relative to each other"
        )
    return await read_responses(
        pipeline, question, responses, fairness_key=fairness_key, deadline=deadline, is_accepted=is_accepted
    )


async def read_responses(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    *,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
    is_accepted: bool = False,
) -> ReadResponses:
    """Return what a model that does not read pairs says about the responses; each sequence is one item of the queue.

    fairness_key, deadline: as in `Pipeline.compare`.
    is_accepted: for responses that were accepted before, so they are not refused because the engine is busy.

    Several responses are accepted or refused together. The first error cancels the others.
    Raises InvalidInput, Unavailable and their subclasses, EngineFailed.
    """
    with pipeline.active():
        if not is_accepted:
            pipeline.refuse_if_busy(deadline, fairness_key)
        texts = pipeline.resolve(question, responses)
        if not is_accepted:
            pipeline.refuse_if_texts_wait(texts, deadline, fairness_key)
        tasks: list[asyncio.Task[SequenceResult]] = []
        with first_of_group():
            async with asyncio.TaskGroup() as group:
                steps = pipeline.texts.encode_responses(texts, fairness_key=fairness_key, deadline=deadline)
                async for sequences, encode_s in steps:
                    tasks += [
                        group.create_task(
                            pipeline.score_sequence(
                                sequence,
                                encode_s=encode_s,
                                fairness_key=fairness_key,
                                deadline=deadline,
                                wait_for_room=is_accepted or len(responses) > 1,
                            )
                        )
                        for sequence in sequences
                    ]
    return gather(pipeline, [task.result() for task in tasks], pipeline.temperature(question))


def gather(pipeline: Pipeline, results: Sequence[SequenceResult], temperature: Temperature) -> ReadResponses:
    """Return what the sequences of all responses say together."""
    costs = [result.cost for result in results]
    truncated_tokens = sum(result.sequence.truncation.total for result in results)
    if pipeline.reads == "set":
        logits = join([result.logits for result in results], overlapping=not pipeline.scores_alone)
        scores = scores_of_sets(pipeline, results, logits, temperature) if pipeline.scores_alone else []
        return ReadResponses(logits, scores, costs, truncated_tokens, len(results))
    logits = np.concatenate([result.logits for result in results])
    scores = [
        pipeline.make_score(logit, result.sequence.truncation, result.cost.tokens, temperature)
        for logit, result in zip(logits.tolist(), results, strict=True)
    ]
    return ReadResponses(logits, scores, costs, truncated_tokens, None)


def scores_of_sets(
    pipeline: Pipeline, results: Sequence[SequenceResult], logits: NDArray[np.float64], temperature: Temperature
) -> list[ScoreResult]:
    """Return the score of each response, as if it had been read alone."""
    scores: dict[int, ScoreResult] = {}
    for sequence in (result.sequence for result in results):
        prompt, *own = pipeline.manifest.special_tokens.part_lengths(sequence.input_ids)
        held = [(at, column) for at, column in enumerate(sequence.columns) if column >= 0]
        for (at, column), dropped in zip(held, sequence.truncation.responses, strict=False):
            truncation = Truncation(sequence.truncation.prompt, dropped)
            tokens = prompt + own[column]
            scores[at] = pipeline.make_score(float(logits[at]), truncation, tokens, temperature)
    return [scores[at] for at in range(len(logits))]
