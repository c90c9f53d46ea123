"""Rows of a published data set: from the hub by its id, or from a local copy in the same schema."""

from pathlib import Path
from typing import TypeVar

from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from pydantic import BaseModel, ConfigDict

from tinyrm.errors import InvalidInput
from tinyrm.pairs import validated

FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
PACKED = (".gz", ".xz", ".zst")
# What the library raises depends on where it looked: the hub, a folder, a file, a split.
UNREADABLE = (OSError, ValueError, KeyError, IndexError, RuntimeError, DatasetsError)


class Row(BaseModel):
    """A row as published; columns that nobody reads are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyRow = TypeVar("AnyRow", bound=Row)


def load_rows(source: str, split: str, kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of one split.

    source: hub id, folder (a copy of the repository, or one that `save_to_disk` wrote) or a single JSON, JSON lines,
    Parquet or CSV file, which is one split, whatever its name. Raises InvalidInput naming the row that does not fit.
    """
    try:
        dataset = _open(source, split)
    except UNREADABLE as error:
        raise InvalidInput(
            f"no split {split!r} of {source!r} could be read; name a hub id, a folder or a file: {error}"
        ) from error
    rows = [validated(kind, record, f"{source}, split {split}, row {number}") for number, record in enumerate(dataset)]
    if not rows:
        raise InvalidInput(f"{source}, split {split}, holds no rows")
    return rows


def has_split(source: str, split: str) -> bool:
    """Whether there is such a split; a single file, or a single saved set, is not split further.

    Raises InvalidInput if that cannot be known, as without a network.
    """
    path = Path(source)
    if path.is_file() or (path / "state.json").is_file():
        return False
    try:
        if (path / "dataset_dict.json").is_file():
            return split in load_from_disk(source)
        return split in get_dataset_split_names(source)
    except UNREADABLE as error:
        raise InvalidInput(f"the splits of {source!r} could not be listed: {error}") from error


def _open(source: str, split: str) -> Dataset:
    path = Path(source)
    if path.is_file():
        suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
        return load_dataset(FORMATS[suffixes[-1]], data_files=str(path), split="train")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = load_from_disk(source)
        return loaded[split] if isinstance(loaded, DatasetDict) else loaded
    return load_dataset(source, split=split)
