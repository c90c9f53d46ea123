"""text-embeddings-inference's `/predict` and `/info`, beside its `/rerank` in service/dialects/rerank.py."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag

from service.api.dependencies import ERRORS, KEY_ERRORS
from service.dialects.bodies import DialectBody, PolicyText, QueryOptions
from service.dialects.context import Context
from service.dialects.errors import ErrorsOfTei
from service.scoring.ranking import GroupScore
from tinyrm import __version__
from tinyrm.api import MAX_ITEMS, MAX_RESPONSES
from tinyrm.chat import Prompt
from tinyrm.errors import BRANCH
from tinyrm.markup import parse_prompt, split_dialogue, strip_special

router = APIRouter(tags=["rerank"], route_class=ErrorsOfTei)

LABEL = "LABEL_0"
ONE, SEQUENCE, BATCH = f"{BRANCH}text", f"{BRANCH}sequence", f"{BRANCH}batch"

# A prompt and a response, or a whole dialogue in a chat template.
Sequence = Annotated[list[PolicyText], Field(min_length=1, max_length=2)]


def input_branch(value: Any) -> str:
    if not isinstance(value, list):
        return ONE
    return BATCH if value and isinstance(value[0], list) else SEQUENCE


Inputs = Annotated[
    Annotated[PolicyText, Tag(ONE)]
    | Annotated[Sequence, Tag(SEQUENCE)]
    | Annotated[list[Sequence], Field(max_length=MAX_ITEMS, fail_fast=True), Tag(BATCH)],
    Discriminator(input_branch),
]


class PredictRequest(DialectBody):
    """Sequences to score. Texts are always truncated to fit.

    inputs: a dialogue in a chat template, a pair of a prompt and a response, or a list of lists with either.
    raw_scores: rewards, which are log-odds or the score of /v1/score, instead of probabilities.
    """

    inputs: Inputs
    raw_scores: bool = False


class Prediction(BaseModel):
    score: float
    label: str = LABEL


class Info(BaseModel):
    """The model, and the limits of a request."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: dict[str, Any]
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool = True
    version: str


@router.get("/info", responses={**KEY_ERRORS})
async def info(options: QueryOptions, context: Context) -> Info:
    """The default model, as a client of text-embeddings-inference reads it."""
    pipeline = context.resolve(options)
    manifest, engine = pipeline.manifest, pipeline.backend.profile.info
    return Info(
        model_id=manifest.name,
        model_sha=manifest.revision,
        model_dtype=engine.precision,
        model_type={"reranker": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
        max_input_length=manifest.spec.max_tokens,
        max_batch_tokens=engine.max_batch_tokens,
        max_client_batch_size=MAX_RESPONSES,
        version=__version__,
    )


@router.post("/predict", responses={**ERRORS})
async def predict(
    body: PredictRequest, options: QueryOptions, context: Context
) -> list[Prediction] | list[list[Prediction]]:
    """How good responses are, each alone or among all responses to its prompt in the same call."""
    is_batch = input_branch(body.inputs) == BATCH
    sequences: list[Any] = body.inputs if is_batch else [body.inputs]  # type: ignore[assignment]
    context.refuse_too_many(len(sequences))
    scores = await context.score_groups(options, [read_sequence(sequence) for sequence in sequences])
    predictions = [[Prediction(score=choose(score, raw=body.raw_scores))] for score in scores]
    return predictions if is_batch else predictions[0]


def read_sequence(sequence: str | list[str]) -> tuple[Prompt, str]:
    """Return the prompt and the response. Raises InvalidInput."""
    if isinstance(sequence, str):
        return split_dialogue(sequence)
    if len(sequence) == 1:
        return split_dialogue(sequence[0])
    prompt, response = sequence
    return parse_prompt(prompt), strip_special(response)


def choose(score: GroupScore, *, raw: bool) -> float:
    return score.reward if raw else score.score
