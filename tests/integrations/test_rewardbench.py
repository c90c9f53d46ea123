"""Test the custom classifier, built and called as the harness does, against a live service."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.processes import Process, started
from tinyrm.errors import CallRefused, InvalidInput, Mismatch
from tinyrm.integrations.rewardbench import Pipeline, ScorePipeline, classifier_config, model_config

PAIRS = [("What is 2 + 2?", "4", "5"), ("Say hello.", "Hello, my friend!", "No."), ("Why?", "Because.", "I refuse.")]


def conversation(prompt: str, response: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": response},
    ]


def pipeline(url: str, **options: Any) -> Pipeline:
    """Return the classifier with the settings of the harness."""
    config = model_config(url, **options)
    assert (config["quantized"], config["custom_dialogue"], config["model_type"]) == (False, True, "Custom Classifier")
    model = config["model_builder"]("tinyrm", device_map="auto", torch_dtype=torch.float16, trust_remote_code=False)
    built: Pipeline = config["pipeline_builder"]("text-classification", model=model, tokenizer=SimpleNamespace())
    assert built.model.config.pad_token_id is None
    built.model.config.pad_token_id = 0
    return built


def test_the_classifier_returns_the_winner_of_each_pair(service: Process, url: str) -> None:
    chosen = [conversation(prompt, a) for prompt, a, _ in PAIRS]
    rejected = [conversation(prompt, b) for prompt, _, b in PAIRS]
    wins = pipeline(url)(chosen, rejected, batch_size=64, truncation=True, padding=True, max_length=2048)
    expected = [
        service.post("/v1/compare", {"prompt": a[:-1], "response_a": a[-1]["content"], "response_b": b[-1]["content"]})
        for a, b in zip(chosen, rejected, strict=True)
    ]
    assert wins.dtype == torch.bool
    assert wins.cpu().numpy().tolist() == [reply.json()["preferred"] == "a" for reply in expected]
    assert pipeline(url)(rejected, chosen).tolist() == [not win for win in wins.tolist()]


def test_a_tie_is_a_loss(url: str) -> None:
    same = [conversation("Why?", "Because.")]
    assert pipeline(url)(same, same).tolist() == [False]


def test_a_pair_of_two_prompts_is_an_error(url: str) -> None:
    with pytest.raises(Mismatch, match="not to the same prompt"):
        pipeline(url)([conversation("Why?", "a")], [conversation("How?", "b")])


def test_a_refused_pair_is_an_error_and_not_a_loss(url: str) -> None:
    with pytest.raises(InvalidInput, match="unknown_domain"):
        pipeline(url, domain="cookery")([conversation("Why?", "a")], [conversation("Why?", "b")])


# How a tokenizer's ChatML template and the harness's own `tulu` template write a dialogue.
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
TULU = "<|user|>\n{prompt}\n<|assistant|>\n{response}\n"


def classifier(url: str, **options: Any) -> ScorePipeline:
    config = classifier_config(url, **options)
    assert (config["custom_dialogue"], config["model_type"]) == (False, "Seq. Classifier")
    model = config["model_builder"]("tinyrm", device_map="cpu", torch_dtype=torch.float16, trust_remote_code=False)
    built: ScorePipeline = config["pipeline_builder"]("text-classification", model=model, tokenizer=SimpleNamespace())
    return built


@pytest.mark.parametrize("template", [CHATML, TULU])
def test_a_model_that_reads_responses_is_a_classifier(response_bundle_folder: Path, template: str) -> None:
    with started(response_bundle_folder) as service:
        pipe = classifier(f"http://127.0.0.1:{service.port}")
        chosen, rejected = (
            pipe(
                [template.format(prompt=pair[0], response=pair[place]) for pair in PAIRS],
                batch_size=64,
                max_length=2048,
            )
            for place in (1, 2)
        )
        expected = [
            service.post(
                "/v1/score", {"prompt": [{"role": "user", "content": prompt}], "responses": list(responses)}
            ).json()["results"]
            for prompt, *responses in PAIRS
        ]
    assert chosen.dtype == torch.float32
    found = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    assert found == [pytest.approx([result["raw"] for result in results], abs=1e-5) for results in expected]


def test_a_model_that_reads_pairs_is_no_classifier(bundle_folder: Path) -> None:
    with started(bundle_folder) as service, pytest.raises(CallRefused, match="cannot score one alone"):
        classifier(f"http://127.0.0.1:{service.port}")([CHATML.format(prompt="Why?", response="Because.")])


def test_a_dialogue_in_another_template_is_an_error(url: str) -> None:
    with pytest.raises(InvalidInput, match="not a chat template that is supported"):
        classifier(url)(["Q: Why? A: Because."])
