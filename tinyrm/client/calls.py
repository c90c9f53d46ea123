"""Build the calls of the service's API, and interpret its replies and errors."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Required, TypedDict, TypeVar

import httpx
from pydantic import ValidationError

from tinyrm.api import BatchReply, CompareReply, ErrorBody, ErrorReply, Reply, Scale
from tinyrm.chat import TextOrTurns
from tinyrm.comparison import EmptyMode, GroupStrategy, SwapMode
from tinyrm.errors import CallFailed, CallRefused, CallTimedOut, InvalidInput, ServiceBusy, ServiceFailed
from tinyrm.reasoning import Reasoning

AnyReply = TypeVar("AnyReply", bound=Reply)
# A text, or chat messages as in OpenAI's API; the service reads their roles, parts and calls of tools.
Prompt = TextOrTurns
Response = TextOrTurns

# Statuses of a service, or of a proxy before it, that accepts no work now.
BUSY = (429, 502, 503, 504)


class ScoreOptions(TypedDict, total=False):
    """Options of a score; the service chooses those that are missing or None.

    domain: one of the model's domains; each has its own instruction.
    instruction: replaces the domain's instruction.
    model: name or name@revision; the service refuses one that it does not serve.
    reasoning: `drop` for texts of a policy that writes its reasoning before its response, between tags such as <think>.
    """

    domain: str | None
    instruction: str | None
    model: str | None
    reasoning: Reasoning | None


class CompareOptions(ScoreOptions, total=False):
    """Options of a comparison.

    swap: `on` scores both orders, so that position cannot matter; `off` one order at half the cost; `auto` the second
        order only if the first is not decisive. Only a model that reads pairs has orders.
    """

    swap: SwapMode | None


class CompareItem(CompareOptions):
    """One comparison of a list."""

    prompt: Required[Prompt]
    response_a: Required[Response]
    response_b: Required[Response]


# What lists of comparisons take: the fields of CompareItem, in a dict of any type.
AnyItem = CompareItem | Mapping[str, object]


class GroupOptions(CompareOptions, total=False):
    """Options of a ranking; domain, instruction, swap and model apply to every comparison.

    strategy: which pairs are compared; by default all, or `swiss` if there are too many for one call. `cascade` orders
        all by the scores of a model that scores responses alone, and then compares the best.
    top: how many of the best `strategy="cascade"` compares; 4 by default.
    reference: the response that `strategy="reference"` compares with.
    empty: `last` puts responses without a text below all others, `judge` judges them as a blank.
    """

    strategy: GroupStrategy | None
    top: int | None
    reference: Response | None
    empty: EmptyMode | None


class RewardsOptions(GroupOptions, total=False):
    """scale: `zero_mean` for strengths with mean 0, `unit` for the mean probability to beat another response."""

    scale: Scale | None


class RankOptions(GroupOptions, total=False):
    """win_matrix: whether the reply contains the probabilities of all pairs."""

    win_matrix: bool | None


def new_request_id() -> str:
    """Return an id that identifies a call in the client's and the service's logs."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    request_id: the same in all tries, so that the service's log shows them together.
    """

    method: Literal["GET", "POST"]
    path: str
    body: bytes | None = None
    request_id: str = field(default_factory=new_request_id)


def post(path: str, body: Mapping[str, Any]) -> Call:
    """Return a call without the fields that are None. Raises InvalidInput if it cannot be written as JSON."""
    given = {name: value for name, value in body.items() if value is not None}
    try:
        # ASCII: a lone surrogate reaches the service, which returns an error that names the field.
        return Call("POST", path, json.dumps(given, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the request cannot be written as JSON: {error}") from error


def parse(kind: type[AnyReply], body: bytes) -> AnyReply:
    """Return the body as a reply of this kind. Raises ServiceFailed if another program sent it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ServiceFailed(
            f"unexpected response: not a TinyRM {kind.__name__} ({error.error_count()} errors); check base_url",
            kind="unexpected_reply",
            status=200,
        ) from error


def check_request_id(response: httpx.Response, call: Call) -> None:
    """Raise ServiceFailed if the response belongs to another request.

    The service returns the X-Call-Id of each request, which is new in each try. A response without one, of an older
    service or of a proxy, must have the call's X-Request-Id, or none.

    Called before the body is read: the end of a response that is not read closes its connection, on which every later
    response would be another request's, too.
    """
    for name in ("X-Call-Id", "X-Request-Id"):
        if given := response.headers.get_list(name, split_commas=True):
            break
    sent = response.request.headers[name]
    if given and sent not in given:
        raise ServiceFailed(
            f"the response belongs to another request: its {name} is {given[0][:80]!r}, not {sent!r}; a proxy "
            f"on the way must not replace {name}",
            kind="unexpected_reply",
            status=response.status_code,
            request_id=call.request_id,
        )


def check(response: httpx.Response, body: bytes, call: Call, where: str) -> bytes:
    """Return the body of a successful response. Otherwise raises the CallFailed for its status and error.

    where: the address, for the message about a response that is not the service's.
    """
    status = response.status_code
    if status == httpx.codes.OK:
        return body
    try:
        error = ErrorReply.model_validate_json(body).error
    except ValidationError:
        message = f"{where}: not a response of TinyRM, with status {status}"
        if response.has_redirect_location:
            message += (
                f", a redirect to {response.headers['Location'][:200]}; call that address if the service is there"
            )
        error = ErrorBody(type="http_error", message=message)
    if error.type == "deadline_exceeded":
        kind: type[CallFailed] = CallTimedOut
    elif status in BUSY:
        kind = ServiceBusy
    else:
        kind = CallRefused if httpx.codes.is_client_error(status) else ServiceFailed
    failure = kind(
        f"{error.message} ({status} {error.type})",
        kind=error.type,
        status=status,
        request_id=call.request_id,
    )
    if isinstance(failure, ServiceBusy):
        failure.retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
    raise failure


def _retry_after_s(header: str | None) -> float | None:
    """Return Retry-After in seconds; it may be a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    with suppress(ValueError):
        at = parsedate_to_datetime(header)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


def texts(responses: Sequence[Response]) -> list[Response]:
    """Return the responses as a list. Raises InvalidInput for one text or one message, whose parts it would be."""
    if isinstance(responses, str | bytes | Mapping) or not isinstance(responses, Iterable):
        raise InvalidInput(f"responses: must be a list of texts, not {type(responses).__name__}")
    return list(responses)


def _fields(item: AnyItem, number: int) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise InvalidInput(f"items.{number}: must be a dict, as CompareItem, not {type(item).__name__}")
    return dict(item)


class Batch:
    """A list of comparisons over several tries: only items with a transient error are sent again."""

    def __init__(self, items: Sequence[AnyItem]) -> None:
        self._request_id = new_request_id()
        self._items = [_fields(item, number) for number, item in enumerate(items)]
        self._open = list(range(len(items)))
        self._results: list[CompareReply | ErrorBody | None] = [None] * len(items)

    def call(self) -> Call:
        """Return the call for the items that are open."""
        call = post("/v1/compare/batch", {"items": [self._items[index] for index in self._open]})
        return replace(call, request_id=self._request_id)

    def take(self, body: bytes) -> None:
        """Keep the results of a call. Raises ServiceBusy if some items must be sent again."""
        results = parse(BatchReply, body).results
        if len(results) != len(self._open):
            raise ServiceFailed(
                f"{len(results)} results for {len(self._open)} items", kind="unexpected_reply", status=200
            )
        for index, result in zip(self._open, results, strict=True):
            self._results[index] = result.error if isinstance(result, ErrorReply) else result
        self._open = [
            index
            for index in self._open
            if isinstance(latest := self._results[index], ErrorBody) and latest.is_transient
        ]
        if self._open:
            raise ServiceBusy(f"{len(self._open)} items were not scored because the service is busy", kind="overloaded")

    def results(self) -> list[CompareReply | ErrorBody]:
        """Return the result, or the error of the last try, of each item; nothing before the first reply."""
        results = [result for result in self._results if result is not None]
        return results if len(results) == len(self._results) else []
