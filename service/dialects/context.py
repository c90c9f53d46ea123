"""What every dialect asks in the end: which of these responses are better than which, and by how much."""

import asyncio
import hashlib
import json
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.compare import WINDOW_ITEMS
from service.api.dependencies import TimeoutMs, get_fairness_key, get_state, to_seconds
from service.http.context import RequestStats, get_context
from service.scoring.groups import ALONE, Cohorts, Placed
from service.scoring.models import ModelRegistry
from service.scoring.ranking import Ranked, rank, rewards_of
from tinyrm.api import MAX_RESPONSES, CompareRequest, Name, NonEmpty, PromptRequest, RewardsRequest
from tinyrm.chat import BLANK, Prompt
from tinyrm.comparison import Strategy
from tinyrm.errors import DeadlineExceeded, InvalidInput, InvalidText, Overloaded, from_validation
from tinyrm.ranking import Matrix, expected_wins
from tinyrm.schedules import comparisons_needed

# Up to this many responses everybody meets everybody; more are paired by their standings.
ROUND_ROBIN_RESPONSES = 32
# How often a cohort asks an engine that is busy.
MOST_TRIES = 5

Q = TypeVar("Q", bound=BaseModel)


class Options(BaseModel):
    """What a trainer cannot say in its body stands in the query of its URL, as in `/get_reward?domain=safety`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    domain: Name | None = Field(default=None, description="One of the model's domains.")
    instruction: NonEmpty | None = Field(default=None, description="Takes the place of the domain's instruction.")
    model: Name | None = Field(default=None, description="Name or name@revision of the model that answers.")


class CohortOptions(Options):
    """With whom a sample is compared."""

    group_size: int | None = Field(
        default=None, ge=2, le=MAX_RESPONSES, description="Samples of one prompt; not given: TINYRM_GROUP_SIZE."
    )
    group_id: Name | None = Field(
        default=None, description="Keeps groups of one and the same prompt apart, such as those of two trainings."
    )


class Said(BaseModel):
    response: NonEmpty


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of a cohort. flow: whose part of the engine its comparisons are."""

    asked: PromptRequest
    response: str
    flow: Hashable


@dataclass(frozen=True, slots=True)
class Standing:
    """placed: one for each response. probabilities [n, n]: that i beats j, NaN where they did not meet."""

    placed: list[Placed]
    probabilities: Matrix
    model: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Desk:
    """Answers one request's questions."""

    registry: ModelRegistry
    cohorts: Cohorts[Sample]
    stats: RequestStats
    client: str | None
    flow: Hashable
    timeout_s: float | None
    group_size: int
    max_items: int
    window: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(WINDOW_ITEMS))

    def refuse_if_busy(self, options: Options) -> None:
        """Before a list is begun. Raises Unavailable and its kinds, UnknownModel."""
        self.registry.resolve(asked_of(options, "?")).refuse_if_busy(self.timeout_s)

    async def compare_all(self, options: Options, prompt: Prompt, responses: Sequence[str]) -> Standing:
        """Raises InvalidInput and its kinds, Unavailable and its kinds, EngineFailed."""
        asked = asked_of(options, prompt)
        standing = await stand(self.registry, asked, responses, self.flow, self.timeout_s)
        self.stats.items, self.stats.tokens = len(responses), standing.tokens
        return standing

    def model_name(self, options: Options) -> str:
        """name@revision of who answers."""
        return self.registry.resolve(asked_of(options, "?")).manifest.identity

    async def join(self, options: CohortOptions, prompt: Prompt, response: str, group: Hashable = None) -> Placed:
        """Wait for the others of its cohort. group: as options.group_id, if the body has one.

        Raises as `Cohorts.join`. Whatever is wrong with a sample is said before it joins: the others are not to blame.
        """
        asked = asked_of(options, prompt)
        self.registry.resolve(asked).manifest.spec.instruction(asked.domain)
        said = checked(Said, {"response": response or BLANK}).response
        key = (self.client, options, group, digest_of(prompt))
        size_bytes = len(said.encode()) + len(json.dumps(asked.model_dump()["prompt"]))
        waiting = self.cohorts.join(
            key, Sample(asked, said, self.flow), size=options.group_size or self.group_size, size_bytes=size_bytes
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                placed = await waiting
        except TimeoutError:
            self.registry.metrics.observe_shed(DeadlineExceeded.type)
            raise DeadlineExceeded(f"no cohort within the request's own {self.timeout_s:.3f} s; it left") from None
        self.stats.items += 1
        self.stats.tokens += placed.tokens
        return placed

    async def against(
        self, options: Options, prompt: Prompt, response: str, reference: str, *, patient: bool = False
    ) -> Placed:
        """P(response beats reference), as both reward and score. Raises as `compare_all`.

        patient: it is one of a list that was accepted, and waits for room in the queue.
        """
        asked, begun = asked_of(options, prompt), time.perf_counter()
        pair = question(CompareRequest, asked, response_a=response or BLANK, response_b=reference)
        async with self.window:
            left_s = None if self.timeout_s is None else self.timeout_s - (time.perf_counter() - begun)
            pipeline = self.registry.resolve(pair)
            answer = await pipeline.compare(pair, flow=self.flow, timeout_s=left_s, patient=patient)
        self.stats.items += 1
        self.stats.add(answer.tokens, answer.stages)
        return Placed(answer.preference.p_a, answer.preference.p_a, answer.tokens)


async def _desk_of(request: Request, timeout_ms: TimeoutMs = None) -> Desk:
    state, context = get_state(request), get_context(request.scope)
    return Desk(
        state.registry,
        state.cohorts,
        context.stats,
        context.client_id,
        get_fairness_key(request),
        to_seconds(timeout_ms),
        state.settings.group_size,
        state.settings.max_batch_items,
    )


DeskOf = Annotated[Desk, Depends(_desk_of)]
OptionsOf = Annotated[Options, Query()]
CohortOptionsOf = Annotated[CohortOptions, Query()]


async def stand(
    registry: ModelRegistry,
    asked: PromptRequest,
    responses: Sequence[str],
    flow: Hashable,
    timeout_s: float | None = None,
) -> Standing:
    """Where each of the responses stands among the others; one alone is as good as anybody."""
    said = [response or BLANK for response in responses]
    pipeline = registry.resolve(asked)
    if len(said) < 2:
        return Standing([ALONE] * len(said), np.full((len(said),) * 2, np.nan), pipeline.manifest.identity, 0)
    strategy: Strategy = "round_robin" if len(said) <= ROUND_ROBIN_RESPONSES else "swiss"
    group = question(RewardsRequest, asked, responses=said, strategy=strategy, scale="unit")
    most = comparisons_needed(strategy, len(said))
    ranked = await rank(pipeline, group, flow=flow, timeout_s=timeout_s, max_comparisons=most)
    return Standing(placed_of(ranked, group), ranked.probabilities, pipeline.manifest.identity, ranked.tokens)


def placed_of(ranked: Ranked, group: RewardsRequest) -> list[Placed]:
    strengths = ranked.strengths.values
    rewards: list[float] = strengths.tolist()
    # Whoever met only the best has lost more than it would have among all.
    scores = rewards_of(ranked, group) if group.strategy == "round_robin" else expected_wins(strengths).tolist()
    share = ranked.tokens // len(rewards)
    return [Placed(reward, score, share) for reward, score in zip(rewards, scores, strict=True)]


async def judge_cohort(registry: ModelRegistry, samples: Sequence[Sample]) -> list[Placed]:
    """For Cohorts. All samples of one have the same question.

    Who has waited for a whole cohort is not sent away for a busy moment; new samples are refused instead.
    """
    first, responses = samples[0], [sample.response for sample in samples]
    for _ in range(MOST_TRIES - 1):
        try:
            return (await stand(registry, first.asked, responses, first.flow)).placed
        except Overloaded:
            await asyncio.sleep(registry.retry_after_s())
    return (await stand(registry, first.asked, responses, first.flow)).placed


def asked_of(options: Options, prompt: Prompt) -> PromptRequest:
    texts = {"domain": options.domain, "instruction": options.instruction, "model": options.model}
    return checked(PromptRequest, {"prompt": prompt, **texts})


def question(kind: type[Q], asked: PromptRequest, **fields: Any) -> Q:
    """One of the service's own, about the same prompt. Raises InvalidInput."""
    return checked(kind, {name: getattr(asked, name) for name in PromptRequest.model_fields} | fields)


def checked(kind: type[Q], fields: Mapping[str, Any]) -> Q:
    """Raises InvalidInput where the service's own endpoints would refuse the body."""
    try:
        return kind(**fields)
    except ValidationError as error:
        found = from_validation(error, root="item")
        raise (found if isinstance(found, InvalidText) else InvalidInput(str(found))) from error


def digest_of(prompt: Prompt) -> bytes:
    """The same for the same text, the same messages."""
    plain = prompt if isinstance(prompt, str) else [(message["role"], message["content"]) for message in prompt]
    return hashlib.sha256(json.dumps(plain).encode()).digest()
