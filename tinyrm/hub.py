"""Load published data sets, from the hub by their id or from a local copy.

`datasets` is imported when it is used: it costs a second and 300 MB, and few programs read a published set.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyrm.errors import InvalidInput
from tinyrm.files import READ_ERRORS
from tinyrm.tables import table_suffix

if TYPE_CHECKING:
    from datasets import Dataset

# Suffix of a file -> the name of its reader in `datasets`.
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv"}
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 20  # for one question to the hub
# What `datasets` raises beside its own errors; it depends on the source: the hub, a folder, a file, a split.
UNREADABLE = (*READ_ERRORS, ValueError, KeyError, IndexError, RuntimeError)


def file_format(path: Path) -> str:
    """Return the reader's name for a file, compressed or not; empty for a file of another kind."""
    return FORMATS.get(table_suffix(path), "")


def load_table(
    source: str | Path,
    split: str = "train",
    *,
    files: Sequence[str] | None = None,
    revision: str | None = None,
    config: str | None = None,
) -> "Dataset":
    """Return the rows of one split.

    source: hub id, folder (a copy of the repository, or one that `save_to_disk` wrote), or a single file, which is one
        split with any name.
    files: patterns of the files of a hub id; None for the repository's own layout.
    revision: branch, tag or commit of a hub id.
    config: name of one of the parts of a hub id that has several.

    Raises InvalidInput with the reason in one line.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    path = Path(source)
    try:
        if path.is_file():
            if not file_format(path):
                raise ValueError(f"{path.name} is not one of {', '.join(FORMATS)}, compressed or not")
            return load_dataset(file_format(path), data_files=str(path), split="train")
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(str(source))
            return loaded[split] if isinstance(loaded, DatasetDict) else loaded
        part = {"name": config} if config else {}
        files = list(files) if files else None
        return load_dataset(str(source), **part, data_files=files, revision=revision, split=split)
    except (*UNREADABLE, DatasetsError) as error:
        cause = error.__cause__ or error
        # Of a set with several configs, the second line lists them.
        raise InvalidInput(" ".join(str(cause).splitlines()[:2]) or type(cause).__name__) from error


def dataset_commit(hub_id: str, revision: str | None = None) -> str | None:
    """Return the commit of a data set on the hub that `revision` (None: main) names now; None without an answer."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub_id, revision=revision, timeout=TIMEOUT_S).sha
    except Exception:  # noqa: BLE001  # what its HTTP library raises has changed between versions
        return None


def has_split(source: str, split: str, revision: str | None = None) -> bool:
    """Return whether a source has a split; a single file and a single saved set have no named splits.

    Raises InvalidInput if the splits cannot be listed, for example without a network.
    """
    from datasets import get_dataset_split_names, load_from_disk
    from datasets.exceptions import DatasetsError

    path = Path(source)
    if path.is_file() or (path / "state.json").is_file():
        return False
    try:
        if (path / "dataset_dict.json").is_file():
            return split in load_from_disk(source)
        return split in get_dataset_split_names(source, revision=revision)
    except (*UNREADABLE, DatasetsError) as error:
        raise InvalidInput(f"the splits of {source!r} could not be listed: {error}") from error
