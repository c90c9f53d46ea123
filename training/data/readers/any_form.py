"""Files of our own and sets of the hub in any form of `tinyrm.verdicts`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyrm.errors import InvalidInput, InvalidRequest, UnknownForm
from tinyrm.hub import dataset_commit, load_table
from tinyrm.preferences import PREFERENCE_COLUMNS
from tinyrm.tables import TABLES, read_rows
from tinyrm.verdicts import Rules, read_judged
from training.data.cleaning import Raw, Reason
from training.data.readers.dialogue import reason_of, to_raw
from training.data.rows import data_file, is_saved, training_files
from training.data.source import Source


def read(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """Read pairs, and optionally their domain and subset.

    Raises InvalidInput naming the line or row that is in no known form, or has a label that is none. A row without a
    text is dropped.
    """
    for place, record in places(source, data_dir):
        if not isinstance(record, Mapping):
            raise InvalidInput(f"{place}: a record must be an object, not {type(record).__name__}")
        row = renamed(record, source.columns, place) if source.columns else record
        for name in ("domain", "subset"):
            if not isinstance(row.get(name), str | None):
                raise InvalidInput(f"{place}: {name} must be a string or missing")
        if source.part in (None, row.get("domain")):
            try:
                yield from pairs_of(row, source)
            except UnknownForm as error:
                named = source.columns or "label" in row or any(a in row and b in row for a, b in PREFERENCE_COLUMNS)
                hint = "" if named else "; `columns` names others (tinyrm train: --source columns.chosen=THEIRS)"
                raise InvalidInput(f"{place}: {error}{hint}") from error


def pairs_of(row: Mapping[str, Any], source: Source) -> Iterator[Raw | Reason]:
    """Yield the pairs of a row, or why there are none. Raises UnknownForm."""
    learn_ties = source.ties == "learn"
    rules = Rules(source.scores.margin_per_point if source.scores else None, learn_ties, source.pairs_per_row)
    try:
        judged = read_judged(row, rules)
    except InvalidRequest as error:
        yield reason_of(error)
        return
    for one in judged:
        if one.is_tie and not learn_ties:
            yield "tie"
        else:
            label = one.label.model_copy(update={"probability": 0.5}) if one.is_tie else one.label
            yield to_raw(one.texts, row.get("domain"), row.get("subset") or source.id, label)


def places(source: Source, data_dir: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place, for messages. Raises InvalidInput."""
    if source.dataset == "hub":
        if Path(str(source.id)).exists():
            raise InvalidInput(f"{source.id} is a folder here, too, which would be read: use `dataset: file` for it")
        try:
            table = load_table(str(source.id), source.split, revision=source.revision, config=source.config)
        except InvalidInput as error:
            raise InvalidInput(
                f"split {source.split} of {source.id} cannot be had from the hub ({error}); check id, config, split "
                "and revision, or name a local copy with `dataset: file`"
            ) from error
        yield from ((f"{source.id}, row {number}", row) for number, row in enumerate(table, start=1))
        return
    path = data_file(data_dir, str(source.path))
    if is_saved(path):
        table = load_table(path, source.split)
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(table, start=1))
        return
    for file in training_files(path, TABLES):
        yield from read_rows(file)


def pinned(source: Source) -> Source:
    """Return a source of the hub with the commit that it has now, so that all reads of a run see the same rows."""
    commit = dataset_commit(str(source.id), source.revision)
    return source if commit is None else source.model_copy(update={"revision": commit})


def renamed(row: Mapping[str, Any], columns: Mapping[str, str | None], place: str) -> dict[str, Any]:
    """Return a row with our names of its columns: our name -> theirs; None leaves a column of our name out.

    Raises InvalidInput if a column is missing.
    """
    theirs = {name for name in columns.values() if name}
    if missing := sorted(theirs - row.keys()):
        raise InvalidInput(f"{place}: there is no {missing[0]}, which `columns` names; there are {', '.join(row)}")
    rest = {name: value for name, value in row.items() if name not in theirs and name not in columns}
    return rest | {ours: row[name] for ours, name in columns.items() if name}
