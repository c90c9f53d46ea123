"""The folder a run writes: which run its checkpoints belong to, and from which one a run continues."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers.trainer_utils import get_last_checkpoint

from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.files import locked, write_atomically
from tinyrm.modernbert.files import checkpoint_folder, commit_of, weights_sha256
from tinyrm.spec import HELD_OUT_FILE, RUN_FILE, SPEC_FILE, read_run
from training.model.teachers import teacher_at
from training.processes import on_main
from training.recipe import ClozeRecipe, DistilRecipe, PretrainRecipe, SftRecipe
from training.trainer_fields import learnt

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
WEIGHTS = ("model*.safetensors*", "adapter_model*.safetensors", "pytorch_model*.bin*", "adapter_model*.bin")
# Files that a run writes when it ends.
WRITTEN = (*WEIGHTS, RUN_FILE, HELD_OUT_FILE, SPEC_FILE, "config.json", "tokenizer.json")
# Keys of a recipe that say where and how a run computes, not what.
NOT_LEARNT = ("output_dir", "targets", "attention", "padding_free")
# Key of an identity -> what it means that two runs do not share it.
DIFFERENCES = {
    "recipe": "another recipe",
    "base_sha256": "another base",
    "base_commit": "another commit of the base",
    "tokenizer_sha256": "another tokenizer",
    "data_sha256": "other data",
    "teachers": "other teachers",
}

TrainingRecipe = PretrainRecipe | SftRecipe | ClozeRecipe
Pinnable = TypeVar("Pinnable", PretrainRecipe, SftRecipe, ClozeRecipe)


class Start(NamedTuple):
    """How a run begins.

    identity: what the folder's checkpoints are made from.
    checkpoint: the one to continue from; None to begin at step 0.
    """

    identity: dict[str, Any]
    checkpoint: str | None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold an output folder while a run writes to it: of two commands at once, each would take the checkpoints of the
    other for its own.

    Raises InvalidInput if another command holds the folder. A system without locks goes on without one.
    """
    with ExitStack() as stack:

        def hold() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(remove_empty, folder)
            try:
                stack.enter_context(locked(folder, wait=False))
            except BlockingIOError as error:
                raise InvalidInput(
                    f"another command writes to {folder} now; wait until it ends, or name another folder"
                ) from error
            except OSError:  # Windows, and some network file systems
                log.warning("%s cannot be locked: start no other command that writes to it", folder)

        on_main(hold)
        yield


def remove_empty(folder: Path) -> None:
    """Remove a folder into which nothing was written."""
    with suppress(OSError):
        folder.rmdir()


def prepare_output(recipe: TrainingRecipe, data: Mapping[str, str], *, resume: bool, fresh: bool = False) -> Start:
    """Return how the run begins, as the main process finds its output folder; `begin` changes the folder.

    data: file, or name of a source -> its hash.
    resume: continue from the newest checkpoint if there is one.
    fresh: replace whatever run the folder holds.

    Raises InvalidInput rather than continue another run, or replace one without `fresh`.
    """

    def look() -> Start:
        folder = recipe.output_dir
        refuse_inputs(folder, inputs_of(recipe))
        ours = identity(recipe, data)
        checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        held = checkpoint or next((str(file) for pattern in WRITTEN for file in folder.glob(pattern)), None)
        if held and not fresh:
            if reason := difference(read_identity(folder), ours):
                raise InvalidInput(
                    f"{folder} holds another run ({Path(held).name}): {reason}. Set another output_dir, or start with "
                    "--fresh to replace it"
                )
            if not (resume and checkpoint):
                raise InvalidInput(
                    f"{folder} holds this run ({Path(held).name}). Start with --fresh to replace it"
                    + (", or with --resume to continue it" if checkpoint else "")
                )
            return Start(ours, checkpoint)
        return Start(ours, None)

    return on_main(look)


def begin(folder: Path, start: Start) -> None:
    """Make the output folder ready, on the main process: nothing of an earlier run remains unless it continues.

    Called when the data and the model are loaded: a recipe that is refused costs no earlier run.
    """

    def clear() -> None:
        # Weights of the earlier run would pass for this one's until it ends.
        for pattern in (*WEIGHTS, RUN_FILE):
            for file in folder.glob(pattern):
                file.unlink()
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE_FILE, json.dumps(start.identity, indent=2) + "\n")

    if start.checkpoint is None:
        on_main(clear)


def pinned(recipe: Pinnable, start: Start) -> Pinnable:
    """Return the recipe with the commit of its base, so that every process loads the same weights."""
    return recipe.model_copy(update={"revision": start.identity["base_commit"] or recipe.revision})


def inputs_of(recipe: TrainingRecipe) -> list[str]:
    """Return the models that a run starts from and learns from."""
    models = [recipe.model] if isinstance(recipe.model, str) else []
    teachers = recipe.all_teachers() if isinstance(recipe, DistilRecipe) else ()
    return models + [teacher.path for teacher in teachers]


def refuse_inputs(folder: Path, inputs: Iterable[str]) -> None:
    """Raise InvalidInput if a run would write over a model that it reads."""
    for path in inputs:
        if folder.resolve() == Path(path).resolve():
            raise InvalidInput(f"output_dir is {path}, which the run reads; set another output_dir")


def refuse_weights(folder: Path, task: str) -> None:
    """Raise InvalidInput if a folder holds weights of another task; those of `task` are quickly made again."""
    held = next((file for pattern in WEIGHTS for file in folder.glob(pattern)), None)
    # The record is written last, and the identity first.
    if held and task not in [
        record.get("recipe", {}).get("task") for record in (read_run(folder), read_identity(folder))
    ]:
        raise InvalidInput(
            f"{folder} holds another model ({held.name}). Set another output_dir, or start with --fresh to replace it"
        )


def read_identity(folder: Path) -> dict[str, Any]:
    """Return what an earlier run was made from; empty if the folder is not of a run."""
    try:
        found = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return in words what two runs do not share; empty if that is nothing."""
    if not theirs:
        return f"there is no {RECIPE_FILE}, so no run of training made it"
    keys = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    return " and ".join(DIFFERENCES.get(key, f"another {key}") for key in keys)


def identity(recipe: TrainingRecipe, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe, wherever it writes, and what it learns from: weights, tokenizer, data, teachers.

    A base on the hub has a commit, too, whatever its branch points to later.

    data: file, or name of a source -> its hash.
    """
    base: dict[str, str | None] = {"base_sha256": None, "base_commit": None}
    folder = Path()
    if isinstance(recipe.model, str):
        folder = checkpoint_folder(recipe.model, recipe.revision)
        base = {"base_sha256": weights_sha256(str(folder)), "base_commit": commit_of(folder)}
    tokenizer = (Path(recipe.tokenizer) if isinstance(recipe, PretrainRecipe) else folder) / "tokenizer.json"
    found = {
        "recipe": what_is_learnt(recipe.model_dump(mode="json")),
        **base,
        "tokenizer_sha256": sha256(tokenizer) if tokenizer.is_file() else None,
        "data_sha256": dict(data),
    }
    if isinstance(recipe, DistilRecipe):
        found["teachers"] = {each.path: teacher_at(each).identity() for each in recipe.all_teachers()}
    return found


def what_is_learnt(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe without those that leave the weights as they are, but for rounding."""
    kept = {name: value for name, value in recipe.items() if name not in NOT_LEARNT}
    return {**kept, "trainer": learnt(recipe.get("trainer", {}))}


def file_hashes(data_dir: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return path -> hash of those paths that are files; one that is missing is reported by what reads it."""
    return {path: sha256(data_dir / path) for path in paths if (data_dir / path).is_file()}


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what `tinyrm.spec.read_run` reads."""
    write_atomically(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")
