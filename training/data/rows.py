"""Rows of a published set: from a local copy of its files where there is one, else from the hub."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyrm.errors import InvalidInput
from training.data.source import Source

Row = dict[str, Any]

# Suffix of a file -> the reader that `datasets` calls it by.
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
PACKED = (".gz", ".xz")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a set is on the hub, and which of its columns are read.

    files: patterns of its training files there, None where the hub's own layout says it.
    revision: a branch other than main.
    """

    hub_id: str
    columns: tuple[str, ...]
    files: tuple[str, ...] | None = None
    revision: str | None = None


def rows(published: Published, source: Source, data_dir: Path) -> Iterator[Row]:
    """The rows for training, with the columns asked for.

    A local copy is `source.path` in the data folder, or else what is called like the set there.
    Raises InvalidInput where the set cannot be had, or has other columns.
    """
    local = find_local(source, data_dir)
    if local is not None:
        yield from read_files(training_files(local), published.columns)
        return
    # One second and 300 MB that nobody pays who reads no published set.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    files = list(published.files) if published.files else None
    try:
        table = load_dataset(published.hub_id, data_files=files, revision=published.revision, split="train")
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"{published.hub_id} cannot be had from the hub ({_one_line(error)}); "
            f"put its files into {data_dir / source.dataset}"
        ) from error
    yield from _selected(table, published.columns, published.hub_id)


def find_local(source: Source, data_dir: Path) -> Path | None:
    """The local copy, None where there is none. Raises InvalidInput if a path is named and not there."""
    if source.path is not None:
        path = data_dir / source.path
        if not path.exists():
            raise InvalidInput(f"{path} does not exist")
        return path
    folder = data_dir / source.dataset
    files = (data_dir / f"{source.dataset}{suffix}{packed}" for suffix in FORMATS for packed in ("", *PACKED))
    return next((path for path in (folder, *files) if path.exists()), None)


def training_files(path: Path) -> list[Path]:
    """The files of a local copy to train on: those for training where any is named so, else all that can be read."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and _format(file))
    for_training = [file for file in files if "train" in str(file.relative_to(path))]
    if not files:
        raise InvalidInput(f"{path} holds no {', '.join(FORMATS)}, packed or not")
    return for_training or files


def read_files(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of Parquet and JSON files, one file after the other. Raises InvalidInput naming the file at fault."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    for file in files:
        try:
            table = load_dataset(_format(file), data_files=str(file), split="train")
        except (DatasetsError, OSError, ValueError) as error:
            raise InvalidInput(f"{file} cannot be read: {_one_line(error.__cause__ or error)}") from error
        yield from _selected(table, columns, str(file))


def _selected(table: Any, columns: Sequence[str] | None, name: str) -> Iterator[Row]:
    missing = [column for column in columns or () if column not in table.column_names]
    if missing:
        raise InvalidInput(f"{name} has no {', '.join(missing)}; its columns are {', '.join(table.column_names)}")
    return iter(table.select_columns(list(columns)) if columns else table)


def _format(file: Path) -> str:
    """parquet, json, or nothing for a file of another kind."""
    name = file.with_suffix("") if file.suffix in PACKED else file
    return FORMATS.get(name.suffix, "")


def _one_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
