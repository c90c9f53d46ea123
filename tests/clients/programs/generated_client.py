"""Call a service with a client that was generated from an OpenAPI document; print the replies as JSON."""

import json
import sys
from typing import Any

from tinyrm_api import Client
from tinyrm_api.api.about import get_model, list_models
from tinyrm_api.api.health import health
from tinyrm_api.api.score import compare, compare_batch, count_tokens, rank, rewards, score
from tinyrm_api.models import (
    BatchRequest,
    ChatMessage,
    ChatMessageRole,
    CompareRequest,
    RankRequest,
    RewardsRequest,
    ScoreRequest,
    TokensRequest,
)

url, domain = sys.argv[1:]
TEXTS = ["It is 4.", "I do not know."]
client = Client(base_url=url)
message = ChatMessage(role=ChatMessageRole.USER, content="What is 2 + 2?")
(name,) = [card.name for card in list_models.sync(client=client).models]


def pair(**options: Any) -> CompareRequest:
    return CompareRequest(prompt=[message], response_a=TEXTS[0], response_b=TEXTS[1], **options)


replies = {
    "compare": compare.sync(client=client, body=pair(domain=domain, model=name), x_request_timeout_ms=60_000),
    "error": compare.sync(client=client, body=pair(domain="cooking")),
    "batch": compare_batch.sync(client=client, body=BatchRequest(items=[pair(), pair(domain="cooking")])),
    "rank": rank.sync(client=client, body=RankRequest(prompt="What is 2 + 2?", responses=TEXTS, win_matrix=True)),
    "rewards": rewards.sync(client=client, body=RewardsRequest(prompt="What is 2 + 2?", responses=TEXTS)),
    "score": score.sync(client=client, body=ScoreRequest(prompt="What is 2 + 2?", responses=TEXTS)),
    "tokens": count_tokens.sync(client=client, body=TokensRequest(prompt="", responses=[*TEXTS, ""])),
    "models": list_models.sync(client=client),
    "model": get_model.sync(name, client=client),
    "unknown": get_model.sync("gpt", client=client),
    "health": health.sync(client=client),
}
print(json.dumps({name: reply.to_dict() for name, reply in replies.items()}))
