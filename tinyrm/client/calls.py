"""What the clients ask: a method, a path and a body."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Required, TypedDict, TypeVar

from pydantic import ValidationError

from tinyrm.api import BatchReply, CompareReply, ErrorBody, ErrorReply, Reply, Scale
from tinyrm.chat import Message
from tinyrm.comparison import Strategy, SwapMode
from tinyrm.errors import InvalidInput, ServiceBusy, ServiceFailed

AnyReply = TypeVar("AnyReply", bound=Reply)
Prompt = str | Sequence[Message]


class CompareOptions(TypedDict, total=False):
    """domain: one of the model's; each has its instruction. instruction: takes that one's place.

    swap: on reads both orders, so that position cannot matter, off reads one at half the cost, auto the second one
    only where the first is unsure.
    model: name or name@revision. What is not given, or None, is the service's to choose.
    """

    domain: str | None
    instruction: str | None
    swap: SwapMode | None
    model: str | None


class CompareItem(CompareOptions):
    """One comparison of a list."""

    prompt: Required[Prompt]
    response_a: Required[str]
    response_b: Required[str]


class RewardsOptions(TypedDict, total=False):
    """domain, instruction, model, swap: as CompareOptions, for every comparison.

    strategy: which pairs are compared; None: all. reference: the response that the strategy of that name compares with.
    scale: zero_mean, strengths with mean 0, or unit, the mean probability to beat another response.
    """

    domain: str | None
    instruction: str | None
    swap: SwapMode | None
    model: str | None
    strategy: Strategy | None
    reference: str | None
    scale: Scale | None


class RankOptions(TypedDict, total=False):
    """As RewardsOptions, without scale. win_matrix: whether the reply has the probabilities of all pairs."""

    domain: str | None
    instruction: str | None
    swap: SwapMode | None
    model: str | None
    strategy: Strategy | None
    reference: str | None
    win_matrix: bool | None


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Call:
    """request_id: the same in all tries, so that the service's log shows them together."""

    method: Literal["GET", "POST"]
    path: str
    body: bytes | None = None
    request_id: str = field(default_factory=new_id)


def models() -> Call:
    return Call("GET", "/v1/models")


def ready() -> Call:
    return Call("GET", "/readyz")


def post(path: str, body: Mapping[str, Any]) -> Call:
    """Fields that are None are left to the service. Raises InvalidInput if the body cannot be written as JSON."""
    said = {name: value for name, value in body.items() if value is not None}
    try:
        # ASCII: a lone surrogate survives the way, and the service names the field it stands in.
        return Call("POST", path, json.dumps(said, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the request cannot be written as JSON: {error}") from error


def parse(kind: type[AnyReply], body: bytes) -> AnyReply:
    """Return the body as a reply of this kind. Raises ServiceFailed if another program answers at this address."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ServiceFailed(
            f"unexpected response: not a TinyRM {kind.__name__} ({error.error_count()} errors); check base_url",
            kind="unexpected_reply",
            status=200,
        ) from error


def compare(prompt: Prompt, response_a: str, response_b: str, options: CompareOptions) -> Call:
    return post("/v1/compare", {"prompt": prompt, "response_a": response_a, "response_b": response_b, **options})


def rank(prompt: Prompt, responses: Sequence[str], options: RankOptions) -> Call:
    return post("/v1/rank", {"prompt": prompt, "responses": list(responses), **options})


def rewards(prompt: Prompt, responses: Sequence[str], options: RewardsOptions) -> Call:
    return post("/v1/rewards", {"prompt": prompt, "responses": list(responses), **options})


class Batch:
    """A list under way: what is answered, and what has to be asked, or asked again.

    results: for each item its answer, or the error of the last try; None before the first.
    """

    def __init__(self, items: Sequence[CompareItem]) -> None:
        self._request_id = new_id()
        self._items = [dict(item) for item in items]
        self._open = list(range(len(items)))
        self.results: list[CompareReply | ErrorBody | None] = [None] * len(items)

    def call(self) -> Call:
        call = post("/v1/compare/batch", {"items": [self._items[index] for index in self._open]})
        return replace(call, request_id=self._request_id)

    def take(self, body: bytes) -> None:
        """Keep a reply to `call`. Raises ServiceBusy if some items are to be asked again."""
        results = parse(BatchReply, body).results
        if len(results) != len(self._open):
            raise ServiceFailed(
                f"{len(results)} results for {len(self._open)} items", kind="unexpected_reply", status=200
            )
        for index, result in zip(self._open, results, strict=True):
            self.results[index] = result.error if isinstance(result, ErrorReply) else result
        self._open = [index for index in self._open if self._is_open(self.results[index])]
        if self._open:
            raise ServiceBusy(f"{len(self._open)} items wait for a service that is less busy", kind="overloaded")

    def answered(self) -> list[CompareReply | ErrorBody]:
        """All results; empty as long as one has none."""
        results = [result for result in self.results if result is not None]
        return results if len(results) == len(self.results) else []

    @staticmethod
    def _is_open(result: CompareReply | ErrorBody | None) -> bool:
        return isinstance(result, ErrorBody) and result.is_transient
