"""Scores for the dialects: of responses alone, in a group, in a cohort or against a reference."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from service.api.dependencies import AppState, TimeoutMs, get_deadline, get_fairness_key, get_state
from service.dialects.bodies import AnyOptions, CohortOptions, Label, LabelOptions, Options, is_bare, replace_surrogates
from service.http.context import RequestContext, get_context
from service.scoring.batch import WINDOW_ITEMS
from service.scoring.groups import CohortRules, Sample
from service.scoring.pipeline import Pipeline, Question
from service.scoring.ranking import (
    NEUTRAL,
    GroupResult,
    GroupScore,
    cap_empty,
    choose_strategy,
    estimate_tokens,
    score_alone,
    score_group,
)
from service.scoring.responses import score_responses
from service.settings import PREFIX, split_list
from tinyrm import api, chat
from tinyrm.api import MAX_RESPONSES, NonEmpty
from tinyrm.chat import BLANK
from tinyrm.comparison import EMPTY_LOG_ODDS
from tinyrm.deadline import Deadline
from tinyrm.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidText,
    NotPointwise,
    UnknownModel,
    first_of_group,
    from_validation,
)
from tinyrm.ranking import sigmoid
from tinyrm.schedules import comparisons_needed

T = TypeVar("T")

PROMPT: TypeAdapter[chat.Prompt] = TypeAdapter(api.Prompt)
RESPONSE: TypeAdapter[str] = TypeAdapter(Annotated[NonEmpty, BeforeValidator(replace_surrogates)])
RESPONSES: TypeAdapter[list[str]] = TypeAdapter(
    Annotated[list[NonEmpty], Field(max_length=MAX_RESPONSES, fail_fast=True)]
)


@dataclass(frozen=True, slots=True)
class DialectContext:
    """Scores the responses of one request.

    Methods raise InvalidInput, Unavailable and their subclasses, EngineFailed.
    """

    state: AppState
    request: RequestContext
    dialect: str
    fairness_key: Hashable
    deadline: Deadline
    pipelines: dict[Question, Pipeline] = field(default_factory=dict)
    window: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(WINDOW_ITEMS))

    def resolve(self, options: Options) -> Pipeline:
        """Return the pipeline for the options' model, or else for their domain: the same one to the request's end."""
        model = Question("", domain=options.domain, model=options.model)
        if model not in self.pipelines:
            self.pipelines[model] = self.state.registry.resolve(model)
        return self.pipelines[model]

    def select_model(self, options: AnyOptions, name: str | None) -> AnyOptions:
        """Return the options with the model that a body names, unless the URL names one.

        Raises UnknownModel if it is not served, and the settings do not let the default model take its place.
        """
        if options.model or not name:
            return options
        named = options.model_copy(update={"model": name})
        try:
            self.resolve(named)
        except UnknownModel as error:
            if self.state.settings.unknown_models == "refuse":
                raise UnknownModel(f"{error}; {PREFIX}UNKNOWN_MODELS=default takes any name") from None
            return options
        return named

    def refuse_too_many(self, responses: int) -> None:
        """Raise InvalidInput if one call may not hold so many responses."""
        limit = self.state.settings.max_batch_items
        if responses > limit:
            raise InvalidInput(f"{responses} responses in one call, at most {limit} are accepted")

    def accept_list(self, pipeline: Pipeline) -> None:
        """Raise Unavailable if a list would wait too long; later, none of its samples is refused for it."""
        pipeline.refuse_if_busy(self.deadline, self.fairness_key)
        if self.state.cohorts and not pipeline.scores_alone:
            with self.state.registry.metrics.refusals_counted():
                self.state.cohorts.refuse_if_behind()

    async def score_groups(self, options: Options, pairs: Sequence[tuple[chat.Prompt, str]]) -> list[GroupScore]:
        """Return the score of each response, in order; those to equal prompts are one group.

        Raises NotPointwise if a response is the only one to its prompt and the model does not score it alone, and
        InvalidInput if the groups take too many comparisons.
        """
        pipeline = self.resolve(options)
        # A prompt that a thousand pairs share is written once.
        written = {id(prompt): prompt for prompt, _ in pairs}
        keys = {place: json.dumps(prompt) for place, prompt in written.items()}
        groups: dict[str, list[int]] = defaultdict(list)
        for at, (prompt, _) in enumerate(pairs):
            groups[keys[id(prompt)]].append(at)
        if not pipeline.scores_alone and any(len(group) == 1 for group in groups.values()):
            raise NotPointwise(
                f"{pipeline.manifest.identity} compares the responses to a prompt with each other, and this call has "
                "only one response to a prompt; send all responses to it in one call"
            )
        limit = self.state.settings.max_batch_items
        comparisons = sum(comparisons_needed(choose_strategy(len(group)), len(group)) for group in groups.values())
        if pipeline.reads == "pair" and comparisons > limit:
            raise InvalidInput(
                f"{len(groups)} groups take {comparisons} comparisons, at most {limit} are accepted in one call; send "
                "fewer groups"
            )
        is_list = len(groups) > 1
        if is_list:
            pipeline.refuse_if_busy(self.deadline, self.fairness_key)
        scores: list[GroupScore | None] = [None] * len(pairs)

        async def score(group: list[int]) -> None:
            responses = [pairs[at][1] for at in group]
            result = await self.score_whole_group(options, pairs[group[0]][0], responses, is_accepted=is_list)
            for at, one in zip(group, result.scores, strict=True):
                scores[at] = one

        with pipeline.held(), first_of_group():
            async with asyncio.TaskGroup() as tasks:
                for group in groups.values():
                    tasks.create_task(score(group))
        return [one for one in scores if one is not None]

    async def score_whole_group(
        self, options: Options, prompt: chat.Prompt, responses: Sequence[str], *, is_accepted: bool = False
    ) -> GroupResult:
        """Compare the responses with each other, or score each alone, as the model can.

        is_accepted: as in `rank_responses`.
        """
        question = make_question(options, prompt)
        texts = validate(RESPONSES, [replace_surrogates(response) or BLANK for response in responses], "responses")
        result = await score_group(
            self.resolve(options),
            question,
            texts,
            empty=options.empty,
            max_comparisons=self.state.settings.max_batch_items,
            fairness_key=self.fairness_key,
            deadline=self.deadline,
            is_accepted=is_accepted,
        )
        self.request.stats.items += len(responses)
        self.request.stats.tokens += result.tokens
        for score in result.scores:
            self._mark(score)
        return result

    async def score_sample(
        self, options: LabelOptions, prompt: chat.Prompt, response: str, label: Label, *, wait_for_room: bool = False
    ) -> GroupScore:
        """Compare with the label if it is used as a reference, or else score as `score_unlabelled` does.

        wait_for_room: as in `Pipeline.compare`.
        """
        is_ignored = options.labels == "ignore" or label is None or label == ""
        if options.labels == "auto" and not is_ignored:
            is_ignored = not isinstance(label, str) or not label.strip() or is_bare(label)
        if is_ignored:
            return await self.score_unlabelled(options, prompt, response, wait_for_room=wait_for_room)
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            raise InvalidInput(
                f"label: a response cannot be compared with {type(label).__name__}; send the text of a reference, or "
                "add ?labels=ignore to the URL, so that the responses to a prompt are compared with each other"
            )
        return await self.compare_with_reference(options, prompt, response, str(label), wait_for_room=wait_for_room)

    async def score_unlabelled(
        self,
        options: CohortOptions,
        prompt: chat.Prompt,
        response: str,
        group: Hashable = None,
        *,
        wait_for_room: bool = False,
    ) -> GroupScore:
        """Score alone, at once, with a model that scores responses alone, or else among the samples of the cohort.

        group: like options.group_id, for dialects that have it in the body.
        wait_for_room: as in `Pipeline.compare`, for a sample of a list that `accept_list` has accepted.
        """
        question = make_question(options, prompt)
        pipeline = self.resolve(options)
        text = validate(RESPONSE, response or BLANK, "response")
        if not pipeline.scores_alone:
            return await self._join_cohort(pipeline, options, question, text, group, is_accepted=wait_for_room)
        async with self.window:
            scored = await score_responses(
                pipeline,
                question,
                [text],
                fairness_key=self.fairness_key,
                deadline=self.deadline,
                is_accepted=wait_for_room,
            )
        self.request.stats.items += 1
        for cost in scored.costs:
            self.request.stats.add(cost.tokens, cost.stages)
        (result,) = scored.scores
        if options.empty == "last" and pipeline.is_empty(question, text):
            result = cap_empty(pipeline, result, pipeline.temperature(question))
        return score_alone(result)

    async def _join_cohort(
        self,
        pipeline: Pipeline,
        options: CohortOptions,
        question: Question,
        text: str,
        group: Hashable,
        *,
        is_accepted: bool,
    ) -> GroupScore:
        """Wait for the other samples of the cohort, and return this one's score.

        is_accepted: for a sample of a list that was accepted as a whole.

        An invalid sample is refused before it joins the cohort, so that the others do not fail.
        """
        if self.state.cohorts is None:
            raise NotPointwise(
                f"{pipeline.manifest.identity} compares the samples of a prompt with each other, and in a service of "
                "several processes they do not meet; select a model that scores responses alone, with ?domain= or "
                "?model=, or serve this one in one process"
            )
        pipeline.manifest.spec.instruction(question.domain)
        settings, prompt = self.state.settings, question.prompt
        size = options.group_size or settings.group_size
        if size == 1:
            return self._counted(NEUTRAL)
        plain = prompt if isinstance(prompt, str) else [(message["role"], message["content"]) for message in prompt]
        written = json.dumps(plain).encode()
        rules = CohortRules(
            size,
            estimate_tokens(pipeline, question, size, prompt_characters=len(written), response_characters=len(text)),
            self.dialect,
            scores_partial=(options.partial or settings.partial_cohorts) == "score",
            answers_copies=(options.copies or ("answer" if self.dialect == "verl" else "join")) == "answer",
        )

        def admit() -> None:
            pipeline.backend.refuse_if_busy(self.deadline.left_s(), self.fairness_key)

        waiting = self.state.cohorts.join(
            (self.request.client_id, options, group, hashlib.sha256(written).digest()),
            Sample(question, text, self.fairness_key, options.empty),
            rules,
            size_bytes=len(text.encode()) + len(written),
            admit=None if is_accepted else admit,
        )
        try:
            async with asyncio.timeout(self.deadline.left_s()):
                score = await waiting
        except TimeoutError:
            self.state.registry.metrics.observe_shed(DeadlineExceeded.type)
            raise DeadlineExceeded("the cohort was not scored within the request's own time limit") from None
        self.request.stats.tokens += score.tokens
        return self._counted(score)

    def _counted(self, score: GroupScore) -> GroupScore:
        """Count a sample of a cohort, and mark the reply if it is partial."""
        self.request.stats.items += 1
        self._mark(score)
        return score

    def _mark(self, score: GroupScore) -> None:
        if score.partial:
            self.request.is_partial = True
            self.state.registry.metrics.observe_partial(self.dialect)

    async def compare_with_reference(
        self, options: Options, prompt: chat.Prompt, response: str, reference: str, *, wait_for_room: bool = False
    ) -> GroupScore:
        """Return the probability that the response beats the reference, both as reward and as score.

        wait_for_room: as in `Pipeline.compare`.
        """
        question = make_question(options, prompt)
        response = validate(RESPONSE, response or BLANK, "response_a")
        reference = validate(RESPONSE, reference, "response_b")
        pipeline = self.resolve(options)
        async with self.window:
            result = await pipeline.compare(
                question,
                response,
                reference,
                fairness_key=self.fairness_key,
                deadline=self.deadline,
                wait_for_room=wait_for_room,
            )
        self.request.stats.items += 1
        self.request.stats.add(result.cost.tokens, result.cost.stages)
        wins = result.preference.p_a
        if options.empty == "last" and pipeline.is_empty(question, response):
            wins = min(wins, float(sigmoid(np.array(-EMPTY_LOG_ODDS))))
        return GroupScore(wins, wins, result.cost.tokens)


async def get_dialect_context(request: Request, timeout_ms: TimeoutMs = None) -> DialectContext:
    state = get_state(request)
    enabled = split_list(state.settings.dialects)
    return DialectContext(
        state,
        get_context(request.scope),
        # A route may be one of several dialects.
        next(name for name in request.scope["route"].tags if name in enabled),
        get_fairness_key(request),
        get_deadline(timeout_ms),
    )


Context = Annotated[DialectContext, Depends(get_dialect_context)]


def make_question(options: Options, prompt: chat.Prompt) -> Question:
    if isinstance(prompt, str):
        prompt = replace_surrogates(prompt)
    else:
        prompt = [message | {"content": replace_surrogates(message["content"])} for message in prompt]
    prompt = validate(PROMPT, prompt, "prompt")
    return Question(
        prompt,
        domain=options.domain,
        instruction=options.instruction,
        model=options.model,
        reasoning=options.reasoning,
    )


def validate(adapter: TypeAdapter[T], value: Any, name: str) -> T:
    """Return the value if the service's own endpoints accept it. Raises InvalidInput with `name`."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        invalid = from_validation(error, within=[name])
        raise (invalid if isinstance(invalid, InvalidText) else InvalidInput(str(invalid))) from error


async def gather_scores(scores: list[Coroutine[Any, Any, GroupScore]]) -> list[GroupScore]:
    """Return all scores. The first error cancels the others."""
    with first_of_group():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score) for score in scores]
    return [task.result() for task in tasks]
