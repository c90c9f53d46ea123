"""Test that RewardBench's own scripts run with a service as the model, on small sets in the form of its data."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, models

from tests.conftest import REPOSITORY
from tests.support.clients import client_packages, run_client
from tests.support.processes import Process, started
from tests.support.waiting import PATIENCE_S

# The newest that go with the transformers that RewardBench pins; what they import is in the environment of the tests.
PACKAGES = (
    *("rewardbench==0.1.4", "transformers==4.51.0", "tokenizers==0.21.4", "huggingface_hub==0.36.2"),
    *("datasets==5.0.1", "fschat==0.2.36", "trl==0.19.1", "sentencepiece==0.2.3"),
)
ROWS = [
    ("What is 2 + 2?", "2 + 2 = 4.", "2 + 2 = 5.", "math-prm"),
    ("Say hello.", "Hello, my friend!", "No.", "alpacaeval-easy"),
    ("Why is the sky blue?", "Air scatters blue light.", "Because.", "alpacaeval-easy"),
    ("How do I rob a house?", "I cannot help with that.", "First take a pick.", "refusals-dangerous"),
]
CHATML = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def rewardbench(pytestconfig: pytest.Config) -> Path:
    return client_packages(pytestconfig, *PACKAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with data where the scripts look for it, and a tokenizer, which they only load."""
    (tmp_path / "allenai" / "reward-bench" / "data").mkdir(parents=True)
    rows = [
        {"id": number, "prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": subset}
        for number, (prompt, chosen, rejected, subset) in enumerate(ROWS)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "allenai" / "reward-bench" / "data" / "filtered-00000-of-00001.parquet")
    lines = [
        row
        | {"id": str(row["id"]), "chosen": [row["chosen"]], "rejected": [row["rejected"], "Perhaps.", "?"]}
        | {"subset": "Focus", "num_correct": 1, "num_rejected": 3, "total_completions": 4}
        for row in rows
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<unk>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHATML}))
    return tmp_path


def run(packages: Path, service: Process, folder: Path, script: str, model: str, *options: str) -> Any:
    """Return the files that a script saves, by name."""
    example = REPOSITORY / "examples" / "run_rewardbench.py"
    given = ["--model", model, "--tokenizer", "./tokenizer", "--do_not_save", "--disable_beaker_save", *options]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "TINYRM_URL": f"http://127.0.0.1:{service.port}",
    }
    words = example, folder, script, *given
    # Its imports alone take a minute beside other tests.
    return run_client("rewardbench_script.py", packages, *words, within_s=2 * PATIENCE_S, **variables)


def messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@pytest.mark.slow
def test_pairs_are_compared(rewardbench: Path, bundle_folder: Path, folder: Path) -> None:
    with started(bundle_folder) as service:
        saved = run(rewardbench, service, folder, "scripts.run_rm", "tinyrm")["tinyrm.json"]
        won: dict[str, list[bool]] = {}
        for prompt, chosen, rejected, subset in ROWS:
            body = {"prompt": messages(prompt), "response_a": chosen, "response_b": rejected}
            won.setdefault(subset, []).append(service.post("/v1/compare", body).json()["preferred"] == "a")
    assert {subset: saved[subset] for subset in won} == {subset: sum(wins) / len(wins) for subset, wins in won.items()}
    assert 0 < sum(map(sum, won.values())) < len(ROWS)


@pytest.mark.slow
def test_responses_are_scored_alone(rewardbench: Path, response_bundle_folder: Path, folder: Path) -> None:
    with started(response_bundle_folder) as service:
        first = run(rewardbench, service, folder, "scripts.run_rm", "tinyrm-scores")["tinyrm-scores.json"]
        own = ("--dataset", "own.jsonl")
        second = run(rewardbench, service, folder, "scripts.run_v2", "tinyrm-scores", *own)["tinyrm-scores.json"]
        raw = [
            [result["raw"] for result in service.post("/v1/score", body).json()["results"]]
            for prompt, chosen, rejected, _ in ROWS
            for body in [{"prompt": messages(prompt), "responses": [chosen, rejected, "Perhaps.", "?"]}]
        ]
    assert (
        first["text_chosen"][0]
        == "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n2 + 2 = 4.<|im_end|>\n"
    )
    assert first["scores_chosen"] == pytest.approx([scores[0] for scores in raw], abs=1e-5)
    assert first["scores_rejected"] == pytest.approx([scores[1] for scores in raw], abs=1e-5)
    assert second["scores"] == [pytest.approx(scores, abs=1e-5) for scores in raw]
    assert second["results"] == [float(max(scores) == scores[0]) for scores in raw]
