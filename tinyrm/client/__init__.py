"""Call the service from Python: Client, and AsyncClient with the same methods for asyncio.

Both repeat a call, with growing random pauses, while the service is busy or unreachable. They honour `Retry-After`, and
all tries together stay within `timeout_s`. They raise other errors at once, as a kind of CallFailed (tinyrm/errors.py).
"""

from tinyrm.api import CompareReply, ModelCard, RankReply, RewardsReply, ScoreReply, TokensReply, Truncated, Usage
from tinyrm.api import ErrorBody as ItemError
from tinyrm.chat import Message
from tinyrm.client.async_client import AsyncClient
from tinyrm.client.calls import CompareItem, Prompt, Response
from tinyrm.client.client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "CompareItem",
    "CompareReply",
    "ItemError",
    "Message",
    "ModelCard",
    "Prompt",
    "RankReply",
    "Response",
    "RewardsReply",
    "ScoreReply",
    "TokensReply",
    "Truncated",
    "Usage",
]
