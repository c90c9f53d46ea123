"""Best of n against a live service."""

import pytest

from tests.support.processes import Process, free_port
from tinyrm import Client
from tinyrm.integrations.best_of_n import Best, best_of_n

PROMPT = "What is 48 + 24?"
RESPONSES = ["I like clips.", "48 + 24 = 72, so it is 72.", "96", ""]


@pytest.mark.parametrize("strategy", ["round_robin", "knockout"])
def test_it_is_the_first_of_the_order(strategy: str, service: Process, url: str) -> None:
    body = {"prompt": PROMPT, "responses": [*RESPONSES[:3], " "], "strategy": strategy, "domain": "reasoning"}
    first = service.post("/v1/rank", body).json()["order"][0]
    with Client(url) as client:
        best = best_of_n(client, PROMPT, RESPONSES, strategy=strategy, domain="reasoning")  # type: ignore[arg-type]
    assert best == Best(first, RESPONSES[first])


def test_one_is_the_best_without_a_question_and_none_is_an_error() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", timeout_s=1) as client:
        assert best_of_n(client, PROMPT, ["72"]) == Best(0, "72")
        with pytest.raises(ValueError, match="no responses"):
            best_of_n(client, PROMPT, [])
