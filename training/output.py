"""The folder a run writes: whose checkpoints are in it, and which of them may be gone on from."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint

from tinyrm.bundle import sha256, weights_sha256
from tinyrm.errors import InvalidInput
from tinyrm.spec import RUN_FILE
from training.recipe import ClozeRecipe, PretrainRecipe, SftRecipe

RECIPE_FILE = "recipe.json"

TrainingRecipe = PretrainRecipe | SftRecipe | ClozeRecipe


def prepare_output(recipe: TrainingRecipe, data: Mapping[str, str], *, resume: bool) -> str | None:
    """The checkpoint to go on from, None to begin. Beginning removes checkpoints of an earlier run.

    data: file -> its hash. Raises InvalidInput if the checkpoints are of another recipe, another base or other data.
    """
    folder, ours = recipe.output_dir, identity(recipe, data)
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if checkpoint and resume:
        _refuse_other_run(folder, ours)
        return checkpoint
    if PartialState().is_main_process:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_FILE).write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
    return None


def identity(recipe: TrainingRecipe, data: Mapping[str, str]) -> dict[str, Any]:
    """The recipe, wherever it writes, and the hashes of what it starts from: weights in a folder, files of pairs."""
    base = weights_sha256(recipe.model) if isinstance(recipe.model, str) else None
    recipe_fields = recipe.model_dump(mode="json", exclude={"output_dir"})
    return {"recipe": recipe_fields, "base_sha256": base, "data_sha256": dict(data)}


def file_hashes(data_dir: Path, paths: Iterable[str | None]) -> dict[str, str]:
    """Of those that are files; folders and the hub have revisions of their own."""
    return {path: sha256(data_dir / path) for path in paths if path and (data_dir / path).is_file()}


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """What `tinyrm.spec.read_run` reads."""
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _refuse_other_run(folder: Path, ours: dict[str, Any]) -> None:
    path = folder / RECIPE_FILE
    theirs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if theirs != ours:
        raise InvalidInput(
            f"the checkpoints in {folder} were made by another recipe, from another base or from other data; "
            "start without --resume to begin anew, or write to another folder"
        )
