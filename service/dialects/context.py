"""Shared by the dialects: options in the URL, and scores of responses alone, in a group, a cohort or a pair."""

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query, Request
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from service.api.dependencies import AppState, TimeoutMs, get_deadline, get_fairness_key, get_state
from service.http.context import RequestContext, get_context
from service.scoring.batch import WINDOW_ITEMS
from service.scoring.groups import Sample
from service.scoring.pipeline import Pipeline, Question
from service.scoring.ranking import GroupResult, GroupScore, score_alone, score_group
from service.scoring.responses import score_responses
from tinyrm import api, chat
from tinyrm.api import MAX_RESPONSES, Name, NonEmpty, refuse_unknown_keys
from tinyrm.chat import BLANK
from tinyrm.deadline import Deadline
from tinyrm.errors import DeadlineExceeded, InvalidInput, InvalidText, NotPointwise, first_of_group, from_validation

T = TypeVar("T")


def replace_surrogates(text: Any) -> Any:
    """Return a text with a replacement character for each lone surrogate, which no tokenizer accepts.

    A sample that was refused for one would let all others of its prompt wait for it.
    """
    if not isinstance(text, str):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# A text that a policy wrote.
PolicyText = Annotated[str, BeforeValidator(replace_surrogates)]

PROMPT: TypeAdapter[chat.Prompt] = TypeAdapter(api.Prompt)
RESPONSE: TypeAdapter[str] = TypeAdapter(Annotated[NonEmpty, BeforeValidator(replace_surrogates)])
RESPONSES: TypeAdapter[list[str]] = TypeAdapter(
    Annotated[list[NonEmpty], Field(max_length=MAX_RESPONSES, fail_fast=True)]
)

# Ends at the first invalid element: an error for each one would take many times as long as parsing the body.
FAIL_FAST = Field(fail_fast=True)
# Chat messages in any form that tinyrm.chat.read_turn knows.
AnyMessages = Annotated[list[dict[str, Any]], FAIL_FAST]

# Trainers put any value into a label; only text and numbers serve as a reference.
Label = Any


class DialectBody(BaseModel):
    """A body in the form of another program. Unknown fields are ignored, and null is the default of an optional one."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        optional = {
            name
            for field_name, field in cls.model_fields.items()
            if not field.is_required()
            for name in field_names(field_name, field)
        }
        return {key: part for key, part in value.items() if part is not None or key not in optional}


def field_names(name: str, field: FieldInfo) -> list[str]:
    """Return the keys that a body may have for a field."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias or name)]


class Options(BaseModel):
    """Options that a trainer cannot put into its body, in the query of its URL, as in `/get_reward?domain=safety`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_no_unknown_keys(cls, value: Any) -> Any:
        return refuse_unknown_keys(value, cls.model_fields)

    domain: Name | None = Field(default=None, description="One of the model's domains.")
    instruction: NonEmpty | None = Field(default=None, description="Replaces the domain's instruction.")
    model: Name | None = Field(default=None, description="Name or name@revision of the model that scores.")


class CohortOptions(Options):
    """Options that define the cohort of a sample, if its model does not score responses alone."""

    group_size: int | None = Field(
        default=None, ge=2, le=MAX_RESPONSES, description="Number of samples of one prompt. Default: TINYRM_GROUP_SIZE."
    )
    group_id: Name | None = Field(
        default=None, description="Separates cohorts with the same prompt, such as those of two trainings."
    )


class LabelOptions(CohortOptions):
    """Options for samples with a label."""

    labels: Literal["reference", "ignore"] = Field(
        default="reference",
        description="reference: a response with a label is compared with it. ignore: all are compared within cohorts.",
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

    @property
    def max_items(self) -> int:
        return self.state.settings.max_batch_items

    def resolve(self, options: Options) -> Pipeline:
        """Return the pipeline for the options' model, or else for their domain: the same one to the request's end."""
        model = Question("", domain=options.domain, model=options.model)
        if model not in self.pipelines:
            self.pipelines[model] = self.state.registry.resolve(model)
        return self.pipelines[model]

    async def score_whole_group(self, options: Options, prompt: chat.Prompt, responses: Sequence[str]) -> GroupResult:
        """Compare the responses with each other, or score each alone, as the model can."""
        question = make_question(options, prompt)
        texts = validate(RESPONSES, [replace_surrogates(response) or BLANK for response in responses], "responses")
        result = await score_group(
            self.resolve(options),
            question,
            texts,
            fairness_key=self.fairness_key,
            deadline=self.deadline,
        )
        self.request.stats.items, self.request.stats.tokens = len(responses), result.tokens
        return result

    async def score_sample(
        self, options: LabelOptions, prompt: chat.Prompt, response: str, label: Label, *, wait_for_room: bool = False
    ) -> GroupScore:
        """Compare with the label if it is used as a reference, or else score as `score_unlabelled` does.

        wait_for_room: as in `Pipeline.compare`.
        """
        if options.labels == "ignore" or label is None or label == "":
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
        wait_for_room: as in `Pipeline.compare`; a cohort waits in any case.
        """
        question = make_question(options, prompt)
        pipeline = self.resolve(options)
        text = validate(RESPONSE, response or BLANK, "response")
        if not pipeline.scores_alone:
            return await self._join_cohort(pipeline, options, question, text, group)
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
        return score_alone(scored.scores[0])

    async def _join_cohort(
        self, pipeline: Pipeline, options: CohortOptions, question: Question, text: str, group: Hashable
    ) -> GroupScore:
        """Wait for the other samples of the cohort, and return this one's score.

        An invalid sample is refused before it joins the cohort, so that the others do not fail.
        """
        if self.state.cohorts is None:
            raise NotPointwise(
                f"{pipeline.manifest.identity} compares the samples of a prompt with each other, and in a service of "
                "several processes they do not meet; select a model that scores responses alone, with ?domain= or "
                "?model=, or serve this one in one process"
            )
        pipeline.manifest.spec.instruction(question.domain)
        prompt = question.prompt
        plain = prompt if isinstance(prompt, str) else [(message["role"], message["content"]) for message in prompt]
        digest = hashlib.sha256(json.dumps(plain).encode()).digest()
        waiting = self.state.cohorts.join(
            (self.request.client_id, options, group, digest),
            Sample(question, text, self.fairness_key),
            size=options.group_size or self.state.settings.group_size,
            size_bytes=len(text.encode()) + len(json.dumps(question.prompt)),
            admit=lambda: pipeline.backend.refuse_if_busy(self.deadline.left_s(), self.fairness_key),
            source=self.dialect,
        )
        try:
            async with asyncio.timeout(self.deadline.left_s()):
                score = await waiting
        except TimeoutError:
            self.state.registry.metrics.observe_shed(DeadlineExceeded.type)
            raise DeadlineExceeded("the cohort was not scored within the request's own time limit") from None
        self.request.stats.items += 1
        self.request.stats.tokens += score.tokens
        return score

    async def compare_with_reference(
        self, options: Options, prompt: chat.Prompt, response: str, reference: str, *, wait_for_room: bool = False
    ) -> GroupScore:
        """Return the probability that the response beats the reference, both as reward and as score.

        wait_for_room: as in `Pipeline.compare`.
        """
        question = make_question(options, prompt)
        response = validate(RESPONSE, response or BLANK, "response_a")
        reference = validate(RESPONSE, reference, "response_b")
        async with self.window:
            result = await self.resolve(options).compare(
                question,
                response,
                reference,
                fairness_key=self.fairness_key,
                deadline=self.deadline,
                wait_for_room=wait_for_room,
            )
        self.request.stats.items += 1
        self.request.stats.add(result.cost.tokens, result.cost.stages)
        return GroupScore(result.preference.p_a, result.preference.p_a, result.cost.tokens)


async def get_dialect_context(request: Request, timeout_ms: TimeoutMs = None) -> DialectContext:
    return DialectContext(
        get_state(request),
        get_context(request.scope),
        ", ".join(request.scope["route"].tags),
        get_fairness_key(request),
        get_deadline(timeout_ms),
    )


Context = Annotated[DialectContext, Depends(get_dialect_context)]
QueryOptions = Annotated[Options, Query()]
QueryCohortOptions = Annotated[CohortOptions, Query()]
QueryLabelOptions = Annotated[LabelOptions, Query()]


def make_question(options: Options, prompt: chat.Prompt) -> Question:
    if isinstance(prompt, str):
        prompt = replace_surrogates(prompt)
    else:
        prompt = [message | {"content": replace_surrogates(message["content"])} for message in prompt]
    prompt = validate(PROMPT, prompt, "prompt")
    return Question(prompt, domain=options.domain, instruction=options.instruction, model=options.model)


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
