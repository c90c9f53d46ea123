"""Best of n: of several responses to one prompt, the one to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from tinyrm.chat import TextOrTurns, to_prompt, to_response
from tinyrm.client import Client
from tinyrm.client.calls import RankOptions


@dataclass(frozen=True, slots=True)
class Best:
    """index: its place among the responses."""

    index: int
    text: str


def best_of_n(client: Client, prompt: TextOrTurns, responses: Sequence[str], **options: Unpack[RankOptions]) -> Best:
    """The best of 1 to 128 responses. One alone is the best without being asked about.

    options: of `Client.rank`. By default every two are compared, n (n - 1) / 2 comparisons; strategy="knockout" needs
    n - 1 and is content with less certainty. Raises ValueError if there is no response, else what the client raises.
    """
    if not responses:
        raise ValueError("no responses to choose from")
    index = 0
    if len(responses) > 1:
        index = client.rank(to_prompt(prompt), [to_response(r) for r in responses], **options).order[0]
    return Best(index, responses[index])
