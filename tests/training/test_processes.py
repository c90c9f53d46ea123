"""Test that processes that share a batch make the step of one process, and that what one process does is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import REPOSITORY
from tests.training.conftest import Toy, read_log, weights
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.__main__ import WORLD_SIZES, main
from training.model.teachers import TrainedTeacher
from training.stages.cloze import train_cloze

# Gradients are summed in another order (within a process, then across), which Adam carries on for a few steps.
TOLERANCE = 1e-5
# Not `accelerate launch --cpu`, which starts a single process.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
# Runs the training command in each process, counting what each of them reads; one line a process.
COUNTED = """
import sys
from accelerate import PartialState
from training import __main__
from training.model.teachers import TrainedTeacher
from training.stages import cloze

calls = {"sources": 0, "scored": 0}

def counted(function, what, size):
    def run(*arguments):
        calls[what] += size(arguments)
        return function(*arguments)
    return run

cloze.load_all = counted(cloze.load_all, "sources", lambda arguments: 1)
TrainedTeacher.margins = counted(TrainedTeacher.margins, "scored", lambda arguments: len(arguments[1]))
code = __main__.main(sys.argv[1:])
state = PartialState()
print(f"RANK {state.process_index} of {state.num_processes} {calls['sources']} {calls['scored']}\\n", end="")
sys.exit(code)
"""


def launch(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "counted.py"
    script.write_text(COUNTED)
    return subprocess.run(
        [*LAUNCH, str(script), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def ranks(output: str) -> list[tuple[int, int]]:
    """Return (sources read, pairs scored by a teacher) of each process, in order; two processes are asserted."""
    found = [line.split() for line in output.splitlines() if line.startswith("RANK ")]
    assert sorted(words[1:4] for words in found) == [["0", "of", "2"], ["1", "of", "2"]], output
    return [(int(words[4]), int(words[5])) for words in sorted(found)]


def recipe_file(folder: Path, recipe: Any) -> str:
    path = folder / f"{recipe.output_dir.name}.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(path)


@pytest.mark.slow
def test_two_processes_reach_the_weights_of_one_and_read_the_data_once(toy: Toy, tmp_path: Path) -> None:
    batch = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4}
    alone, shared = (toy.recipe(tmp_path / name, batch, frozen_layers=1) for name in ("alone", "shared"))
    launched = launch(recipe_file(tmp_path, shared), "--data", str(toy.data), folder=tmp_path)
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert ranks(launched.stdout) == [(1, 0), (0, 0)]
    train_cloze(alone, toy.data, resume=False)
    one, two = (weights(load_masked_lm(str(recipe.output_dir))) for recipe in (alone, shared))
    start = weights(load_masked_lm(str(toy.base)))
    assert not one["head.dense.weight"].allclose(start["head.dense.weight"], atol=100 * TOLERANCE)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=TOLERANCE, rtol=0)
    for key, value in read_log(alone.output_dir)[-1].items():
        if key.startswith("eval_") and not key.endswith(("runtime", "per_second")):
            assert read_log(shared.output_dir)[-1][key] == pytest.approx(value, abs=1e-5), key


@pytest.mark.slow
def test_two_processes_share_the_teachers_work_and_its_result(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = toy.recipe(tmp_path / "teacher")
    train_cloze(teacher, toy.data, resume=False)
    fields = toy.recipe(tmp_path / "student", {"batch_size": 8, "micro_batch_size": 4}).model_dump(mode="json")
    path = tmp_path / "student.yaml"
    teachers = {domain: {"path": str(tmp_path / "teacher")} for domain in ("general", "safety")}
    path.write_text(yaml.safe_dump(fields | {"task": "distil", "teachers": teachers}))
    launched = launch(str(path), "--data", str(toy.data), folder=tmp_path)
    assert launched.returncode == 0, launched.stderr[-3000:]
    scored = [pairs for _, pairs in ranks(launched.stdout)]
    assert sum(scored) == 64, "each pair once"
    assert scored == [32, 32], "each process one half"
    monkeypatch.setattr(TrainedTeacher, "margins", None)
    assert main([str(path), "--data", str(toy.data), "--resume"]) == 0, "a resumed run reads what was kept"


@pytest.mark.slow
def test_what_is_refused_is_refused_in_every_process(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"somebody's")
    launched = launch(recipe_file(tmp_path, recipe), "--data", str(toy.data), folder=tmp_path)
    assert launched.returncode != 0
    assert launched.stderr.count("holds another run") == 2
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"somebody's"


@pytest.mark.parametrize("variable", WORLD_SIZES)
@pytest.mark.parametrize(
    "command",
    [
        ["compare", "experiments/cloze"],
        ["sweep", "tinyrm/large-chat", "--trials", "1", "--storage", "sqlite://"],
        ["data", "jsonl:pairs.jsonl"],
        ["plan", "tinyrm/large-chat"],
        ["train", "tinyrm/large-merged"],
        ["train", "from_scratch/1-tokenizer"],
    ],
    ids=lambda words: "-".join(words[:2]).replace("/", "-"),
)
def test_what_one_process_does_is_refused_under_a_launcher(
    command: list[str], variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "2")
    assert main(command) == 1
    assert "runs in one process, and 2 were started" in capsys.readouterr().err
