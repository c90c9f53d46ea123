"""A sweep: trials of a recipe, judged on held-out pairs as they train, in a storage that outlives the process."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from transformers import AutoConfig, TrainerCallback

from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_pairs
from training.data.collate import PairDataset
from training.experiments.space import Space
from training.output import identity
from training.recipe import ClozeRecipe
from training.stages.cloze import ClozeTrainer, pair_hashes, train_cloze

MARKS = (25, 50, 75)  # per cent of a trial's steps after which a hopeless one ends
STARTUP_TRIALS = 10  # random ones, before a sampler has anything to learn from
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HELD_OUT, PAPER = "held_out", "paper_protocol"
HEARTBEAT_S = 60

log = logging.getLogger(__name__)

Sampler = Literal["tpe", "gp"]


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """trials: finished ones that the study shall have in the end. paper_protocol: pairs to select on, for replication.

    storage: an SQLAlchemy address, such as sqlite:///sweep.db.
    """

    data_dir: Path
    storage: str
    trials: int
    sampler: Sampler = "tpe"
    seed: int = 17
    paper_protocol: Path | None = None

    @property
    def objective(self) -> str:
        """The metric that is maximised: accuracy with both orders read."""
        return f"eval_{PAPER if self.paper_protocol else HELD_OUT}_accuracy"


def sweep(recipe: ClozeRecipe, space: Space, options: SweepOptions) -> optuna.Study:
    """Run trials until `options.trials` have finished; write best.yaml, a recipe, and sweep.json to the output folder.

    The weights of the best trial are kept, in a folder of its number. Raises InvalidInput if the storage holds a study
    of something else, or if the space does not fit the recipe.
    """
    layers: int = AutoConfig.from_pretrained(recipe.model).num_hidden_layers
    if misfits := space.misfits(recipe, layers):
        raise InvalidInput("; ".join(misfits))
    study = open_study(recipe, space, options)
    if len(study.get_trials(deepcopy=False, states=FINISHED)) < options.trials:
        study.optimize(
            lambda trial: run_trial(trial, recipe, space, options),
            callbacks=[
                optuna.study.MaxTrialsCallback(options.trials, states=FINISHED),
                lambda study, _: keep_only_best(study, recipe.output_dir),
            ],
        )
    write_result(study, recipe, space, options)
    return study


def open_study(recipe: ClozeRecipe, space: Space, options: SweepOptions) -> optuna.Study:
    """The study of the recipe's output folder in the storage, made if it is not there."""
    study = optuna.create_study(
        # A trial whose process is gone stops beating, and is given up when the next one begins.
        storage=RDBStorage(options.storage, heartbeat_interval=HEARTBEAT_S, grace_period=2 * HEARTBEAT_S),
        study_name=recipe.output_dir.name,
        direction="maximize",
        pruner=MedianPruner(n_startup_trials=min(5, STARTUP_TRIALS)),
        load_if_exists=True,
    )
    study.sampler = new_sampler(options, done=len(study.get_trials(deepcopy=False)))
    ours = _identity(recipe, space, options)
    theirs = study.user_attrs.get("identity")
    if theirs is None:
        study.set_user_attr("identity", ours)
    elif theirs != ours:
        other = ", ".join(sorted(key for key in ours if ours[key] != theirs.get(key)))
        raise InvalidInput(
            f"{options.storage} holds a study {study.study_name!r} with another {other}; "
            "take another storage, or another output_dir in the recipe"
        )
    return study


def new_sampler(options: SweepOptions, done: int) -> BaseSampler:
    """done: trials there were before. They move the seed, or a sweep that goes on would draw its first trials again."""
    seed = options.seed + done
    if options.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


def run_trial(trial: optuna.Trial, recipe: ClozeRecipe, space: Space, options: SweepOptions) -> float:
    """The objective after a whole training. Raises optuna.TrialPruned at a mark where it is below the median."""
    chosen = in_folder(space.choose(trial, recipe), trial.number)
    metrics = train_cloze(chosen, options.data_dir, resume=False, make_trainer=judged(trial, options))
    return metrics[options.objective]


def in_folder(recipe: ClozeRecipe, number: int) -> ClozeRecipe:
    """A trial's own folder; no checkpoints, and evaluation at the marks alone."""
    never = recipe.optimization.model_copy(update={"save_steps": 10**9, "eval_steps": 10**9})
    return recipe.model_copy(update={"output_dir": recipe.output_dir / f"trial-{number:04d}", "optimization": never})


def judged(trial: optuna.Trial, options: SweepOptions) -> Callable[..., ClozeTrainer]:
    """Names the evaluation pairs in the metrics, and reports to the trial at the marks."""

    def make_trainer(**arguments: Any) -> ClozeTrainer:
        held_out: PairDataset = arguments["eval_dataset"]
        arguments["eval_dataset"] = {HELD_OUT: held_out}
        if options.paper_protocol:
            arguments["eval_dataset"][PAPER] = held_out.of(read_pairs(options.paper_protocol))
        arguments["callbacks"] = [*arguments["callbacks"], ReportAtMarks(trial, options.objective)]
        return ClozeTrainer(**arguments)

    return make_trainer


class ReportAtMarks(TrainerCallback):
    """Evaluates after each mark's share of the steps, reports to the trial, and ends one that is to be pruned."""

    def __init__(self, trial: optuna.Trial, objective: str) -> None:
        self._trial = trial
        self._objective = objective
        self._marks: dict[int, int] = {}

    def on_train_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        # Reported by share, not by step: trials may differ in steps.
        self._marks = {math.ceil(state.max_steps * mark / 100): mark for mark in MARKS}
        self._marks.pop(state.max_steps, None)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_evaluate = state.global_step in self._marks

    def on_evaluate(self, _: Any, state: Any, __: Any, metrics: dict[str, float], **___: Any) -> None:
        mark = self._marks.get(state.global_step)
        if mark is None or self._objective not in metrics:
            return
        self._trial.report(metrics[self._objective], step=mark)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"below the median at {mark} % of the steps")


def keep_only_best(study: optuna.Study, output_dir: Path) -> None:
    """Remove the folders of trials that are over and not the best: each may hold a model's weights."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    keep = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING}
    if complete:
        keep.add(study.best_trial.number)
    for folder in output_dir.glob("trial-*"):
        if int(folder.name.removeprefix("trial-")) not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_result(study: optuna.Study, recipe: ClozeRecipe, space: Space, options: SweepOptions) -> None:
    """best.yaml: the recipe with the best values. sweep.json: every trial, and on what they were judged."""
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    best = space.choose(optuna.trial.FixedTrial(study.best_params), recipe)
    best = best.model_copy(update={"output_dir": recipe.output_dir / "best"})
    text = yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (recipe.output_dir / "best.yaml").write_text(text, encoding="utf-8")
    result = {
        **_identity(recipe, space, options),
        "is_replication_only": options.paper_protocol is not None,
        "best": _summary(study.best_trial),
        "trials": [_summary(trial) for trial in study.get_trials(deepcopy=False)],
    }
    (recipe.output_dir / "sweep.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _summary(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "at_marks": {str(mark): value for mark, value in trial.intermediate_values.items()},
    }


def _identity(recipe: ClozeRecipe, space: Space, options: SweepOptions) -> dict[str, Any]:
    """What all trials of a study have in common, in JSON's types."""
    paper = options.paper_protocol
    selected_on = {"path": str(paper), "sha256": sha256(paper)} if paper else "pairs held out of the training data"
    return {
        **identity(recipe, pair_hashes(recipe, options.data_dir)),
        "space": space.model_dump(mode="json"),
        "objective": options.objective,
        "selected_on": selected_on,
    }
