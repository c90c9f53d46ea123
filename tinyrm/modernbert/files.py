"""The files of a checkpoint: one folder, of this machine or fetched from the hub at one commit, and what it holds.

Imports no torch, so that a command can refuse what it cannot use before it loads anything.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput, TinyRMError

# In the order in which `transformers` chooses; an index names the files of its shards.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LONGEST_REASON = 300  # characters; some libraries list everything that they would have understood
MODULES_FILE = "modules.json"  # of sentence-transformers
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@contextmanager
def input_errors(refusal: str) -> Iterator[None]:
    """Raise what a library raises about the user's files as InvalidInput: the refusal and its first line.

    The libraries that read checkpoints raise nearly every kind of exception, from KeyError to errors of their own.
    """
    try:
        yield
    except (TinyRMError, MemoryError):
        raise
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {first}" if isinstance(error, KeyError) or not first else first
        raise InvalidInput(f"{refusal}: {shorten(reason, LONGEST_REASON, placeholder=' ...')}") from error


def checkpoint_folder(model: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint; one on the hub is fetched, or taken from the cache without a network.

    model: folder or hub id.
    revision: branch, tag or commit of a hub id; None for its main branch.

    Raises InvalidInput.
    """
    if Path(model).is_dir():
        if revision:
            raise InvalidInput(f"{model} is a folder here and has no revision {revision!r}; leave the revision out")
        return Path(model)
    with input_errors(f"{model} is not a folder here, and cannot be fetched from the hub"):
        return fetch(model, revision)


def local_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a checkpoint, or of the hub's cache, without asking the hub; None if there is none."""
    if Path(model).is_dir():
        return Path(model)
    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # it is a path
        return None
    return Path(cached).parent if isinstance(cached, str) else None


@cache  # a branch may move while a process works: all that it loads is of one commit
def fetch(model: str, revision: str | None) -> Path:
    """Return the folder of a hub id, with the files of the repository's own folder; those in it hold other formats.

    The folders that a cross-encoder's list of modules names are fetched too.
    """
    for patterns in (["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"], ["pytorch_model*.bin"]):
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if any(folder.glob("*.safetensors")):
            break
    if (folder / MODULES_FILE).is_file():
        paths = [entry["path"] for entry in json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))]
        names = ("config.json", "model.safetensors", "pytorch_model.bin")
        patterns = [f"{path}/{name}" for path in paths if path for name in names]
        snapshot_download(model, revision=folder.name, allow_patterns=patterns)
    return folder


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder from `checkpoint_folder` was fetched at; None for a folder of the user's own."""
    is_fetched = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if is_fetched else None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights, as `transformers` would choose them, or an adapter's.

    Raises InvalidInput if there are none, or if an index names other files than those.
    """
    for name in (*WEIGHTS, *ADAPTER_WEIGHTS):
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        with input_errors(f"{path} is not an index of weights"):
            shards = sorted(set(read_index(path).values()))
        if lacking := [shard for shard in shards if shard != Path(shard).name or not (folder / shard).is_file()]:
            raise InvalidInput(f"{folder} lacks {listed(lacking)}, which {name} names")
        return [folder / shard for shard in shards]
    raise InvalidInput(f"{folder} holds no weights: no {', '.join(WEIGHTS)} and no adapter")


def read_index(path: Path) -> dict[str, str]:
    """Return the name of each tensor and the shard that holds it."""
    weight_map: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    return {str(name): str(shard) for name, shard in weight_map.items()}


def weights_sha256(model: str, revision: str | None = None) -> str:
    """Return the hash of a checkpoint's or an adapter's weights: of its file, or of the hashes of its shards.

    Raises InvalidInput if it holds none.
    """
    files = weight_files(checkpoint_folder(model, revision))
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(f"{sha256(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def base_of(adapter: Path) -> tuple[str, str | None]:
    """Return the base that an adapter names, and its revision. Raises InvalidInput if it names none."""
    with input_errors(f"{adapter / ADAPTER_CONFIG} cannot be read"):
        config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base:
        raise InvalidInput(f"{adapter} does not name the base of its adapter; give it as `base`")
    return str(base), revision


def refuse_other_base(adapter: Path, recorded: str | None, base: str, revision: str | None = None) -> None:
    """Raise InvalidInput if an adapter was trained on other weights than those of `base`.

    recorded: the hash of the base in the record of the adapter's training; None without a record.
    """
    if recorded and weights_sha256(base, revision) != recorded:
        raise InvalidInput(f"{adapter} was trained on other weights than those of {base}; name its own base")


def listed(names: list[str], shown: int = 5) -> str:
    """Return names as a text, the first ones if there are many."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
