"""A cascade: one model orders all responses by its scores, another one compares the best of them."""

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from service.scoring.models import CascadePipelines
from service.scoring.pipeline import NO_DEADLINE, Question
from service.scoring.ranking import GroupResult, rank_responses, refuse_too_many
from tinyrm.deadline import Deadline
from tinyrm.ranking import settle
from tinyrm.spec import shared_domain


async def rank_cascade(
    pipelines: CascadePipelines,
    question: Question,
    responses: Sequence[str],
    *,
    top: int,
    max_comparisons: int | None = None,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
) -> GroupResult:
    """Return scores and order of the responses, by `tinyrm.ranking.settle`.

    Both models accept the request before either begins, so the second one does not refuse what the first has scored.
    Both finish it, even if they are replaced or drain meanwhile. A model that lacks the question's domain uses its
    default domain.

    top: how many of the best responses are compared, 2 to all; of fewer than two responses, none.

    The other parameters and the errors are those of `rank_responses`.
    """
    domains = shared_domain(question.domain, *(pipeline.manifest.spec for pipeline in pipelines))
    for_alone, for_pairs = (replace(question, domain=domain) for domain in domains)
    # Whatever one model would refuse is refused before the other has worked.
    pipelines.pairs.refuse_if_busy(deadline, fairness_key)
    pipelines.pairs.choose_swap(for_pairs)
    pipelines.pairs.resolve(for_pairs, responses)
    refuse_too_many("round_robin", top, max_comparisons)
    with ExitStack() as stack:
        for pipeline in pipelines:
            stack.enter_context(pipeline.held())
        first = await rank_responses(
            pipelines.alone, for_alone, responses, fairness_key=fairness_key, deadline=deadline
        )
        if top < 2:
            return first
        second = await rank_responses(
            pipelines.pairs,
            for_pairs,
            [responses[i] for i in first.ranking.order[:top]],
            fairness_key=fairness_key,
            deadline=deadline,
            is_accepted=True,
        )
    ranking = settle(first.ranking, second.ranking.margins)
    return GroupResult(
        ranking,
        f"{first.model}+{second.model}",
        comparisons=second.comparisons,
        responses=first.responses,
        costs=[*first.costs, *second.costs],
        truncated_tokens=first.truncated_tokens + second.truncated_tokens,
        sets=first.sets,
    )
