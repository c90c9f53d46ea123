"""What the service answers, as objects. Fields that a newer service adds are ignored."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tinyrm.comparison import Verdict
from tinyrm.errors import ServiceFailed


class Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


AnyReply = TypeVar("AnyReply", bound=Reply)

# Errors of an item that say nothing about the item: the same one may be answered a moment later.
TRANSIENT = frozenset(("overloaded", "unavailable", "engine_restarting", "shutting_down"))


class Usage(Reply):
    """What the answer cost."""

    tokens: int
    gflops: float


class Truncated(Reply):
    """Tokens dropped to fit the model's length: the prompt loses its beginning, a response its end."""

    prompt: int
    response_a: int
    response_b: int


class CompareReply(Reply):
    """margin: log-odds that A is better. The probabilities follow from it and add up to 1. model: name@revision."""

    preferred: Verdict
    probability_a: float
    probability_b: float
    margin: float
    model: str
    usage: Usage
    truncated: Truncated


class ItemError(Reply):
    """Stands in a list where an item could not be scored. type: the service's name for it (README, Calls)."""

    type: str
    message: str

    @property
    def is_transient(self) -> bool:
        """The same item may be answered a moment later."""
        return self.type in TRANSIENT


class ErrorReply(Reply):
    error: ItemError


class BatchReply(Reply):
    results: list[CompareReply | ErrorReply]


class RankReply(Reply):
    """order: indices of the responses, best first. strengths: log-odds scale, mean 0, one for each response as given.

    standard_errors: of the strengths. cycle_rate: share of triples without a best one; None if none was complete.
    win_matrix: [i][j] is P(i beats j), None if they were not compared; None as a whole unless asked for.
    """

    order: list[int]
    strengths: list[float]
    standard_errors: list[float]
    cycle_rate: float | None = None
    win_matrix: list[list[float | None]] | None = None
    comparisons: int
    model: str
    usage: Usage
    truncated_tokens: int


class RewardsReply(Reply):
    """rewards: one for each response, as given, on the scale that was asked for."""

    rewards: list[float]
    model: str
    usage: Usage


class ModelCard(Reply):
    """A served model and the engine it runs on. domains: each with its instruction. max_tokens: of one reading."""

    name: str
    revision: str
    default: bool
    domains: dict[str, str]
    default_domain: str
    template: str
    max_tokens: int
    parameters: int
    temperature: float
    engine: str
    precision: str


class ModelList(Reply):
    models: list[ModelCard]


def parse(kind: type[AnyReply], body: bytes) -> AnyReply:
    """Raises ServiceFailed if that is no such reply: something else answers at this address."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ServiceFailed(
            f"what answered is no {kind.__name__} of TinyRM ({error.error_count()} errors); is base_url right?",
            kind="unexpected_reply",
            status=200,
        ) from error
