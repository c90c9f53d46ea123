"""Test that processes that share a batch make the step of one process, and that what one process does is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.training.conftest import Toy, read_log, toy_pairs, weights
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.__main__ import WORLD_SIZES, main
from training.model.teachers import TrainedTeacher
from training.stages.cloze import train_cloze

# Gradients are summed in another order (within a process, then across), which Adam carries on for a few steps.
TOLERANCE = 1e-5
# Not `accelerate launch --cpu`, which starts a single process.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
# Runs the training command in each process, counting what each of them reads; one line a process, at its exit.
COUNTED = """
import atexit
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

@atexit.register
def report():
    state = PartialState()
    print(f"RANK {state.process_index} of {state.num_processes} {calls['sources']} {calls['scored']}\\n", end="")

class TornDown:
    def __del__(self):
        print("TORN DOWN")

module_attribute = TornDown()
sys.exit(__main__.main(sys.argv[1:]))
"""


# Before it: FSDP on CPUs, which torch has and accelerate does not offer.
SHARDED = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from training.trainer import DecoupledTrainer

own_init, own_step = AcceleratorState.__init__, DecoupledTrainer.training_step

def init(self, *arguments, fsdp_plugin=None, **options):
    own_init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

def step(self, model, *arguments, **options):
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "not sharded"
    return own_step(self, model, *arguments, **options)

AcceleratorState.__init__, DecoupledTrainer.training_step = init, step
"""
# Before it: a loss that is not a number, in the second process only.
BROKEN = """
import os
import torch
from training.stages.cloze import ClozeTrainer

own_loss = ClozeTrainer.compute_loss

def compute_loss(self, model, inputs, return_outputs=False, **options):
    found = own_loss(self, model, inputs, return_outputs=return_outputs, **options)
    is_broken = os.environ["RANK"] == "1" and self.state.global_step == 1 and not return_outputs
    return found * torch.nan if is_broken else found

ClozeTrainer.compute_loss = compute_loss
"""
FSDP = REPOSITORY / "training" / "accelerate" / "fsdp.yaml"


def launch(
    *arguments: str, folder: Path, before: str = "", launcher: list[str] = LAUNCH
) -> subprocess.CompletedProcess[str]:
    script = folder / "counted.py"
    script.write_text(before + COUNTED)
    return subprocess.run(
        [*launcher, str(script), *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def ranks(output: str) -> list[tuple[int, int]]:
    """Return (sources read, pairs scored by a teacher) of each process, in order; two processes are asserted.

    Neither may have torn its interpreter down, which threads of their group would have aborted now and then.
    """
    assert "TORN DOWN" not in output
    found = [line.split() for line in output.splitlines() if line.startswith("RANK ")]
    assert sorted(words[1:4] for words in found) == [["0", "of", "2"], ["1", "of", "2"]], output
    return [(int(words[4]), int(words[5])) for words in sorted(found)]


def recipe_file(folder: Path, recipe: Any) -> str:
    path = folder / f"{recipe.output_dir.name}.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[{}], [{"probability": 0.75}, {"weight": 3.0}, {"probability": 0.5}]])
def test_two_processes_reach_the_weights_of_one_and_read_the_data_once(
    toy: Toy, tmp_path: Path, labels: list[dict[str, float]]
) -> None:
    pairs = [pair.model_copy(update=labels[i % len(labels)]) for i, pair in enumerate(toy_pairs(64))]
    (tmp_path / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    batch = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4}
    alone, shared = (toy.recipe(tmp_path / name, batch, frozen_layers=1) for name in ("alone", "shared"))
    launched = launch(recipe_file(tmp_path, shared), "--data", str(tmp_path), folder=tmp_path)
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert ranks(launched.stdout) == [(1, 0), (0, 0)]
    train_cloze(alone, tmp_path, resume=False)
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
def test_what_is_refused_is_refused_in_every_process_and_reported_by_one(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path / "out", {"micro_batch_size": 4})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"somebody's")
    launched = launch(recipe_file(tmp_path, recipe), "--data", str(toy.data), folder=tmp_path)
    assert launched.returncode != 0
    assert launched.stderr.count("holds another run") == 1, "all found it, and the main process reports it"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"somebody's"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"frozen_layers": 1}, {"dora": {"rank": 4}}, {"head": "pointwise"}],
    ids=["weights", "dora", "pointwise"],
)
def test_processes_that_share_the_weights_reach_those_of_one_and_go_on(
    toy: Toy, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """FSDP by the shipped configuration; the mean of checkpoints, and a run that is continued, too."""
    batch = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "save_steps": 2, "average": (2, 4)}
    alone, shared = (toy.recipe(tmp_path / name, batch, **changes) for name in ("alone", "shared"))
    launcher = [*ACCELERATE, f"--config_file={FSDP}"]
    path, data = recipe_file(tmp_path, shared), str(toy.data)
    launched = launch(path, "--data", data, folder=tmp_path, before=SHARDED, launcher=launcher)
    assert launched.returncode == 0, launched.stderr[-3000:]
    assert ranks(launched.stdout) == [(1, 0), (0, 0)]
    train_cloze(alone, toy.data, resume=False)
    assert_same_weights(alone.output_dir, shared.output_dir)
    shutil.rmtree(shared.output_dir / "checkpoint-4")
    for file in shared.output_dir.glob("*.safetensors"):
        file.unlink()
    resumed = launch(path, "--data", data, "--resume", folder=tmp_path, before=SHARDED, launcher=launcher)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_same_weights(alone.output_dir, shared.output_dir)


def assert_same_weights(one: Path, other: Path) -> None:
    """Compare what export reads: all weights, or the adapter. Some files name the tied decoder, others leave it out."""
    ours, theirs = (load_file(next(folder.glob("*model.safetensors"))) for folder in (one, other))
    assert ours.keys() ^ theirs.keys() <= {"decoder.weight"}
    for name in ours.keys() & theirs.keys():
        torch.testing.assert_close(ours[name], theirs[name], atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2], ids=["one-then-two", "two-then-one"])
def test_another_number_of_processes_may_continue_a_run(toy: Toy, tmp_path: Path, first: int) -> None:
    """A batch is that of all processes, so that each step learns from the same pairs, in a later epoch too."""
    # Half of the pairs: step 7 lies in the second epoch.
    batch = {"batch_size": 8, "micro_batch_size": 2, "max_steps": 16, "save_steps": 13}
    alone, changed = (toy.recipe(tmp_path / name, batch) for name in ("alone", "changed"))
    path, data = recipe_file(tmp_path, changed), str(toy.data)
    train_cloze(alone, toy.data, resume=False)

    def run(processes: int, *more: str) -> None:
        if processes == 1:
            assert main([path, "--data", data, *more]) == 0
        else:
            launched = launch(path, "--data", data, *more, folder=tmp_path)
            assert launched.returncode == 0, launched.stderr[-3000:]
            assert len(ranks(launched.stdout)) == 2

    run(first)
    shutil.rmtree(changed.output_dir / "checkpoint-16")
    (changed.output_dir / "model.safetensors").unlink()
    run(3 - first, "--resume")
    assert read_log(changed.output_dir)[-1]["step"] == 16
    assert_same_weights(alone.output_dir, changed.output_dir)


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_ends_all_with_its_reason(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path / "out", {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4})
    launched = launch(recipe_file(tmp_path, recipe), "--data", str(toy.data), folder=tmp_path, before=BROKEN)
    assert launched.returncode != 0
    # Its gradient is that of all.
    assert launched.stderr.count("is nan in step 2") == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()


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
    assert main(command) == 2
    assert "runs in one process, and 2 were started" in capsys.readouterr().err
