"""NeMo-Gym's comparing resources server: `/compare` for a whole group, `/verify` for one rollout of it.

Numbers are on its scale: 1 to 5, where 3 is neither good nor bad.
"""

import json
import math
import statistics
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.dependencies import ERRORS
from service.dialects.context import CohortOptionsOf, DeskOf, Options, OptionsOf, Standing
from tinyrm.api import MAX_RESPONSES, NonEmpty
from tinyrm.chat import Turn, join_parts, parse_prompt, strip_special

router = APIRouter(tags=["nemo-gym"])

Some = TypeVar("Some", bound=Options)


class Output(BaseModel):
    """One of what a model put out; only messages are judged, not what it thought."""

    type: str = "message"
    content: str | list[dict[str, Any]] | None = None


class ResponseObject(BaseModel):
    """As the Responses API gives it; what else it holds is kept for the reply of /verify."""

    model_config = ConfigDict(extra="allow")

    output: list[Output]

    @property
    def text(self) -> str:
        return strip_special("\n".join(join_parts(part.content) for part in self.output if part.type == "message"))


class GroupCompareRequest(BaseModel):
    """principle: what to judge by, instead of the domain's instruction."""

    conversation_history: list[Turn] = Field(min_length=1)
    response_objs: list[ResponseObject] = Field(max_length=MAX_RESPONSES)
    principle: NonEmpty | None = None


class ComparisonResult(BaseModel):
    """ranking: 1, the first is much better, to 6, the second is."""

    response_i: int
    response_j: int
    judge_idx: int = 0
    score_1: float
    score_2: float
    ranking: float


class GroupCompareReply(BaseModel):
    """rewards: one for each response, 1 to 5."""

    rewards: list[float]
    comparison_results: list[ComparisonResult]
    metrics: dict[str, float]


class Created(BaseModel):
    """What the policy was asked."""

    model_config = ConfigDict(extra="allow")

    input: str | list[Turn]


class VerifyRequest(BaseModel):
    """One rollout. Its cohort is that of its prompt, and of its task or prompt_id if it names one."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: Created
    response: ResponseObject
    principle: NonEmpty | None = None
    prompt_id: str | None = Field(default=None, max_length=200)
    task_index: int | None = Field(default=None, alias="_ng_task_index")


class VerifyReply(VerifyRequest):
    """The rollout as it was sent, and its reward, 1 to 5. partial: the cohort was not full."""

    reward: float
    partial: bool


@router.post("/compare", responses={**ERRORS})
async def compare(body: GroupCompareRequest, options: OptionsOf, desk: DeskOf) -> GroupCompareReply:
    """Rewards of a group's responses, from comparisons among them."""
    judged_by = _by(options, body.principle)
    texts = [response.text for response in body.response_objs]
    standing = await desk.compare_all(judged_by, parse_prompt(body.conversation_history), texts)
    results, rewards = _results(standing), [_graded(one.score) for one in standing.placed]
    metrics = {
        "mean_individual_score": statistics.fmean(rewards) if rewards else 0.0,
        "std_individual_score": statistics.pstdev(rewards) if rewards else 0.0,
        "tiebreak_usage_rate": 0.0,
    }
    return GroupCompareReply(rewards=rewards, comparison_results=results, metrics=metrics)


@router.post("/verify", responses={**ERRORS}, response_model=VerifyReply)
async def verify(body: VerifyRequest, request: Request, options: CohortOptionsOf, desk: DeskOf) -> Response:
    """One rollout's reward, when its cohort is there."""
    group = body.task_index, body.prompt_id
    prompt = parse_prompt(body.responses_create_params.input)
    placed = await desk.join(_by(options, body.principle), prompt, body.response.text, group)
    reward = {"reward": _graded(placed.score), "partial": placed.partial}
    # What was sent goes back to the letter, what is not read here too.
    return Response(json.dumps(await request.json() | reward), media_type="application/json")


def _by(options: Some, principle: str | None) -> Some:
    return options.model_copy(update={"instruction": principle}) if principle else options


def _graded(probability: float) -> float:
    return 1 + 4 * probability


def _results(standing: Standing) -> list[ComparisonResult]:
    """Of everybody who met, once each."""
    rows = enumerate(standing.probabilities.tolist())
    met = [(i, j, p) for i, row in rows for j, p in enumerate(row) if i < j and not math.isnan(p)]
    return [
        ComparisonResult(response_i=i, response_j=j, score_1=_graded(p), score_2=_graded(1 - p), ranking=6 - 5 * p)
        for i, j, p in met
    ]
