"""Write small files with the schemas of the published sets, in the layout of their repositories."""

import gzip
import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

TEXT = Value("string")
TURNS = List({"content": TEXT, "role": TEXT})
QUOTES = {"title": List(TEXT), "extract": List(TEXT)}
TOKENS = {"prefix": List(Value("int32")), "completion": List(Value("int32"))}

SKYWORK = Features({"chosen": TURNS, "rejected": TURNS, "source": TEXT})
WEBGPT = Features(
    {
        "question": {"dataset": TEXT, "id": TEXT, "full_text": TEXT},
        "quotes_0": QUOTES,
        "answer_0": TEXT,
        "tokens_0": TOKENS,
        "score_0": Value("float32"),
        "quotes_1": QUOTES,
        "answer_1": TEXT,
        "tokens_1": TOKENS,
        "score_1": Value("float32"),
    }
)
PKU = Features(
    {
        "prompt": TEXT,
        "response_0": TEXT,
        "response_1": TEXT,
        "is_response_0_safe": Value("bool"),
        "is_response_1_safe": Value("bool"),
        "better_response_id": Value("int64"),
        "safer_response_id": Value("int64"),
    }
)
TOXICITY = ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
OASST2 = Features(
    {
        "message_id": TEXT,
        "parent_id": TEXT,
        "user_id": TEXT,
        "created_date": TEXT,
        "text": TEXT,
        "role": TEXT,
        "lang": TEXT,
        "review_count": Value("int32"),
        "review_result": Value("bool"),
        "deleted": Value("bool"),
        "rank": Value("int32"),
        "synthetic": Value("bool"),
        "model_name": TEXT,
        "detoxify": {name: Value("float64") for name in TOXICITY},
        "message_tree_id": TEXT,
        "tree_state": TEXT,
        "emojis": {"name": List(TEXT), "count": List(Value("int32"))},
        "labels": {"name": List(TEXT), "value": List(Value("float64")), "count": List(Value("int32"))},
    }
)
REWARDBENCH = Features(
    dict.fromkeys(("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset"), TEXT)
    | {"id": Value("int64")}
)


def parquet(rows: list[dict[str, Any]], features: Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(path))


def jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def skywork_row(source: str, question: str, chosen: str, rejected: str, *before: str) -> dict[str, Any]:
    """before: earlier messages, the user's first."""
    questions = [*before, question]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(questions)]

    def answered(answer: str) -> list[dict[str, str]]:
        return [*turns, {"role": "assistant", "content": answer}]

    return {"chosen": answered(chosen), "rejected": answered(rejected), "source": source}


def webgpt_row(question: str, answers: tuple[str, str], score_0: float) -> dict[str, Any]:
    row: dict[str, Any] = {"question": {"dataset": "eli5", "id": question, "full_text": question}}
    for i, score in enumerate((score_0, -score_0)):
        row |= {
            f"quotes_{i}": {"title": ["a page"], "extract": ["an extract"]},
            f"answer_{i}": answers[i],
            f"tokens_{i}": {"prefix": [1, 2], "completion": [3]},
            f"score_{i}": score,
        }
    return row


def pku_row(prompt: str, responses: tuple[str, str], *, safer: int, better: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "response_0": responses[0],
        "response_1": responses[1],
        "is_response_0_safe": safer == 0,
        "is_response_1_safe": safer == 1,
        "better_response_id": better,
        "safer_response_id": safer,
    }


def oasst2_row(name: str, parent: str | None, text: str, rank: int | None = None, **changes: Any) -> dict[str, Any]:
    """Return a message of tree `name[0]`; ids that begin with q are the user's, others the assistant's."""
    return {
        "message_id": name,
        "parent_id": parent,
        "user_id": "someone",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": "prompter" if name.startswith("q") else "assistant",
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": dict.fromkeys(TOXICITY, 0.0),
        "message_tree_id": "q0",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [2]},
        "labels": {"name": ["quality"], "value": [0.75], "count": [3]},
    } | changes
