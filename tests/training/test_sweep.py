"""Test sweeps of toy trainings: trials, pruning, selection, and the continuation of a killed sweep."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FixedTrial, TrialState

import training.experiments.sweep as sweeping
from tests.conftest import REPOSITORY
from tests.training.conftest import Toy, toy_pairs
from tinyrm.errors import InvalidInput
from tinyrm.spec import RUN_FILE
from training.__main__ import main
from training.experiments.sweep import ReportAtMarks, Space, new_sampler, open_study, study_identity, sweep
from training.loading import load_recipe
from training.options import Sweep
from training.recipe import ClozeRecipe, Dora
from training.trainer import Diverged

SPACES = sorted((REPOSITORY / "training" / "spaces").rglob("*.yaml"))
SHORT = {"max_steps": 4, "batch_size": 8, "micro_batch_size": 8}
SPACE = Space(
    peak_lr=(1e-5, 1e-2),
    frozen_layers=(0, 3),
    instructions={"safety": ("Which response is safer?", "Select the best response.")},
)


def options(toy: Toy, folder: Path, trials: int, **changes: Any) -> Sweep:
    storage = f"sqlite:///{folder}/sweep.db"
    return Sweep("", data=toy.data, storage=storage, trials=trials, **changes)


@pytest.fixture
def recipe(toy: Toy, tmp_path: Path) -> ClozeRecipe:
    return toy.recipe(tmp_path / "sweep", SHORT, loss="labels")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[ClozeRecipe]:
    """Replace training: the accuracy is higher the nearer the learning rate is to 1e-3."""
    tried: list[ClozeRecipe] = []

    def train(recipe: ClozeRecipe, *_: Any, **__: Any) -> dict[str, float]:
        tried.append(recipe)
        return {"eval_held_out_accuracy": 1 - abs(recipe.optimization.peak_lr - 1e-3)}

    monkeypatch.setattr(sweeping, "train_cloze", train)
    return tried


def test_a_sweep_trains_trials_and_writes_a_recipe_of_the_best(toy: Toy, recipe: ClozeRecipe, tmp_path: Path) -> None:
    study = sweep(recipe, SPACE, options(toy, tmp_path, 2))
    result = json.loads((recipe.output_dir / "sweep.json").read_text())
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 2
    assert all(list(trial["at_marks"]) == ["25", "50", "75"] for trial in result["trials"])
    assert result["best"]["value"] == max(trial["value"] for trial in result["trials"])
    assert result["selected_on"] == "pairs held out of the training data"
    assert not result["is_replication_only"]
    best = load_recipe(recipe.output_dir / "best.yaml")
    assert isinstance(best, ClozeRecipe)
    assert best.optimization.peak_lr == study.best_params["peak_lr"]
    assert best.frozen_layers == study.best_params["frozen_layers"]
    assert best.spec.domains["safety"] == study.best_params["instruction.safety"]
    assert best.optimization.eval_steps == recipe.optimization.eval_steps
    assert best.notes == ("A sweep selected hyperparameters on the held-out pairs: measures on these are too good.",)
    folders = [folder.name for folder in recipe.output_dir.glob("trial-*")]
    assert folders == [f"trial-{study.best_trial.number:04d}"], "the others' weights are gone"
    run = json.loads((recipe.output_dir / folders[0] / RUN_FILE).read_text())
    assert run["held_out"]["eval_held_out_accuracy"] == study.best_value
    assert run["recipe"]["optimization"]["peak_lr"] == study.best_params["peak_lr"]
    assert run["recipe"]["notes"] == list(best.notes)


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_a_sampler_searches_near_what_was_good(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path, untrained: list[ClozeRecipe], sampler: Any
) -> None:
    sweep(recipe, Space(peak_lr=(1e-5, 1e-1)), options(toy, tmp_path, 22, sampler=sampler))
    rates = [tried.optimization.peak_lr for tried in untrained]
    late = sum(rate < 1e-2 for rate in rates[-6:])
    assert min(rates[:10]) < 1e-4, "log-uniform: a uniform draw would hardly ever be this low"
    assert late >= 4
    kinds = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}
    assert isinstance(new_sampler(options(toy, tmp_path, 1, sampler=sampler), 0), kinds[sampler])


def test_a_finished_sweep_with_more_trials_adds_the_missing_ones(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path, untrained: list[ClozeRecipe]
) -> None:
    for trials, in_all in ((3, 3), (3, 3), (5, 5)):
        study = sweep(recipe, SPACE, options(toy, tmp_path, trials))
        assert len(study.trials) == len(untrained) == in_all
    rates = [tried.optimization.peak_lr for tried in untrained]
    assert len(set(rates)) == 5, "what was drawn once is not drawn again"


def test_a_study_of_another_recipe_is_not_continued(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path, untrained: list[ClozeRecipe]
) -> None:
    sweep(recipe, SPACE, options(toy, tmp_path, 1))
    with pytest.raises(InvalidInput, match="another space"):
        sweep(recipe, Space(), options(toy, tmp_path, 2))
    with pytest.raises(InvalidInput, match="another recipe"):
        sweep(recipe.model_copy(update={"loss": "vocabulary"}), SPACE, options(toy, tmp_path, 2))
    with pytest.raises(InvalidInput, match="another objective, selected_on"):
        sweep(recipe, SPACE, options(toy, tmp_path, 2, paper_protocol=toy.data / "pairs.jsonl"))


@pytest.mark.slow
def test_a_killed_sweep_continues(toy: Toy, recipe: ClozeRecipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    storage = f"sqlite:///{tmp_path}/sweep.db"
    command = [sys.executable, "-m", "training", "sweep", str(tmp_path / "recipe.yaml"), "--data", str(toy.data)]
    with subprocess.Popen(
        [*command, "--storage", storage, "--trials", "1000"], cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        wait_for_finished(storage, recipe, process, 2)
        process.send_signal(signal.SIGKILL)
    before = optuna.load_study(study_name="sweep", storage=storage).get_trials(states=sweeping.FINISHED)
    study = sweep(recipe, Space(), options(toy, tmp_path, len(before) + 2))
    after = study.get_trials(states=sweeping.FINISHED)
    assert len(after) == len(before) + 2
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]
    assert (recipe.output_dir / f"trial-{study.best_trial.number:04d}" / "model.safetensors").is_file()


def opened(recipe: ClozeRecipe, opts: Sweep) -> optuna.Study:
    return open_study(recipe, study_identity(recipe, Space(), opts), opts)


def test_a_trial_without_a_process_is_marked_as_failed(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path, untrained: list[ClozeRecipe]
) -> None:
    study = opened(recipe, options(toy, tmp_path, 1))
    gone = study.ask()
    study._storage._backend.record_heartbeat(gone._trial_id)  # type: ignore[attr-defined]
    with closing(sqlite3.connect(tmp_path / "sweep.db")) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
        database.commit()
    states = [trial.state for trial in sweep(recipe, Space(), options(toy, tmp_path, 2)).trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def wait_for_finished(storage: str, recipe: ClozeRecipe, process: subprocess.Popen[bytes], count: int) -> None:
    """Wait until `count` trials have finished."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            trials = optuna.load_study(study_name=recipe.output_dir.name, storage=storage).trials
        except Exception:  # noqa: BLE001 - not there yet, whichever part of it
            trials = []
        finished = sum(trial.state in sweeping.FINISHED for trial in trials)
        if finished >= count:
            return
        time.sleep(0.2)
    pytest.fail(f"the sweep did not get to {count} trials, exit {process.poll()}")


def test_trials_of_another_study_are_not_replaced(toy: Toy, recipe: ClozeRecipe, tmp_path: Path) -> None:
    best = recipe.output_dir / "trial-0003" / "model.safetensors"
    best.parent.mkdir(parents=True)
    best.touch()
    with pytest.raises(InvalidInput, match=r"trial-0003: not of the study in sqlite"):
        sweep(recipe, Space(), options(toy, tmp_path, 1))
    assert best.is_file()


def test_a_trial_that_diverges_is_pruned_and_the_sweep_goes_on(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = sweeping.train_cloze, []

    def first_diverges(*args: Any, **options: Any) -> dict[str, float]:
        calls.append(args)
        if len(calls) == 1:
            raise Diverged("the loss is nan in step 1")
        return train(*args, **options)

    monkeypatch.setattr(sweeping, "train_cloze", first_diverges)
    states = [trial.state for trial in sweep(recipe, Space(), options(toy, tmp_path, 2)).trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE]


def test_a_trial_below_the_median_ends_at_a_mark(toy: Toy, recipe: ClozeRecipe, tmp_path: Path) -> None:
    opts = options(toy, tmp_path, 1)
    study = opened(recipe, opts)
    for _ in range(6):
        good = optuna.trial.create_trial(
            value=1.0,
            params={"peak_lr": 1e-3},
            distributions={"peak_lr": optuna.distributions.FloatDistribution(1e-6, 5e-4 * 2, log=True)},
            intermediate_values={25: 1.01, 50: 1.01, 75: 1.01},
        )
        study.add_trial(good)
    trial = study.ask()
    with pytest.raises(optuna.TrialPruned, match="25 %"):
        sweeping.run_trial(trial, recipe, Space(), opts)
    assert list(trial.storage.get_trial(trial._trial_id).intermediate_values) == [25]


@pytest.mark.parametrize(("max_steps", "marks"), [(8, {2: 25, 4: 50, 6: 75}), (1, {}), (3, {1: 25, 2: 50})])
def test_marks_are_shares_of_the_steps_and_never_the_end(max_steps: int, marks: dict[int, int]) -> None:
    callback = ReportAtMarks(FixedTrial({}), "eval_held_out_accuracy")  # type: ignore[arg-type]
    state = type("State", (), {"max_steps": max_steps})
    callback.on_train_begin(None, state, None)
    assert callback._marks == marks


def test_the_paper_protocol_selects_on_the_evaluation_pairs_with_a_warning(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path
) -> None:
    # Evaluation pairs with the opposite preference: what is good on them is bad on the held-out ones.
    opposite = [p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}) for p in toy_pairs(12)]
    (tmp_path / "evaluation.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in opposite))
    learns = toy.recipe(tmp_path / "sweep", {"max_steps": 60, "batch_size": 16, "micro_batch_size": 16}, loss="labels")
    space = Space(peak_lr=(9e-3, 1e-2))
    study = sweep(learns, space, options(toy, tmp_path, 1, paper_protocol=tmp_path / "evaluation.jsonl"))
    result = json.loads((recipe.output_dir / "sweep.json").read_text())
    assert result["is_replication_only"]
    assert result["selected_on"]["path"].endswith("evaluation.jsonl")
    run = json.loads((recipe.output_dir / "trial-0000" / RUN_FILE).read_text())
    assert study.best_value == run["held_out"]["eval_paper_protocol_accuracy"] < 0.2
    assert run["held_out"]["eval_held_out_accuracy"] > 0.8


def test_a_choice_is_validated_and_keeps_what_it_does_not_name(recipe: ClozeRecipe) -> None:
    dora = recipe.model_copy(update={"dora": Dora(rank=8, alpha=16, dropout=0.1)})
    space = Space(dora_ranks=(4, 32), frozen_layers=(1, 3))
    chosen = space.choose(FixedTrial({"peak_lr": 2e-4, "dora_rank": 32, "frozen_layers": 3}), dora)
    assert chosen.dora == Dora(rank=32, alpha=64, dropout=0.1), "alpha / rank stays"
    assert (chosen.optimization.peak_lr, chosen.frozen_layers) == (2e-4, 3)
    assert chosen.spec == recipe.spec
    assert chosen.optimization.model_copy(update={"peak_lr": 1e-3}) == recipe.optimization


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space(dora_ranks=(8,)), "recipe has no dora"),
        (Space(frozen_layers=(0, 4)), "nothing to learn in 4 layers"),
        (Space(instructions={"maths": ("x",)}), "instructions for maths"),
    ],
)
def test_a_space_that_does_not_fit_the_recipe_is_refused_first(
    toy: Toy, recipe: ClozeRecipe, tmp_path: Path, space: Space, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        sweep(recipe, space, options(toy, tmp_path, 1))
    assert not (tmp_path / "sweep.db").exists()


def test_an_instruction_that_the_recipe_draws_itself_is_not_searched(recipe: ClozeRecipe) -> None:
    drawing = recipe.model_copy(update={"prefixes": {"safety": ("Which is better?",)}})
    assert SPACE.misfits(recipe, 4) == []
    assert "draws from its own" in SPACE.misfits(drawing, 4)[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"peak_lr": [1e-3, 1e-4]},
        {"peak_lr": [0, 1]},
        {"frozen_layers": [3, 1]},
        {"lr": 1},
        {"dora_ranks": [0]},
        {"instructions": {"chat": []}},
    ],
)
def test_an_invalid_space_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(InvalidInput):
        Space.load(tmp_path / "space.yaml")


def test_a_space_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("peak_lr: [1.0e-6, 1.0e-4")
    with pytest.raises(InvalidInput, match="is not YAML"):
        Space.load(tmp_path / "space.yaml")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_are_valid(path: Path) -> None:
    space = Space.load(path)
    assert list(space.instructions) == [path.stem]
    assert space.frozen_layers == (0, 27)


def test_there_are_spaces_to_check() -> None:
    assert [path.stem for path in SPACES] == ["chat", "reasoning", "safety"]


@pytest.fixture
def command(toy: Toy, recipe: ClozeRecipe, tmp_path: Path) -> Callable[..., int]:
    """Run the command for one trial, with further arguments."""

    def run(*more: str, storage: str = f"sqlite:///{tmp_path}/sweep.db") -> int:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        return main(["sweep", str(path), "--data", str(toy.data), "--trials", "1", "--storage", storage, *more])

    return run


def test_the_command_prints_the_best_trial(
    command: Callable[..., int], untrained: list[ClozeRecipe], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("trial 0: eval_held_out_accuracy 0.99")
    assert "--paper-protocol" not in printed.err
    assert command("--json") == 0
    best = json.loads(capsys.readouterr().out)
    assert (best["trial"], best["objective"]) == (0, "eval_held_out_accuracy")
    assert f"{best['value']:.4f} with {best['params']}\n" in printed.out


def test_the_command_warns_loudly_of_the_papers_protocol(
    command: Callable[..., int], toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--paper-protocol", str(toy.data / "pairs.jsonl")) == 0
    printed = capsys.readouterr()
    assert f"hyperparameters are chosen on {toy.data / 'pairs.jsonl'}" in printed.err
    assert "replication" in printed.err
    assert printed.out.splitlines()[-1].startswith("trial 0: eval_paper_protocol_accuracy")


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////nowhere/at/all/sweep.db"])
def test_the_command_ends_with_one_line_where_it_cannot_run(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], storage: str
) -> None:
    assert command(storage=storage) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("training sweep: storage ")


def test_only_the_reward_stage_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"task": "tokenizer", "output_dir": "out", "vocab_size": 400, "texts": []}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    assert main(["sweep", str(tmp_path / "other.yaml"), "--trials", "1", "--storage", "sqlite://"]) == 2
    assert "only recipes of task 'cloze' are swept" in capsys.readouterr().err
