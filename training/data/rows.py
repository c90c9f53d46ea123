"""Rows of a published set: from a local copy of its files if there is one, else from the hub."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyrm.errors import InvalidInput
from tinyrm.hub import dataset_commit, load_table
from tinyrm.tables import PACKED
from training.data.source import Source

Row = dict[str, Any]

# Files of a local copy that hold rows.
SUFFIXES = (".parquet", ".jsonl", ".json")
TRAIN = re.compile("(?<![a-z])train")  # not as in `constraints`


@dataclass(frozen=True, slots=True)
class Published:
    """A set on the hub and the columns that are read.

    files: patterns of its training files there; None follows the hub's own layout.
    revision: a branch other than main.
    """

    hub_id: str
    columns: tuple[str, ...]
    files: tuple[str, ...] | None = None
    revision: str | None = None


def rows(published: Published, source: Source, data_dir: Path) -> Iterator[Row]:
    """Yield the rows for training, with the columns that are read.

    A local copy is `source.path` in the data folder, or a file or folder there with the name of the set.
    Raises InvalidInput if the set cannot be loaded or has other columns.
    """
    local = find_local(source, data_dir)
    if local is not None:
        yield from read_files(training_files(local), published.columns)
        return
    try:
        revision = source.revision or published.revision
        table = load_table(published.hub_id, files=published.files, revision=revision)
    except InvalidInput as error:
        raise InvalidInput(
            f"{published.hub_id} cannot be had from the hub ({error}); put its files into {data_dir / source.dataset}"
        ) from error
    yield from select(table, published.columns, published.hub_id)


def pinned(published: Published, source: Source, data_dir: Path) -> Source:
    """Return the source with the commit that the hub has now, so that all reads of a run see the same rows.

    A local copy has no commit, and neither has the hub's cache without a network: the source is returned as it is.
    """
    if find_local(source, data_dir) is not None:
        return source
    commit = dataset_commit(published.hub_id, source.revision or published.revision)
    return source if commit is None else source.model_copy(update={"revision": commit})


def find_local(source: Source, data_dir: Path) -> Path | None:
    """Return the local copy, None if there is none.

    Raises InvalidInput if a path is named and does not exist, or if the source pins a revision, which a copy lacks.
    """
    if source.path is not None:
        path = data_dir / source.path
        if not path.exists():
            raise InvalidInput(f"{path} does not exist")
        return path
    folder = data_dir / source.dataset
    files = (data_dir / f"{source.dataset}{suffix}{packed}" for suffix in SUFFIXES for packed in ("", *PACKED))
    found = next((path for path in (folder, *files) if path.exists()), None)
    if found and source.revision:
        raise InvalidInput(
            f"{source.name} is pinned to revision {source.revision} of the hub, and {found} would be read instead; "
            "remove the copy or the revision"
        )
    return found


def data_file(data_dir: Path, name: str) -> Path:
    """Return a file of the data folder. Raises InvalidInput, with what is there instead, if it does not exist."""
    path = data_dir / name
    if path.exists():
        return path
    stem = path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name
    near = [other for other in (path.with_name(stem + packed) for packed in ("", *PACKED)) if other.is_file()]
    there = f"; there is {near[0]}, which the recipe may name instead" if near else ""
    raise InvalidInput(f"{path} does not exist: recipes look for their data in the folder that --data names{there}")


def training_files(path: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the files of a local copy to train on: those named `train` if there are any, else all readable ones.

    Hidden files and folders are left out: they hold copies of editors and caches of downloads.
    """
    if path.is_file():
        return [path]
    endings = tuple(suffix + packed for suffix in suffixes for packed in ("", *PACKED))
    inner = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.name.endswith(endings))
    files = [path / name for name in inner if not any(part.startswith(".") for part in name.parts)]
    for_training = [file for file in files if TRAIN.search(str(file.relative_to(path)))]
    if not files:
        raise InvalidInput(f"{path} has no {', '.join(suffixes)} file, compressed or not")
    return for_training or files


def is_saved(path: Path) -> bool:
    """Return whether a folder is one that `save_to_disk` of `datasets` wrote."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_files(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of Parquet and JSON files, one file after the other. Raises InvalidInput naming the bad file."""
    for file in files:
        try:
            table = load_table(file)
        except InvalidInput as error:
            raise InvalidInput(f"{file} cannot be read: {error}") from error
        yield from select(table, columns, str(file))


def select(table: Any, columns: Sequence[str] | None, name: str) -> Iterator[Row]:
    missing = [column for column in columns or () if column not in table.column_names]
    if missing:
        raise InvalidInput(f"{name} has no {', '.join(missing)}; its columns are {', '.join(table.column_names)}")
    return iter(table.select_columns(list(columns)) if columns else table)
