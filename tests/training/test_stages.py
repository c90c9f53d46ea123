"""Run the stages around the reward stage one after the other, as the command does."""

import json
from pathlib import Path

import yaml

from tests.training.conftest import SPEC, Toy
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.spec import RUN_FILE
from training.__main__ import run


def test_sft_cloze_merge_and_distil_run_in_sequence(toy: Toy, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "The better option."}]
    talks = [{"messages": [{"role": "user", "content": f"Question {i}"}, *turns]} for i in range(30)]
    (toy.data / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    out = {name: str(tmp_path / name) for name in ("sft", "one", "other", "merged", "student")}
    small = {"peak_lr": 1e-3, "max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32"}
    cloze = toy.recipe(tmp_path / "one", small).model_dump(mode="json") | {"model": out["sft"]}
    both = [{"path": out["one"]}, {"path": out["other"], "coefficient": 0.25}]
    stages = [
        {"task": "sft", "output_dir": out["sft"], "model": str(toy.base), "conversations": ["talks.jsonl"]}
        | {"held_out_fraction": 0.3, "optimization": small},
        cloze,
        cloze | {"output_dir": out["other"], "dora": {"rank": 2, "alpha": 2}},
        {"task": "merge", "output_dir": out["merged"], "method": "ties", "base": out["sft"], "specialists": both},
        cloze | {"task": "distil", "output_dir": out["student"], "teachers": dict.fromkeys(SPEC.domains, both[0])},
    ]
    for stage in stages:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stage))
        run(tmp_path / "recipe.yaml", toy.data, resume=False)
    for name in ("merged", "student"):
        assert load_masked_lm(out[name]).config.num_hidden_layers == 4
    record = json.loads((tmp_path / "student" / RUN_FILE).read_text())
    assert record["recipe"]["task"] == "distil"
    assert record["base"]["recipe"]["task"] == "sft", "the record goes back to the SFT stage"
    assert json.loads((tmp_path / "merged" / RUN_FILE).read_text())["coefficients"] == [0.5, 0.25]
