"""Test the bodies of the HTTP API: strict in requests, lenient in replies."""

from typing import get_type_hints

import pytest
from pydantic import ValidationError

from tinyrm.api import (
    CompareReply,
    CompareRequest,
    ComparisonRequest,
    ErrorBody,
    PromptRequest,
    RankRequest,
    RewardsRequest,
    ScoreRequest,
    TokensRequest,
)
from tinyrm.client.calls import CompareItem, CompareOptions, RankOptions, RewardsOptions, ScoreOptions

PAIR = {"prompt": "p", "response_a": "a", "response_b": "b"}
REPLY = {
    "preferred": "a",
    "probability_a": 0.75,
    "probability_b": 0.25,
    "confidence": "leaning",
    "margin": 1.0986,
    "model": "toy@1",
    "usage": {"sequences": 2, "tokens": 9, "gflops": 0.1},
    "truncated": {"prompt": 0, "response_a": 0, "response_b": 0},
}


def test_a_request_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="response_c"):
        CompareRequest.model_validate(PAIR | {"response_c": "c"})


def test_a_reply_with_fields_of_a_newer_service_is_read() -> None:
    newer = REPLY | {"trace": "x", "usage": {"sequences": 2, "tokens": 9, "gflops": 0.1, "joules": 3}}
    assert CompareReply.model_validate(newer) == CompareReply.model_validate(REPLY)


@pytest.mark.parametrize(
    ("type_", "transient"), [("overloaded", True), ("engine_restarting", True), ("invalid_text", False)]
)
def test_an_error_states_whether_a_later_try_may_succeed(type_: str, transient: bool) -> None:
    assert ErrorBody(type=type_, message="").is_transient is transient


@pytest.mark.parametrize(
    ("arguments", "request_", "own"),
    [
        (CompareOptions, ComparisonRequest, {"prompt"}),
        (CompareItem, CompareRequest, set()),
        (RankOptions, RankRequest, {"prompt", "responses"}),
        (RewardsOptions, RewardsRequest, {"prompt", "responses"}),
        (ScoreOptions, ScoreRequest, {"prompt", "response", "responses"}),
        (ScoreOptions, TokensRequest, {"prompt", "responses"}),
    ],
)
def test_the_clients_arguments_are_the_fields_of_a_request(
    arguments: type, request_: type[PromptRequest], own: set[str]
) -> None:
    """own: fields that are separate arguments of the client's method."""
    assert get_type_hints(arguments).keys() | own == request_.model_fields.keys()
