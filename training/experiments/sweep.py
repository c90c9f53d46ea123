"""A sweep: trials of a recipe, judged on held-out pairs as they train, in a storage that outlives the process."""

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError, model_validator
from sqlalchemy.exc import SQLAlchemyError
from transformers import TrainerCallback

from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.files import write_atomically
from tinyrm.modernbert.checkpoint import read_config
from tinyrm.modernbert.files import checkpoint_folder
from tinyrm.pairs import read_pairs
from training.data.collate import PairDataset
from training.data.mixture import load_all
from training.loading import read_recipe
from training.options import Sweep
from training.output import identity
from training.recipe import ClozeRecipe, Section
from training.recipe_errors import invalid_recipe
from training.stages.cloze import ClozeTrainer, train_cloze
from training.trainer import Diverged

MARKS = (25, 50, 75)  # per cent of a trial's steps after which a hopeless one ends
STARTUP_TRIALS = 10  # random ones, before a sampler has anything to learn from
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HELD_OUT, PAPER = "held_out", "paper_protocol"
HEARTBEAT_S = 60


class Space(Section):
    """Ranges to search; both ends are included. What is left out stays as the recipe has it."""

    peak_lr: tuple[float, float] = Field(default=(1e-6, 5e-4), description="Log-uniform; the paper's was uniform.")
    dora_ranks: tuple[int, ...] = Field(
        default=(), description="With the recipe's alpha / rank, so that only the rank changes."
    )
    frozen_layers: tuple[int, int] | None = None
    instructions: dict[str, tuple[str, ...]] = Field(default={}, description="Domain -> the prefixes to choose from.")

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> Self:
        if not 0 < self.peak_lr[0] <= self.peak_lr[1]:
            raise ValueError(f"peak_lr {self.peak_lr} is not a range above 0")
        if self.frozen_layers and not 0 <= self.frozen_layers[0] <= self.frozen_layers[1]:
            raise ValueError(f"frozen_layers {self.frozen_layers} is not a range from 0 up")
        if empty := [domain for domain, pool in self.instructions.items() if not pool]:
            raise ValueError(f"no instruction to choose from for {', '.join(empty)}")
        if any(rank < 1 for rank in self.dora_ranks):
            raise ValueError("dora_ranks must be at least 1")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises InvalidInput for a file that is not YAML, and with a line for each wrong key."""
        try:
            return cls.model_validate(read_recipe(path))
        except ValidationError as error:
            raise invalid_recipe(error, cls, str(path)) from error

    def misfits(self, recipe: ClozeRecipe, layers: int) -> list[str]:
        """Return why no trial of this space could run on the recipe and its model; empty if all can."""
        found = []
        if self.dora_ranks and not recipe.dora:
            found.append("dora_ranks are given, but the recipe has no dora")
        if self.frozen_layers and self.frozen_layers[1] >= layers:
            found.append(f"frozen_layers up to {self.frozen_layers[1]} leave nothing to learn in {layers} layers")
        if unknown := sorted(self.instructions.keys() - recipe.spec.domains.keys()):
            found.append(f"instructions for {', '.join(unknown)}, which the recipe's spec does not have")
        if drawn := sorted(self.instructions.keys() & recipe.prefixes.keys()):
            found.append(f"instructions for {', '.join(drawn)}, which the recipe draws from its own `prefixes`")
        return found

    def choose(self, trial: optuna.trial.BaseTrial, recipe: ClozeRecipe) -> ClozeRecipe:
        """Return the recipe with the trial's choices, each validated as if it stood in the file."""
        changed = recipe.model_dump(mode="json")
        changed["optimization"]["peak_lr"] = trial.suggest_float("peak_lr", *self.peak_lr, log=True)
        if self.frozen_layers:
            changed["frozen_layers"] = trial.suggest_int("frozen_layers", *self.frozen_layers)
        if self.dora_ranks and recipe.dora:
            rank = trial.suggest_categorical("dora_rank", self.dora_ranks)
            alpha = max(1, round(recipe.dora.alpha * rank / recipe.dora.rank))
            changed["dora"] |= {"rank": rank, "alpha": alpha}
        for domain, pool in self.instructions.items():
            changed["spec"]["domains"][domain] = trial.suggest_categorical(f"instruction.{domain}", pool)
        return type(recipe).model_validate(changed)


def sweep(recipe: ClozeRecipe, space: Space, options: Sweep) -> optuna.Study:
    """Run trials until `options.trials` have finished; write best.yaml, a recipe, and sweep.json to the output folder.

    The weights of the best trial are kept, in a folder with its number. Raises InvalidInput if the storage cannot be
    used or holds another study, or if the space does not fit the recipe.
    """
    if options.trials < 1:
        raise InvalidInput(f"trials={options.trials} must be at least 1")
    layers: int = read_config(recipe.model, checkpoint_folder(recipe.model, recipe.revision)).num_hidden_layers
    if misfits := space.misfits(recipe, layers):
        raise InvalidInput("; ".join(misfits))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeat and TPE's groups; tests pin both
            ours = study_identity(recipe, space, options)
            study = open_study(recipe, ours, options)
            if len(study.get_trials(deepcopy=False, states=FINISHED)) < options.trials:
                study.optimize(
                    lambda trial: run_trial(trial, recipe, space, options),
                    callbacks=[
                        optuna.study.MaxTrialsCallback(options.trials, states=FINISHED),
                        lambda study, _: keep_only_best(study, recipe.output_dir),
                    ],
                )
    except (OptunaError, SQLAlchemyError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"storage {options.storage}: {reason}") from error
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise InvalidInput("no trial reached its end: all were pruned or diverged; lower the range of peak_lr")
    write_result(study, recipe, space, options, ours)
    return study


def open_study(recipe: ClozeRecipe, ours: dict[str, Any], options: Sweep) -> optuna.Study:
    """Return the study named like the recipe's output folder, which is created if the storage does not have it.

    ours: what `study_identity` returns. Raises InvalidInput if the storage or the folder holds another study.
    """
    # Listed before the study is read: a process that shares it may begin a trial in between.
    folders = {int(folder.name.removeprefix("trial-")): folder for folder in recipe.output_dir.glob("trial-*")}
    study = optuna.create_study(
        # A trial whose process has ended stops sending heartbeats, and fails when the next trial starts.
        storage=RDBStorage(options.storage, heartbeat_interval=HEARTBEAT_S, grace_period=2 * HEARTBEAT_S),
        study_name=recipe.output_dir.name,
        direction="maximize",
        pruner=MedianPruner(n_startup_trials=min(5, STARTUP_TRIALS)),
        load_if_exists=True,
    )
    study.sampler = new_sampler(options, done=len(study.get_trials(deepcopy=False)))
    theirs = study.user_attrs.get("identity")
    if theirs is None:
        study.set_user_attr("identity", ours)
    elif theirs != ours:
        other = ", ".join(sorted(key for key in ours if ours[key] != theirs.get(key)))
        raise InvalidInput(
            f"{options.storage} holds a study {study.study_name!r} with another {other}; "
            "use another storage, or another output_dir in the recipe"
        )
    trials = {trial.number for trial in study.get_trials(deepcopy=False)}
    if foreign := [str(folder) for number, folder in sorted(folders.items()) if number not in trials]:
        raise InvalidInput(
            f"{', '.join(foreign)}: not of the study in {options.storage}, which would replace them; remove them, or "
            "set another output_dir in the recipe"
        )
    return study


def new_sampler(options: Sweep, done: int) -> BaseSampler:
    """done: number of earlier trials. They move the seed; otherwise a continued sweep would repeat its first draws."""
    seed = options.seed + done
    if options.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


def objective(options: Sweep) -> str:
    """Return the metric that is maximised: accuracy with both orders read."""
    return f"eval_{PAPER if options.paper_protocol else HELD_OUT}_accuracy"


def run_trial(trial: optuna.Trial, recipe: ClozeRecipe, space: Space, options: Sweep) -> float:
    """Train with the trial's choices and return the objective.

    Raises optuna.TrialPruned at a mark where the objective is below the median, and where training diverges.
    """
    chosen = space.choose(trial, recipe)
    # No checkpoints, and evaluation at the marks only.
    never = chosen.optimization.model_copy(update={"save_steps": 10**9, "eval_steps": 10**9})
    folder = recipe.output_dir / f"trial-{trial.number:04d}"
    notes = with_selection(chosen, options)
    chosen = chosen.model_copy(update={"output_dir": folder, "optimization": never, "notes": notes})
    try:
        metrics = train_cloze(chosen, options.data, resume=False, make_trainer=reporting_trainer(trial, options))
    except Diverged as error:
        raise optuna.TrialPruned(str(error)) from error
    return metrics[objective(options)]


def reporting_trainer(trial: optuna.Trial, options: Sweep) -> Callable[..., ClozeTrainer]:
    """Return a maker of trainers that name the evaluation pairs in the metrics and report to the trial at the marks."""

    def make_trainer(**arguments: Any) -> ClozeTrainer:
        held_out: PairDataset = arguments["eval_dataset"]
        arguments["eval_dataset"] = {HELD_OUT: held_out}
        if options.paper_protocol:
            arguments["eval_dataset"][PAPER] = held_out.with_pairs(read_pairs(options.paper_protocol))
        return ClozeTrainer(callbacks=[ReportAtMarks(trial, objective(options))], **arguments)

    return make_trainer


class ReportAtMarks(TrainerCallback):
    """Evaluates after each mark's share of the steps, reports to the trial, and ends one that is to be pruned."""

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self._trial = trial
        self._metric = metric
        self._marks: dict[int, int] = {}

    def on_train_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        # Reported by share, not by step: trials may differ in steps.
        self._marks = {math.ceil(state.max_steps * mark / 100): mark for mark in MARKS}
        self._marks.pop(state.max_steps, None)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_evaluate = state.global_step in self._marks

    def on_evaluate(self, _: Any, state: Any, __: Any, metrics: dict[str, float], **___: Any) -> None:
        mark = self._marks.get(state.global_step)
        if mark is None or self._metric not in metrics:
            return
        self._trial.report(metrics[self._metric], step=mark)
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


def write_result(study: optuna.Study, recipe: ClozeRecipe, space: Space, options: Sweep, ours: dict[str, Any]) -> None:
    """Write best.yaml, the recipe with the best values, and sweep.json: every trial, and what they were judged on."""
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    best = space.choose(optuna.trial.FixedTrial(study.best_params), recipe)
    notes = with_selection(best, options)
    best = best.model_copy(update={"output_dir": recipe.output_dir / "best", "notes": notes})
    text = yaml.safe_dump(best.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(recipe.output_dir / "best.yaml", text)
    result = {
        **ours,
        "is_replication_only": options.paper_protocol is not None,
        "best": summary(study.best_trial),
        "trials": [summary(trial) for trial in study.get_trials(deepcopy=False)],
    }
    write_atomically(recipe.output_dir / "sweep.json", json.dumps(result, indent=2) + "\n")


def with_selection(recipe: ClozeRecipe, options: Sweep) -> tuple[str, ...]:
    """Return the recipe's notes and what was selected on which pairs; a bundle's manifest repeats them."""
    where = options.paper_protocol or "the held-out pairs"
    return (*recipe.notes, f"A sweep selected hyperparameters on {where}: measures on these are too good.")


def summary(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "at_marks": {str(mark): value for mark, value in trial.intermediate_values.items()},
    }


def study_identity(recipe: ClozeRecipe, space: Space, options: Sweep) -> dict[str, Any]:
    """Return what all trials of a study have in common, in JSON's types."""
    paper = options.paper_protocol
    selected_on = {"path": str(paper), "sha256": sha256(paper)} if paper else "pairs held out of the training data"
    return {
        **identity(recipe, load_all(recipe.sources, options.data).sha256),
        "space": space.model_dump(mode="json"),
        "objective": objective(options),
        "selected_on": selected_on,
    }
