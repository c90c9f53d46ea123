"""OpenRLHF's remote reward model: `--reward.remote_url http://HOST:8000/get_reward`."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from service.api.dependencies import ERRORS
from service.dialects.context import CohortOptions, Desk, DeskOf
from service.scoring.groups import Placed
from tinyrm.api import MAX_ITEMS
from tinyrm.chat import Prompt, find_response, parse_prompt
from tinyrm.errors import InvalidInput, first_of_group

router = APIRouter(tags=["openrlhf"])

# Trainers keep in it whatever they like; text and numbers can be compared with.
Label = Any


class LabelOptions(CohortOptions):
    """What a label is for."""

    labels: Literal["reference", "ignore"] = Field(
        default="reference",
        description="reference: a response that has a label is compared with it. ignore: with its cohort all the same.",
    )


LabelOptionsOf = Annotated[LabelOptions, Query()]


class RewardRequest(BaseModel):
    """Lists of one length, of which the trainer fills one place a request, or none."""

    query: list[str] = Field(max_length=MAX_ITEMS, description="Prompt and response, with special tokens.")
    prompts: list[str] = Field(max_length=MAX_ITEMS)
    labels: list[Label] | None = Field(default=None, max_length=MAX_ITEMS, description="Reference answers, or nothing.")


class RewardReply(BaseModel):
    """rewards: log-odds, mean 0 in a cohort; or as scores, where a label was the opponent. scores: in 0..1.

    extra_logs: `p_win` as scores, `partial` 1 where the cohort was not full.
    """

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward", responses={**ERRORS})
async def get_reward(body: RewardRequest, options: LabelOptionsOf, desk: DeskOf) -> RewardReply:
    """Rewards of whole texts: against their labels, or within cohorts."""
    labels = body.labels or [None] * len(body.query)
    if not len(body.query) == len(body.prompts) == len(labels):
        raise InvalidInput("query, prompts, labels: three lists of different lengths")
    if len(body.query) > desk.max_items:
        raise InvalidInput(f"query: {len(body.query)} texts in one call, at most {desk.max_items} are taken")
    is_list = len(body.query) > 1
    if is_list:
        desk.refuse_if_busy(options)
    placed = await together(
        [
            place(desk, options, parse_prompt(prompt), find_response(query, prompt), label, patient=is_list)
            for query, prompt, label in zip(body.query, body.prompts, labels, strict=True)
        ]
    )
    scores = [one.score for one in placed]
    logs = {"p_win": scores, "partial": [float(one.partial) for one in placed]}
    return RewardReply(rewards=[one.reward for one in placed], scores=scores, extra_logs=logs)


async def place(
    desk: Desk, options: LabelOptions, prompt: Prompt, response: str, label: Label, *, patient: bool = False
) -> Placed:
    """Against its label, if it has one that counts, else within its cohort. patient: as in `Desk.against`."""
    if options.labels == "ignore" or label is None or label == "":
        return await desk.join(options, prompt, response)
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise InvalidInput("label: neither text nor a number, so nothing to compare with; see ?labels=ignore")
    return await desk.against(options, prompt, response, str(label), patient=patient)


async def together(places: list[Coroutine[Any, Any, Placed]]) -> list[Placed]:
    """All of them, or the first error, which ends the others."""
    with first_of_group():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(place) for place in places]
    return [task.result() for task in tasks]
