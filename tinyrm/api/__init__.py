"""The request and reply bodies of the HTTP API, for the service and its clients.

Requests refuse unknown fields, so that a misspelt option is an error. Replies ignore them, so that a client can call
a newer service. The bodies of other programs' APIs are in service/dialects.
"""

from tinyrm.api.base import (
    MAX_ITEMS,
    MAX_RESPONSES,
    MAX_TIMEOUT_MS,
    Name,
    NonEmpty,
    Reply,
    Request,
    refuse_unknown_keys,
)
from tinyrm.api.compare import (
    BatchReply,
    BatchRequest,
    CompareReply,
    CompareRequest,
    ComparisonRequest,
    InvalidItem,
    Orders,
    PromptRequest,
    Truncated,
    Usage,
)
from tinyrm.api.errors import TRANSIENT, ErrorBody, ErrorReply
from tinyrm.api.group import (
    MAX_MATRIX_RESPONSES,
    GroupRequest,
    RankReply,
    RankRequest,
    RewardsReply,
    RewardsRequest,
    Scale,
)
from tinyrm.api.models import Accuracy, ModelCard, ModelEntry, ModelList, ScoreScale, Status
from tinyrm.api.score import ResponseScore, ResponseTruncated, ScoreReply, ScoreRequest
from tinyrm.api.texts import MAX_MESSAGES, Member, Prompt, Response
from tinyrm.api.tokens import DroppedTokens, TokensReply, TokensRequest

__all__ = [
    "MAX_ITEMS",
    "MAX_MATRIX_RESPONSES",
    "MAX_MESSAGES",
    "MAX_RESPONSES",
    "MAX_TIMEOUT_MS",
    "TRANSIENT",
    "Accuracy",
    "BatchReply",
    "BatchRequest",
    "CompareReply",
    "CompareRequest",
    "ComparisonRequest",
    "DroppedTokens",
    "ErrorBody",
    "ErrorReply",
    "GroupRequest",
    "InvalidItem",
    "Member",
    "ModelCard",
    "ModelEntry",
    "ModelList",
    "Name",
    "NonEmpty",
    "Orders",
    "Prompt",
    "PromptRequest",
    "RankReply",
    "RankRequest",
    "Reply",
    "Request",
    "Response",
    "ResponseScore",
    "ResponseTruncated",
    "RewardsReply",
    "RewardsRequest",
    "Scale",
    "ScoreReply",
    "ScoreRequest",
    "ScoreScale",
    "Status",
    "TokensReply",
    "TokensRequest",
    "Truncated",
    "Usage",
    "refuse_unknown_keys",
]
