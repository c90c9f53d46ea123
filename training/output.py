"""The folder a run writes: which run its checkpoints belong to, and from which one a run continues."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint

from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.files import write_atomically
from tinyrm.modernbert.files import checkpoint_folder, commit_of, weights_sha256
from tinyrm.spec import RUN_FILE
from training.recipe import ClozeRecipe, PretrainRecipe, SftRecipe

RECIPE_FILE = "recipe.json"

TrainingRecipe = PretrainRecipe | SftRecipe | ClozeRecipe


def prepare_output(recipe: TrainingRecipe, data: Mapping[str, str], *, resume: bool) -> str | None:
    """Return the checkpoint to continue from, or None to start. A new start removes the checkpoints of earlier runs.

    data: file -> its hash.

    Raises InvalidInput if the checkpoints are of another recipe, another base or other data.
    """
    folder, ours = recipe.output_dir, identity(recipe, data)
    path = folder / RECIPE_FILE
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if checkpoint and resume:
        theirs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if theirs != ours:
            raise InvalidInput(
                f"the checkpoints in {folder} were made by another recipe, from another base or on other data; start "
                "without --resume to replace them, remove the folder, or set another output_dir"
            )
        return checkpoint
    if PartialState().is_main_process:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(ours, indent=2) + "\n")
    return None


def identity(recipe: TrainingRecipe, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe, wherever it writes, and what it starts from: the weights of its base and the data files.

    A base on the hub has a commit, too, whatever its branch points to later.
    """
    base: dict[str, str | None] = {"base_sha256": None, "base_commit": None}
    if isinstance(recipe.model, str):
        folder = checkpoint_folder(recipe.model, recipe.revision)
        base = {"base_sha256": weights_sha256(str(folder)), "base_commit": commit_of(folder)}
    return {"recipe": recipe.model_dump(mode="json", exclude={"output_dir"}), **base, "data_sha256": dict(data)}


def file_hashes(data_dir: Path, paths: Iterable[str | None]) -> dict[str, str]:
    """Return path -> hash of those paths that are files; folders and the hub have revisions of their own."""
    return {path: sha256(data_dir / path) for path in paths if path and (data_dir / path).is_file()}


def pair_hashes(recipe: ClozeRecipe, data_dir: Path) -> dict[str, str]:
    """Return the hashes of the files that the recipe learns from."""
    return file_hashes(data_dir, (source.path for source in recipe.sources))


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what `tinyrm.spec.read_run` reads."""
    write_atomically(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")
