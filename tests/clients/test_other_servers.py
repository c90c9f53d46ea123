"""Run the clients of other servers against one service with keys, and LLaMA-Factory's own reward function."""

import json
from pathlib import Path
from typing import Any

import pytest

import tinyrm
from tests.e2e.test_models import changed_copy
from tests.service.test_auth import entry, write
from tests.support.clients import client_packages, run_client
from tests.support.processes import started
from tinyrm.bundle import read_manifest
from tinyrm.ranking import mean_wins

# The clients, and what they import that the tests' environment lacks.
PACKAGES = (
    *("openai==3.57.0", "httpx2==2.12.0", "jiter==0.16.0", "sniffio==1.3.1", "distro==1.9.0"),
    *("cohere==7.3.1", "fastavro==1.12.1", "llamafactory==0.9.5"),
    *("litellm==1.110.2", "fastuuid==0.14.0", "tiktoken==0.12.0", "python-dotenv==1.2.1", "importlib-metadata==8.7.0"),
    *("zipp==3.23.0", "h2==4.3.0", "hpack==4.1.0", "hyperframe==6.1.0"),
)
PROMPT = "What is 2 + 2?"
RESPONSES = ["2 + 2 = 4.", "I cannot help with that, but here is what I can do.", "4", "def add(a, b): return a + b"]
KEY = "tinyrm_the-key"


@pytest.fixture(scope="module")
def done(
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    bundle_folder: Path,
    response_bundle_folder: Path,
) -> Any:
    """Return what each client received."""
    packages = client_packages(pytestconfig, *PACKAGES)
    folder = tmp_path_factory.mktemp("other_servers")
    changed_copy(response_bundle_folder, folder / "alone", name="alone")
    texts = folder / "texts.json"
    texts.write_text(json.dumps({"prompt": PROMPT, "responses": RESPONSES}))
    settings = {
        "dialects": "rerank,vllm,llamafactory",
        "more_models": folder / "alone",
        "unknown_models": "default",
        "api_keys_file": write(folder / "keys.json", entry("client", KEY)),
    }
    with started(bundle_folder, **settings) as service:
        url = f"http://127.0.0.1:{service.port}"
        # Without it, litellm tries three times to fetch a list of prices.
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        return run_client("other_servers.py", packages, url, KEY, "toy", texts, **offline)


def best_first(values: list[float]) -> list[tuple[int, Any]]:
    order = sorted(range(len(values)), key=lambda at: -values[at])
    return [(at, pytest.approx(values[at], abs=1e-4)) for at in order]


@pytest.mark.slow
def test_openai_lists_the_models_and_reads_rewards_as_embeddings(done: Any, bundle_folder: Path) -> None:
    got = done["openai"]
    assert (got["models"], got["model"]) == (["toy", "alone"], "toy")
    ranking = tinyrm.load(bundle_folder, "onnxruntime-cpu", threads=1).rank(PROMPT, RESPONSES)
    assert [reward for (reward,) in got["rewards"]] == pytest.approx(ranking.strengths.values.tolist(), abs=1e-4)
    assert (got["refusal"]["type"], got["refusal"]["code"]) == ("invalid_input", "422")
    assert "chat template" in got["refusal"]["message"]


@pytest.mark.slow
def test_rerankers_get_whole_groups(done: Any, bundle_folder: Path) -> None:
    ranking = tinyrm.load(bundle_folder, "onnxruntime-cpu", threads=1).rank(PROMPT, RESPONSES)
    expected = best_first(mean_wins(ranking.margins).tolist())
    assert [tuple(one) for one in done["cohere"]["ranked"]] == expected[:3]
    assert len(done["litellm"]) == 5
    for provider, ranked in done["litellm"].items():
        assert [tuple(one) for one in ranked] == expected, provider


@pytest.mark.slow
def test_llamafactory_gets_rewards_from_a_model_that_scores_alone(done: Any, response_bundle_folder: Path) -> None:
    scorer = tinyrm.load(response_bundle_folder, "onnxruntime-cpu", threads=1)
    scale = read_manifest(response_bundle_folder).score_scale
    assert scale
    expected = [scale.standardise(logit) for logit in scorer.score_responses(PROMPT, RESPONSES).tolist()]
    assert done["llamafactory"]["rewards"] == pytest.approx(expected, abs=1e-4)
    assert done["llamafactory"]["refusal"] == "'scores'", "a model that reads pairs refuses"
