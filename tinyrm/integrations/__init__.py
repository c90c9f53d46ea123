"""Adapters from trainers, benchmark harnesses and data tools to a TinyRM service.

One module for each tool. No module imports its tool, so each can be imported wherever the client can.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from tinyrm.chat import BLANK, TextOrTurns, to_prompt, to_response
from tinyrm.client import AsyncClient, CompareItem
from tinyrm.client.calls import ScoreOptions
from tinyrm.comparison import EMPTY_LOG_ODDS
from tinyrm.preferences import Texts

# Of a call in a training: a service that restarts or is busy is called again until this time is up. Shorter, and a
# restart would end the training or leave samples without a reward.
TIMEOUT_S = 600.0
MAX_RETRIES = 1000

# The highest reward of an empty response that is scored alone, as in dialects: so many standard deviations below the
# mean of held-out responses, or log-odds without a scale.
MAX_EMPTY = -EMPTY_LOG_ODDS
# Groups that are sent at the same time; more of them wait for a connection.
MAX_CONNECTIONS = 256

logger = logging.getLogger(__name__)


@lru_cache(maxsize=8)
def training_client(base_url: str, api_key: str | None) -> AsyncClient:
    """Return this process's client of a service, which waits for one that restarts or is busy.

    Its connections are those of the running event loop. Raises InvalidInput for an address that cannot be used.
    """
    return AsyncClient(base_url, api_key, timeout_s=TIMEOUT_S, max_retries=MAX_RETRIES, max_connections=MAX_CONNECTIONS)


async def group_rewards(
    client: AsyncClient, prompt: TextOrTurns, responses: Sequence[TextOrTurns], options: Mapping[str, Any]
) -> list[float]:
    """Return the reward of each response to a prompt, compared with the others.

    One response alone has nothing to be compared with: it gets the middle of the scale and a warning, and no call is
    made, except with a reference and scale="unit".

    options: of `Client.rewards`. Raises CallFailed, InvalidRequest.
    """
    unit = options.get("scale") == "unit"
    if len(responses) == 1 and not (unit and options.get("strategy") == "reference"):
        logger.warning("a response has no reward: there is no other one to its prompt")
        return [0.5 if unit else 0.0]
    reply = await client.rewards(to_prompt(prompt), [to_response(response) for response in responses], **options)
    return reply.rewards


def compare_item(prompt: TextOrTurns, a: TextOrTurns, b: TextOrTurns, options: Mapping[str, Any]) -> CompareItem:
    """Return an item of `Client.compare_many`. Raises InvalidRequest for messages that cannot be read.

    options: of `Client.compare`; not checked here, since the service reports invalid options.
    """
    texts = {"prompt": to_prompt(prompt), "response_a": to_response(a), "response_b": to_response(b)}
    return cast("CompareItem", texts | dict(options))


def preference_item(texts: Texts, options: Mapping[str, Any]) -> CompareItem:
    """Return an item whose response A is the chosen one; an empty text becomes a blank."""
    return compare_item(texts.prompt or BLANK, texts.chosen, texts.rejected, options)


async def score_alone(client: AsyncClient, prompt: TextOrTurns, response: str, options: Mapping[str, Any]) -> float:
    """Return the reward of a sample by a model that scores responses alone: on its scale, or raw if it has none.

    options: of `Client.score`; and `empty`, as in `Client.rewards`.

    Raises CallFailed, with the type `not_pointwise` for a model that compares.
    """
    own = {name: value for name, value in options.items() if name != "empty"}
    (scored,) = (await client.score(prompt, [response or BLANK], **cast("ScoreOptions", own))).results
    reward = scored.raw if scored.score is None else scored.score
    return min(reward, MAX_EMPTY) if scored.empty and options.get("empty") != "judge" else reward
