"""The service from Python: Client for plain code, AsyncClient for asyncio. Both say and do the same.

A call is repeated, with growing random pauses, while the service is busy or cannot be reached; `Retry-After` is heeded,
and all tries together stay within `timeout_s`. What cannot be mended by repeating raises at once, as a CallFailed
(tinyrm/errors.py).
"""

from tinyrm.api import CompareReply, ModelCard, RankReply, RewardsReply, Truncated, Usage
from tinyrm.api import ErrorBody as ItemError
from tinyrm.chat import Message
from tinyrm.client.asynchronous import AsyncClient
from tinyrm.client.calls import CompareItem, Prompt
from tinyrm.client.synchronous import Client

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
    "RewardsReply",
    "Truncated",
    "Usage",
]
